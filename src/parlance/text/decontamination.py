"""Finds documents that contain items of evaluation sets, so that a model is not tested on what it was trained on.

    sets = [load_evaluation_set("mmlu", Path("mmlu/test")), EvaluationSet("mine", (("q1", "What is ..."),))]
    index = OverlapIndex(sets)
    index.find("... What is ...")                  # [Overlap(set="mine", item="q1", ngram=..., start=..., end=...)]

A document overlaps with an item where both have the same run of n simplified words (case, accents, punctuation and the
values of digits do not count: see `parlance.text.shingling`). n is 13 by default, as for GPT-3 (Brown et al. 2020,
arXiv:2005.14165, appendix C). Items of 8 to n - 1 words must occur whole; items with fewer words are ignored, because
phrases so short occur by chance, and counted in `OverlapIndex.ignored`. N-grams are compared by 64-bit hashes, and each
hit by its letters and digits too, so that no collision of hashes is reported.

Not found are paraphrases, translations, and items with a word changed in every run of n. A phrase that all items of a
set share (an instruction, say) counts as part of each.
"""

import csv
import gzip
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.artifacts import read_json, read_jsonl, write_bytes, write_json, write_jsonl
from parlance.core.errors import UserError

Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
UInt64 = NDArray[np.uint64]

LEAST_WORDS = 8
"""Items with fewer words are ignored."""
SUFFIXES = (".jsonl", ".json", ".csv")
_VERSION = 1
_SIEVE_BITS = 16  # bits of the sieve for each n-gram: one in 16 clean n-grams is looked up in vain


@dataclass(frozen=True)
class EvaluationSet:
    """Named evaluation items."""

    name: str
    items: tuple[tuple[str, str], ...]
    """(id of the item, its text)"""


@dataclass(frozen=True)
class Overlap:
    """A document has words of an evaluation item in it."""

    set: str
    """Name of the evaluation set."""
    item: str
    """Id of the item."""
    ngram: str
    """The shared words as they stand in the document: text[start:end]."""
    start: int
    """Its first character in the document."""
    end: int
    """The character after its last one."""


@dataclass(frozen=True, eq=False)
class _Table:
    """The n-grams of one length, sorted by hash, then item."""

    words: int
    """Words in an n-gram."""
    hashes: UInt64
    """(N,) ascending."""
    places: Int64
    """(N, 3) item, first character and the one after the last in the item's text."""
    sieve: UInt8
    """One bit for each value of the upper bits of a hash: whether any n-gram has it."""
    shift: int
    """How far down a hash is shifted to give its bit."""


