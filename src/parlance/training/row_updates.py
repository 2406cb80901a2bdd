"""Updates of the rows of a table that a step read, and of no others: for embeddings far larger than a batch.

AdamW over a table of 30 000 rows reads and writes every row at every step, which costs more than the whole network of
a small model. Here a step costs as many rows as it read. The rule is Adagrad (Duchi et al. 2011): a row that is often
read moves less and less, a rare one still moves by the full rate, which is what rare n-grams need.

    total = torch.zeros_like(table)
    update_rows(table, table.grad, total, rate=0.1)         # grad: sparse, of an embedding with sparse=True
"""

import torch
from torch import Tensor

EPSILON = 1e-10
"""Added to the root of the sum, as in torch.optim.Adagrad."""


def coalesced(gradient: Tensor) -> Tensor:
    """A sparse gradient with each row once. Autograd forgets that one was made so; adding up again is dear."""
    rows = gradient._indices()[0]
    if bool((rows[1:] > rows[:-1]).all()):
        return gradient._coalesced_(True)
    return gradient.coalesce()


@torch.no_grad()
def update_rows(table: Tensor, gradient: Tensor, total: Tensor, rate: float) -> None:
    """table[r] -= rate g_r / (sqrt(total[r]) + epsilon) for each row r of `gradient`, after total[r] += g_r^2.

    table and total: (rows, D) fp32, changed in place; gradient: sparse over rows, equal rows are added up first.
    """
    gradient = coalesced(gradient)
    rows, values = gradient.indices()[0], gradient.values()
    squares = total.index_select(0, rows).addcmul_(values, values)
    total.index_copy_(0, rows, squares)
    moved = table.index_select(0, rows).addcdiv_(values, squares.sqrt_().add_(EPSILON), value=-rate)
    table.index_copy_(0, rows, moved)
