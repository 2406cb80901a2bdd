"""N-gram models in and out of ARPA text, the format that KenLM, SRILM and speech recognisers read and write.

    write_arpa(model, Path("model.arpa"), words=["</s>", "a", "b"])
    model, words = read_arpa(Path("model.arpa"))

Both go through the file a block at a time. Reading takes what `lmplz` and `write_arpa` write: log10 probabilities and
back-off weights, `<s>`, optionally `</s>` and `<unk>`; every n-gram's first and last n-1 words must be n-grams of the
file too, as in a model that smoothing made. Words are whatever spaces and tabs separate, as UTF-8.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parlance.core.artifacts import os_errors, write_file
from parlance.core.errors import UserError
from parlance.models.ngram import NGramConfig, NGramModel
from parlance.models.ngram_counts import Int32, Int64, Level
from parlance.models.ngram_smoothing import MAX_ORDER, Float64, Smoothed
from parlance.models.ngram_trie import build_trie, unpacked_words

_NEVER = -99.0
"""How ARPA files write the log-probability of <s>."""
_MOST_WEIGHT = 100.0
"""Largest exponent of a back-off weight that is believed: some write -99 for none."""
_SEPARATORS = frozenset(" \t\n\r\0")
"""What ends a word for KenLM; other white space is part of words."""
_LINES = 1 << 16
"""Lines that are held at a time."""


def write_arpa(model: NGramModel, path: Path, words: Sequence[str]) -> None:
    """Write `model` to `path`. words: the spelling of each token id; the begin mark is written <s>, `end_of_text` </s>.

    Raises UserError where a word is empty, holds white space, or is spelt like another.
    """
    spelling = [*words, "<s>"]
    if model.config.end_of_text is not None:
        spelling[model.config.end_of_text] = "</s>"
    if len(set(spelling)) != model.vocab_size + 1 or any(not word or _SEPARATORS & set(word) for word in spelling):
        raise UserError(f"ARPA needs {model.vocab_size} distinct words without white space, none of them <s>")
    write_file(path, lambda file: _write(model, spelling, file))


def _write(model: NGramModel, spelling: list[str], file: BinaryIO) -> None:
    counts, trie = model.config.counts, model.trie
    header = ["\\data\\", *(f"ngram {k}={count}" for k, count in enumerate(counts, start=1)), ""]
    file.write("\n".join(header).encode())
    last_words = unpacked_words(trie)
    stop = 0
    for k, count in enumerate(counts, start=1):
        start, stop = stop, stop + count
        file.write(f"\n\\{k}-grams:\n".encode())
        for first in range(start, stop, _LINES):
            nodes = np.arange(first, min(first + _LINES, stop))
            scores = trie.log_values[nodes] / np.log(10)
            scores[nodes == trie.begin] = _NEVER
            columns: list[list[str]] = []
            ancestors = nodes
            for length in range(k, 0, -1):  # the last words of the n-grams, then of their contexts
                columns.insert(0, [spelling[word] for word in last_words[ancestors].tolist()])
                if length > 1:
                    ancestors = np.searchsorted(trie.first_child, ancestors, side="right") - 1
            grams = map(" ".join, zip(*columns, strict=True))
            lines = [f"{score:.10g}\t{gram}" for score, gram in zip(scores.tolist(), grams, strict=True)]
            if k < model.order:
                weights = (trie.log_backoffs[nodes] / np.log(10)).tolist()
                lines = [f"{line}\t{weight:.10g}" for line, weight in zip(lines, weights, strict=True)]
            file.write(("\n".join(lines) + "\n").encode("utf-8", errors="surrogateescape"))
    file.write(b"\n\\end\\\n")


def read_arpa(path: Path) -> tuple[NGramModel, list[str]]:
    """Open an ARPA file as a model, and the spelling of its token ids: its words in their order, without <s>.

    </s>, where the file has it, is `end_of_text`. Raises UserError naming the n-gram order and what is wrong where the
    file is not ARPA text, is cut short, holds an n-gram twice or one whose first or last words are no n-gram.
    """
    with os_errors("read", path), path.open("rb") as file:
        counts = _header(file, path)
        # 1. Words. The begin mark gets the last number.
        table, scores, weights = _section(file, 1, counts, None, path)
        words = [word.decode("utf-8", errors="surrogateescape") for word in table]
        if "<s>" not in words:
            raise UserError(f"{path} has no <s> among its words: a language model begins sentences with it")
        if len(set(words)) < len(words):
            raise UserError(f"{path}: the word {Counter(words).most_common(1)[0][0]!r} is there twice: write it again")
        begin = words.index("<s>")
        del words[begin]
        numbers = {word.encode("utf-8", errors="surrogateescape"): number for number, word in enumerate(words)}
        numbers[b"<s>"] = V = len(words)
        place = np.append(np.delete(np.arange(V + 1), begin), begin)
        scores, weights = scores[place], weights[place]
        scores[V] = -np.inf
        # 2. The longer n-grams, sorted.
        levels = [(_level(np.arange(V + 1, dtype=np.int32), np.array([0, V + 1])), scores, np.zeros(1))]
        keys: list[Int64] = []
        for k in range(2, len(counts) + 1):
            grams, scores, next_weights = _section(file, k, counts, numbers, path)
            if (grams[:, 1:] == V).any():
                raise UserError(f"{path}: an n-gram of order {k} has <s> after its first word: nothing precedes <s>")
            contexts = _find(grams[:, :-1], keys, V, path, f"first {k - 1}")
            _find(grams[:, 1:], keys, V, path, f"last {k - 1}")
            key = contexts * (V + 1) + grams[:, -1]
            order = np.argsort(key)
            keys.append(key[order])
            if (keys[-1][1:] == keys[-1][:-1]).any():
                raise UserError(f"{path}: an n-gram of order {k} is there twice: write the file again")
            offsets = np.append(0, np.cumsum(np.bincount(contexts, minlength=counts[k - 2])))
            levels.append((_level(grams[order, -1], offsets), scores[order], weights))
            weights = next_weights[order]
    parts = [
        (level, Smoothed(np.ones(level.words.size, np.bool_), np.power(10.0, values), np.power(10.0, backoffs)))
        for level, values, backoffs in levels
    ]
    end = words.index("</s>") if "</s>" in words else None
    trie, kept = build_trie(parts, V, end)
    config = NGramConfig(order=len(counts), vocab_size=V, end_of_text=end, training=None, discounts=(), counts=kept)
    return NGramModel(config, trie), words


def _level(words: Int32, offsets: Int64) -> Level:
    """What a trie needs of a level; there are no counts."""
    return Level(words, offsets, np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64), 0)


def _header(file: BinaryIO, path: Path) -> list[int]:
    """The announced number of n-grams of each order; the file is left behind the line that opens the words."""
    counts: list[int] = []
    for number, line in enumerate(file):
        text = line.strip()
        if text == b"\\1-grams:" and counts:
            break
        if text.startswith(b"ngram "):
            order, _, count = text.removeprefix(b"ngram ").partition(b"=")
            if order.strip() != str(len(counts) + 1).encode() or not count.strip().isdigit():
                raise UserError(f"{path}, line {number + 1}: not the number of n-grams of order {len(counts) + 1}")
            counts.append(int(count))
        elif number > 1000 or len(line) > 10_000:
            counts = []
            break
    else:
        counts = []
    if not 1 <= len(counts) <= MAX_ORDER:
        raise UserError(f"{path} is not an ARPA file of orders 1 to {MAX_ORDER}: it must open with \\data\\ and counts")
    return counts


def _section(
    file: BinaryIO, k: int, counts: Sequence[int], numbers: dict[bytes, int] | None, path: Path
) -> tuple[Any, Float64, Float64]:
    """The n-grams of order k: (their words, log10 p, log10 back-off weights).

    Words are an (n, k) int32 array by `numbers`; where that is None, which is at order 1, a list of spellings. The file
    is left behind the line that opens the next section.
    """
    n = counts[k - 1]
    scores, weights = np.empty(n), np.zeros(n)
    spellings: list[bytes] = []
    grams = np.empty((n, k), np.int32)
    done = 0
    while done < n:
        lines = list(islice(file, min(_LINES, n - done)))
        here = slice(done, done + len(lines))
        done += len(lines)
        try:
            score, words, weight = _columns(lines, k)
            scores[here], weights[here] = score, weight
            if numbers is None:
                spellings += words
            else:
                grams[here] = np.fromiter(map(numbers.__getitem__, words), np.int32, k * len(lines)).reshape(-1, k)
        except KeyError as error:
            word = error.args[0].decode("utf-8", errors="replace")
            raise UserError(f"{path}: {word!r} in an n-gram of order {k} is not one of the file's words") from error
        except ValueError as error:
            raise UserError(f"{path}: not a line for each of the {n} n-grams of order {k} ({error})") from error
        if not lines:
            raise UserError(f"{path} ends within the n-grams of order {k}: copy it again")
    if np.isnan(scores).any() or scores.max(initial=0.0) > 1e-6 or np.isnan(weights).any():
        raise UserError(f"{path}: a probability of order {k} is above 1 or not a number")
    if np.abs(weights).max(initial=0.0) > _MOST_WEIGHT:
        raise UserError(f"{path}: a back-off weight of order {k} is beyond all numbers (10 to the {weights.max():g})")
    following = b"\\end\\" if k == len(counts) else f"\\{k + 1}-grams:".encode()
    for line in file:
        if line.strip():
            if line.strip() != following:
                raise UserError(f"{path}: {following.decode()} expected after the {n} n-grams of order {k}")
            break
    else:
        raise UserError(f"{path} ends before {following.decode()}: copy it again")
    return (spellings if numbers is None else grams), scores, weights


def _columns(lines: Sequence[bytes], k: int) -> tuple[Float64, list[bytes], Float64]:
    """(log10 p, the words of all lines in one list, log10 back-off weights, 0 where a line has none)."""
    rows = [line.rstrip(b"\r\n").replace(b"\t", b" ").split(b" ") for line in lines]
    widths = {len(row) for row in rows}
    if not widths <= {k + 1, k + 2}:
        raise ValueError(f"a line has {min(widths - {k + 1, k + 2})} fields")
    score = np.array([row[0] for row in rows]).astype(np.float64)
    weight = np.array([row[k + 1] if len(row) > k + 1 else b"0" for row in rows]).astype(np.float64)
    return score, [word for row in rows for word in row[1 : k + 1]], weight


def _find(grams: Int32, keys: Sequence[Int64], vocab_size: int, path: Path, which: str) -> Int64:
    """(n,) the number in its level of each n-gram (n, k), by the sorted keys of the levels from the bigrams on."""
    found = grams[:, 0].astype(np.int64)
    for j in range(1, grams.shape[1]):
        wanted = found * (vocab_size + 1) + grams[:, j]
        found = np.searchsorted(keys[j - 1], wanted)
        missing = found == keys[j - 1].size
        missing[~missing] = keys[j - 1][found[~missing]] != wanted[~missing]
        if missing.any():
            raise UserError(
                f"{path}: the {which} words of an n-gram of order {grams.shape[1] + 1} are not an n-gram of the file; "
                "models with such gaps are not read: train without removing single n-grams"
            )
    return found
