"""Resume states come back exactly, the two newest are kept, damaged ones are passed over."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from parlance.core import artifacts
from parlance.core.errors import UserError
from parlance.training import state_files
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


def changed(*path, value):
    """A damage: another value at a place in state.json."""

    def damage(folder):
        said = json.loads((folder / "state.json").read_text())
        place = said
        for key in path[:-1]:
            place = place[key]
        assert place[path[-1]] != value
        place[path[-1]] = value
        (folder / "state.json").write_text(json.dumps(said))

    return damage


def without_its_checksum(folder):
    said = json.loads((folder / "state.json").read_text())
    del said["sha256"]
    (folder / "state.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    "damage",
    [
        changed("info", "body", "data", "sample", value=4),
        changed("info", "body", value={}),
        changed("step", value=10),
        without_its_checksum,
        damage_weights,
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "state.json").write_text('{"step": 9, "sha2'),
        lambda folder: (folder / "state.json").write_text('{"step": 9}'),
        lambda folder: (folder / "state.json").write_text("null"),
    ],
    ids=[
        "sample",
        "no body",
        "step",
        "no checksum",
        "bit",
        "no weights",
        "empty",
        "no facts",
        "cut facts",
        "too few facts",
        "null",
    ],
)
def test_a_damaged_newest_state_gives_way_to_the_older(states, damage, capsys):
    info = {"body": {"data": {"sample": 3}, "näme": "é\ud800", "share": 1 / 3}}
    states.save(8, {"x": torch.tensor([8])}, info)
    states.save(9, {"x": torch.tensor([9])}, info)
    damage(states.folder / "step-00000009")
    step, tensors, _ = states.latest()
    assert (step, int(tensors["x"])) == (8, 8)
    assert "passing over a damaged training state" in capsys.readouterr().err
    damage(states.folder / "step-00000008")
    assert states.latest() is None


def test_a_damaged_state_is_set_aside_and_takes_no_place(states, capsys):
    for step in (8, 9):
        states.save(step, {"x": torch.tensor([step])}, {})
    damage_weights(states.folder / "step-00000009")
    assert states.latest()[0] == 8
    assert "it is now step-00000009.damaged" in capsys.readouterr().err
    states.save(9, {"x": torch.tensor([9])}, {})
    assert names(states) == ["step-00000008", "step-00000009", "step-00000009.damaged"]
    damage_weights(states.folder / "step-00000009")
    assert states.latest()[0] == 8
    states.discard()
    assert names(states) == ["step-00000009.damaged", "step-00000009.damaged-1"]


@pytest.mark.parametrize("broken", ["state.json", "state.safetensors", "training"])
def test_what_the_disk_does_not_let_be_read_is_no_damage(states, broken, monkeypatch):
    states.save(8, {"x": torch.tensor([8])}, {})
    originals = {"read_json": state_files.read_json, "sha256": state_files.sha256}

    def refuse(path):
        with artifacts.os_errors("read", path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def instead(name):
        return lambda path: refuse(path) if path.name == broken else originals[name](path)

    with monkeypatch.context() as patch:
        for name in originals:
            patch.setattr(state_files, name, instead(name))
        if broken == "training":
            patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(UserError, match="input/output error"):
            states.latest()
    assert names(states) == ["step-00000008"]
    assert states.latest()[0] == 8


def test_states_are_in_order_of_their_steps(states):
    for step in (99_999_999, 100_000_000):
        states.save(step, {"x": torch.tensor([step])}, {})
    assert states.latest()[0] == 100_000_000


def test_half_written_states_are_no_states(states):
    states.save(3, {"x": torch.tensor([3])}, {})
    shutil.copytree(states.folder / "step-00000003", states.folder / "step-00000004.partial")
    shutil.copytree(states.folder / "step-00000003", states.folder / "step-00000003.old.partial")
    assert states.latest()[0] == 3
    # The next state clears them away.
    states.save(5, {"x": torch.tensor([5])}, {})
    assert names(states) == ["step-00000003", "step-00000005"]


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3])
def test_a_kill_while_a_state_is_replaced_leaves_one_of_them(tmp_path, killed_at, monkeypatch):
    """Also where only one is kept."""
    states = TrainingStates(tmp_path, kept=1)
    states.save(4, {"x": torch.tensor([1])}, {})
    original, calls = Path.replace, []

    def replace(path, target):
        if path.is_dir():
            calls.append(path.name)
            if len(calls) > killed_at:
                raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(shutil, "rmtree", lambda *_arguments, **_options: None)
        if killed_at < 2:
            with pytest.raises(KeyboardInterrupt):
                states.save(4, {"x": torch.tensor([2])}, {})
        else:
            states.save(4, {"x": torch.tensor([2])}, {})
    if killed_at == 1:
        assert names(states) == ["step-00000004.old.partial", "step-00000004.partial"]
    step, tensors, _ = TrainingStates(tmp_path, kept=1).latest()
    assert (step, int(tensors["x"])) == (4, 1 if killed_at < 2 else 2)
    states.save(5, {"x": torch.tensor([3])}, {})
    assert names(states) == ["step-00000005"]


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
