"""What the tests of whole runs share: one finished run of the default recipe, and a small corpus of own texts."""

import ast
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DEFAULT_RUN, OwnTexts, parlance, two_cores

MODULES = (
    *("argparse", "ast", "bisect", "calendar", "cmd", "colorsys", "configparser", "contextlib", "copy", "csv"),
    *("dataclasses", "difflib", "dis", "fnmatch", "fractions", "functools", "getopt", "glob", "heapq", "inspect"),
)


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnTexts:
    """Some modules of the interpreter as if they were a user's texts; their functions' docstrings as demonstrations
    and, against the same words in reverse, as preferences."""
    folder = tmp_path_factory.mktemp("own")
    library, texts = Path(sysconfig.get_path("stdlib")), folder / "texts"
    texts.mkdir()
    demonstrations, preferences = [], []
    for module in MODULES:
        shutil.copy(library / f"{module}.py", texts)
        source = (texts / f"{module}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                prompt, answer = f"def {node.name}({ast.unparse(node.args)}):"[:200], docstring.splitlines()[0][:100]
                demonstrations.append({"prompt": prompt, "completion": answer})
                worse = " ".join(reversed(answer.split())) + " and"
                preferences.append({"prompt": prompt, "chosen": answer, "rejected": worse})
    files = [folder / "demonstrations.jsonl", folder / "preferences.jsonl"]
    for file, rows in zip(files, (demonstrations, preferences), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[:100]))
    return OwnTexts(texts, *files)


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default recipe that nobody interrupted."""
    out = tmp_path_factory.mktemp("default") / "run"
    done = parlance(*DEFAULT_RUN, "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="session")
def aligned_run(own: OwnTexts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of own texts with demonstrations and preferences."""
    out = tmp_path_factory.mktemp("aligned") / "run"
    done = parlance(*own.aligned_run(), "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(autouse=True)
def _as_many_threads_as_the_processes() -> Iterator[None]:
    """A command inside this process computes with as many threads as one outside; other tests do not notice."""
    import torch

    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0) if sys.platform == "linux" else None
    two_cores()
    yield
    torch.set_num_threads(threads)
    if cores is not None:
        os.sched_setaffinity(0, cores)
