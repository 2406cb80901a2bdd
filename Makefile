# make run     make a language model from this machine's Python library: about ten minutes on two cores
# make test    run the whole test suite
# make check   style, types, floors
# make setup   the environment alone, developer tools included
#
# PYTHON=python3.12 chooses the interpreter, VENV=/path the environment, RUN_ARGS="--seed 1" goes to `parlance run`.

PYTHON ?= python3
VENV ?= .venv
RUN_ARGS ?=

BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
DEMO := runs/demo

.PHONY: setup run check test

setup: $(DEVELOPMENT)

# The environment with what `parlance` itself needs. Made once, and again when the dependencies change.
$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Parlance needs Python 3.11 or later; name one with: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "setup: environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup: PyTorch (a large download the first time)"
	@$(PIP) 'torch==2.13.*'
	@echo "setup: Parlance and the other libraries"
	@$(PIP) -e .
	@touch $@

# The developer tools on top of it.
$(DEVELOPMENT): $(RUNTIME)
	@echo "setup: developer tools"
	@$(PIP) -e '.[dev]'
	@touch $@

run: $(RUNTIME)
	@if [ -e $(DEMO)/summary.json ]; then \
		echo "$(DEMO) holds a finished run: open $(DEMO)/report.html, or talk to it with $(BIN)/parlance chat $(DEMO)"; \
		echo "(for a new run, remove or rename the folder first)"; \
	elif [ -e $(DEMO)/recipe.yaml ]; then \
		$(BIN)/parlance run $(if $(RUN_ARGS),--budget 8m) --out $(DEMO) $(RUN_ARGS) --resume; \
	else \
		$(BIN)/parlance run --budget 8m --out $(DEMO) $(RUN_ARGS); \
	fi

check: $(DEVELOPMENT)
	@echo "check: ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo "check: mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "check: floors"
	@$(BIN)/lint-imports --no-logo >$(VENV)/.lint-imports.log || { cat $(VENV)/.lint-imports.log; exit 1; }

# Two processes; the tests of a file share what they make.
test: $(DEVELOPMENT)
	@$(BIN)/pytest --numprocesses 2 --dist loadfile
