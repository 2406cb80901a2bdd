"""What a model is pre-trained on: from windows of tokens to batches, and the objective that reads them.

task = NextTokenTask(config)
for batch, state in task.batches(dataset, seed=0, state=None, device=device): ...
task.objective(model, batch)
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from parlance.text.packing import Packing
from parlance.text.token_dataset import TokenDataset
from parlance.training.objectives import NextTokenObjective, TokenBatch, packed_batch, token_batch


class Task(Protocol):
    """Batches of some kind, and the loss over them."""

    objective: Any
    """(model, batch) -> LossTerms."""

    def batches(self, dataset: TokenDataset, seed: int, state: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
        """Endless (batch, state after it); `state` from an earlier iteration with the same seed goes on behind it."""
        ...

    def validation(self, dataset: TokenDataset, tokens: int, device: torch.device) -> list[Any]:
        """The first `tokens` of a split in their own order, in whole batches of the training shape."""
        ...


def window_rows(dataset: TokenDataset, tokens: int, length: int) -> torch.Tensor:
    """Windows (N, T + 1) over the first `tokens` of a split; each target once. At least one window."""
    ids = torch.from_numpy(dataset.tokens[: tokens + 1].astype("int64"))
    count = max(1, (len(ids) - 1) // length)
    return torch.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])


def whole_batches(rows: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Rows in batches; whole ones only, so that compiled code meets the one shape it was compiled for."""
    size = min(batch_size, len(rows))
    return (rows[i : i + size] for i in range(0, len(rows) - size + 1, size))


class NextTokenTask:
    """Each token from those before it, in windows of one stream or in rows of whole documents."""

    def __init__(self, batch_size: int, context_length: int, packing: Packing) -> None:
        self.objective = NextTokenObjective()
        self.batch_size, self.length, self.packing = batch_size, context_length, packing

    def batches(
        self, dataset: TokenDataset, seed: int, state: Any, device: torch.device
    ) -> Iterator[tuple[TokenBatch, Any]]:
        """See `Task`."""
        if self.packing == "best-fit":
            for packed, after in dataset.packed_batches(self.batch_size, self.length, seed=seed, state=state):
                yield packed_batch(packed, device), after
        else:
            for rows, after in dataset.batches(self.batch_size, self.length, seed=seed, state=state):
                yield _to(token_batch(torch.from_numpy(rows)), device), after

    def validation(self, dataset: TokenDataset, tokens: int, device: torch.device) -> list[TokenBatch]:
        """See `Task`."""
        rows = window_rows(dataset, tokens, self.length)
        return [_to(token_batch(batch), device) for batch in whole_batches(rows, self.batch_size)]


def _to(batch: TokenBatch, device: torch.device) -> TokenBatch:
    return TokenBatch(batch.inputs.to(device), batch.targets.to(device))
