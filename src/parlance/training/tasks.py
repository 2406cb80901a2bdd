"""What a model is pre-trained on: from windows of tokens to batches, and the objective that reads them.

task = NextTokenTask(config)
for batch, state in task.batches(dataset, seed=0, state=None, device=device): ...
task.objective(model, batch)
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from parlance.text.packing import IGNORE, Packing
from parlance.text.token_dataset import State, TokenDataset
from parlance.training.denoising import (
    DenoisingObjective,
    DenoisingTokens,
    MaskedTokenObjective,
    SourceTargetBatch,
    denoising_batch,
    mask_tokens,
)
from parlance.training.objectives import NextTokenObjective, TokenBatch, packed_batch, token_batch

NOISE = 1
"""Third number of the seeds of noise, so that they are not those of the order of the windows (seed, epoch)."""
VALIDATION_SEED = 0
"""Validation noise is the same in every run: what is compared must not depend on its draws."""


class Task(Protocol):
    """Batches of some kind, and the loss over them."""

    objective: Any
    """(model, batch) -> LossTerms."""
    training_length: int
    """T of a training batch."""

    def batches(self, dataset: TokenDataset, seed: int, state: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
        """Endless (batch, state after it); `state` from an earlier iteration with the same seed goes on behind it."""
        ...

    def validation(self, dataset: TokenDataset, tokens: int, device: torch.device) -> list[Any]:
        """The first `tokens` of a split in their own order, in whole batches of the training shape."""
        ...

    def whole(self, dataset: TokenDataset, device: torch.device) -> list[Callable[[], Any]]:
        """All of a split in batches of the training shape, each made when it is called for.

        Of next-token prediction every target is there once; with noise every token is in a window once (but the only
        token left for a last window of an encoder-decoder, which has two). The last batch may be empty in part.
        """
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


def _rows_between(dataset: TokenDataset, first: int, count: int, length: int) -> torch.Tensor:
    """Windows `first` to `first + count` (count, T + 1) of a split; `IGNORE` behind its end."""
    ids = torch.from_numpy(dataset.tokens[first * length : (first + count) * length + 1].astype("int64"))
    ids = pad(ids, (0, count * length + 1 - len(ids)), value=IGNORE)
    return torch.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])


class NextTokenTask:
    """Each token from those before it, in windows of one stream or in rows of whole documents.

    Rows may be shorter in training than in validation (`training_length`); a batch of either has as many tokens.
    """

    def __init__(
        self, batch_size: int, context_length: int, packing: Packing, training_length: int | None = None
    ) -> None:
        self.objective = NextTokenObjective()
        self.training_rows, self.training_length = batch_size, training_length or context_length
        self.length, self.packing = context_length, packing
        self.batch_size = max(1, batch_size * self.training_length // context_length)

    def batches(
        self, dataset: TokenDataset, seed: int, state: Any, device: torch.device
    ) -> Iterator[tuple[TokenBatch, Any]]:
        """See `Task`."""
        if self.packing == "best-fit":
            for packed, after in dataset.packed_batches(*self._shape, seed=seed, state=state):
                yield replace(packed_batch(packed, device), noise=_seed(seed, after)), after
        else:
            for rows, after in dataset.batches(*self._shape, seed=seed, state=state):
                batch = _to(token_batch(torch.from_numpy(rows)), device)
                yield replace(batch, noise=_seed(seed, after)), after

    @property
    def _shape(self) -> tuple[int, int]:
        """Rows of a training batch, and their length."""
        return self.training_rows, self.training_length

    def validation(self, dataset: TokenDataset, tokens: int, device: torch.device) -> list[TokenBatch]:
        """See `Task`."""
        rows = window_rows(dataset, tokens, self.length)
        return [_to(token_batch(batch), device) for batch in whole_batches(rows, self.batch_size)]

    def whole(self, dataset: TokenDataset, device: torch.device) -> list[Callable[[], TokenBatch]]:
        """See `Task`."""
        windows = -(-(len(dataset.tokens) - 1) // self.length)

        def batch(first: int) -> TokenBatch:
            made = token_batch(_rows_between(dataset, first, self.batch_size, self.length))
            return _to(TokenBatch(made.inputs.clamp_min(0), made.targets), device)

        return [partial(batch, first) for first in range(0, windows, self.batch_size)]


class MaskedTokenTask:
    """Some tokens of each window from all the others: for encoders.

    Windows are those of `NextTokenTask` without their last token. The noise of a batch is a function of the seed and of
    how many windows were drawn before, so that a resumed run sees the same.
    """

    def __init__(self, batch_size: int, context_length: int, *, mask_token: int, vocab_size: int) -> None:
        self.objective = MaskedTokenObjective()
        self.batch_size, self.length = batch_size, context_length
        self.training_length = context_length
        self.mask_token, self.vocab_size = mask_token, vocab_size

    def batches(
        self, dataset: TokenDataset, seed: int, state: Any, device: torch.device
    ) -> Iterator[tuple[TokenBatch, Any]]:
        """See `Task`."""
        for rows, after in dataset.batches(self.batch_size, self.length, seed=seed, state=state):
            yield self._batch(rows, _noise(seed, int(after["sample"])), device), after

    def validation(self, dataset: TokenDataset, tokens: int, device: torch.device) -> list[TokenBatch]:
        """See `Task`; of these tokens, some are to be said."""
        rows = window_rows(dataset, tokens, self.length)
        return [
            self._batch(batch.numpy(), _noise(VALIDATION_SEED, number), device)
            for number, batch in enumerate(whole_batches(rows, self.batch_size))
        ]

    def whole(self, dataset: TokenDataset, device: torch.device) -> list[Callable[[], TokenBatch]]:
        """See `Task`."""

        def batch(number: int, starts: list[int]) -> TokenBatch:
            windows = np.stack([dataset.tokens[at : at + self.length].astype("int64") for at in starts])
            made = self._noisy(windows, _noise(VALIDATION_SEED, number), device)
            # Of what the last window shares with the one before it, nothing is to be said a second time.
            again = -starts[-1] % self.length
            made.targets[-1, :again] = IGNORE
            # Compiled code meets the one shape it was compiled for; of the rows behind the last, nothing is to be said.
            missing = (0, 0, 0, self.batch_size - len(starts))
            return TokenBatch(pad(made.inputs, missing), pad(made.targets, missing, value=IGNORE))

        tokens, size = len(dataset.tokens), self.batch_size
        # The last window ends where the split does.
        starts = [min(at, tokens - self.length) for at in range(0, tokens, self.length)]
        return [partial(batch, at // size, starts[at : at + size]) for at in range(0, len(starts), size)]

    def _batch(self, rows: NDArray[np.int64], rng: np.random.Generator, device: torch.device) -> TokenBatch:
        return self._noisy(rows[:, :-1], rng, device)

    def _noisy(self, windows: NDArray[np.int64], rng: np.random.Generator, device: torch.device) -> TokenBatch:
        inputs, targets = mask_tokens(windows, self.mask_token, self.vocab_size, rng)
        return _to(TokenBatch(torch.from_numpy(inputs), torch.from_numpy(targets)), device)


class DenoisingTask:
    """Windows to continue and windows to repair: for encoder-decoders. Windows and noise as in `MaskedTokenTask`."""

    def __init__(self, batch_size: int, context_length: int, tokens: DenoisingTokens) -> None:
        self.objective = DenoisingObjective()
        self.batch_size, self.length, self.tokens = batch_size, context_length, tokens
        self.training_length = context_length

    def batches(
        self, dataset: TokenDataset, seed: int, state: Any, device: torch.device
    ) -> Iterator[tuple[SourceTargetBatch, Any]]:
        """See `Task`."""
        for rows, after in dataset.batches(self.batch_size, self.length, seed=seed, state=state):
            yield denoising_batch(rows[:, :-1], self.tokens, _noise(seed, int(after["sample"]))).to(device), after

    def validation(self, dataset: TokenDataset, tokens: int, device: torch.device) -> list[SourceTargetBatch]:
        """See `Task`; source and target share these tokens."""
        rows = window_rows(dataset, tokens, self.length)
        return [
            denoising_batch(batch[:, :-1].numpy(), self.tokens, _noise(VALIDATION_SEED, number)).to(device)
            for number, batch in enumerate(whole_batches(rows, self.batch_size))
        ]

    def whole(self, dataset: TokenDataset, device: torch.device) -> list[Callable[[], SourceTargetBatch]]:
        """See `Task`."""

        def batch(number: int, start: int, stop: int, length: int) -> SourceTargetBatch:
            windows = dataset.tokens[start:stop].astype("int64").reshape(-1, length)
            return denoising_batch(windows, self.tokens, _noise(VALIDATION_SEED, number)).to(device)

        tokens, size = len(dataset.tokens), self.batch_size * self.length
        # A window has two tokens at least: of a single one that is left, the last is read with the one before it.
        end = tokens - tokens % self.length
        places = [(start, min(start + size, end), self.length) for start in range(0, end, size)]
        if rest := tokens - end:
            places.append((tokens - max(2, rest), tokens, max(2, rest)))
        return [partial(batch, number, *place) for number, place in enumerate(places)]


def _seed(seed: int, after: State) -> int:
    """The seed of a batch's dropout: a function of the run's and of where in the data the batch ends."""
    return int(_noise(seed, int(after["sample"])).integers(2**63))


def _noise(seed: int, position: int) -> np.random.Generator:
    """The generator for the batch that ends at a position of the data."""
    return np.random.default_rng([seed, position, NOISE])


def _to(batch: TokenBatch, device: torch.device) -> TokenBatch:
    return TokenBatch(batch.inputs.to(device), batch.targets.to(device))
