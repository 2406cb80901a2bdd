"""N-gram language model over the token ids of any tokenizer, orders 1 to 9: Kneser-Ney, stupid back-off or add-k.

It is the cheap baseline every neural model has to beat: it trains in seconds on the corpus itself. Order 1 is the
unigram baseline. Whatever the smoothing, every token of the vocabulary has positive probability after every context,
and the probabilities sum to one: stupid back-off's scores, which do not, are divided by their sum.

    model = NGramModel.train([np.array([5, 3, 5])], vocab_size=8, order=3, end_of_text=0)
    model.log_probs(np.array([5, 3, 0]))                            # nats of each token of one document
    logits, state = model.forward(torch.tensor([[5, 3]]))           # as every LanguageModel
    model = NGramModel.train(documents, 8, 5, smoothing="stupid-backoff", prune=(0, 0, 1))

What an order means shows in what it makes of "Pardon me," when trained on the words of Shakespeare's plays and sampled:

    n = 1   Pardon me , go assure . Alike it in thereto I ever : Lead your word weep
    n = 2   Pardon me , as good speed . Here comes to speak . How smile . That should
    n = 3   Pardon me , that would throng to see your one , I then hand , The loss

Documents are kept apart: each begins in the context of a begin mark, which is never predicted, and a token
`end_of_text`, where the vocabulary has one, is predicted at its end. A stream of documents with `end_of_text` between
them is therefore scored as the documents themselves: what follows that token is again the beginning of a document.

The counting is in `ngram_counts.py`, the methods and their sources in `ngram_smoothing.py`, the arrays and their
compiled walk in `ngram_trie.py`, other programs' files in `ngram_arpa.py`.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from parlance.core.artifacts import read_json, write_json
from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.models.ngram_counts import Integers, checked_tokens, count_ngrams
from parlance.models.ngram_smoothing import MAX_ORDER, Discount, KneserNey, NGramTraining, smoother_for
from parlance.models.ngram_trie import (
    NOTHING,
    Float64,
    Trie,
    build_trie,
    fill_log_probs,
    open_arrays,
    save_arrays,
    score_tokens,
    trie_of,
)

if TYPE_CHECKING:
    import torch  # half of what `parlance score` of an n-gram model would take is its import

CHECKED_BYTES = 1 << 26
"""Saved models up to this size are compared with their checksum when opened, some 50 ms; larger ones open mapped."""


class NGramConfig(Config):
    """Everything of a model but the arrays."""

    model_type: Literal["parlance-ngram"] = "parlance-ngram"
    """Tells this folder from those of other models."""
    order: int = Field(ge=1, le=MAX_ORDER)
    """Longest n-gram; a token is predicted from the order - 1 tokens before it."""
    vocab_size: int = Field(ge=1)
    """Number of token ids V."""
    end_of_text: int | None
    """Token predicted at the end of each document; None: document ends are not predicted."""
    training: NGramTraining | None
    """How it was trained; None: it was read from an ARPA file."""
    discounts: tuple[Discount, ...]
    """Kneser-Ney: of each order, from 1, the discounts, and by which method they were found. Others: none."""
    counts: tuple[int, ...]
    """Number of n-grams of each order, from 1; the first is V + 1, with the begin mark."""


class SavedNGramConfig(NGramConfig):
    """What a folder's `config.json` says beyond the model itself."""

    checksum: int
    """CRC-32 of the arrays."""


