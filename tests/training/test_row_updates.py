"""Row updates against Adagrad of torch.optim, which updates the rows of sparse gradients the same way."""

import torch
import torch.nn.functional as F

from parlance.training.row_updates import coalesced, update_rows


def test_rows_move_as_under_adagrad_and_others_do_not():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20, 6, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    total = torch.zeros_like(start)
    optimizer = torch.optim.Adagrad([theirs], lr=0.1)
    for _ in range(5):
        read = torch.randint(0, 10, (3, 7), generator=generator)
        weight = torch.randn(3, 7, 6, generator=generator)
        for table in (ours, theirs):
            table.grad = None
            (F.embedding(read, table, sparse=True) * weight).sum().backward()
        optimizer.step()
        update_rows(ours.detach(), ours.grad, total, 0.1)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours[10:], start[10:])
    assert not total[10:].any()


def test_each_row_once_however_the_gradient_came():
    values = torch.arange(8.0).view(4, 2)
    for rows, whole in (([3, 1, 3, 0], [[6.0, 7.0], [2.0, 3.0], [0.0, 0.0], [4.0, 6.0]]), ([0, 1, 2, 3], None)):
        gradient = torch.sparse_coo_tensor(torch.tensor([rows]), values, (4, 2), check_invariants=False)
        found = coalesced(gradient)
        assert found.is_coalesced()
        assert found.to_dense().tolist() == (values.tolist() if whole is None else whole)
