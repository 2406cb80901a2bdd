"""Resume states of many processes: read by any number of them, whole or not at all, never of copies that differ."""

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from schemes import (
    AVERAGED,
    MUON,
    PLAIN,
    resume_and_train,
    small_model,
    steps,
    train_and_save,
    trainer_alone,
    trainer_of,
    weights_of,
    world_here,
)

from parlance.core.errors import UserError
from parlance.training import state_files
from parlance.training.checkpointing import TrainingStates
from parlance.training.memory_fit import MemoryFit
from parlance.training.parallel import sharded_states
from parlance.training.parallel.distributed import Distributed
from parlance.training.parallel.mesh import ParallelConfig

DATA, SHARD, TENSOR, PIPELINE = (
    ParallelConfig(),
    ParallelConfig(shard=2),
    ParallelConfig(tensor=2),
    ParallelConfig(pipeline=2),
)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    ("processes", "before", "then", "after"),
    [
        pytest.param(2, SHARD, 2, SHARD, id="same"),
        pytest.param(2, DATA, 4, SHARD, id="data to data-shard"),
        pytest.param(4, ParallelConfig(shard=2, tensor=2), 2, PIPELINE, id="shard-tensor to pipeline"),
        pytest.param(2, PIPELINE, 4, ParallelConfig(shard=4), id="pipeline to shard"),
    ],
)
def test_another_division_goes_on_with_the_same_bits(world, tmp_path, processes, before, then, after):
    saved = world(processes).run(train_and_save, PLAIN, before, MUON, tmp_path, 3)[0]
    resumed, trained, _ = world(then).run(resume_and_train, PLAIN, after, MUON, tmp_path, 3)[0]
    assert_equal(resumed, saved)
    alone = small_model(PLAIN)
    steps(trainer_alone(alone, MUON), 6)
    for name, weight in alone.named_parameters():
        torch.testing.assert_close(trained[name], weight.detach(), rtol=0, atol=1e-5)


def uninterrupted(parallel, count):
    parts = Distributed(small_model(PLAIN), parallel, world_here(), MemoryFit())
    trainer = trainer_of(parts, MUON, AVERAGED)
    steps(trainer, count)
    trained = weights_of(parts)
    with trainer.evaluated():
        return trained, weights_of(parts)


@pytest.mark.parametrize("parallel", [DATA, SHARD], ids=["data", "shard"])
def test_the_same_division_goes_on_as_if_it_had_never_stopped(world, tmp_path, parallel):
    world(2).run(train_and_save, PLAIN, parallel, MUON, tmp_path, 3)
    _, trained, average = world(2).run(resume_and_train, PLAIN, parallel, MUON, tmp_path, 3)[0]
    expected, expected_average = world(2).run(uninterrupted, parallel, 6)[0]
    assert_equal(trained, expected)
    assert_equal(average, expected_average)
    assert not torch.equal(average["norm.weight"], trained["norm.weight"])


def test_one_process_reads_what_many_wrote_and_they_what_it_wrote(world, tmp_path):
    saved = world(2).run(train_and_save, PLAIN, SHARD, MUON, tmp_path / "many", 2)[0]
    model = small_model(PLAIN)
    trainer = trainer_alone(model, MUON, AVERAGED)
    step, tensors, info = TrainingStates(tmp_path / "many").latest()
    assert step == 2
    trainer.restore(tensors, info)
    assert_equal({name: weight.detach() for name, weight in model.named_parameters()}, saved)
    steps(trainer, 2)
    TrainingStates(tmp_path / "one").save(4, *trainer.capture())
    resumed, _, _ = world(2).run(resume_and_train, PLAIN, TENSOR, MUON, tmp_path / "one", 0)[0]
    assert_equal(resumed, {name: weight.detach() for name, weight in model.named_parameters()})


def test_every_number_is_written_once_and_both_processes_write(world, tmp_path):
    world(2).run(train_and_save, PLAIN, DATA, MUON, tmp_path, 1)
    state = json.loads((tmp_path / "step-00000001" / "state.json").read_text())
    names = [name for file in state["files"].values() for name in file["pieces"]]
    assert len(names) == len(set(names))
    sizes = [path.stat().st_size for path in sorted((tmp_path / "step-00000001").glob("*.safetensors"))]
    assert len(sizes) == 2
    assert min(sizes) > 0.5 * max(sizes)


def save_twice_and_damage(folder, damage):
    parts = Distributed(small_model(PLAIN), SHARD, world_here(), MemoryFit())
    trainer = trainer_of(parts, MUON)
    states = parts.states(folder, 2)
    for step in (1, 2):
        steps(trainer, 1)
        states.save(step, *trainer.capture())
    dist.barrier()
    if dist.get_rank() == 0:
        damage(folder / "step-00000002")
    dist.barrier()
    found = states.latest()
    return None if found is None else found[0]


