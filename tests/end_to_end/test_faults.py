"""Bad input, bad options and bad disks: one clear sentence, exit code 2, nothing destroyed."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import PATIENCE, SMALL, OwnTexts, parlance, started

from parlance.cli.main import main
from parlance.training.checkpointing import TrainingStates

FEW_STEPS = "--steps=pretrain=2,sft=2,reward=2,ppo=1"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, and every folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one sentence of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("parlance: ")]
    assert err.splitlines()[-1] == sentence
    return sentence


def lines(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def preferences(path: Path, row: str) -> Path:
    """Ten good rankings with a row in the middle."""
    good = [json.dumps({"prompt": f"p{number}", "chosen": "good answer", "rejected": "bad"}) for number in range(10)]
    return lines(path, [*good[:5], row, *good[5:]])


# --- text ------------------------------------------------------------------------------------------------------------


def words_file(path: Path, words: int) -> Path:
    path.write_text(" ".join(f"word{number}" for number in range(words)))
    return path


Files = Callable[[Path], list[str | Path]]


def missing(folder: Path) -> list[str | Path]:
    return [folder / "no such folder"]


def empty_folder(folder: Path) -> list[str | Path]:
    (folder / "empty").mkdir()
    return [folder / "empty"]


def no_text(folder: Path) -> list[str | Path]:
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return [folder / "picture.png"]


def blank(folder: Path) -> list[str | Path]:
    return [lines(folder / "blank.txt", ["", "  "])]


def less_than_a_context(folder: Path) -> list[str | Path]:
    return [words_file(folder / "short.txt", 200)]


def binary(folder: Path) -> list[str | Path]:
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 100)
    return [folder / "binary.txt"]


def broken_json(folder: Path) -> list[str | Path]:
    return [lines(folder / "texts.jsonl", ['{"text": "fine, quite fine, really"}', '{"text": "cut of'])]


def no_text_field(folder: Path) -> list[str | Path]:
    return [lines(folder / "texts.jsonl", ['{"body": "where is the text?"}'])]


def no_parquet(folder: Path) -> list[str | Path]:
    return [lines(folder / "rows.parquet", ["PAR?"])]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (missing, "no such folder does not exist; check the path"),
        (empty_folder, "the corpus has no documents"),
        (no_text, "cannot read files of this kind; the kinds are .txt, .md"),
        (blank, "left nothing of the corpus's 1 documents (1 too short)"),
        (less_than_a_context, "less than one context of 256 tokens; bring more text or set a smaller context_length"),
        (binary, "binary.txt: holds binary data (NUL bytes)"),
        (broken_json, "texts.jsonl, line 2: not valid JSON"),
        (no_text_field, "texts.jsonl, line 1: there is no string in the field `text`"),
        (no_parquet, "rows.parquet: is not a readable Parquet file"),
    ],
)
def test_texts_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, files: Files, sentence: str
) -> None:
    sources = files(tmp_path)
    before = snapshot(tmp_path)
    assert sentence in refused(capsys, "run", *sources, FEW_STEPS, *SMALL, "--out", tmp_path / "new" / "run")
    # Not even the run is left, so that the corrected command can be given at once.
    assert snapshot(tmp_path) in (before, before | {"new": b""})


def test_texts_of_all_sorts_are_read_and_what_is_wrong_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "latin-1.txt").write_bytes(
        "\n".join(f"Grüße an Zeile {n}, schöne Welt" for n in range(500)).encode("latin-1")
    )
    lines(folder / "records.jsonl", ['{"text": "one good record of words"}', "{broken", '{"text": 5}', "[]"])
    tiny = folder / "many"
    tiny.mkdir()
    for number in range(20_000):
        (tiny / f"{number:05d}.txt").write_text(f"note {number}: {number * 7919} {number * 104729}")
    words = ["run", folder, "--steps=pretrain=2", *SMALL, "--set=corpus.near_duplicates=false"]
    done = parlance(*words, "--skip-bad", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((tmp_path / "run" / "corpus" / "card.json").read_text())
    assert list(card["reading"]["encodings"].values()) == [1]
    assert card["reading"]["replaced"] == 0
    kept = (tmp_path / "run" / "corpus" / "train.jsonl").read_text()
    assert "Grüße an Zeile 7, schöne Welt" in kept
    assert card["reading"]["skipped"] == {"broken record": 3}
    assert card["steps"][0]["documents"] == 20_002


# --- demonstrations and preferences ----------------------------------------------------------------------------------

DEMONSTRATION = '{"prompt": "question %d", "completion": "answer"}'


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([DEMONSTRATION % 1, "{cut"], "line 2: not a JSON object"),
        (["[" * 100_000], "line 1: not a JSON object"),
        (['{"prompt": 1, "completion": "a"}'], "line 1: `prompt` is not a string"),
        (['{"messages": [{"role": "user", "content": "hi"}]}'], "line 1: the last message is not the assistant's"),
        ([], "has no usable demonstrations"),
        ([DEMONSTRATION % 1] * 2, "gives 2 demonstrations; give at least 3"),
        (
            [json.dumps({"prompt": f"{number} " + "many words " * 500, "completion": "a"}) for number in range(5)],
            "training demonstrations fits the context of 128 tokens; shorten them or set a larger",
        ),
    ],
)
def test_demonstrations_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], own: OwnTexts, tmp_path: Path, rows: list[str], sentence: str
) -> None:
    file = lines(tmp_path / "demonstrations.jsonl", rows)
    before = snapshot(tmp_path)
    said = refused(capsys, *own.run(), "--demonstrations", file, "--out", tmp_path / "run")
    assert sentence in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"prompt": "p", "responses": ["a", "b"], "ranking": [1]}', "line 6: the ranking has 1 ranks for 2 responses"),
        ('{"prompt": "p", "responses": ["a", "b"], "ranking": [0, 1]}', "line 6: the best rank is 0; it must be 1"),
        ('{"prompt": "p", "responses": ["a", "b"], "ranking": [[0], [0]]}', "line 6: `ranking` names response 0 twice"),
        ('{"prompt": "p", "responses": ["a", "b"], "ranking": "a>b"}', "line 6: `ranking` is not a list"),
        ('{"prompt": "p", "responses": ["a"], "ranking": [1]}', "line 6: a ranking needs at least two responses"),
        ('{"prompt": "p", "chosen": "a"}', "line 6: no ranking here"),
        ("{cut", "line 6: not a JSON object"),
    ],
)
def test_a_malformed_ranking(
    capsys: pytest.CaptureFixture[str], own: OwnTexts, tmp_path: Path, row: str, sentence: str
) -> None:
    file = preferences(tmp_path / "preferences.jsonl", row)
    before = snapshot(tmp_path)
    assert sentence in refused(capsys, *own.run(), "--preferences", file, "--out", tmp_path / "run")
    assert snapshot(tmp_path) == before


def test_rankings_without_any_preference(capsys: pytest.CaptureFixture[str], own: OwnTexts, tmp_path: Path) -> None:
    tie = '{"prompt": "p%d", "responses": ["a", "b"], "ranking": [1, 1]}'
    file = lines(tmp_path / "preferences.jsonl", [tie % number for number in range(9)])
    said = refused(capsys, *own.run(), "--preferences", file, "--out", tmp_path / "run")
    assert "prefers one response to another for 0 prompts" in said
    assert snapshot(tmp_path).keys() == {"preferences.jsonl"}


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--set=layers", "write it as key=value"),
        ("--set=layers=3", "there is no field layers; fields here: budget_seconds, checkpoint_seconds"),
        ("--set=pretraining.layers=many", "pretraining.layers: input should be a valid integer"),
        ("--set=pretraining.layers=0", "pretraining.layers: input should be greater than or equal to 1"),
        ("--set=pretraining.width=100", "pretraining: width 100 is not a multiple of 64, the width of one head"),
        ("--set=pretraining.batch_size=-1", "pretraining.batch_size: input should be greater than or equal to 1"),
        ("--set=pretraining.architecture=recurrent", "pre-train a model of the kind recurrent by itself"),
        ("--set=pretraining.model={no_such: 1}", "the transformer model has no field no_such"),
        ("--set=pretraining.parallel.shard=2", "shard 2 takes 2 processes and there is one"),
        ("--set=pretraining.training.precision=fp16", "fp16"),
        ("--set=policy.ppo.temperature=.nan", "policy.ppo.temperature: input should be a finite number"),
        ("--set=policy.ppo.max_tokens=300", "leaves no room for its prompt in a context of 256"),
        ("--set=tokenizer.vocab_size=100", "vocab_size of bpe is at least 260"),
        ("--set=ngram_order=10", "ngram_order: input should be less than or equal to 9"),
        ("--set=shares.ppo=0", "shares.ppo: input should be greater than 0"),
        ("--set=checkpoint_seconds=-1", "checkpoint_seconds: input should be greater than or equal to 0"),
        ("--set=steps.ppo=0", "the stage ppo has no steps"),
        ("--set=budget_seconds=60", "give a time budget or step budgets, one of the two"),
        ("--budget=60", "give --budget or --steps, one of the two"),
        ("--demonstrations=d.jsonl", "go with your own text: name its files or folders too"),
        ("--seed=-1", "seed"),
        ("--recipe=nowhere.yaml", "nowhere.yaml cannot be read as a recipe"),
        ("--frobnicate", "no such option: --frobnicate"),
    ],
)
def test_a_wrong_option(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, sentence: str) -> None:
    assert sentence in refused(capsys, "run", FEW_STEPS, *SMALL, option, "--out", tmp_path / "run")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        *((f"--budget={text}", "is not a duration") for text in ("", "0", "-5", "soon", "5x", "inf", "1e3", "5 s")),
        *(
            (f"--steps={text}", "write it like pretrain=20,sft=10,reward=5,ppo=2")
            for text in ("", "20", "pretrain", "pretrain=", "pretrain=0", "pretrain=-1", "pretrain=1.5", "train=1")
        ),
        ("--steps=pretrain=5,pretrain=6", "write it like pretrain=20"),
        ("--steps=pretrain=5", "this run needs steps for sft, reward, ppo too"),
    ],
)
def test_a_wrong_budget(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, sentence: str) -> None:
    assert sentence in refused(capsys, "run", option, *SMALL, "--out", tmp_path / "run")
    assert snapshot(tmp_path) == {}


def test_step_budgets_need_the_size_of_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "run", FEW_STEPS, "--out", tmp_path / "run")
    assert "--set pretraining.layers=4 --set pretraining.width=256" in said
    said = refused(capsys, "run", FEW_STEPS, "--set=pretraining.layers=4", "--out", tmp_path / "run")
    assert "set both pretraining.layers and pretraining.width, or neither" in said
    assert snapshot(tmp_path) == {}


def test_a_budget_far_too_small_still_gives_a_model(own: OwnTexts, tmp_path: Path) -> None:
    words = ["run", own.texts, f"--demonstrations={own.demonstrations}", f"--preferences={own.preferences}"]
    done = parlance(*words, "--budget=5s", "--device=cpu", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["budget_seconds"] == 5
    assert summary["model"]["layers"] == 1
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


# --- the run directory -----------------------------------------------------------------------------------------------


def test_a_folder_that_is_taken(
    capsys: pytest.CaptureFixture[str], own: OwnTexts, aligned_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    lines(tmp_path / "taken" / "thesis.txt", ["the only copy"])
    lines(tmp_path / "file", ["content"])
    before, run_before = snapshot(tmp_path), snapshot(aligned_run)
    assert "already holds a run; pass --resume to finish it" in refused(capsys, *own.run(), "--out", aligned_run)
    assert "is not an empty folder; choose another" in refused(capsys, *own.run(), "--out", tmp_path / "taken")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be a run directory: not a directory" in refused(capsys, *own.run(), "--out", path)
    assert "file name too long" in refused(capsys, *own.run(), "--out", tmp_path / ("long" * 100))
    assert snapshot(tmp_path) == before
    assert snapshot(aligned_run) == run_before


def test_resume_without_a_run_or_with_other_options(
    capsys: pytest.CaptureFixture[str], own: OwnTexts, aligned_run: Path, tmp_path: Path
) -> None:
    before = snapshot(aligned_run)
    said = refused(capsys, "run", "--resume", "--out", tmp_path / "nowhere")
    assert "holds no run to resume; leave out --resume to begin one" in said
    assert snapshot(tmp_path) == {}
    for option, field in (("--seed=1", "seed"), ("--set=ngram_order=3", "ngram_order")):
        said = refused(capsys, *own.aligned_run(), option, "--resume", "--out", aligned_run)
        assert f"was started with another {field} (" in said
        assert "; resume it with the same options, or with --out alone" in said
    assert snapshot(aligned_run) == before


def test_a_recipe_that_is_damaged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for content, sentence in (("", "holds no fields"), ("a: [", "cannot be read"), ("nothing: 1", "nothing: extra")):
        (tmp_path / "recipe.yaml").write_text(content)
        assert sentence in refused(capsys, "run", "--resume", "--out", tmp_path)


def test_one_process_at_a_time_and_ctrl_c(capsys: pytest.CaptureFixture[str], own: OwnTexts, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    endless = [*own.run(), "--steps=pretrain=1000000", "--set=pretraining.pilot_share=0"]
    with started([*endless, "--out", str(out)], log) as process:
        deadline = time.monotonic() + PATIENCE
        while not list((out / "base" / "training").glob("step-*[0-9]")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        assert "another process is working on this run" in refused(capsys, "run", "--resume", "--out", out)
        assert "already holds a run" in refused(capsys, *own.run(), "--out", out)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert f"run --out {out} --resume" in log.read_text().splitlines()[-1]
    assert TrainingStates(out / "base" / "training").latest() is not None


# --- disks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at `folder`; the test is skipped where this process may not mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        # Lazily: memory maps of this process may still be open.
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(folder: Path, free: int) -> None:
    """Give the disk room for `free` more kilobytes."""
    room = os.statvfs(folder)
    used = (room.f_blocks - room.f_bfree) * room.f_frsize // 1024
    subprocess.run(["mount", "-o", f"remount,size={used + free}k", folder], check=True)


needs_mount = pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="tmpfs is a thing of Linux")


@needs_mount
def test_a_disk_that_is_read_only(capsys: pytest.CaptureFixture[str], own: OwnTexts, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m,ro"):
        said = refused(capsys, *own.run(), "--out", tmp_path / "disk" / "run")
    assert "cannot create folder" in said
    assert "read-only file system" in said


@needs_mount
def test_a_full_disk_at_every_stage(
    capsys: pytest.CaptureFixture[str], own: OwnTexts, aligned_run: Path, tmp_path: Path
) -> None:
    """The disk grows little by little; each time the run goes on from where it was, and ends with the same weights."""
    disk = tmp_path / "disk"
    out = disk / "run"
    with small_disk(disk, "size=100k"):
        # A small n-gram model, so that the room it needs does not serve the training stages too.
        options = ["--set=checkpoint_seconds=0", "--set=ngram_order=1"]
        said = [refused(capsys, *own.aligned_run(), *options, "--out", out)]
        free, stages = 100, 0
        for _ in range(80):
            finished = len(list(out.glob("*/stage.json")))
            free, stages = (100 if finished > stages else free * 2), finished
            resize(disk, free)
            code = main(["run", "--resume", "--out", str(out)])
            errors = capsys.readouterr().err
            if code == 0:
                break
            assert code == 2
            said.append(errors.splitlines()[-1])
            # Nothing half-written is left.
            assert list(out.rglob("*.partial")) == []
        else:
            pytest.fail(f"never finished; last: {said[-1]}")
        for sentence in said:
            assert "no space left on device" in sentence
            assert sentence.endswith("go on with --resume")
        failed = {
            Path(sentence.partition(str(out))[2].lstrip("/").split()[0].rstrip(":")).parts[0] for sentence in said
        }
        # A state that finds no room does not end training, so which stages fail depends on the size of their results.
        assert "corpus.preparing" in failed
        assert failed & {"base", "sft", "reward", "policy"}
        for folder in ("base", "sft", "reward", "policy"):
            weights = Path(folder) / "model.safetensors"
            assert (out / weights).read_bytes() == (aligned_run / weights).read_bytes()
