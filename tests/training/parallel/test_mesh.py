"""The arrangement of processes, parts of batches, boxes of tensors, threads: what needs no second process."""

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.config import parse_config
from parlance.core.errors import Interrupted, UserError
from parlance.models.transformer_blocks import Layout
from parlance.text.packing import IGNORE
from parlance.training.denoising import SourceTargetBatch
from parlance.training.objectives import TokenBatch
from parlance.training.parallel import processes
from parlance.training.parallel.division import divide_batch
from parlance.training.parallel.mesh import Mesh, ParallelConfig, Place
from parlance.training.parallel.piece_table import PieceTable
from parlance.training.parallel.processes import ALONE, World
from parlance.training.pieces import Piece
from parlance.training.pretraining_config import PretrainingConfig, divisible_sizes

# --- sizes -----------------------------------------------------------------------------------------------------------


def test_data_takes_the_processes_that_are_left():
    sizes = ParallelConfig(shard=2, tensor=2).sizes(8)
    assert sizes == {"pipeline": 1, "data": 2, "shard": 2, "expert": 1, "context": 1, "tensor": 2}
    assert list(sizes) == ["pipeline", "data", "shard", "expert", "context", "tensor"]
    assert ParallelConfig(shard=2, tensor=2).rows(8) == Place(0, 4)


