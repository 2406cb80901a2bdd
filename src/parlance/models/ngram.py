"""N-gram language model: interpolated modified Kneser-Ney over the token ids of any tokenizer, orders 1 to 9.

It is the cheap baseline every neural model has to beat: it trains in seconds on the corpus itself. Order 1 is the
unigram baseline. All n-grams are kept (no pruning), and every token of the vocabulary has positive probability after
every context, because the unigrams are interpolated with the uniform distribution.

    model = NGramModel.train([np.array([5, 3, 5])], vocab_size=8, order=3, end_of_text=0)
    model.log_probs(np.array([5, 3, 0]))                            # nats of each token of one document
    logits, state = model.forward(torch.tensor([[5, 3]]))           # as every LanguageModel

Documents are kept apart: each begins in the context of a begin mark, which is never predicted, and a token
`end_of_text`, where the vocabulary has one, is predicted at its end. A stream of documents with `end_of_text` between
them is therefore scored as the documents themselves: what follows that token is again the beginning of a document.

S. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling" (1998), section 4.1.6, in the
interpolated form of K. Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013), section 3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from parlance.core.artifacts import read_json, write_json
from parlance.core.compiled import compiled
from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError
from parlance.models.ngram_counts import (
    Discount,
    Int32,
    Int64,
    Integers,
    NGramCounts,
    checked_tokens,
    count_ngrams,
    estimate_discount,
)

MAX_ORDER = 9
_ARRAYS = ("words", "first_child", "log_values", "log_backoffs")
_NOTHING = -1
"""In a state: before the begin mark."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Trie(NamedTuple):
    """What the compiled functions read: N n-grams ordered as in `NGramCounts`, M of them contexts; read-only."""

    order: int
    """Longest n-gram."""
    begin: int
    """The begin mark, which is V; tokens are smaller."""
    end: int
    """`end_of_text`; -1 for none."""
    words: Int32
    """(N,) last word of each n-gram."""
    first_child: Int64
    """(M + 1,) the children of node i are nodes first_child[i] to first_child[i + 1] - 1."""
    log_values: Float64
    """(N,) log p(w | h) of the n-gram hw, in nats, fully interpolated; -inf for the begin mark."""
    log_backoffs: Float64
    """(M,) log gamma(h): what scales the shorter context's probabilities where hw was never seen."""


class NGramConfig(Config):
    """`config.json` of a saved model: everything but the arrays."""

    model_type: Literal["parlance-ngram"] = "parlance-ngram"
    """Tells this folder from those of other models."""
    order: int = Field(ge=1, le=MAX_ORDER)
    """Longest n-gram; a token is predicted from the order - 1 tokens before it."""
    vocab_size: int = Field(ge=1)
    """Number of token ids V."""
    end_of_text: int | None
    """Token predicted at the end of each document; None: document ends are not predicted."""
    discounts: tuple[Discount, ...]
    """Of each order, from 1: the discounts, and by which method they were found."""
    counts: tuple[int, ...]
    """Number of n-grams of each order, from 1; the first is V + 1, with the begin mark."""