def flip(folder):
    file = folder / "process-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose(folder):
    (folder / "process-00000.safetensors").unlink()


def cut(folder):
    (folder / "state.json").write_text('{"step": 2, "fil')


def change(folder):
    said = json.loads((folder / "state.json").read_text())
    said["info"]["steps"] = 7
    (folder / "state.json").write_text(json.dumps(said))


@pytest.mark.parametrize("damage", [flip, lose, cut, change])
def test_all_pass_over_a_state_of_which_one_file_is_damaged(world, tmp_path, damage):
    assert world(2).run(save_twice_and_damage, tmp_path, damage) == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.damaged"]


def save_and_find_unreadable(folder, hidden):
    parts = Distributed(small_model(PLAIN), SHARD, world_here(), MemoryFit())
    trainer = trainer_of(parts, MUON)
    states = parts.states(folder, 1)
    states.save(1, *trainer.capture())
    checksum = state_files.sha256

    def fail(path):
        if dist.get_rank() == hidden:
            raise UserError(f"cannot read {path}: input/output error") from OSError(errno.EIO, "input/output error")
        return checksum(path)

    state_files.sha256 = fail
    try:
        states.latest()
    except UserError as error:
        return str(error)
    finally:
        state_files.sha256 = checksum
    return None


def test_what_one_process_cannot_read_is_an_error_of_all_and_no_damage(world, tmp_path):
    told = world(2).run(save_and_find_unreadable, tmp_path, 1)
    assert all(said is not None and "input/output error" in said for said in told)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def replace_and_die(folder, renames):
    """Saves the same step twice; the first process dies after so many renames of the second time."""
    parts = Distributed(small_model(PLAIN), SHARD, world_here(), MemoryFit())
    trainer = trainer_of(parts, MUON)
    states = parts.states(folder, 1)
    states.save(1, *trainer.capture())
    original, calls = Path.replace, []

    def replace(path, target):
        if path.is_dir():
            calls.append(path)
            if len(calls) > renames:
                raise UserError("killed")
        return original(path, target)

    Path.replace = replace
    try:
        states.save(1, *trainer.capture())
    except UserError:
        pass
    finally:
        Path.replace = original
    dist.barrier()
    found = states.latest()
    return None if found is None else found[0]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_the_only_state_is_replaced_leaves_one(world, tmp_path, renames):
    assert world(2).run(replace_and_die, tmp_path, renames) == [1, 1]


def save_on_a_full_disk(folder, full):
    parts = Distributed(small_model(PLAIN), SHARD, world_here(), MemoryFit())
    trainer = trainer_of(parts, MUON)
    states = parts.states(folder, 2)
    steps(trainer, 1)
    states.save(1, *trainer.capture())
    write = sharded_states.write_tensors

    def fail(path, tensors):
        if dist.get_rank() == full:
            raise UserError(f"cannot write {path}: no space left on device") from OSError(errno.ENOSPC, "no space")
        return write(path, tensors)

    sharded_states.write_tensors = fail
    try:
        states.save(2, *trainer.capture())
    except UserError as error:
        told = (str(error), error.__cause__.errno)
    finally:
        sharded_states.write_tensors = write
    return told, states.latest()[0]


def test_a_full_disk_of_one_process_is_an_error_of_all_and_keeps_the_older_state(world, tmp_path):
    for (text, code), newest in world(2).run(save_on_a_full_disk, tmp_path, 1):
        assert "no space left" in text
        assert code == errno.ENOSPC
        assert newest == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def break_one_copy(folder, parallel, name):
    parts = Distributed(small_model(PLAIN), parallel, world_here(), MemoryFit())
    trainer = trainer_of(parts, MUON)
    steps(trainer, 1)
    if dist.get_rank() == 1:
        with torch.no_grad():
            flat = parts.rows[name].view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
    errors = []
    for attempt in (lambda: parts.states(folder, 2).save(1, *trainer.capture()), parts.check):
        try:
            attempt()
        except UserError as error:
            errors.append(str(error))
    return errors


@pytest.mark.parametrize(
    ("processes", "parallel", "who"),
    [
        (2, DATA, "layers.1.mlp.down_proj.weight differs between processes 0, 1"),
        (4, DATA, "layers.1.mlp.down_proj.weight of process 1 differs from that of processes 0, 2, 3"),
        (4, SHARD, "layers.1.mlp.down_proj.weight differs between processes 1, 3"),
    ],
)
def test_copies_that_differ_in_one_bit_are_found_and_never_saved(world, tmp_path, processes, parallel, who):
    for errors in world(processes).run(break_one_copy, tmp_path, parallel, "layers.1.mlp.down_proj.weight"):
        assert len(errors) == 2
        assert all(who in error for error in errors)
    assert list(tmp_path.iterdir()) == []