class OverlapIndex:
    """The n-grams of evaluation sets, for looking documents up in."""

    n: int
    """Words in an n-gram."""
    ignored: dict[str, int]
    """Items that are too short, by name of the set, in the order of the sets."""

    def __init__(self, sets: Sequence[EvaluationSet], n: int = 13) -> None:
        """Index `sets` by n-grams of `n` >= 1 words. Raises UserError where no item is long enough."""
        from parlance.text.shingling import shingle_spans, word_hashes

        self.n = n
        self.ignored = dict.fromkeys((evaluation_set.name for evaluation_set in sets), 0)
        self._items = [(each.name, item, text) for each in sets for item, text in each.items]
        found: dict[int, list[tuple[UInt64, Int64]]] = {}
        for number, (name, _, text) in enumerate(self._items):
            count = len(word_hashes(text).hashes)
            if count < min(n, LEAST_WORDS):
                self.ignored[name] += 1
                continue
            grams = shingle_spans(text, min(n, count))
            places = np.stack([np.full(len(grams.hashes), number), grams.starts, grams.ends], axis=1)
            found.setdefault(min(n, count), []).append((grams.hashes, places))
        if not found:
            names = ", ".join(self.ignored) or "none given"
            raise UserError(f"no evaluation item has {LEAST_WORDS} words or more (sets: {names}); check the files")
        self._tables = [
            _table(words, *_sorted(np.concatenate([h for h, _ in grams]), np.concatenate([p for _, p in grams])))
            for words, grams in sorted(found.items())
        ]

    def find(self, text: str) -> list[Overlap]:
        """Every item that `text` overlaps with, once, with the first n-gram they share; in the order of the text."""
        from parlance.text.shingling import ngram_hashes, word_hashes

        words = word_hashes(text)
        first: dict[int, tuple[int, int]] = {}  # item -> the characters it shares
        for table in self._tables:
            hashes = ngram_hashes(words.hashes, table.words)
            maybe = _sifted(table, hashes)
            if not len(maybe):
                continue
            lower = np.searchsorted(table.hashes, hashes[maybe], side="left")
            upper = np.searchsorted(table.hashes, hashes[maybe], side="right")
            for hit in np.flatnonzero(upper > lower).tolist():
                start = int(words.starts[maybe[hit]])
                end = int(words.ends[maybe[hit] + table.words - 1])
                for item, item_start, item_end in table.places[lower[hit] : upper[hit]].tolist():
                    if item not in first and _same_letters(text[start:end], self._items[item][2][item_start:item_end]):
                        first[item] = (start, end)
        ordered = sorted((start, item, end) for item, (start, end) in first.items())
        return [Overlap(*self._items[item][:2], text[start:end], start, end) for start, item, end in ordered]

    def save(self, folder: Path) -> None:
        """Write `index.json`, `items.jsonl`, `hashes.npy` and `places.npy` into `folder`. Raises UserError."""
        write_bytes(folder / "hashes.npy", _npy(np.concatenate([table.hashes for table in self._tables])))
        write_bytes(folder / "places.npy", _npy(np.concatenate([table.places for table in self._tables])))
        write_jsonl(folder / "items.jsonl", [{"set": s, "item": item, "text": text} for s, item, text in self._items])
        lengths = {str(table.words): len(table.hashes) for table in self._tables}
        write_json(
            folder / "index.json", {"version": _VERSION, "n": self.n, "ngrams": lengths, "ignored": self.ignored}
        )

    @classmethod
    def load(cls, folder: Path) -> "OverlapIndex":
        """Open what `save` wrote; the arrays are memory-mapped, so that processes share them. Raises UserError."""
        about = read_json(folder / "index.json")
        if not isinstance(about, dict) or about.get("version") != _VERSION:
            raise UserError(f"{folder} was not written by this version of Parlance; make the index again")
        self = cls.__new__(cls)
        try:
            self.n, self.ignored = about["n"], about["ignored"]
            self._items = [(row["set"], row["item"], row["text"]) for _, row in read_jsonl(folder / "items.jsonl")]
            hashes = np.load(folder / "hashes.npy", mmap_mode="r")
            places = np.load(folder / "places.npy", mmap_mode="r")
            ends = np.cumsum([0, *about["ngrams"].values()]).tolist()
            if len(hashes) != ends[-1] or places.shape != (ends[-1], 3):
                raise ValueError("the arrays do not fit")
            self._tables = [
                _table(int(words), hashes[start:end], places[start:end])
                for words, start, end in zip(about["ngrams"], ends, ends[1:], strict=False)
            ]
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{folder} is damaged ({error}); make the index again") from error
        return self


