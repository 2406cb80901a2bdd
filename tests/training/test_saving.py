"""Resume states written beside the training: copies, one at a time, and failures that cost one state and no more."""

import errno
import os
import threading

import pytest
import torch

from parlance.core import artifacts
from parlance.core.errors import UserError
from parlance.training.checkpointing import TrainingStates
from parlance.training.saving import Saver


class Slow:
    """States whose writing waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.saved: list[tuple[int, float, str]] = []
        self.error: Exception | None = None

    def save(self, step, tensors, _info):
        self.begun.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        self.saved.append((step, float(tensors["x"]), threading.current_thread().name))

    def latest(self):
        return None

    def discard(self):
        pass


def test_in_the_background_the_state_is_that_of_its_step():
    states, x = Slow(), torch.tensor(1.0)
    with Saver(states, background=True) as saver:
        assert saver.save(1, {"x": x}, {})
        assert states.begun.wait(10)
        x.fill_(2.0)  # training goes on
        assert not saver.save(2, {"x": x}, {})  # never two at once
        states.go.set()
        x.fill_(3.0)
        assert saver.save(3, {"x": x}, {}, wait=True)
    (first, last) = states.saved
    assert first[:2] == (1, 1.0)
    assert last[:2] == (3, 3.0)
    assert first[2] != threading.current_thread().name == last[2]


def test_the_end_waits_for_the_write_under_way():
    states = Slow()
    threading.Timer(0.05, states.go.set).start()
    with Saver(states, background=True) as saver:
        saver.save(1, {"x": torch.ones(())}, {})
    assert states.saved


def test_in_the_foreground_it_is_done_when_it_returns():
    states = Slow()
    states.go.set()
    with Saver(states, background=False) as saver:
        assert saver.save(4, {"x": torch.ones(())}, {})
        assert [step for step, _, _ in states.saved] == [4]


@pytest.mark.parametrize("background", [True, False])
def test_copies_follow_tensors_that_change_their_shape(tmp_path, background):
    states = TrainingStates(tmp_path)
    with Saver(states, background) as saver:
        for step, size in ((1, 3), (2, 3), (3, 5)):
            saver.save(step, {"x": torch.full((size,), float(step)), "y": torch.arange(step)}, {"n": step}, wait=False)
            saver._finish()
    step, tensors, info = states.latest()
    assert (step, info) == (3, {"n": 3})
    assert tensors["x"].tolist() == [3.0] * 5
    assert tensors["y"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_costs_a_state_and_nothing_else(tmp_path, background, monkeypatch, capsys):
    states = TrainingStates(tmp_path / "training")

    def full_disk(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Saver(states, background) as saver:
        assert saver.save(1, {"x": torch.ones(2)}, {})
        saver._finish()
        with monkeypatch.context() as patch:
            patch.setattr(artifacts.os, "fsync", full_disk)
            # In the background it is found out when the next one is begun, or at the end.
            assert saver.save(2, {"x": torch.ones(2)}, {}) == background
            saver._finish()
        assert "no resume state was written" in capsys.readouterr().err
        assert states.latest()[0] == 1
        assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["step-00000001"]
        assert saver.save(3, {"x": torch.ones(2)}, {})
    assert states.latest()[0] == 3


@pytest.mark.parametrize("error", [ValueError("a bug"), UserError("no fault of the disk")])
def test_other_failures_are_not_swallowed(error):
    states = Slow()
    states.error = error
    states.go.set()
    with pytest.raises(type(error)), Saver(states, background=True) as saver:
        saver.save(1, {"x": torch.ones(())}, {})


def test_without_memory_for_a_copy_states_are_written_between_steps(tmp_path, monkeypatch, capsys):
    states = TrainingStates(tmp_path)

    def refuse(*_arguments, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(torch, "empty", refuse)
    with Saver(states, background=True) as saver:
        for step in (1, 2):
            assert saver.save(step, {"x": torch.full((2,), float(step))}, {})
            assert states.latest()[0] == step
    assert capsys.readouterr().err.count("no memory for a copy") == 1
