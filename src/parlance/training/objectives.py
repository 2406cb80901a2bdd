"""What a model is trained for: an objective maps (model, batch) to a summed loss and the number of items it counts.

The trainer divides by the count of the whole step, never by that of a micro-batch, so any split of a batch gives the
same gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.core.errors import UserError
from parlance.models.neural import NeuralLanguageModel
from parlance.models.padding import MULTIPLE
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Layout
from parlance.text.packing import IGNORE, PackedBatch
from parlance.training.cross_entropy import chunked_cross_entropy

DENSE_MASK = 1024
"""Packed rows up to this length are masked by a (T, T) matrix, which compiled code takes; longer ones in blocks."""
LARGE_LOGITS = 2**26
"""Logits from which on the loss goes through them in chunks: 256 MB in fp32."""

ModelT = TypeVar("ModelT", bound=nn.Module, contravariant=True)
BatchT = TypeVar("BatchT", contravariant=True)


@dataclass
class LossTerms:
    """A summed loss and what it sums over."""

    loss_sum: Tensor
    """Scalar with gradient."""
    count: int
    """Items in the sum: tokens, pairs, ..."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further sums over the same items (the trainer divides them by the count too)."""
    regulariser: Tensor | None = None
    """What is minimised besides and is no part of the figure that is reported; a sum like `loss_sum`."""


class Objective(Protocol[ModelT, BatchT]):
    """A loss over batches of some kind."""

    def __call__(self, model: ModelT, batch: BatchT) -> LossTerms:
        """The summed loss of one micro-batch."""
        ...


class Batch(Protocol):
    """Rows of tokens that can be divided: what the trainer needs to know of a batch, besides its objective."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def part(self, start: int, stop: int) -> Self:
        """Rows `start` to `stop`; the summed losses of all parts are that of the whole."""
        ...

    def texts(self) -> list[Tensor]:
        """The tokens that are read: tensors (B, T) int64."""
        ...


@dataclass
class TokenBatch:
    """Inputs and targets of next-token prediction."""

    inputs: Tensor
    """(B, T) int64, padded on the right."""
    targets: Tensor
    """(B, T) int64; `IGNORE` where there is nothing to predict."""
    layout: Layout | None = None
    """Positions and attention of packed documents; None: one text a row."""
    noise: int | None = None
    """Seed of a Transformer's dropout in the first row, noise + 1 in the second; None: without, as in validation."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.inputs)

    def part(self, start: int, stop: int) -> "TokenBatch":
        """Rows `start` to `stop`."""
        layout = None if self.layout is None else layout_part(self.layout, start, stop)
        noise = None if self.noise is None else self.noise + start
        return TokenBatch(self.inputs[start:stop], self.targets[start:stop], layout, noise)

    def texts(self) -> list[Tensor]:
        """The inputs."""
        return [self.inputs]


def layout_part(layout: Layout, start: int, stop: int) -> Layout:
    """The layout of rows `start` to `stop`. What stands there once for all rows stays."""

    def rows(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or len(tensor) == 1 else tensor[start:stop]

    positions = rows(layout.positions)
    assert positions is not None
    return Layout(positions, rows(layout.mask), rows(layout.documents), rows(layout.keys_at))


def cross_entropy_sum(model: NeuralLanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed -log p(target) in nats of hidden (N, D) and targets (N,)."""
    if isinstance(model, Transformer) and model.vocabulary_loss is not None:
        return model.vocabulary_loss(model, hidden, targets)
    if isinstance(model, Transformer) and len(hidden) * model.vocab_size > LARGE_LOGITS:
        return chunked_cross_entropy(model.before_head(hidden), *model.head(), targets)
    return F.cross_entropy(model.logits(hidden).float(), targets, ignore_index=IGNORE, reduction="sum")


def counted(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
    """Activations (N, D) and targets (N,) of the positions that are in the loss, and how many they are.

    hidden: (B T, D); targets: (B, T). N may be rounded up with ignored positions: see `padding.MULTIPLE`.
    """
    targets = targets.flatten().to(hidden.device)
    if not bool((targets == IGNORE).any()):
        return hidden, targets, targets.numel()
    kept = (targets != IGNORE).nonzero().squeeze(1)
    count = kept.numel()
    kept = F.pad(kept, (0, -count % MULTIPLE))
    targets = targets[kept]
    targets[count:] = IGNORE
    return hidden.index_select(0, kept), targets, count


class NextTokenObjective:
    """Sum of -log p(w_t | w_<t) over the targets that are not `IGNORE`; the head runs on those positions only.

    `compile` compiles blocks and head where that pays.
    """

    def __init__(self) -> None:
        self.cross_entropy = cross_entropy_sum

    def __call__(self, model: NeuralLanguageModel, batch: TokenBatch) -> LossTerms:
        if isinstance(model, Transformer):
            hidden = model.hidden(batch.inputs, layout=batch.layout, noise=batch.noise).flatten(0, 1)
        elif batch.layout is None:
            hidden = model.hidden(batch.inputs).flatten(0, 1)
        else:
            raise UserError("only a Transformer reads packed documents: choose packing=stream")
        hidden, targets, count = counted(hidden, batch.targets)
        balance = model.auxiliary_loss() if isinstance(model, Transformer) else None
        large = len(hidden) * model.vocab_size > LARGE_LOGITS
        loss = (cross_entropy_sum if large else self.cross_entropy)(model, hidden, targets)
        return LossTerms(loss, count, regulariser=None if balance is None else balance * count)


def token_batch(tokens: Tensor) -> TokenBatch:
    """Windows (B, T + 1) as inputs (B, T) and the targets one to the right."""
    return TokenBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def packed_batch(rows: PackedBatch, device: torch.device) -> TokenBatch:
    """Documents that share rows; none sees another, and each begins at position 0."""
    documents = torch.from_numpy(rows.documents).to(device).long()
    layout = Layout(torch.from_numpy(rows.positions).to(device).long(), None, documents)
    if documents.shape[1] <= DENSE_MASK:
        layout = Layout(layout.positions, layout.dense_mask())
    return TokenBatch(torch.from_numpy(rows.inputs).to(device), torch.from_numpy(rows.targets).to(device), layout)


def mean_loss(model: NeuralLanguageModel, batches: Sequence[Any], objective: Any = None) -> float:
    """Mean nats per counted token over `batches`, by the (perhaps compiled) objective of the training run.

    Runs in gradient mode, so that code compiled for training serves here too; no gradient is computed.
    """
    total, count = loss_sums(model, batches, objective or NextTokenObjective())
    return total / count


def loss_sums(model: NeuralLanguageModel, batches: Sequence[Any], objective: Any) -> tuple[float, int]:
    """Summed loss over `batches`, and the count that it is divided by."""
    total, count = 0.0, 0
    for batch in batches:
        terms = objective(model, batch)
        total, count = total + float(terms.loss_sum.detach()), count + terms.count
    return total, count
