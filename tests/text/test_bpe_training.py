"""Training: the merges of rustbpe, and of a plain search over all pairs; counts beyond 32 bits."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import rustbpe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.bpe.counting import PieceCounts, count_pieces
from parlance.text.bpe.patterns import PATTERNS, PatternName
from parlance.text.bpe.training import tokens_of_merges, train, train_merges


def brute_force(pieces: Mapping[bytes, int], size: int) -> list[tuple[int, int]]:
    """Count all pairs anew for each merge."""
    words = [(list(piece), count) for piece, count in pieces.items()]
    merges: list[tuple[int, int]] = []
    while 256 + len(merges) < size:
        pairs = Counter[tuple[int, int]]()
        for ids, count in words:
            for pair in itertools.pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = [(joined(ids, best, 256 + len(merges)), count) for ids, count in words]
        merges.append(best)
    return merges


def joined(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out: list[int] = []
    index = 0
    while index < len(ids):
        if tuple(ids[index : index + 2]) == pair:
            out.append(new)
            index += 2
        else:
            out.append(ids[index])
            index += 1
    return out


def of_rustbpe(texts: Sequence[str], size: int, pattern: PatternName) -> list[bytes]:
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size, pattern=PATTERNS[pattern].expression)
    return [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.dictionaries(
        st.binary(min_size=1, max_size=12) | st.text("ab", min_size=1, max_size=12).map(str.encode),
        st.integers(1, 4),
        max_size=12,
    )
)
@example(pieces={b"a" * n: 1 for n in range(1, 12)})
@example(pieces={b"abababab": 2, b"bababa": 3, b"aabaab": 1})
def test_merges_are_those_of_a_plain_search(pieces: dict[bytes, int]) -> None:
    merges = train_merges(PieceCounts.of(pieces.items()), 290)
    assert [tuple(pair) for pair in merges.tolist()] == brute_force(pieces, 290)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_are_those_of_rustbpe(pattern: PatternName) -> None:
    folder = Path(os.__file__).parent
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("os.py", "typing.py", "tarfile.py")]
    texts += ["Ünïcödé テキスト 🙂🙂 naïve\n" * 20, "", " " * 50 + "\n" * 9]
    assert train(texts, 1500, pattern, threads=2) == of_rustbpe(texts, 1500, pattern)


@pytest.mark.data
def test_tokens_are_those_of_rustbpe_on_a_book(data_folder: Path) -> None:
    text = (data_folder / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    assert train([text], 4096, "gpt4") == of_rustbpe([text], 4096, "gpt4")


def test_the_order_of_the_pieces_does_not_matter() -> None:
    pieces = count_pieces(["the cat sat on the mat with that other cat"], "gpt2").to_dict()
    forward = train_merges(PieceCounts.of(pieces.items()), 290)
    backward = train_merges(PieceCounts.of(reversed(pieces.items())), 290)
    assert np.array_equal(forward, backward)


@pytest.mark.parametrize("factor", [2**31, 2**32 + 1, 2**58])
def test_counts_have_64_bits(factor: int) -> None:
    """Where 32 bits wrap, the order of the merges changes."""
    pieces = {b"xy": 1, b"ab": 2, b"abc": 1, b"zz": 3, b"yx": 5}
    large = PieceCounts.of((piece, count * factor) for piece, count in pieces.items())
    merges = [tuple(pair) for pair in train_merges(large, 300).tolist()]
    assert merges == brute_force({piece: count * factor for piece, count in pieces.items()}, 300)


def test_replaying_the_merges() -> None:
    """Each merge is the most frequent pair of what the earlier ones left."""
    pieces = count_pieces([Path(os.__file__).read_text(encoding="utf-8")], "parlance").to_dict()
    merges = [tuple(pair) for pair in train_merges(PieceCounts.of(pieces.items()), 330).tolist()]
    assert merges == brute_force(pieces, 330)


def test_tokens_of_merges() -> None:
    tokens = tokens_of_merges(np.array([[97, 98], [256, 99]]))
    assert tokens[255:] == [b"\xff", b"ab", b"abc"]


def test_training_ends_where_no_pair_is_left() -> None:
    assert train(["abc"], 1000, "gpt2")[256:] == [b"ab", b"abc"]


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no text"):
        train(["", ""], 300)
    with pytest.raises(UserError, match="256"):
        train(["abc"], 255)
    with pytest.raises(UserError, match="2\\^63"):
        train_merges(PieceCounts.of([(b"abc", 2**62)]), 300)
