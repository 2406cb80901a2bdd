"""Speculative decoding: guess several tokens cheaply, check them all in one pass of the model, keep what holds.

A drafter proposes x_1..x_k, each drawn from a law q_i that it states; the model reads them at once, which gives its own
laws p_1..p_{k+1}. x_i is kept with probability min(1, p_i(x_i) / q_i(x_i)); the first that is not is replaced by a draw
from max(p_i - q_i, 0), normalised, and the rest is taken back; where all are kept, one more is drawn from p_{k+1}.
Every token then has exactly the law p of plain sampling (with penalties, filters, forms), and at temperature 0 the text
is the same text. It is not the same draw of the law as plain sampling makes with that seed.

    for draw in draws(model, prompt, SamplingConfig(temperature=0.0), stop, drafter=PromptLookup()): ...

Drafters: `NGramDrafter`, our own n-gram model, a few microseconds a token; `PromptLookup`, what followed the last time
that the text was here; `ModelDrafter`, a smaller Transformer of the same tokenizer.

Sources: Leviathan et al. 2023; Chen et al. 2023; Saxena 2023 (prompt look-up).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.inference.reading import Reader
from parlance.inference.sampler import Draw, Sampler
from parlance.inference.sampling import SamplingConfig, exact, filtered_logits, race
from parlance.models.contract import LanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.ngram_continuation import likeliest
from parlance.models.transformer import Transformer

MOST_GUESSES = 16
"""Tokens that are guessed at once, at most."""


@dataclass(frozen=True)
class Proposal:
    """Guesses of the next tokens."""

    tokens: tuple[int, ...] = ()
    laws: tuple[Tensor | None, ...] = ()
    """(V,) float64 probabilities that each token was drawn from; None: all of it on the token."""


class Drafter(Protocol):
    """What guesses the continuation of one text."""

    def propose(self, text: Sequence[int], most: int) -> Proposal:
        """At most `most` > 0 tokens behind `text`, which each time begins with the text of the time before."""
        ...


def judged(sampler: Sampler, token: int, law: Tensor | None, logits: Tensor) -> Draw:
    """Draw a token by the model's logits (V,): `token`, which was drawn from `law`, or another in its place."""
    p = sampler.law(logits)
    q = 1.0 if law is None else float(law[token])
    if sampler.uniform() * q < float(p[token]):
        return sampler.keep(token, logits)
    rest = p.clone() if law is None else (p - law).clamp(min=0.0)
    rest[token] = 0.0
    total = float(rest.sum())
    # Nothing is left where both laws are one but for rounding.
    return sampler.keep(sampler.pick(rest / total) if total > 0.0 else token, logits)


class Confidence:
    """How often guesses were right lately, and so how many are worth making."""

    def __init__(self) -> None:
        self._rate = 0.6
        self._text = 0
        self._guess: tuple[int, ...] = ()

    def length(self, text: Sequence[int], most: int) -> int:
        """How many tokens to guess behind `text`, at least 1 and at most `most`: until all of them together are right
        less often than once in ten times. Learns from what became of the guess before."""
        for guess, token in zip(self._guess, text[self._text :], strict=False):
            self._rate += _FORGET * ((guess == token) - self._rate)
            if guess != token:
                break
        self._guess = ()
        rate = min(max(self._rate, 0.01), 0.99)
        return max(1, min(most, MOST_GUESSES, int(math.log(_WORTH) / math.log(rate))))

    def note(self, text: Sequence[int], guess: tuple[int, ...]) -> None:
        """Remember what was guessed behind `text`."""
        self._text, self._guess = len(text), guess


_WORTH = 0.1
"""A token more in a pass of the model costs about this share of the pass."""
_FORGET = 1 / 16
"""Weight of the newest guess in the rate."""