@pytest.mark.parametrize(
    ("config", "count", "sentence"),
    [
        (ParallelConfig(tensor=3), 4, "tensor 3 takes 3 processes and there are 4"),
        (ParallelConfig(data=2, tensor=2), 8, "data 2 x tensor 2 takes 4 processes and there are 8"),
        (ParallelConfig(pipeline=2), 1, "pipeline 2 takes 2 processes and there is one"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_processes_are_refused(config, count, sentence):
    with pytest.raises(UserError, match=sentence):
        config.sizes(count)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pieces": 2}, "pieces 2 divides the stages of a pipeline"),
        ({"pieces": 2, "pipeline": 2, "shard": 2}, "pieces goes without shard"),
    ],
)
def test_pieces_are_of_a_pipeline(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_config(ParallelConfig, fields, where="options")


@pytest.mark.parametrize(
    ("axes", "fields", "sentence"),
    [
        ({"context": 2}, {"context_length": 30}, "30 positions cannot be divided over 2 processes"),
        ({"context": 2}, {"training_length": 30}, "30 positions cannot be divided"),
        ({"context": 2}, {"model": {"ngram_tables": [[2, 64]]}}, "does not divide embeddings of several tokens"),
        ({"tensor": 2}, {"model": {"heads": 3, "head_width": 16}}, "3 heads cannot be divided over 2"),
        ({"tensor": 2}, {"layers": None, "width": None, "model": {"heads": 1}}, "1 heads cannot be divided over 2"),
        ({"pipeline": 4}, {}, "3 layers cannot be divided over 4 pipeline stages"),
        ({"pipeline": 2, "pieces": 2}, {}, "3 layers cannot be divided over 4 pipeline stages"),
        ({"expert": 2}, {}, "this model has none"),
        ({"expert": 2}, {"model": {"experts": 3}}, "3 experts cannot be divided over 2"),
        ({"expert": 2}, {"model": {"experts": 4}, "batch_size": 1}, "a batch of 1 rows is too small for 2 processes"),
        ({}, {"model": {"experts": 4}, "batch_size": 3}, "a batch of 3 rows is too small for 4 processes"),
        ({"shard": 2}, {"model": {"ngram_tables": [[2, 64]]}}, "does not divide tables of n-grams"),
        ({"tensor": 2}, {"architecture": "recurrent"}, "divides Transformers that are one stack"),
        ({"tensor": 2}, {"architecture": "encoder-decoder"}, "divides Transformers that are one stack"),
    ],
)
def test_what_the_axes_cannot_divide_is_known_from_the_configuration(axes, fields, sentence):
    values = {"layers": 3, "width": 64, "context_length": 64, "batch_size": 8, "parallel": axes, **fields}
    config = PretrainingConfig(**values)
    processes = math.prod(axes.values()) // axes.get("pieces", 1) if axes else 4
    with pytest.raises(UserError, match=sentence):
        divisible_sizes(config, processes)


def test_of_the_ladder_those_sizes_are_left_that_can_be_divided():
    config = PretrainingConfig(parallel=ParallelConfig(tensor=4))
    every = divisible_sizes(PretrainingConfig(), 1)
    assert divisible_sizes(config, 8) == tuple((layers, width) for layers, width in every if width // 64 % 4 == 0)
    assert divisible_sizes(PretrainingConfig(layers=2, width=128), 4) == ((2, 128),)


def places(sizes):
    mesh = Mesh(sizes, "cpu")
    group = mesh.group("data", "shard")
    ranks = torch.distributed.get_process_group_ranks(group)
    assert mesh.group("data", "shard") is group
    assert mesh.group("context") is None
    return mesh.place("data", "shard"), mesh.place("tensor"), mesh.place("context"), ranks


def test_neighbours_share_the_last_axes(world):
    found = world(4).run(places, ParallelConfig(tensor=2).sizes(4))
    assert [place for place, _, _, _ in found] == [Place(0, 2), Place(0, 2), Place(1, 2), Place(1, 2)]
    assert [place for _, place, _, _ in found] == [Place(0, 2), Place(1, 2), Place(0, 2), Place(1, 2)]
    assert [place for _, _, place, _ in found] == [Place(0, 1)] * 4
    assert [ranks for _, _, _, ranks in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]


# --- batches ---------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 9), ways=st.integers(1, 6))
def test_parts_of_a_batch_are_its_rows_in_order_and_count_every_target_once(rows, ways):
    inputs = torch.arange(rows * 3).view(rows, 3)
    layout = Layout(inputs + 1, None, inputs + 2)
    parts = [divide_batch(TokenBatch(inputs, inputs + 3, layout), Place(index, ways)) for index in range(ways)]
    counted = [bool((part.targets != IGNORE).any()) for part in parts]
    full = [part for part, counts in zip(parts, counted, strict=True) if counts]
    assert torch.equal(torch.cat([part.inputs for part in full]), inputs)
    assert torch.equal(torch.cat([part.targets for part in full]), inputs + 3)
    assert all(torch.equal(part.layout.documents, part.inputs + 2) for part in parts)
    assert all(len(part) == 1 for part, counts in zip(parts, counted, strict=True) if not counts)
    assert max(map(len, parts)) - min(map(len, full)) <= 1


def test_a_batch_of_two_sequences_is_divided_and_an_unknown_one_is_not():
    rows = torch.arange(8).view(4, 2)
    part = divide_batch(SourceTargetBatch(rows, rows > 0, rows + 1, rows + 2), Place(1, 2))
    assert torch.equal(part.source, rows[2:])
    assert torch.equal(part.inputs, rows[2:] + 1)
    assert torch.equal(part.targets, rows[2:] + 2)
    with pytest.raises(UserError, match="a list is not divided among processes"):
        divide_batch([], Place(0, 2))


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_of_boxes():
    whole = torch.arange(6 * 4).view(6, 4)
    box = Piece.whole((6, 4)).split(0, 2, 4).split(1, 1, 2).split(0, 1, 2)
    assert torch.equal(box.of(whole), whole[3:5, 1:3])
    other = Piece.whole((6, 4)).split(0, 4, 2)
    common = box.overlap(other)
    assert torch.equal(common.of(whole), whole[4:5, 1:3])
    assert torch.equal(box.of(whole)[common.within(box)], common.of(whole))
    assert torch.equal(other.of(whole)[common.within(other)], common.of(whole))
    assert box.overlap(Piece.whole((6, 4)).split(0, 0, 3)) is None


def test_every_box_is_written_once_and_by_one_that_has_it():
    whole, halves = Piece.whole((8, 2)), [Piece.whole((6, 2)).split(0, start, 3) for start in (0, 3)]
    held = [{"a": whole, "b": halves[rank % 2], "c": whole} for rank in range(4)]
    for rank in range(4):
        table = PieceTable(rank, held)
        assert table.copies("a") == 4
        assert table.copies("b") == 2
        writers = table.writers()
        assert writers == PieceTable(0, held).writers()
        assert len({*writers["a"].values(), *writers["c"].values(), *writers["b"].values()}) == 4
        assert {writers["b"][half] % 2 for half in halves} == {0, 1}


# --- processes -------------------------------------------------------------------------------------------------------


def test_one_process_alone_has_nothing_to_ask():
    assert ALONE.first
    assert ALONE.share({"a": 1}) == {"a": 1}
    assert ALONE.largest([1.0, 2.0]) == [1.0, 2.0]
    done = []
    ALONE.first_does("work", lambda: done.append(1))
    assert done == [1]


def agreed():
    rank = torch.distributed.get_rank()
    world = World(rank, 2)
    return (
        world.exchange({"rank": rank, "long": "x" * (rank * 100)}),
        world.share([rank]),
        world.largest([rank, -rank, float("nan") if rank else 5.0]),
    )


def test_processes_agree(world):
    for said, first, largest in world(2).run(agreed):
        assert said == [{"rank": 0, "long": ""}, {"rank": 1, "long": "x" * 100}]
        assert first == [0]
        assert largest[:2] == [1.0, 0.0]
        assert largest[2] != largest[2]


def objections(own):
    rank = torch.distributed.get_rank()
    return World(rank, 2).objection(own[rank])


def test_one_objection_is_all_processes(world):
    assert ALONE.objection("no") == "no"
    assert world(2).run(objections, ["", ""]) == ["", ""]
    assert world(2).run(objections, ["", "no"]) == ["no", "no"]


def mistaken(folder, sentences):
    rank = torch.distributed.get_rank()
    words = torch.distributed.FileStore(f"{folder}/words", 2)
    try:
        with processes.told_once(words, rank):
            if sentences[rank]:
                raise UserError(sentences[rank])
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("sentences", "told"),
    [
        (("wrong", "wrong"), ["wrong", 2]),
        (("wrong", "too small"), ["wrong", "too small"]),
        (("", "too small"), [None, "too small"]),
    ],
)
def test_a_mistake_that_several_find_is_told_by_the_first_of_them(world, tmp_path, sentences, told):
    assert world(2).run(mistaken, str(tmp_path), sentences) == told


@pytest.mark.parametrize(
    ("environment", "launcher", "expected"),
    [
        pytest.param({"LOCAL_WORLD_SIZE": "2"}, b"", 4, id="a share of the cores"),
        pytest.param({"LOCAL_WORLD_SIZE": "16"}, b"", 1, id="at least one"),
        pytest.param({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, b"", 3, id="as the user said"),
        pytest.param(
            {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"},
            b"HOME=/root\0",
            4,
            id="torchrun's own setting",
        ),
        pytest.param(
            {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"},
            b"HOME=/root\0OMP_NUM_THREADS=1\0",
            1,
            id="the user's, through torchrun",
        ),
    ],
)
def test_threads_are_shared_unless_the_user_says_how_many(monkeypatch, tmp_path, environment, launcher, expected):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "environ").write_bytes(launcher)
    monkeypatch.setattr(processes, "LAUNCHER_ENVIRONMENT", str(tmp_path / "environ"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    before = torch.get_num_threads()
    try:
        processes.share_cores()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer", "has ended"),
        ("Timed out waiting 1000ms for recv operation to complete", "did not answer in time"),
    ],
)
def test_a_lost_process_is_an_interruption_and_other_errors_are_not(text, told):
    told = f"process 1 of 4 stops: another process .*{told}"
    with pytest.raises(Interrupted, match=told), processes.lost_processes(1, 4):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes"), processes.lost_processes(1, 4):
        raise RuntimeError("shapes do not fit")


def test_wrong_words_of_a_launcher_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    joined = processes.started(1.0, torch.device("cpu"))
    with pytest.raises(UserError, match="WORLD_SIZE='two' is not a number"), joined:
        pass
