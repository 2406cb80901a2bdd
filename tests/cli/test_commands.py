"""The commands as a user types them: help, exit codes, one-sentence errors, nothing heavy at start-up."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import parlance
from parlance.cli import inputs
from parlance.cli.main import app, main
from parlance.core.errors import Interrupted, UserError
from parlance.pipeline import run as pipeline

ROOT = typer.main.get_command(app)


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command that is no group, with the words that name it."""
    children = getattr(command, "commands", None)
    if not children:
        return [(path, command)]
    return [leaf for name, child in children.items() for leaf in leaves(child, (*path, name))]


COMMANDS = dict(leaves(ROOT))


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 2) -> str:
    """Run a command that must fail, with one line on standard error and nothing on standard output."""
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    sentences = [line for line in err.splitlines() if line.startswith("parlance: ")]
    assert err.splitlines()[-1:] == sentences, "one, at the end"
    assert "Traceback" not in err
    return sentences[0]


@pytest.mark.parametrize("module", ["parlance", "parlance.cli.main"])
def test_start_up_imports_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'yaml', 'numba', 'pyarrow', 'tokenizers', 'matplotlib', 'jinja2'}"
    assert python(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_idle_threads_sleep_unless_the_user_says_otherwise() -> None:
    code = (
        "import os; {}; from parlance.cli.main import main; main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    )
    assert python(code.format("os.environ.pop('OMP_WAIT_POLICY', None)")).split()[-1] == "PASSIVE"
    assert python(code.format("os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'")).split()[-1] == "ACTIVE"


def test_public_names_are_there_and_no_others() -> None:
    for name in parlance.__all__:
        assert getattr(parlance, name).__module__.startswith("parlance.")
    assert set(parlance.__all__) < set(dir(parlance))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = parlance.nonsense


def test_no_words_mean_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    places = [
        bare.index(f"│ {name} ") for name in ("run", "corpus", "tokenizer", "pretrain", "align", "generate", "chat")
    ]
    assert places == sorted(places), "in the order of the work"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == parlance.__version__
    assert f'version = "{parlance.__version__}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_every_command(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    command = COMMANDS[path]
    assert f"Example: parlance {' '.join(path)} " in command.help
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} is explained"
        assert (parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]) in out, "and shown"


ERRORS = [
    (("bogus",), "no such command 'bogus'"),
    (("run",), "missing option '--out'"),
    (("run", "--out", "{new}", "--bogus"), "no such option: --bogus"),
    (("run", "absent", "--out", "{new}"), "absent does not exist"),
    (("run", "picture.png", "--out", "{new}"), "picture.png: cannot read files of this kind"),
    (("run", "--budget", "8x", "--out", "{new}"), "'8x' is not a duration"),
    (("run", "--budget", "1m", "--steps", "pretrain=1", "--out", "{new}"), "--budget or --steps"),
    (("run", "--steps", "pretrain=0", "--out", "{new}"), "write it like pretrain=20"),
    (("run", "{text}", "--steps", "pretrain=1,pretrain=2", "--out", "{new}"), "write it like pretrain=20"),
    (("run", "--steps", "pretrain=20", "--out", "{new}"), "this run needs steps for sft, reward, ppo too"),
    (("run", "--set", "pretraining.layer=3", "--out", "{new}"), "there is no field pretraining.layer"),
    (("run", "--set", "seed=x", "--out", "{new}"), "--set: seed"),
    (("run", "--set", "seed", "--out", "{new}"), "write it as key=value"),
    (("run", "--device", "tpu", "--out", "{new}"), "'--device'"),
    (("run", "--preferences", "{ranks}", "--out", "{new}"), "go with your own text"),
    (("run", "{text}", "--preferences", "{ranks}", "--out", "{new}"), "ranks.jsonl, line 2: the best rank is 2"),
    (("run", "{text}", "--demonstrations", "{ranks}", "--out", "{new}"), "ranks.jsonl, line 1: no demonstration"),
    (("run", "{text}", "--demonstrations", "absent.jsonl", "--out", "{new}"), "cannot read absent.jsonl"),
    (("run", "--recipe", "absent.yaml", "--out", "{new}"), "absent.yaml cannot be read"),
    (("run", "--recipe", "{broken}", "--out", "{new}"), "broken.yaml cannot be read as a recipe: "),
    (("run", "--out", "{run}"), "already holds a run; pass --resume"),
    (("run", "--out", "{full}"), "is not an empty folder"),
    (("run", "--resume", "--out", "{full}"), "holds no run to resume"),
    (("run", "--seed", "5", "--resume", "--out", "{run}"), "started with another seed"),
    (("corpus", "bogus"), "no such command 'bogus'"),
    (("corpus", "prepare", "absent", "--out", "{new}"), "absent does not exist"),
    (("corpus", "prepare", "{text}", "--out", "{full}"), "is not an empty folder"),
    (("corpus", "prepare", "{text}", "--set", "test_share=2", "--out", "{new}"), "--set: test_share"),
    (("corpus", "inspect", "{full}"), "card.json"),
    (("tokenizer", "train", "{full}", "--out", "{new}"), "has no train split"),
    (("tokenizer", "show", "{full}", "x"), "tokenizer.json"),
    (("pretrain", "{full}", "--out", "{new}"), "give --budget TIME"),
    (("pretrain", "{full}", "--budget", "1s", "--out", "{new}"), "has no train split"),
    (("pretrain", "{full}", "--budget", "1s", "--tokenizer", "bpe:x", "--out", "{new}"), "--tokenizer bpe:x"),
    (("pretrain", "{full}", "--steps", "1", "--order", "3", "--out", "{new}"), "--order belongs to --model ngram"),
    (("pretrain", "{full}", "--model", "ngram", "--steps", "1", "--out", "{new}"), "takes no --budget"),
    (("pretrain", "{full}", "--budget", "1s", "--resume", "--out", "{new}"), "nothing to resume"),
    (("pretrain", "{full}", "--steps", "1", "--out", "{new}"), "set the model's layers and width"),
    (("finetune", "absent", "{ranks}", "--steps", "1", "--out", "{new}"), "absent holds no model"),
    (("score", "absent", "{text}"), "absent holds no model"),
    (("score", "{full}", "absent.txt"), "cannot read absent.txt"),
    (("generate", "{full}", "x"), "holds no model"),
    (("chat", "{full}"), "holds no model"),
]