class PromptLookup:
    """Guesses that what followed the last tokens before follows again. Needs no model."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        """`longest` and `shortest`: how many last tokens are looked for."""
        self._sizes = range(longest, shortest - 1, -1)
        self._places: dict[tuple[int, ...], int] = {}
        self._known = 0
        self._confidence = Confidence()

    def propose(self, text: Sequence[int], most: int) -> Proposal:
        """See `Drafter`."""
        # What ends at the last token is noted the next time: its continuation is not known yet.
        for end in range(max(self._known, 1), len(text)):
            for size in self._sizes:
                if size <= end:
                    self._places[tuple(text[end - size : end])] = end
        self._known = len(text)
        count = self._confidence.length(text, most)
        for size in self._sizes:
            place = self._places.get(tuple(text[len(text) - size :])) if size <= len(text) else None
            if place is not None:
                guess: list[int] = []
                for at in range(place, place + count):
                    guess.append(text[at] if at < len(text) else guess[at - len(text)])
                self._confidence.note(text, tuple(guess))
                return Proposal(tuple(guess), (None,) * count)
        return Proposal()


class NGramDrafter:
    """Guesses by an n-gram model and, where the text repeats itself, by what followed before.

    At temperature 0 it guesses the likeliest tokens, as far as the n-gram model believes in them; above it, it draws by
    the temperature and the filters of the text, which is right more often than the likeliest would be.
    """

    def __init__(self, model: NGramModel, config: SamplingConfig, vocab_size: int) -> None:
        """`vocab_size`: only ids below it are guessed."""
        self._model, self._config, self._vocab_size = model, config, vocab_size
        self._generator = _own_generator(config)
        self._repeated = PromptLookup(longest=4, shortest=2 if config.temperature == 0.0 else 4)
        self._confidence = Confidence()

    def propose(self, text: Sequence[int], most: int) -> Proposal:
        """See `Drafter`."""
        repeated = self._repeated.propose(text, most)
        count = self._confidence.length(text, most)
        if repeated.tokens:
            return repeated
        last = text[-max(1, self._model.order - 1) :]
        if self._config.temperature == 0.0:
            tokens = tuple(likeliest(self._model.trie, last, most, _WORTH))
            return Proposal(tokens, (None,) * len(tokens))
        drawn: list[int] = []
        laws: list[Tensor | None] = []
        logits, state = self._model.forward(torch.tensor([last]))
        while True:
            law = filtered_logits(logits[0, -1, : self._vocab_size], self._config).softmax(-1)
            drawn.append(race(law, self._generator))
            laws.append(exact(law))
            if len(drawn) == count:
                break
            logits, state = self._model.forward(torch.tensor([drawn[-1:]]), state)
        self._confidence.note(text, tuple(drawn))
        return Proposal(tuple(drawn), tuple(laws))


class ModelDrafter:
    """Guesses with a smaller Transformer, by the temperature and the filters of the text."""

    def __init__(self, model: Transformer, config: SamplingConfig, vocab_size: int) -> None:
        """`vocab_size`: only ids below it are guessed."""
        self._model, self._vocab_size = model, vocab_size
        self._config = config.model_copy(update={"overflow": "slide"})
        self._generator = _own_generator(config)
        self._confidence = Confidence()
        self._reader: Reader | None = None
        self._read: list[int] = []  # what the reader has read of the text, guesses included
        self._start = 0  # where that begins in the text

    def propose(self, text: Sequence[int], most: int) -> Proposal:
        """See `Drafter`."""
        tokens: list[int] = []
        laws: list[Tensor | None] = []
        count = self._confidence.length(text, most)
        logits = self._caught_up(text, count)
        for _ in range(count):
            if self._config.temperature == 0.0:
                tokens.append(int(logits.numpy().argmax()))
                laws.append(None)
            else:
                law = filtered_logits(logits, self._config).softmax(-1)
                tokens.append(race(law, self._generator))
                laws.append(exact(law))
            if len(tokens) < count:
                logits = self._advance(tokens[-1:])
        self._confidence.note(text, tuple(tokens))
        return Proposal(tuple(tokens), tuple(laws))

    def _advance(self, tokens: list[int]) -> Tensor:
        assert self._reader is not None
        self._read += tokens
        return self._reader.read(tokens)[0, : self._vocab_size]

    def _caught_up(self, text: Sequence[int], count: int) -> Tensor:
        """Logits behind `text`; wrong guesses are taken back."""
        known = text[self._start :]
        same = next((n for n, pair in enumerate(zip(self._read, known, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(self._read), len(known)) if same is None else same
        same = min(same, len(known) - 1)
        if self._reader is None or self._reader.free < len(known) - len(self._read) + count:
            context = self._model.context_length
            self._start = 0 if context is None else max(0, len(text) - context // 2)
            self._reader = Reader(self._model, text[self._start :], self._config)
            self._read, known, same = [], text[self._start :], 0
        else:
            self._reader.take_back(len(self._read) - same)
            del self._read[same:]
        return self._advance(list(known[same:]))


def _own_generator(config: SamplingConfig) -> torch.Generator:
    """Guesses are drawn apart from the text's own draws."""
    return torch.Generator().manual_seed(config.seed ^ 0x5EED)


def drafter_of(model: LanguageModel, config: SamplingConfig, vocab_size: int) -> Drafter:
    """The drafter that a model is good for. Raises UserError for models that are none."""
    if isinstance(model, NGramModel):
        return NGramDrafter(model, config, vocab_size)
    if isinstance(model, Transformer):
        return ModelDrafter(model, config, vocab_size)
    raise UserError("guesses come from a Transformer or an n-gram model; this is another kind of model")
