"""Whole runs as users start them: by torchrun or any other launcher, killed, resumed by fewer or more processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

PATIENCE = 120.0
STEPS = 100
SMALL = (
    "--device=cpu",
    "--tokenizer=byte",
    "--set=layers=1",
    "--set=width=64",
    "--set=model.heads=4",
    "--set=model.head_width=16",
    "--set=context_length=32",
    "--set=pilot_share=0",
    "--set=sample_tokens=0",
    "--set=validations=1",
    "--set=training.precision=fp32",
    # Differences of rounding must stay small to the end.
    "--set=rates.matrices=0.001",
    "--set=rates.embedding=0.001",
    "--set=rates.head=0.0003",
    "--set=rates.vectors=0.0003",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus."""
    from parlance.cli.main import main

    folder = tmp_path_factory.mktemp("corpus")
    lines = [f"{a} times {b} is {a * b}, and {b} less {a} is {b - a}.\n\n" for a in range(60) for b in range(60)]
    (folder / "text.txt").write_text("".join(lines))
    assert main(["corpus", "prepare", str(folder / "text.txt"), "--out", str(folder / "corpus")]) == 0
    return folder / "corpus"


def command(corpus: Path, out: Path, *more: str, steps: int = STEPS) -> list[str]:
    return ["pretrain", str(corpus), f"--steps={steps}", *SMALL, f"--out={out}", *more]


def alone(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in one process."""
    program = [sys.executable, "-m", "parlance", *words]
    return subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)


class Started:
    """A command in several processes, as a launcher starts them."""

    def __init__(self, size: int, words: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "parlance", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **place, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]

    def end(self) -> list[tuple[int, str, str]]:
        """Exit code and what was printed, of each process."""
        try:
            outputs = [process.communicate(timeout=PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *texts) for process, texts in zip(self.processes, outputs, strict=True)]

    def wait_for(self, moment: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not moment():
            assert all(process.poll() is None for process in self.processes), self.end()
            assert time.monotonic() < deadline
            time.sleep(0.02)


def assert_equal_models(a: Path, b: Path) -> None:
    weights, others = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5


@pytest.fixture(scope="module")
def single(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one process makes."""
    out = tmp_path_factory.mktemp("single") / "base"
    done = alone(command(corpus, out))
    assert done.returncode == 0, done.stderr
    return out


def test_torchrun_makes_the_folder_that_one_process_makes(corpus, single, tmp_path):
    out = tmp_path / "base"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "parlance"]
    done = subprocess.run(
        [*launcher, *command(corpus, out, "--set=parallel.shard=2", "--json")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"stage": "pretrain"') == 1
    assert done.stderr.count("pretrain      100/100 steps") == 1
    names = {path.relative_to(out) for path in out.rglob("*")}
    assert names == {path.relative_to(single) for path in single.rglob("*")}
    for name in ("config.json", "tokenizer.json", "tokens/train-00000.bin"):
        assert (out / name).read_bytes() == (single / name).read_bytes()
    assert_equal_models(out, single)


def test_a_killed_process_ends_all_and_another_number_goes_on(corpus, single, tmp_path):
    out = tmp_path / "base"
    started = Started(2, command(corpus, out))
    log = out / "metrics.jsonl"
    started.wait_for(log.exists)
    for process in started.processes:
        process.send_signal(signal.SIGTERM)
    codes = [code for code, _, _ in started.end()]
    assert codes == [130, 130]
    assert list((out / "training").glob("step-*"))

    written = log.stat().st_mtime_ns  # it is written again when the run goes on
    started = Started(2, command(corpus, out, "--resume", "--set=parallel.tensor=2"))
    started.wait_for(lambda: log.stat().st_mtime_ns != written)
    started.processes[0].send_signal(signal.SIGKILL)
    (killed, _, _), (code, _, told) = started.end()
    assert killed == -signal.SIGKILL
    assert code == 130
    assert told.startswith("parlance: process 1 of 2 stops: another process of this run has ended; what was saved last")
    assert told.endswith("--resume\n")
    assert told.count("\n") == 1

    done = alone(command(corpus, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert "resumes at step" in done.stderr
    assert_equal_models(out, single)


def test_a_mistake_is_told_once_and_ends_all(corpus, tmp_path):
    ended = Started(2, command(corpus, tmp_path / "base", "--tokenizer=nowhere")).end()
    assert [code for code, _, _ in ended] == [2, 2]
    assert "--tokenizer nowhere" in ended[0][2]
    assert ended[1][1:] == ("", "")
    assert not (tmp_path / "base").exists()


def test_what_cannot_be_divided_is_refused_before_anything_is_made(corpus, tmp_path):
    out = tmp_path / "base"
    ended = Started(2, command(corpus, out, "--set=context_length=30", "--set=parallel.context=2")).end()
    assert [code for code, _, _ in ended] == [2, 2]
    assert ended[0][2].startswith("parlance: error: 30 positions cannot be divided over 2 processes")
    assert ended[0][2].count("\n") == 1
    assert ended[1][1:] == ("", "")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--no-such-option"], "no such option"),
        (["--set=widht=3"], "widht"),
        (["--tokens=some"], "--tokens"),
        (["--set=layers=0"], "layers"),
    ],
)
def test_a_wrong_option_is_told_by_the_first_process_alone(corpus, tmp_path, monkeypatch, capsys, words, told):
    from parlance.cli.main import main

    for rank in ("0", "1"):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        code = None
        try:
            code = main(command(corpus, tmp_path / "base", *words))
        except SystemExit as error:
            code = error.code
        assert code == 2
        said = capsys.readouterr().err
        assert told in said if rank == "0" else not said
    assert not (tmp_path / "base").exists()


def test_other_commands_and_wrong_sizes_are_refused(corpus, tmp_path, monkeypatch, capsys):
    from parlance.cli.main import main

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["score", str(corpus), "text"]) == 2
    assert "score is done by one process: start it without torchrun" in capsys.readouterr().err
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert main(command(corpus, tmp_path / "base", "--set=parallel.shard=2")) == 2
    assert "shard 2 takes 2 processes and there is one" in capsys.readouterr().err
