"""The exact toy model: relative frequencies of the next word after a context of any length, on a small text.

p(w | c) = (how often the words c are followed by w) / (how often the words c occur)

counted anywhere in the sentences. Words are what white space separates, upper and lower case are different, and a
sentence is a line. What follows its last word is `END`. The empty context is the beginning of a sentence. This is the
maximum-likelihood estimate and has its faults: a word never seen after a context is impossible, and a context that is
long enough is followed by the one word that the text has there. It searches the whole text at each question.

    >>> model = ConditionalFrequencies.from_text(
    ...     "The quick brown fox jumps over the lazy dog\\nThe fox is much faster than the lazy dog"
    ... )
    >>> model.probability("The"), model.probability("quick", "The"), model.probability("fox", "The")
    (1.0, 0.5, 0.5)
    >>> model.probability("jumps", "fox"), model.probability("is", "fox")
    (0.5, 0.5)
    >>> model.probability("is", "The fox"), model.probability("jumps", "brown fox")
    (1.0, 1.0)
    >>> model.continue_text("The fox", seed=0)
    'The fox is much faster than the lazy dog'
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from parlance.core.artifacts import read_json, write_json
from parlance.core.errors import UserError

END = "</s>"
"""The end of a sentence, as a word."""
MODEL_TYPE = "parlance-exact"
"""In `config.json`."""
MOST_TOKENS = 200_000
"""Longest text that is taken from a corpus."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ConditionalFrequencies:
    """A `LanguageModel` over the words of a text, or over the tokens of a tokenizer.

    Immutable. As a language model, its context is everything since the last `END`, or, where that does not occur in the
    text, the longest end of it that does; none at all counts the words of the whole text.
    """

    words: tuple[str, ...]
    """The spelling of each id; the last is `END`."""
    sentences: tuple[tuple[int, ...], ...]
    """The text as ids, each sentence closed by `end`."""
    end: int
    """The id that closes a sentence."""

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Count the lines of `text`; empty ones are passed over. Raises UserError where there is no word."""
        return cls.from_sentences([line.split() for line in text.splitlines()])

    @classmethod
    def from_sentences(cls, sentences: Sequence[Sequence[str]]) -> Self:
        """Count sentences given as lists of any tokens. Raises UserError where there is none, or one is `END`."""
        filled = [sentence for sentence in sentences if sentence]
        if not filled:
            raise UserError("the text holds no words to count: give at least one sentence")
        words = tuple(dict.fromkeys(word for sentence in filled for word in sentence))
        if END in words:
            raise UserError(f"the text holds the word {END}, which marks the end of a sentence here: replace it")
        ids = {word: number for number, word in enumerate((*words, END))}
        closed = tuple(tuple(ids[word] for word in (*sentence, END)) for sentence in filled)
        return cls((*words, END), closed, len(words))

    @classmethod
    def from_documents(cls, documents: Iterable[Sequence[int]], words: Sequence[str], end: int) -> Self:
        """Count documents of token ids; `words` spells the ids, `end` is the token behind every document.

        Raises UserError where there is none, or more text than a model that searches it at each question should have.
        """
        closed = tuple((*(int(token) for token in tokens), end) for tokens in documents if len(tokens))
        size = sum(len(tokens) for tokens in closed)
        if not size:
            raise UserError("the documents hold no tokens to count: give documents with text in them")
        if size > MOST_TOKENS:
            raise UserError(
                f"{size} tokens are more than the exact model takes ({MOST_TOKENS}), which keeps and searches "
                "the whole text: give it a small text, or train an n-gram model"
            )
        return cls(tuple(words), closed, end)

    def save(self, folder: Path) -> None:
        """Write `config.json` and the text into an existing folder."""
        tokens = np.array([token for sentence in self.sentences for token in sentence], np.int64)
        np.save(folder / "tokens.npy", tokens, allow_pickle=False)
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, "end": self.end, "words": list(self.words)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a saved model. Raises UserError where the files do not fit together."""
        values, path = read_json(folder / "config.json"), folder / "tokens.npy"
        try:
            tokens = np.load(path, allow_pickle=False)
            words, end = tuple(map(str, values["words"])), int(values["end"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(f"{folder} is damaged ({error}): copy the folder again, or train again") from error
        fits = tokens.ndim == 1 and tokens.dtype == np.int64 and tokens.size and tokens[-1] == end
        if not fits or not 0 <= tokens.min() <= tokens.max() < len(words):
            raise UserError(f"{path} does not fit its config.json: copy the folder again, or train again")
        stops = np.flatnonzero(tokens == end) + 1
        parts = np.split(tokens, stops[:-1])
        return cls(words, tuple(tuple(part.tolist()) for part in parts), end)

    def parameter_count(self) -> int:
        """Number of tokens kept: the whole text."""
        return sum(len(sentence) for sentence in self.sentences)

    def probability(self, word: str, context: str | Sequence[str] = ()) -> float:
        """p(word | context), in [0, 1]; 0 for a word that the text does not hold. context: words, or a text of them.

        Raises UserError where the context does not occur, or is followed by nothing: there is nothing to divide by.
        """
        words = context.split() if isinstance(context, str) else list(context)
        numbers = self._numbers()
        followers = self._followers([numbers.get(each, -1) for each in words])
        if not followers:
            raise UserError(f"the text does not hold {' '.join(words)!r}, so nothing is known of what follows it")
        return followers[numbers.get(word, -1)] / followers.total()

    def continue_text(self, context: str, seed: int, max_words: int = 50) -> str:
        """`context` and words drawn one by one until a sentence ends or `max_words` are drawn.

        Raises UserError where a word of the context is not one of the text's.
        """
        numbers = self._numbers()
        history = [numbers.get(word, -1) for word in context.split()]
        if -1 in history:
            raise UserError(f"the text does not hold {context.split()[history.index(-1)]!r}: use its words")
        generator = np.random.default_rng(seed)
        for _ in range(max_words):
            drawn = int(generator.choice(len(self.words), p=self._distribution(history)))
            if drawn == self.end:
                break
            history.append(drawn)
        return " ".join(self.words[number] for number in history)

    @property
    def vocab_size(self) -> int:
        """Number of words, `END` among them."""
        return len(self.words)

    @property
    def context_length(self) -> int | None:
        """None: sequences may have any length."""
        return None

    def forward(self, tokens: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the next word after each position, -inf for impossible ones, as logits.

        tokens: (B, T) int64; state: (B, S) int64, all tokens before them, from an earlier call. Returns logits
        (B, T, V) float32 and the new state (B, S + T). Raises UserError for ids outside the vocabulary.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise UserError(f"a token is outside the vocabulary of {self.vocab_size}: use the words of the text")
        seen = tokens if state is None else torch.cat((state, tokens), dim=1)
        first = seen.shape[1] - tokens.shape[1]
        rows = [
            [self._distribution(row[: first + t + 1]) for t in range(tokens.shape[1])] for row in seen.cpu().tolist()
        ]
        p = np.array(rows, np.float32).reshape(*tokens.shape, self.vocab_size)
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(p)).to(tokens.device), seen

    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def _text(self) -> tuple[Integers, dict[int, Integers]]:
        """All sentences in one array, and the places of each id in it."""
        stream = np.array([token for sentence in self.sentences for token in sentence], np.int64)
        order = np.argsort(stream, kind="stable")
        ids, starts = np.unique(stream[order], return_index=True)
        return stream, dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))

    def _distribution(self, history: Sequence[int]) -> npt.NDArray[np.float64]:
        """(V,) p(. | history), by its longest end that the text holds."""
        start = max((place + 1 for place, number in enumerate(history) if number == self.end), default=0)
        context = list(history[start:])
        followers = self._followers(context)
        while not followers and context:
            context = context[1:]
            followers = self._followers(context) if context else Counter(self._text[0].tolist())
        p = np.zeros(len(self.words))
        p[list(followers)] = list(followers.values())
        p /= p.sum()
        return p

    def _followers(self, context: Sequence[int]) -> Counter[int]:
        """How often each word follows the context; the empty one stands at the beginning of each sentence."""
        stream, places = self._text
        if not context:
            return Counter(sentence[0] for sentence in self.sentences)
        if self.end in context or context[-1] not in places:
            return Counter()
        # A context holds no end, so no match crosses sentences.
        found = places[context[-1]]
        for back in range(1, len(context)):
            found = found[found >= back]
            found = found[stream[found - back] == context[-1 - back]]
        return Counter(stream[found + 1].tolist())