def load_evaluation_set(name: str, path: Path) -> EvaluationSet:
    """The items in a JSON-lines, JSON or CSV file, plain or with gzip (`.gz`), or in all such files of a folder.

    An item is a line, a row, or an element of the JSON array (in an object: of the arrays of objects in it). Its text
    is all strings in it, those in lists and objects too, in order, one on each line; its id is "file name:number", from
    1. A CSV file's header is an item like others (of too few words). Raises UserError for a file that is missing,
    broken, of another kind, or has no items.
    """
    items: list[tuple[str, str]] = []
    for file in _files(path):
        try:
            with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
                content = stream.read().decode("utf-8-sig", "replace")
        except (OSError, EOFError) as error:
            raise UserError(f"cannot read {file}: {error}; check the file") from error
        for number, record in _records(file, content):
            text = "\n".join(_strings(record))
            if text.strip():
                items.append((f"{file.name}:{number}", text))
    if not items:
        raise UserError(f"there are no evaluation items in {path}; Parlance reads {', '.join(SUFFIXES)} files of them")
    return EvaluationSet(name, tuple(items))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"evaluation set {path} does not exist; check the path")
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _kind(file) in SUFFIXES and not file.name.startswith("."))
    if _kind(path) not in SUFFIXES:
        raise UserError(f"{path}: evaluation sets are read from {', '.join(SUFFIXES)} files (also .gz)")
    return [path]


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _records(file: Path, content: str) -> Iterator[tuple[int, Any]]:
    """(number from 1, record) of a file's content: a line's number, a row's, or an element's."""
    number = 1
    try:
        if _kind(file) == ".csv":
            for number, row in enumerate(csv.reader(io.StringIO(content, newline=""), strict=True), start=1):
                yield number, row
        elif _kind(file) == ".jsonl":
            for number, line in enumerate(content.split("\n"), start=1):
                if line.strip():
                    yield number, json.loads(line)
        else:
            yield from enumerate(_elements(json.loads(content)), start=1)
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}, record {number}: not valid {_kind(file)[1:].upper()} ({error}); mend it") from error


def _elements(value: Any) -> list[Any]:
    if isinstance(value, dict):
        arrays = [part for part in value.values() if isinstance(part, list) and any(isinstance(x, dict) for x in part)]
        return [element for array in arrays for element in array] or [value]
    return value if isinstance(value, list) else [value]


def _strings(record: Any) -> Iterator[str]:
    if isinstance(record, str):
        yield record
    elif isinstance(record, list | dict):
        for part in record.values() if isinstance(record, dict) else record:
            yield from _strings(part)


def _sorted(hashes: UInt64, places: Int64) -> tuple[UInt64, Int64]:
    """By hash, then item; an n-gram that an item repeats is left there once, at its first place."""
    order = np.lexsort((places[:, 1], places[:, 0], hashes))
    hashes, places = hashes[order], places[order]
    new = np.ones(len(hashes), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (places[1:, 0] != places[:-1, 0])
    return hashes[new], places[new]


def _table(words: int, hashes: UInt64, places: Int64) -> _Table:
    bits = max((_SIEVE_BITS * len(hashes)).bit_length(), 3)
    shift = 64 - bits
    marks = np.unique((hashes >> np.uint64(shift)).astype(np.int64))
    sieve = np.zeros(1 << (bits - 3), np.uint8)
    np.bitwise_or.at(sieve, marks >> 3, np.uint8(1) << (marks & 7).astype(np.uint8))
    return _Table(words, hashes, places, sieve, shift)


def _sifted(table: _Table, hashes: UInt64) -> Int64:
    """Indices of `hashes` without those that are certainly not in the table; much quicker than to look them up."""
    marks = (hashes >> np.uint64(table.shift)).astype(np.int64)
    bits: UInt8 = (table.sieve[marks >> 3] >> (marks & 7).astype(np.uint8)) & np.uint8(1)
    return np.flatnonzero(bits)


def _same_letters(one: str, other: str) -> bool:
    """Whether two texts have the same simplified letters and digits, by the rules of `parlance.text.shingling`."""
    return one == other or _letters(one) == _letters(other)


def _letters(text: str) -> str:
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Nd":
            kept.append("0")
        elif category[0] in "LN" or category == "Mc":
            decomposed = unicodedata.normalize("NFD", character.lower()).replace("ς", "σ")
            kept.append("".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Me")))
    return "".join(kept)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
