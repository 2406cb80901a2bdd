"""A process's part of a batch that all processes drew alike: some of its rows.

    part = divide_batch(batch, Place(index=1, ways=4))

Rows stay in order and keep their padding, so shapes are those of the batch but for the number of rows. A process for
which no row is left gets the first one with nothing to learn from: it counts nothing, adds nothing to any gradient, and
still takes part in every exchange.
"""

from dataclasses import replace
from typing import Any

import torch

from parlance.core.errors import UserError
from parlance.text.packing import IGNORE
from parlance.training.denoising import SourceTargetBatch
from parlance.training.objectives import TokenBatch
from parlance.training.parallel.collectives import span
from parlance.training.parallel.mesh import Place


def divide_batch(batch: Any, place: Place) -> Any:
    """The rows of `batch` that belong to `place`, a batch of the same kind. Raises UserError for another kind."""
    if place.ways == 1:
        return batch
    if not isinstance(batch, TokenBatch | SourceTargetBatch):
        raise UserError(f"a {type(batch).__name__} is not divided among processes: train with one process")
    start, stop = span(len(batch), place.index, place.ways)
    if start < stop:
        return batch.part(start, stop)
    part = batch.part(0, 1)
    return replace(part, targets=torch.full_like(part.targets, IGNORE))
