"""The harness: answers by rank, failures with their traceback, and a fresh start after one."""

import pytest
import torch
import torch.distributed as dist


def total(addend):
    x = torch.tensor([dist.get_rank() + addend])
    dist.all_reduce(x)
    return dist.get_rank(), x


def fail_on(rank):
    if dist.get_rank() == rank:
        raise ValueError("no luck here")
    dist.barrier()


def test_answers_come_by_rank_and_failures_with_their_traceback(world):
    for addend in (1, 2):
        answers = world(2).run(total, addend)
        assert [rank for rank, _ in answers] == [0, 1]
        assert [int(x) for _, x in answers] == [1 + 2 * addend] * 2
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2.*no luck here"):
        world(2).run(fail_on, 1)
    assert [int(x) for _, x in world(2).run(total, 0)] == [1, 1]