@dataclass(frozen=True, eq=False)
class NGramModel:
    """A trained n-gram model: a trie of n-grams with a log-probability and a back-off weight at its nodes.

    A `LanguageModel`. Immutable; may be used from several threads at once.
    """

    config: NGramConfig
    """Order, vocabulary, training, numbers of n-grams."""
    trie: Trie
    """The n-grams and their values."""

    @staticmethod
    def train(
        documents: Iterable[Integers],
        vocab_size: int,
        order: int = 5,
        end_of_text: int | None = None,
        *,
        smoothing: str = "kneser-ney",
        add_k: float = 1.0,
        prune: tuple[int, ...] = (),
    ) -> "NGramModel":
        """Count and smooth. documents: one (T,) integer array each; they are all held in memory.

        `end_of_text` is appended to each document that does not end with it already; one inside a document parts it
        in two. The other arguments are the fields of `NGramTraining`. Where the closed form of Kneser-Ney's discounts
        is not possible, a line on standard error says for which order and what took its place. Raises UserError: order
        not in 1..9, an unknown smoothing, prune thresholds that decrease, ids outside the vocabulary, nothing to count.
        """
        if not 1 <= order <= MAX_ORDER:
            raise UserError(f"order {order} is not possible for an n-gram model: choose 1 to {MAX_ORDER}")
        values = {"order": order, "smoothing": smoothing, "add_k": add_k, "prune": prune}
        training = parse_config(NGramTraining, values, where="n-gram training")
        return NGramModel.train_as(training, documents, vocab_size, end_of_text)

    @staticmethod
    def train_as(
        training: NGramTraining, documents: Iterable[Integers], vocab_size: int, end_of_text: int | None = None
    ) -> "NGramModel":
        """`train`, with the choices as one object."""
        if vocab_size < 1:
            raise UserError(
                f"a vocabulary of {vocab_size} tokens is empty: give the size of the tokenizer's vocabulary"
            )
        if end_of_text is not None and not 0 <= end_of_text < vocab_size:
            raise UserError(f"end_of_text {end_of_text} is outside the vocabulary of {vocab_size}: give one of its ids")
        smoother = smoother_for(training, vocab_size)
        # While one order is counted, another thread smooths those before it, in turn.
        with ThreadPoolExecutor(1) as pool:
            levels = count_ngrams(documents, vocab_size, training.order, end_of_text)
            pending = [(level, pool.submit(smoother.level, level)) for level in levels]
            trie, counts = build_trie([(level, part.result()) for level, part in pending], vocab_size, end_of_text)
        discounts = tuple(smoother.discounts) if isinstance(smoother, KneserNey) else ()
        _say_fallbacks(discounts)
        config = NGramConfig(
            order=training.order,
            vocab_size=vocab_size,
            end_of_text=end_of_text,
            training=training,
            discounts=discounts,
            counts=counts,
        )
        return NGramModel(config, trie)

    @property
    def vocab_size(self) -> int:
        """Number of token ids V."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int | None:
        """None: sequences may have any length."""
        return None

    @property
    def order(self) -> int:
        """Longest n-gram."""
        return self.config.order

    @property
    def discounts(self) -> tuple[Discount, ...]:
        """Of each order, from 1."""
        return self.config.discounts

    def parameter_count(self) -> int:
        """Number of stored n-grams, all orders together."""
        return sum(self.config.counts)

    def log_probs(self, tokens: Integers) -> Float64:
        """log p(w_t | w_<t) in nats, (T,), of one document (T,), or of several with `end_of_text` between them.

        The first token is predicted from the beginning of a document. No `end_of_text` is appended: pass it where the
        document's end is to be scored too. Raises UserError for ids outside the vocabulary.
        """
        ids = checked_tokens(np.asarray(tokens).reshape(-1), self.vocab_size)
        return score_tokens(ids, self.trie)

    def forward(
        self, tokens: "torch.Tensor", state: "torch.Tensor | None" = None
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Log-probabilities of the next token after each position, as logits.

        tokens: (B, T) int64; state: (B, order - 1) int64, the tokens before them, from an earlier call; None: each
        row is the beginning of a document. Returns logits (B, T, V) float32 and the new state, on the tokens' device
        (the work is done on the CPU). Raises UserError for ids outside the vocabulary.
        """
        import torch

        ids = checked_tokens(tokens.cpu().numpy(), self.vocab_size).astype(np.int64)
        if state is None:
            before = np.full((ids.shape[0], self.order - 1), NOTHING, np.int64)
            before[:, -1:] = self.vocab_size  # the begin mark; order 1 has no room for it, nor use
        else:
            before = np.ascontiguousarray(state.cpu().numpy())
            if before.shape != (ids.shape[0], self.order - 1) or before.max(initial=0) > self.vocab_size:
                raise ValueError(
                    f"a state of shape {before.shape} is not from this model and a batch of {ids.shape[0]}"
                )
        out = np.empty((*ids.shape, self.vocab_size), np.float32)
        fill_log_probs(before, ids, self.trie, out)
        after = np.concatenate((before, ids), axis=1)[:, ids.shape[1] :]
        return torch.from_numpy(out).to(tokens.device), torch.from_numpy(after).to(tokens.device)

    def save(self, folder: Path) -> None:
        """Write one `.npy` file an array and, last, `config.json` into an existing folder."""
        checksum = save_arrays(self.trie, folder)
        write_json(folder / "config.json", self.config.model_dump(mode="json") | {"checksum": checksum})

    @staticmethod
    def load(folder: Path) -> "NGramModel":
        """Open a saved model, its arrays memory-mapped.

        Raises UserError where files are missing or do not fit, which for models above 64 MiB means their sizes only:
        other damage to those gives wrong probabilities.
        """
        path = folder / "config.json"
        values = read_json(path)
        if isinstance(values, dict) and values.get("model_type") == "parlance-ngram" and "training" not in values:
            raise UserError(f"{folder} is an n-gram model in the form of an earlier version: train it again")
        saved = parse_config(SavedNGramConfig, values, where=str(path))
        config = NGramConfig(**{name: getattr(saved, name) for name in NGramConfig.model_fields})
        if len(config.counts) != config.order or config.counts[0] != config.vocab_size + 1 or min(config.counts) < 0:
            raise UserError(f"{path}: counts do not fit order and vocab_size: copy the folder again, or train again")
        arrays = open_arrays(folder, config.vocab_size, config.counts, saved.checksum, CHECKED_BYTES)
        end = config.end_of_text
        if end is not None and not 0 <= end < config.vocab_size:
            raise UserError(f"{path}: end_of_text {end} is outside the vocabulary: copy the folder again")
        return NGramModel(config, trie_of(config.order, config.vocab_size, end, *arrays))


def _say_fallbacks(discounts: tuple[Discount, ...]) -> None:
    """Name the orders for which other discounts than Kneser-Ney's own were taken."""
    others = [
        f"order {order} {discount.method} ({'/'.join(f'{value:.3g}' for value in discount.values)})"
        for order, discount in enumerate(discounts, start=1)
        if discount.method != "closed form"
    ]
    if others:
        say(f"n-gram model: too few rare n-grams for Kneser-Ney's own discounts; instead {', '.join(others)}")