@pytest.mark.parametrize(("words", "sentence"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_errors_are_one_sentence_and_exit_2(
    words: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    (tmp_path / "picture.png").touch()
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: 2\n")
    (tmp_path / "text.txt").write_text("some text\n" * 20)
    lines = [{"prompt": "a", "responses": ["x", "y"], "ranking": ranks} for ranks in ([1, 2], [2, 3])]
    (tmp_path / "ranks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(pipeline._Runner, "stage", _stop)
    if "{run}" in words:
        assert main(["run", "--out", "run"]) == 130
        capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = {
        "new": "new",
        "full": "full",
        "text": "text.txt",
        "ranks": "ranks.jsonl",
        "run": "run",
        "broken": "broken.yaml",
    }
    assert sentence in fails(capsys, *(word.format(**names) for word in words))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, "nothing is touched"


def _stop(_: object, name: str) -> None:
    raise Interrupted(f"{name} stopped at step 3; its state is saved")


@pytest.mark.parametrize("error", [Interrupted("sft stopped at step 3; its state is saved"), KeyboardInterrupt()])
def test_an_interruption_says_how_to_go_on(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_run(monkeypatch, error)
    message = fails(capsys, "run", "--seed", "3", "--out", tmp_path / "my run", code=130)
    assert message.startswith(f"parlance: {str(error) or 'stopped'}; go on with: ")
    assert message.endswith(f" run --out '{tmp_path / 'my run'}' --resume"), "the path is quoted for the shell"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "Denied", "x")]
)
def test_a_full_disk_or_a_locked_folder_is_no_bug(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_run(monkeypatch, error)
    message = fails(capsys, "run", "--out", tmp_path / "new")
    assert message in ("parlance: error: no space left on device", "parlance: error: x: denied")


def test_anything_else_is_a_bug_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_run(monkeypatch, ZeroDivisionError("two\nlines"))
    words = ["run", "--out", str(tmp_path / "new")]
    message = fails(capsys, *words, code=1)
    assert message.startswith("parlance: error: ZeroDivisionError: two lines; this is a bug; run again with --debug")
    assert main([*words, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def raise_in_run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_pipeline(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    from parlance.text.tokenizers import train_tokenizer

    train_tokenizer((), "byte").save(tmp_path)
    command = [sys.executable, "-m", "parlance", "tokenizer", "show", str(tmp_path), "-"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin and process.stdout and process.stderr  # noqa: PT018
        process.stdout.close()
        process.stdin.write(b"some text " * 10_000)
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def recipe(**options: Any) -> Any:
    nothing: dict[str, Any] = dict.fromkeys(("demonstrations", "preferences", "recipe_file", "budget", "steps"))
    nothing |= {"sources": [], "seed": None, "device": None, "skip_bad": False, "assignments": []}
    return inputs.recipe_of(**(nothing | options))


def test_recipes_from_options(tmp_path: Path) -> None:
    assert recipe() is None, "so that `--resume --out DIR` takes the stored one"
    chosen = recipe(budget="1h30m", seed=4, assignments=["pretraining.layers=3", "pretraining.width=64"])
    assert (chosen.budget_seconds, chosen.seed, chosen.pretraining.layers) == (5400, 4, 3)
    assert chosen.default_task
    own = recipe(sources=["a.txt"], steps="pretrain=7", assignments=["pretraining.layers=3", "pretraining.width=64"])
    assert (own.name, own.budget_seconds, own.steps.pretrain, own.steps.ppo) == ("own-text", None, 7, 0)
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 9\nbudget_seconds: 60\n")
    assert (recipe(recipe_file=file).seed, recipe(recipe_file=file, seed=1).seed) == (9, 1)
    assert recipe(recipe_file=file).budget_seconds == 60


def test_a_missing_step_count_is_named_only_where_the_run_has_the_stage() -> None:
    with pytest.raises(UserError, match="needs steps for reward too"):
        recipe(sources=["a.txt"], preferences=Path("p.jsonl"), steps="pretrain=1,sft=1,ppo=1")


@pytest.mark.parametrize(
    ("option", "value"),
    [("top-p", "0"), ("top-p", "2"), ("temperature", "1e-40"), ("temperature", "nan"), ("seed", str(2**70))],
)
def test_settings_of_sampling_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, value: str
) -> None:
    said = fails(capsys, "generate", tmp_path, "x", f"--{option}", value)
    assert option in said.replace("_", "-")


def test_a_corpus_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--steps", "1", "--out", tmp_path / "out"]
    said = fails(capsys, "pretrain", tmp_path / "nothing", *words)
    assert f"there is no folder {tmp_path / 'nothing'}; make a corpus with" in said
    assert not (tmp_path / "out").exists()