@dataclass(frozen=True, eq=False)
class NGramModel:
    """A trained n-gram model: the trie of `NGramCounts` with a log-probability and a back-off weight at its nodes.

    A `LanguageModel`. Immutable; may be used from several threads at once.
    """

    config: NGramConfig
    """Order, vocabulary, discounts, numbers of n-grams."""
    trie: Trie
    """The n-grams and their values."""

    @staticmethod
    def train(
        documents: Iterable[Integers], vocab_size: int, order: int = 5, end_of_text: int | None = None
    ) -> "NGramModel":
        """Count and smooth. documents: one (T,) integer array each; they are all held in memory.

        `end_of_text` is appended to each document that does not end with it already; one inside a document parts it
        in two. Raises UserError: order not in 1..9, ids outside the vocabulary, nothing to count.
        """
        if not 1 <= order <= MAX_ORDER:
            raise UserError(f"order {order} is not possible for an n-gram model: choose 1 to {MAX_ORDER}")
        if vocab_size < 1:
            raise UserError(
                f"a vocabulary of {vocab_size} tokens is empty: give the size of the tokenizer's vocabulary"
            )
        if end_of_text is not None and not 0 <= end_of_text < vocab_size:
            raise UserError(f"end_of_text {end_of_text} is outside the vocabulary of {vocab_size}: give one of its ids")
        counts = count_ngrams(documents, vocab_size, order, end_of_text)
        levels = [counts.adjusted[slice(*bounds)] for bounds in pairwise(counts.level_starts)]
        discounts = tuple(estimate_discount(level) for level in levels)
        values, backoffs = _smooth(counts, vocab_size, discounts)
        with np.errstate(divide="ignore"):  # log 0 of the begin mark, which is not predicted
            log_values, log_backoffs = np.log(values), np.log(backoffs)
        config = NGramConfig(
            order=order,
            vocab_size=vocab_size,
            end_of_text=end_of_text,
            discounts=discounts,
            counts=tuple(level.size for level in levels),
        )
        return NGramModel(config, _trie(config, counts.words, counts.first_child, log_values, log_backoffs))

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

    def size_bytes(self) -> int:
        """Bytes of the arrays, in memory and on disk."""
        return sum(getattr(self.trie, name).nbytes for name in _ARRAYS)

    def log_probs(self, tokens: Integers) -> Float64:
        """log p(w_t | w_<t) in nats, (T,), of one document (T,), or of several with `end_of_text` between them.

        The first token is predicted from the beginning of a document. No `end_of_text` is appended: pass it where the
        document's end is to be scored too. Raises UserError for ids outside the vocabulary.
        """
        ids = checked_tokens(np.asarray(tokens).reshape(-1), self.vocab_size)
        return _score(ids, self.trie)

    def next_log_probs(self, context: Integers) -> Float64:
        """log p(w | context) in nats for every w, (V,), after `context` (T,), a document's first T >= 0 tokens."""
        ids = checked_tokens(np.asarray(context).reshape(-1), self.vocab_size)
        before = np.full(self.order - 1, _NOTHING, np.int64)
        row = np.concatenate((before, [self.vocab_size], ids)).astype(np.int64)[None, -self.order :]
        out: Float64 = np.empty((1, 1, self.vocab_size), np.float64)
        _fill(row[:, :-1], row[:, -1:], self.trie, out)
        return out.reshape(-1)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the next token after each position, as logits.

        tokens: (B, T) int64; state: (B, order - 1) int64, the tokens before them, from an earlier call; None: each
        row is the beginning of a document. Returns logits (B, T, V) float32 and the new state, on the tokens' device
        (the work is done on the CPU). Raises UserError for ids outside the vocabulary.
        """
        ids = checked_tokens(tokens.cpu().numpy(), self.vocab_size).astype(np.int64)
        if state is None:
            before = np.full((ids.shape[0], self.order - 1), _NOTHING, np.int64)
            before[:, -1:] = self.vocab_size  # the begin mark; order 1 has no room for it, nor use
        else:
            before = np.ascontiguousarray(state.cpu().numpy())
            if before.shape != (ids.shape[0], self.order - 1) or before.max(initial=0) > self.vocab_size:
                raise ValueError(
                    f"a state of shape {before.shape} is not from this model and a batch of {ids.shape[0]}"
                )
        out = np.empty((*ids.shape, self.vocab_size), np.float32)
        _fill(before, ids, self.trie, out)
        after = np.concatenate((before, ids), axis=1)[:, ids.shape[1] :]
        return torch.from_numpy(out).to(tokens.device), torch.from_numpy(after).to(tokens.device)

    def save(self, folder: Path) -> None:
        """Write `config.json` and one `.npy` file an array into an existing folder."""
        write_json(folder / "config.json", self.config.model_dump(mode="json"))
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self.trie, name), allow_pickle=False)

    @staticmethod
    def load(folder: Path) -> "NGramModel":
        """Open a saved model, its arrays memory-mapped. Raises UserError where files are missing or do not fit."""
        path = folder / "config.json"
        config = parse_config(NGramConfig, read_json(path), where=str(path))
        trie = _trie(config, *(_open_array(folder / f"{name}.npy") for name in _ARRAYS))
        if not _fits(config, trie):
            raise UserError(f"the arrays in {folder} do not fit its config.json: copy the folder again, or train again")
        return NGramModel(config, trie)


def _trie(config: NGramConfig, words: Int32, first_child: Int64, log_values: Float64, log_backoffs: Float64) -> Trie:
    """The arrays made read-only: they are shared, and one kind of array needs one compilation."""
    for array in (words, first_child, log_values, log_backoffs):
        array.flags.writeable = False
    end = _NOTHING if config.end_of_text is None else config.end_of_text
    return Trie(config.order, config.vocab_size, end, words, first_child, log_values, log_backoffs)


def _fits(config: NGramConfig, trie: Trie) -> bool:
    """Compiled code does not check indices, so the arrays of a folder are checked once, before they are used."""
    V, counts = config.vocab_size, config.counts
    nodes, contexts = sum(counts), sum(counts[:-1])
    expected = {"words": ("int32", nodes), "first_child": ("int64", contexts + 1)}
    expected |= {"log_values": ("float64", nodes), "log_backoffs": ("float64", contexts)}
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(trie, name) for name in _ARRAYS}
    return (
        len(counts) == config.order
        and counts[0] == V + 1
        and all((array.dtype.name, *array.shape) == expected[name] for name, array in arrays.items())
        and (trie.first_child[0], trie.first_child[-1]) == (V + 1, nodes)
        and bool((trie.first_child[1:] >= trie.first_child[:-1]).all())
        and bool(((trie.words[V + 1 :] >= 0) & (trie.words[V + 1 :] < V)).all())
    )


def _open_array(path: Path) -> npt.NDArray[Any]:
    try:
        # np.asarray sheds the memmap subclass, not the mapping.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): copy the model's folder again, or train again") from error


def _smooth(counts: NGramCounts, vocab_size: int, discounts: Sequence[Discount]) -> tuple[Float64, Float64]:
    """p(w | h) of every n-gram (N,) and gamma(h) of every context (M,), from the shortest n-grams up."""
    values = np.zeros(counts.words.size, np.float64)
    backoffs = np.ones(counts.first_child.size - 1, np.float64)
    # Unigrams, over the uniform distribution.
    unigrams = counts.adjusted[:vocab_size]
    taken = np.array([0.0, *discounts[0].values])[np.minimum(unigrams, 3)]
    values[:vocab_size] = (unigrams - taken + taken.sum() / vocab_size) / unigrams.sum()
    # Higher orders, each over the one below.
    for level in range(1, len(discounts)):
        start, stop = counts.level_starts[level - 1 : level + 1]
        table = np.array([0.0, *discounts[level].values])
        _interpolate(start, stop, counts.first_child, counts.suffixes, counts.adjusted, table, values, backoffs)
    return values, backoffs


@compiled
def _interpolate(
    start: int,
    stop: int,
    first_child: Int64,
    suffixes: Int64,
    adjusted: Int64,
    discounts: Float64,
    values: Float64,
    backoffs: Float64,
) -> None:
    """p(w|h) = (a(hw) - D) / sum_x a(hx) + gamma(h) p(w|h'), for the contexts h = nodes start..stop-1; in place.

    gamma(h) = sum_x D / sum_x a(hx), and 1 where nothing follows h. discounts: (4,) D by min(a, 3).
    """
    for context in range(start, stop):
        children = range(first_child[context], first_child[context + 1])
        total = 0
        taken = 0.0
        for node in children:
            total += adjusted[node]
            taken += discounts[min(adjusted[node], 3)]
        if total > 0:
            backoffs[context] = taken / total
        for node in children:
            kept = adjusted[node] - discounts[min(adjusted[node], 3)]
            values[node] = (kept + taken * values[suffixes[node]]) / total


@compiled
def _find(context: int, word: int, trie: Trie) -> int:
    """The child of `context` with `word`, or -1: a binary search."""
    low = trie.first_child[context]
    stop = trie.first_child[context + 1]
    high = stop
    while low < high:
        middle = (low + high) >> 1
        if trie.words[middle] < word:
            low = middle + 1
        else:
            high = middle
    return low if low < stop and trie.words[low] == word else -1


@compiled
def _advance(contexts: Int64, depth: int, token: int, trie: Trie) -> tuple[int, float]:
    """Read one token: returns the new depth and log p(token | contexts), and updates `contexts` in place.

    contexts[k], 1 <= k <= depth < order, is the node of the last k tokens. A suffix of an n-gram is an n-gram, so the
    first length without a match ends the search. The begin mark and what precedes it (negative) have no probability.
    """
    if token < 0 or token == trie.begin:
        contexts[min(1, trie.order - 1)] = trie.begin
        return (0 if token < 0 else min(1, trie.order - 1)), 0.0
    node = token
    score = 0.0
    length = depth + 1  # of the longest n-gram that ends in `token`
    for k in range(1, depth + 1):
        context = contexts[k]
        contexts[k] = node
        child = _find(context, token, trie)
        if child < 0:
            score = trie.log_backoffs[context]
            for longer in range(k + 1, depth + 1):
                score += trie.log_backoffs[contexts[longer]]
            length = k
            break
        node = child
    score += trie.log_values[node]
    if length < trie.order:
        contexts[length] = node
    depth = min(length, trie.order - 1)
    if token == trie.end and trie.order > 1:
        contexts[1] = trie.begin
        depth = 1
    return depth, score


@compiled
def _score(tokens: Int32, trie: Trie) -> Float64:
    """Log-probability of each of `tokens` (T,), from the beginning of a document."""
    scores = np.empty(tokens.size, np.float64)
    contexts = np.empty(trie.order, np.int64)
    depth, _ = _advance(contexts, 0, trie.begin, trie)
    for t in range(tokens.size):
        depth, scores[t] = _advance(contexts, depth, tokens[t], trie)
    return scores


@compiled
def _fill(before: Int64, tokens: Int64, trie: Trie, out: Float32 | Float64) -> None:
    """Log-probabilities of every next token after each of `tokens` (B, T), preceded by `before`, into `out` (B, T, V).

    Work per position: V, and the number of words seen after each of its contexts.
    """
    contexts = np.empty(trie.order, np.int64)
    for row in range(tokens.shape[0]):
        depth = 0
        for t in range(before.shape[1]):
            depth, _ = _advance(contexts, depth, before[row, t], trie)
        for t in range(tokens.shape[1]):
            depth, _ = _advance(contexts, depth, tokens[row, t], trie)
            # From the unigrams up: the words seen after a longer context replace what it would back off to.
            backoff = 0.0
            for k in range(1, depth + 1):
                backoff += trie.log_backoffs[contexts[k]]
            for word in range(trie.begin):
                out[row, t, word] = backoff + trie.log_values[word]
            for k in range(1, depth + 1):
                backoff -= trie.log_backoffs[contexts[k]]
                for node in range(trie.first_child[contexts[k]], trie.first_child[contexts[k] + 1]):
                    out[row, t, trie.words[node]] = backoff + trie.log_values[node]
