"""The metrics log is exact after a resume; progress is readable where standard error is no terminal."""

import errno
import json

import pytest

from parlance.core import metrics as metrics_module
from parlance.core import progress as progress_module
from parlance.core.artifacts import os_errors
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.core.progress import Progress, say


def rows(log: MetricsLog) -> list[str]:
    return log.path.read_text().splitlines()


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "run" / "metrics.jsonl")


def test_rewind_forgets_one_stage_beyond_a_step(log):
    log.rewind("sft", 0)  # nothing there yet
    for stage in ("pretrain", "sft"):
        for step in (1, 2, 3):
            log.write(stage, step, loss=float(step))
    log.rewind("sft", 2)
    assert rows(log) == [
        '{"stage": "pretrain", "step": 1, "loss": 1.0}',
        '{"stage": "pretrain", "step": 2, "loss": 2.0}',
        '{"stage": "pretrain", "step": 3, "loss": 3.0}',
        '{"stage": "sft", "step": 1, "loss": 1.0}',
        '{"stage": "sft", "step": 2, "loss": 2.0}',
    ]
    log.rewind("pretrain", 0)
    assert len(rows(log)) == 2


@pytest.mark.parametrize("cut", [b'{"stage": "sft", "st', b"{", b'{"stage": "sft", "step": 2}\n{"stage"'])
def test_rewind_drops_a_line_that_a_kill_cut_short(log, cut):
    log.write("sft", 1, loss=1.0)
    with log.path.open("ab") as file:
        file.write(cut)
    log.rewind("sft", 1)
    log.write("sft", 2, loss=2.0)
    assert rows(log) == ['{"stage": "sft", "step": 1, "loss": 1.0}', '{"stage": "sft", "step": 2, "loss": 2.0}']


@pytest.mark.parametrize("line", ["{}", '{"step": 3}', '{"stage": "sft"}', '{"stage": 7, "step": "x"}', "[]", "nul"])
def test_rewind_passes_over_lines_that_are_no_rows(log, line):
    log.write("sft", 1, loss=1.0)
    with log.path.open("a") as file:
        file.write(line + "\n")
    log.write("sft", 2, loss=2.0)
    log.rewind("sft", 1)
    assert rows(log) == ['{"stage": "sft", "step": 1, "loss": 1.0}']


def test_a_log_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl").write("sft", 1)


def test_a_full_disk_stops_nothing_and_loses_no_row(log, monkeypatch, capsys):
    log.write("sft", 1, loss=1.0)
    original = metrics_module.append_jsonl

    def full_disk(path, _record):
        with path.open("a") as file:
            file.write('{"stage": "sf')  # as much as there was room for
        with os_errors("write", path):
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(metrics_module, "append_jsonl", full_disk)
    for step in (2, 3):
        log.write("sft", step, loss=float(step))
    assert capsys.readouterr().err.count("no space left on device; training goes on") == 1
    assert rows(log) == ['{"stage": "sft", "step": 1, "loss": 1.0}']
    monkeypatch.setattr(metrics_module, "append_jsonl", original)
    log.write("sft", 4, loss=4.0)
    assert [json.loads(row)["step"] for row in rows(log)] == [1, 2, 3, 4]


def test_what_is_no_number_is_null(log):
    log.write("sft", 1, loss=float("nan"), norm=float("inf"), text="x", count=3)
    assert rows(log) == ['{"stage": "sft", "step": 1, "loss": null, "norm": null, "text": "x", "count": 3}']


# --- progress --------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_plain_lines_every_ten_seconds(clock, capsys):
    with Progress("pretrain", total=100, unit="steps") as bar:
        for _ in range(50):
            clock.now += 0.5
            bar.update(1, loss=2.3456789)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # after 10 s, after 20 s, and at the end
    assert lines[0] == "pretrain      20/100 steps  2/s  40 s left  loss 2.346"
    assert "50/100 steps" in lines[-1]
    assert "in 25.0 s" in lines[-1]
    assert not any(code in "".join(lines) for code in "\r\x1b")


def test_what_an_earlier_process_did_counts_for_progress_and_not_for_the_rate(clock, capsys):
    with Progress("pretrain", total=1000, unit="steps", done=900) as bar:
        clock.now += 10
        bar.update(20)
    first = capsys.readouterr().err.splitlines()[0]
    assert "920/1000 steps" in first
    assert "2/s" in first
    assert "40 s left" in first


def test_an_unknown_total_and_large_numbers(clock, capsys):
    with Progress("encode", unit="bytes") as bar:
        clock.now += 10
        bar.update(25_000_000, file="a.txt")
    assert capsys.readouterr().err.splitlines()[0] == "encode        25.0M bytes  2.5M/s  file a.txt"


def test_a_terminal_gets_one_line_that_is_rewritten(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("sft", total=4, unit="steps") as bar:
        for _ in range(4):
            clock.now += 1
            bar.update()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.count("\r\x1b[2K") == 5
    assert "━" * 20 in text


def test_say_is_one_line_on_standard_error(capsys):
    say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
