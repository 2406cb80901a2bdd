"""Resume states come back exactly, the two newest are kept, damaged ones are passed over."""

import errno
import os
import shutil

import pytest
import torch

from parlance.core import artifacts
from parlance.core.errors import UserError
from parlance.training.checkpointing import TrainingStates

TENSORS = {
    "model.a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "generator": torch.Generator().manual_seed(5).get_state(),
    "view": torch.arange(12.0).view(3, 4).T,
}


@pytest.fixture
def states(tmp_path):
    return TrainingStates(tmp_path / "base" / "training")


def names(states: TrainingStates) -> list[str]:
    return sorted(path.name for path in states.folder.iterdir())


def test_a_state_comes_back_exactly(states):
    assert states.latest() is None
    info = {"data": {"sample": 3}, "items": 7, "loss": 1 / 3, "none": None}
    states.save(12, TENSORS, info)
    step, tensors, found = TrainingStates(states.folder).latest()
    assert (step, found) == (12, info)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_the_two_newest_are_kept_and_the_newest_is_found(states):
    for step in (5, 30, 200, 1000):
        states.save(step, {"x": torch.tensor([step])}, {})
    assert names(states) == ["step-00000200", "step-00001000"]
    assert states.latest()[0] == 1000
    states.save(1000, {"x": torch.tensor([-1])}, {})
    assert int(states.latest()[1]["x"]) == -1
    assert names(states) == ["step-00000200", "step-00001000"]


def damage_weights(folder):
    data = bytearray((folder / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "state.safetensors").write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "state.json").write_text('{"step": 9, "sha2'),
        lambda folder: (folder / "state.json").write_text('{"step": 9}'),
        lambda folder: (folder / "state.json").write_text("null"),
    ],
    ids=["bit", "no weights", "empty", "no facts", "cut facts", "too few facts", "null"],
)
def test_a_damaged_newest_state_gives_way_to_the_older(states, damage, capsys):
    states.save(8, {"x": torch.tensor([8])}, {})
    states.save(9, {"x": torch.tensor([9])}, {})
    damage(states.folder / "step-00000009")
    step, tensors, _ = states.latest()
    assert (step, int(tensors["x"])) == (8, 8)
    assert "passing over a damaged training state" in capsys.readouterr().err
    damage(states.folder / "step-00000008")
    assert states.latest() is None


def test_half_written_states_are_no_states(states):
    states.save(3, {"x": torch.tensor([3])}, {})
    shutil.copytree(states.folder / "step-00000003", states.folder / "step-00000004.partial")
    shutil.copytree(states.folder / "step-00000003", states.folder / "step-00000004.old.partial")
    assert states.latest()[0] == 3
    # The next state clears them away.
    states.save(5, {"x": torch.tensor([5])}, {})
    assert names(states) == ["step-00000003", "step-00000005"]


def test_discard_takes_the_states_and_leaves_the_rest(states):
    states.discard()  # nothing there yet
    states.save(3, {"x": torch.tensor([3])}, {})
    (states.folder / "plan.json").write_text("{}")
    shutil.copytree(states.folder / "step-00000003", states.folder / "step-00000004.partial")
    states.discard()
    assert names(states) == ["plan.json"]
    states.clear()
    assert not states.folder.exists()
    states.clear()


def test_a_full_disk_is_a_user_error_and_keeps_the_older_state(states, monkeypatch):
    states.save(3, {"x": torch.tensor([3])}, {})

    def full_disk(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "fsync", full_disk)
        with pytest.raises(UserError, match="no space left on device"):
            states.save(4, {"x": torch.tensor([4])}, {})
    assert names(states) == ["step-00000003"]
    assert states.latest()[0] == 3
