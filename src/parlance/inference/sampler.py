"""The draws of one text: what was written so far, the random numbers, and the constraint, if there is one.

    sampler = Sampler(SamplingConfig(temperature=0.8, presence_penalty=0.5, seed=1), prompt, vocab_size=32000)
    draw = sampler.draw(logits)                     # logits (V,) -> Draw(token, log_prob, top)
    more = sampler.forced()                         # tokens that a constraint leaves no choice about

Every text has a generator of its own, so what else runs in a batch never changes it. The steps and their order are in
`sampling.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parlance.core.errors import UserError
from parlance.inference.constraints import Constraint
from parlance.inference.sampling import (
    SamplingConfig,
    add_bias,
    exact,
    filtered_logits,
    penalise_counts,
    penalise_repetition,
    race,
)


@dataclass(frozen=True)
class Draw:
    """One token of a text."""

    token: int
    log_prob: float
    """The model's own, nats: before bias, penalties, temperature and filters. 0 for a token that had to follow: nothing
    was computed for it."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their log-probabilities, the best first: `top_logprobs` of them."""


class Sampler:
    """Draws the tokens of one text."""

    def __init__(
        self,
        config: SamplingConfig,
        prompt: Sequence[int],
        *,
        vocab_size: int,
        constraint: Constraint | None = None,
    ) -> None:
        """`vocab_size` V: only ids below it are drawn (the tokenizer's, where the model has more rows).

        Raises UserError where `logit_bias` names an id that is not among them.
        """
        outside = next((token for token in config.logit_bias if not 0 <= token < vocab_size), None)
        if outside is not None:
            raise UserError(f"logit_bias: token {outside} is outside the vocabulary (ids 0 to {vocab_size - 1})")
        self.config, self.vocab_size, self.constraint = config, vocab_size, constraint
        self._generator = torch.Generator().manual_seed(config.seed)
        self._repeats = config.repetition_penalty != 1.0
        self._counts_used = config.presence_penalty != 0.0 or config.frequency_penalty != 0.0
        self._seen = torch.zeros(vocab_size if self._repeats else 0, dtype=torch.bool)
        self._counts = torch.zeros(vocab_size if self._counts_used else 0)
        if self._repeats:
            known = [token for token in set(prompt) if token < vocab_size]
            self._seen[known] = True

    @property
    def finished(self) -> bool:
        """Whether a constraint leaves nothing that could follow: the text ends here."""
        return self.constraint is not None and self.constraint.finished

    def draw(self, logits: Tensor | NDArray[np.float32]) -> Draw:
        """Draw the next token from the model's logits (V or more,), and remember it."""
        given = self._given(logits)
        changed = self._changed(given)
        if self.config.temperature == 0.0:
            token = int(changed.numpy().argmax())
        else:
            token = race(filtered_logits(changed, self.config).softmax(-1), self._generator)
        return self._kept(token, given)

    def law(self, logits: Tensor | NDArray[np.float32]) -> Tensor:
        """(V,) float64: the probabilities that `draw` would draw from; at temperature 0 all of it is on one token."""
        changed = self._changed(self._given(logits))
        if self.config.temperature == 0.0:
            p = torch.zeros(self.vocab_size, dtype=torch.float64)
            p[int(changed.numpy().argmax())] = 1.0
            return p
        return exact(filtered_logits(changed, self.config).softmax(-1))

    def keep(self, token: int, logits: Tensor | NDArray[np.float32]) -> Draw:
        """Remember a token that was chosen otherwise, from the same logits."""
        return self._kept(token, self._given(logits))

    def uniform(self) -> float:
        """A number in [0, 1) from the text's own generator."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def pick(self, probabilities: Tensor) -> int:
        """A token drawn from `probabilities` (V,) by the text's own generator."""
        return race(probabilities.float(), self._generator)

    def forced(self) -> list[int]:
        """The tokens that a constraint leaves no choice about, remembered as if they were drawn; most often none."""
        tokens = [] if self.constraint is None else self.constraint.forced()
        for token in tokens:
            self._count(token)
        return tokens

    def _given(self, logits: Tensor | NDArray[np.float32]) -> Tensor:
        tensor = torch.from_numpy(logits) if isinstance(logits, np.ndarray) else logits
        return tensor[: self.vocab_size].float().cpu()

    def _changed(self, given: Tensor) -> Tensor:
        """Logits with bias and penalties, -inf where the constraint forbids."""
        config = self.config
        changed = add_bias(given, config.logit_bias)
        if self._repeats:
            changed = penalise_repetition(changed, self._seen, config.repetition_penalty)
        if self._counts_used:
            changed = penalise_counts(changed, self._counts, config.presence_penalty, config.frequency_penalty)
        if self.constraint is not None:
            changed = changed.masked_fill(~torch.from_numpy(self.constraint.allowed()), float("-inf"))
        return changed

    def _kept(self, token: int, given: Tensor) -> Draw:
        self._count(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        log_probs = given.log_softmax(-1)
        top: tuple[tuple[int, float], ...] = ()
        if self.config.top_logprobs:
            best = log_probs.topk(min(self.config.top_logprobs, self.vocab_size))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Draw(token, float(log_probs[token]), top)

    def _count(self, token: int) -> None:
        if self._repeats:
            self._seen[token] = True
        if self._counts_used:
            self._counts[token] += 1
