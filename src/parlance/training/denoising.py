"""Denoising objectives: tokens hidden from an encoder, and spans hidden from an encoder-decoder.

- `mask_tokens`: BERT's. Of the tokens of a window 15 % are to be said, and most of these are hidden by a mask.
- `corrupt_spans`: T5's. Spans of a window become one sentinel each; the target says what each sentinel stood for.
- `continue_text`: the target is what follows the source, so that a model also learns to go on from a beginning.

All noise comes from the generator that is passed in: the same one gives the same batch. Windows are whole; that
documents begin and end in them is not looked at. Corruption at the level of words (whole-word masking) is left out.

    rng = np.random.default_rng([0, 8])
    inputs, targets = mask_tokens(windows, mask_token=256, vocab_size=256, rng=rng)
    batch = denoising_batch(windows, DenoisingTokens(256, sentinels=7, start_token=263, empty_source=(263,)), rng)
    DenoisingObjective()(model, batch).loss_sum.backward()

Shapes: B batch, T tokens of a window, S source tokens. Sources: Devlin et al. 2019, appendix A.1 and the data program
published with it (how many are masked); Raffel et al. 2020, section 3.1.4 and figure 2 (spans, sentinels, the closing
sentinel); the program published with it (numbers of tokens and spans, and how they are drawn).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.padding import MULTIPLE
from parlance.models.transformer import Transformer
from parlance.text.packing import IGNORE
from parlance.training.objectives import LossTerms, NextTokenObjective, counted, cross_entropy_sum

Tokens = NDArray[np.int64]

RATE = 0.15
"""Share of the tokens that noise takes, in both papers."""
MEAN_SPAN = 3.0
"""Mean length of a corrupted span."""
CONTINUATION_SHARE = 0.5
"""Share of the rows that are continued rather than repaired: what generation asks of the model."""
MASKED, RANDOM = 0.8, 0.1
"""Of the tokens to be said: shares that are hidden by the mask, and replaced by any token. The rest stays."""


# --- masked tokens ---------------------------------------------------------------------------------------------------


def mask_tokens(
    windows: Tokens, mask_token: int, vocab_size: int, rng: np.random.Generator, rate: float = RATE
) -> tuple[Tokens, Tokens]:
    """Inputs and targets (B, T) of windows (B, T): which tokens to say, and what the encoder sees in their place.

    Of every row the same number is to be said, round(`rate` T) and at least one, drawn without replacement. Each is
    hidden by `mask_token` (80 %), replaced by one of `vocab_size` tokens (10 %) or left as it is (10 %). Targets of all
    others are `IGNORE`.
    """
    B, T = windows.shape
    count = min(T, max(1, round(rate * T)))
    chosen = np.argsort(rng.random((B, T)), axis=1, kind="stable")[:, :count]
    said = np.take_along_axis(windows, chosen, axis=1)
    fate = rng.random((B, count))
    drawn = rng.integers(vocab_size, size=(B, count))
    seen = np.where(fate < MASKED, mask_token, np.where(fate < MASKED + RANDOM, drawn, said))
    inputs, targets = windows.copy(), np.full_like(windows, IGNORE)
    np.put_along_axis(inputs, chosen, seen, axis=1)
    np.put_along_axis(targets, chosen, said, axis=1)
    return inputs, targets


# --- spans -----------------------------------------------------------------------------------------------------------


def noise_sizes(length: int, rate: float = RATE, mean_span: float = MEAN_SPAN) -> tuple[int, int]:
    """Tokens and spans of noise in a window of `length` >= 2: round(rate length), and that over the mean span.

    Both are at least one; at least one token stays before every span.
    """
    tokens = min(max(round(length * rate), 1), length - 1)
    return tokens, min(max(round(tokens / mean_span), 1), length - tokens)


def sentinels_needed(length: int, rate: float = RATE, mean_span: float = MEAN_SPAN) -> int:
    """Sentinels that `corrupt_spans` uses for a window of `length`: one a span, and the closing one."""
    return noise_sizes(length, rate, mean_span)[1] + 1


def corrupt_spans(
    window: Tokens,
    first_sentinel: int,
    rng: np.random.Generator,
    rate: float = RATE,
    mean_span: float = MEAN_SPAN,
    *,
    max_sentinels: int | None = None,
    step: int = 1,
) -> tuple[Tokens, Tokens]:
    """Source and target of a window (T,), T >= 2. Both together are the window again.

    window: A B C D E F G H; source: A B <0> E F G <1>; target: <0> C D <1> H <2>. Text comes first and noise last;
    lengths of text and of noise are each a random partition, all partitions equally likely. Sentinels count from
    `first_sentinel` by `step` (T5's own: -1). `max_sentinels` >= 2: there are no more of them, so fewer and longer
    spans are drawn where more would be needed.
    """
    tokens, spans = noise_sizes(len(window), rate, mean_span)
    if max_sentinels is not None:
        spans = min(spans, max_sentinels - 1)
    kept, lost = _partition(len(window) - tokens, spans, rng), _partition(tokens, spans, rng)
    ends = np.cumsum(np.stack((kept, lost), axis=1))
    # [text, noise, text, noise, ...]
    pieces = np.split(window, ends[:-1])
    sentinels = first_sentinel + step * np.arange(spans + 1, dtype=np.int64)
    source, target = list[Tokens](), list[Tokens]()
    for number in range(spans):
        sentinel = sentinels[number : number + 1]
        source += [pieces[2 * number], sentinel]
        target += [sentinel, pieces[2 * number + 1]]
    return np.concatenate(source), np.concatenate([*target, sentinels[-1:]])


def _partition(total: int, parts: int, rng: np.random.Generator) -> Tokens:
    """`parts` numbers of at least 1 that sum to `total`, all ways equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def continue_text(window: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
    """The beginning of a window (T,) and its rest; the beginning has 0 to T - 1 tokens, each equally likely."""
    place = int(rng.integers(len(window)))
    return window[:place], window[place:]


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenoisingTokens:
    """Tokens of a model that noise and teacher forcing need."""

    first_sentinel: int
    """Sentinels count upwards from here."""
    sentinels: int
    """How many there are; at least 2."""
    start_token: int
    """What the decoder reads first."""
    empty_source: tuple[int, ...]
    """What the encoder reads where there is no source."""

    def __post_init__(self) -> None:
        if self.sentinels < 2:
            raise UserError(
                f"span corruption needs two sentinels or more, and this model has {self.sentinels}: set model.sentinels"
            )


@dataclass
class SourceTargetBatch:
    """What an encoder-decoder reads and writes, padded on the right."""

    source: Tensor
    """(B, S) int64."""
    source_mask: Tensor
    """(B, S) bool: which are tokens."""
    inputs: Tensor
    """(B, T) int64: the start token, then the target without its last token."""
    targets: Tensor
    """(B, T) int64; `IGNORE` where there is nothing to say."""

    def to(self, device: torch.device) -> "SourceTargetBatch":
        """The same on a device."""
        parts = (self.source, self.source_mask, self.inputs, self.targets)
        return SourceTargetBatch(*(part.to(device) for part in parts))

    def __len__(self) -> int:
        """Rows."""
        return len(self.source)

    def part(self, start: int, stop: int) -> "SourceTargetBatch":
        """Rows `start` to `stop`."""
        rows = slice(start, stop)
        return SourceTargetBatch(self.source[rows], self.source_mask[rows], self.inputs[rows], self.targets[rows])

    def texts(self) -> list[Tensor]:
        """What the encoder and what the decoder reads."""
        return [self.source, self.inputs]


def source_target_batch(
    pairs: Sequence[tuple[Tokens, Tokens]], tokens: DenoisingTokens, longest: int
) -> SourceTargetBatch:
    """Pairs of source and target as one batch for teacher forcing.

    Widths are rounded up (`padding.MULTIPLE`), though not above `longest` where all rows are that short.
    """
    sources = [source if len(source) else np.array(tokens.empty_source, dtype=np.int64) for source, _ in pairs]
    targets = [target for _, target in pairs]
    inputs = [np.concatenate(([tokens.start_token], target[:-1])) for target in targets]
    mask = _padded([np.ones(len(source), dtype=np.int64) for source in sources], 0, longest).bool()
    return SourceTargetBatch(
        _padded(sources, 0, longest), mask, _padded(inputs, 0, longest), _padded(targets, IGNORE, longest)
    )


def _padded(rows: Sequence[Tokens], value: int, longest: int) -> Tensor:
    most = max(len(row) for row in rows)
    width = min(-(-most // MULTIPLE) * MULTIPLE, max(most, longest))
    out = np.full((len(rows), width), value, dtype=np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return torch.from_numpy(out)


def denoising_batch(
    windows: Tokens,
    tokens: DenoisingTokens,
    rng: np.random.Generator,
    continuation_share: float = CONTINUATION_SHARE,
) -> SourceTargetBatch:
    """Windows (B, T), T >= 2, each a text to continue with probability `continuation_share`, else spans to repair."""
    continued = rng.random(len(windows)) < continuation_share
    pairs = [
        continue_text(window, rng)
        if goes_on
        else corrupt_spans(window, tokens.first_sentinel, rng, max_sentinels=tokens.sentinels)
        for window, goes_on in zip(windows, continued.tolist(), strict=True)
    ]
    return source_target_batch(pairs, tokens, windows.shape[1])


# --- objectives ------------------------------------------------------------------------------------------------------


class MaskedTokenObjective(NextTokenObjective):
    """Sum of -log p(token | the window with noise) over the tokens to be said; the head runs on those alone.

    What tells it from `NextTokenObjective` is in the batch (a `TokenBatch` of `mask_tokens`) and in the model, which
    is an encoder: a target is the token at its own place.
    """


class DenoisingObjective:
    """Sum of -log p(target token | those before it, source): teacher forcing. The head runs on target tokens alone."""

    def __call__(self, model: ConditionalLanguageModel, batch: SourceTargetBatch) -> LossTerms:
        memory = model.encode(batch.source, batch.source_mask)
        hidden = model.hidden(batch.inputs, memory=memory).flatten(0, 1)
        hidden, targets, count = counted(hidden, batch.targets)
        loss = cross_entropy_sum(model, hidden, targets)
        return LossTerms(loss, count, regulariser=_balance(model, count))


def _balance(model: ConditionalLanguageModel, count: int) -> Tensor | None:
    """What keeps the experts of both stacks in balance, where they have any."""
    parts = [part.auxiliary_loss() for part in model.modules() if isinstance(part, Transformer)]
    losses = [part for part in parts if part is not None]
    return torch.stack(losses).sum() * count if losses else None
