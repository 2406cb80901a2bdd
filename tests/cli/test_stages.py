"""One stage after the other by its own command, on a few small texts: files, tables, JSON, resuming."""

import inspect
import io
import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from parlance.cli.inputs import parse_count
from parlance.cli.main import main
from parlance.cli.stage_folder import StageFolder
from parlance.core.errors import UserError
from parlance.text.tokenizers import train_tokenizer

SMALL = [
    "--steps",
    "2",
    "--tokenizer",
    "bpe:300",
    "--set",
    "layers=1",
    "--set",
    "width=64",
    "--set",
    "context_length=64",
]
SMALL += ["--set", "pilot_share=0", "--set", "validation_tokens=256"]


def ok(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a command that must succeed; returns its standard output."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def result(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The JSON object, which must be the last line (and with --json is the only one)."""
    return dict(json.loads(ok(capsys, *words, "--json")))


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Standard input that is no terminal."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and every model."""
    home = tmp_path_factory.mktemp("made")
    (home / "texts").mkdir()
    for number, module in enumerate((inspect, json, logging, textwrap)):
        (home / "texts" / f"{number}.py").write_text(inspect.getsource(module))
    turns = [(f"def f{number}(x):\n    return x", f"Return x, number {number}.") for number in range(8)]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in turns]
    (home / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": prompt, "chosen": answer, "rejected": "No."} for prompt, answer in turns]
    (home / "ranks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "shortest.py").write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    commands: list[list[str | Path]] = [
        ["corpus", "prepare", home / "texts", "--out", home / "corpus"],
        ["pretrain", home / "corpus", *SMALL, "--out", home / "base"],
        ["finetune", home / "base", home / "answers.jsonl", "--steps", "2", "--out", home / "sft"],
        ["reward", home / "sft", home / "ranks.jsonl", "--steps", "2", "--out", home / "reward"],
    ]
    for command in commands:
        assert main([str(word) for word in command]) == 0
    return home


def test_corpus_prepare_and_inspect_show_the_card(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ok(capsys, "corpus", "inspect", made / "corpus")
    card = result(capsys, "corpus", "inspect", made / "corpus")
    assert card["steps"][0]["documents"] == 4
    assert "near duplicate" in shown
    assert f"folder: {made / 'corpus'}" in shown


def test_tokenizer_train_and_show(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = result(capsys, "tokenizer", "train", made / "corpus", "--vocab-size", "300", "--out", tmp_path / "t")
    assert facts["vocab_size"] == 300
    tokens = result(capsys, "tokenizer", "show", tmp_path / "t", "def f():")
    assert "".join(token["text"] for token in tokens["tokens"]) == "def f():"
    lines = ok(capsys, "tokenizer", "show", tmp_path / "t", "é\x1b").splitlines()
    assert [line.split()[-1] for line in lines] == [r"'\xc3'", r"'\xa9'", r"'\x1b'"]


@pytest.mark.parametrize(("folder", "stage"), [("base", "pretrain"), ("sft", "sft"), ("reward", "reward")])
def test_what_a_stage_leaves(made: Path, folder: str, stage: str) -> None:
    names = {path.name for path in (made / folder).iterdir()}
    assert names >= {
        "command.json",
        "stage.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "metrics.jsonl",
    }
    assert "training" not in names, "resume states are gone"
    assert json.loads((made / folder / "stage.json").read_text())["stage"] == stage


def test_align_with_a_reward_model_and_with_a_function(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    for number, reward in enumerate(("reward", "shortest:short")):
        words = ["align", "sft", "answers.jsonl", "--reward", reward, "--steps", "1", "--set", "ppo.max_tokens=4"]
        record = result(capsys, *words, "--out", tmp_path / str(number))
        assert (record["stage"], record["facts"]["updates"]) == ("ppo", 1)
    assert main([*words[:3], "--reward", "shortest:long", "--steps", "1", "--out", str(tmp_path / "x")]) == 2
    assert "has no function long" in capsys.readouterr().err


def test_generate_is_repeatable_and_writes_the_continuation_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", made / "base", "def ", "--max-tokens", "9", "--seed", "3"]
    text = ok(capsys, *words)
    assert result(capsys, *words)["text"] + "\n" == text == ok(capsys, *words)
    assert ok(capsys, *words[:-1], "4") != text
    piped(monkeypatch, b"def ")
    assert ok(capsys, "generate", made / "base", "-", *words[3:]) == text


def test_score_agrees_with_the_ngram_contract(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made / "texts" / "3.py"
    ngram = ["pretrain", made / "corpus", "--model", "ngram", "--order", "3", "--tokenizer", "bpe:300"]
    assert "Order" in ok(capsys, *ngram, "--out", tmp_path / "ngram")
    scores = [result(capsys, "score", folder, file) for folder in (made / "base", tmp_path / "ngram")]
    for score in scores:
        assert score["bytes"] == len(file.read_bytes())
        assert score["bits_per_byte"] == pytest.approx(score["nats"] / score["bytes"] / 0.6931471805599453)
    assert scores[0]["tokens"] == scores[1]["tokens"], "the same corpus gives the same tokenizer"
    assert scores[1]["bits_per_byte"] < scores[0]["bits_per_byte"] < 9, "two steps teach less than counting"


def test_chat_answers_a_pipe_once(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", str(made / "sft"), "--max-tokens", "5"]
    piped(monkeypatch, b"def f(x):\n    return x  # \xff\n")
    answer = ok(capsys, *words)
    assert answer.endswith("\n")
    assert "Ctrl-C" not in answer, "no word of explanation in a pipe"
    piped(monkeypatch, b" \n")
    assert main(words) == 2
    assert "no text on standard input" in capsys.readouterr().err


def test_a_finished_stage_is_not_repeated_and_not_overwritten(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (made / "base" / "model.safetensors").stat()
    words = ["pretrain", str(made / "corpus"), *SMALL, "--out", str(made / "base")]
    record = result(capsys, *words, "--resume")
    assert record == json.loads((made / "base" / "stage.json").read_text())
    assert main(words) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main([*words, "--resume", "--seed", "1"]) == 2
    assert "begun with another seed" in capsys.readouterr().err
    assert (made / "base" / "model.safetensors").stat() == weights


def test_a_budget_in_tokens_and_a_loss_to_reach(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", made / "corpus", *SMALL[2:], "--set", "tensorboard=true", "--set", "sample_tokens=4"]
    words += ["--set", "compile=false"]  # with an hour it would be worth it
    facts = result(capsys, *words, "--tokens", "2k", "--out", tmp_path / "tokens")["facts"]
    assert (facts["steps"], facts["tokens"], facts["skipped_steps"]) == (4, 4 * 8 * 64, 0)
    assert "target" not in facts
    samples = [json.loads(line) for line in (tmp_path / "tokens" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 2, 3, 4]
    assert all(sample["text"] for sample in samples)
    assert list((tmp_path / "tokens" / "tensorboard").iterdir())
    facts = result(capsys, *words, "--tokens", "2k", "--until-loss", "20", "--out", tmp_path / "loss")["facts"]
    assert facts["target"]["reached"]
    assert facts["steps"] == 1
    facts = result(capsys, *words, "--until-loss", "20", "--out", tmp_path / "alone")["facts"]
    assert facts["steps"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tokens", "many"], "--tokens many: write a number above zero, like 5000, 20k, 1.5m or 10b"),
        (["--tokens", "0"], "--tokens 0: write a number above zero"),
        (["--tokens", "1e30"], "--tokens 1e30: write a number up to 10^18"),
        (["--steps", "9" * 23], "invalid value for '--steps': Input should be less than or equal to 10"),
        (["--tokens", "2k", "--steps", "1"], "give --budget TIME (like 3m) or --steps N, one of the two"),
        ([], "give --budget TIME (like 3m) or --steps N, one of the two"),
        (["--steps", "1", "--set", "training.precision=fp16"], "precision fp16 is for CUDA devices"),
        (["--steps", "1", "--model", "ngram"], "takes no --budget and no --steps"),
    ],
)
def test_budgets_and_precisions_that_cannot_be(
    options: list[str], told: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", str(made / "corpus"), *options, "--out", str(tmp_path / "out")]
    if "ngram" not in options:
        words += SMALL[2:]
    assert main([*words, "--device", "cpu"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("length", "split"), [(10**6, "training"), (150_000, "validation")])
def test_a_context_longer_than_a_split_is_refused_before_it_is_encoded(
    length: int, split: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", str(made / "corpus"), "--steps", "1", *SMALL[2:], "--set", f"context_length={length}"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"the {split} split of " in told
    assert f"less than one context of {length} tokens; bring more text" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("5000", 5000), ("20k", 20_000), ("1.5m", 1_500_000), ("10b", 10**10), ("2T", 2 * 10**12)]
)
def test_counts(text: str, value: int) -> None:
    assert parse_count("--tokens", text) == value


def test_tokens_of_another_tokenizer_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same size and another vocabulary: found by its fingerprint."""
    out = tmp_path / "base"
    words = ["pretrain", str(made / "corpus"), *SMALL, "--out", str(out)]
    ok(capsys, *words)
    (out / "stage.json").unlink()  # as if it had been stopped just before its end
    train_tokenizer(["another text, of which other tokens are made " * 20], "bpe", 300).save(out / "tokenizer")
    assert main([*words, "--resume"]) == 2
    assert "was made with another tokenizer: encode the corpus with the one" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["finetune", "reward"])
def test_wrong_data_leaves_the_folder_free_for_the_next_try(
    command: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "completion": "y", "chosen": "y", "rejected": "z"}\n{}\n')
    words = [command, str(made / "sft"), str(tmp_path / "bad.jsonl"), "--steps", "1", "--out", str(tmp_path / "out")]
    for more, sentence in (([], "bad.jsonl, line 2: no "), (["--skip-bad"], "at least 3")):
        assert main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    data = made / ("answers.jsonl" if command == "finetune" else "ranks.jsonl")
    ok(capsys, *words[:2], data, *words[3:])


def test_a_full_disk_keeps_the_folder(tmp_path: Path) -> None:
    def fill() -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise UserError("cannot write out: no space left on device") from error

    with pytest.raises(UserError, match="no space"), StageFolder(tmp_path / "out", "sft", {}, resume=False):
        fill()
    assert (tmp_path / "out" / "command.json").exists()


def fail_after_training(path: Path) -> None:
    (path / "training").mkdir()
    raise UserError("late mistake")


def test_a_stage_folder_keeps_what_was_trained(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(UserError, match="late mistake"), StageFolder(path, "sft", {"seed": 1}, resume=False):
        fail_after_training(path)
    assert (path / "command.json").exists()
    with pytest.raises(UserError, match="unfinished stage; pass --resume"):
        StageFolder(path, "sft", {"seed": 1}, resume=False).__enter__()
    with pytest.raises(UserError, match="holds a stage sft"):
        StageFolder(path, "reward", {"seed": 1}, resume=True).__enter__()
    with StageFolder(path, "sft", {"seed": 1}, resume=True) as folder:
        assert folder.finished is None
        folder.finish({"steps": 3})
    with StageFolder(path, "sft", {"seed": 1}, resume=True) as folder:
        assert folder.finished is not None
        assert folder.finished["facts"] == {"steps": 3}
    assert not (path / "training").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("command.json", "{}"), ("command.json", "[]"), ("command.json", '{"stage": "sft"}'), ("stage.json", "{}")],
)
def test_a_damaged_record_of_a_stage_is_named(tmp_path: Path, name: str, content: str) -> None:
    with StageFolder(tmp_path, "sft", {}, resume=False) as folder:
        folder.finish({})
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        StageFolder(tmp_path, "sft", {}, resume=True).__enter__()


HOLDER = """
import sys, time
from pathlib import Path
from parlance.cli.stage_folder import StageFolder
with StageFolder(Path(sys.argv[1]), "sft", {}, resume=False):
    print("in", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    """Another process, which is killed in the end: that frees the folder."""
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match=r"another process is at work in .*out"):
            StageFolder(out, "sft", {}, resume=True).__enter__()
        with pytest.raises(UserError, match="unfinished stage"):
            StageFolder(out, "sft", {}, resume=False).__enter__()
    finally:
        process.kill()
        process.communicate()
    with StageFolder(out, "sft", {}, resume=True) as folder:
        with pytest.raises(UserError, match="another process is at work"):
            StageFolder(out, "sft", {}, resume=True).__enter__()
        folder.finish({})
    assert {path.name for path in out.iterdir()} == {"command.json", "stage.json"}


def test_a_folder_of_a_process_that_was_killed_as_it_began_is_free(tmp_path: Path) -> None:
    for name in ("stage.lock", "command.json.partial"):
        (tmp_path / name).touch()
    with StageFolder(tmp_path, "sft", {}, resume=False):
        pass
    assert (tmp_path / "command.json").exists()


def test_an_interrupted_stage_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StageFolder(tmp_path / "out", "sft", {}, resume=False):
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "command.json").exists()


# --- other forms, other models ---------------------------------------------------------------------------------------


def test_a_converted_checkpoint_scores_the_same(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.py"
    file.write_text(inspect.getsource(textwrap.dedent))
    facts = result(capsys, "convert", made / "base", tmp_path / "half", "--dtype", "bfloat16", "--shard-size", "0.0001")
    assert facts["dtype"] == "bfloat16"
    assert "model.safetensors.index.json" in facts["files"]
    before, after = (result(capsys, "score", folder, file) for folder in (made / "base", tmp_path / "half"))
    assert after["tokens"] == before["tokens"]
    assert after["bits_per_byte"] == pytest.approx(before["bits_per_byte"], rel=0.01)
    assert main(["convert", str(made / "base"), str(tmp_path / "half")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main(["convert", str(made / "base"), str(tmp_path / "opt"), "--family", "opt"]) == 2
    assert "cannot be written as opt" in capsys.readouterr().err
    assert not (tmp_path / "opt").exists()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("recurrent", ["--set", "model.cell=gru"]), ("convolutional", []), ("transformer", ["--set", "model.experts=2"])],
)
def test_other_networks_train_generate_and_score(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, parts: list[str]
) -> None:
    words = ["pretrain", made / "corpus", "--model", kind, *SMALL, *parts, "--out", tmp_path / "model"]
    assert result(capsys, *words)["facts"]["parameters"] > 0
    assert ok(capsys, "generate", tmp_path / "model", "def f(", "--max-tokens", "5")
    file = tmp_path / "text.py"
    file.write_text("import os\n")
    assert 0 < result(capsys, "score", tmp_path / "model", file)["bits_per_byte"] < 20


def test_a_model_file_describes_a_network(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.yaml"
    file.write_text("kind: transformer\nlayers: 1\nwidth: 64\ncontext_length: 32\npositions: alibi\nqk_norm: false\n")
    few = ["--steps", "1", "--tokenizer", "byte", "--set", "pilot_share=0", "--set", "validation_tokens=64"]
    ok(capsys, "pretrain", made / "corpus", "--model", file, *few, "--out", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["positions"] == "alibi"
    for text, message in (
        ("kind: mamba\n", "kind 'mamba' is not one of transformer, recurrent"),
        ("- a\n", "is not a mapping of fields to values"),
        (
            "kind: recurrent\nlayers: 1\nwidth: 64\ncell: rnn\n",
            "cell: input should be 'elman', 'gru', 'lstm' or 'mlstm'",
        ),
        ("layers: 1\nwidth: 64\nlayrs: 2\n", "the transformer model has no field layrs; its fields: activation, "),
    ):
        file.write_text(text)
        assert main(["pretrain", str(made / "corpus"), "--model", str(file), *few, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_the_ladder_is_a_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budget", "0.3s", "--set", "networks=[feed-forward]", "--set", "orders=[2]", "--set", "points=1"]
    options += ["--set", "context_length=32"]
    words = ["bench", "ladder", made / "corpus", *options, "--out", tmp_path / "ladder"]
    table = ok(capsys, *words)
    assert "2-gram" in table
    assert "feed-forward" in table
    assert (tmp_path / "ladder" / "ladder.svg").exists()
    assert [row["name"] for row in result(capsys, *words, "--resume")["models"]] == ["2-gram", "feed-forward"]
