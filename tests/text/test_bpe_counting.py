"""Counting pieces: against a dictionary; in parts and by threads; in 64 bits."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.bpe.counting import PieceCounts, PieceTable, count_pieces, merge_counts
from parlance.text.bpe.patterns import PATTERNS, PatternName, split

# Words of every length around 8, 15 and 16 bytes, where the layout of the table changes.
WORDS = st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=40), max_size=20)


def expected(texts: Sequence[str], pattern: PatternName) -> dict[bytes, int]:
    return dict(Counter(piece.encode() for text in texts for piece in split(text, pattern)))


def equal(a: PieceCounts, b: PieceCounts) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(texts=WORDS)
def test_counts_are_those_of_a_dictionary(pattern: PatternName, texts: list[str]) -> None:
    assert count_pieces(texts, pattern, threads=1).to_dict() == expected(texts, pattern)


def test_growing_table_and_store() -> None:
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), size=generator.integers(1, 60))) for _ in range(50_000)]
    text = " ".join(words) + "\n" + "x" * 3_000_000
    assert count_pieces([text], "gpt2", threads=1).to_dict() == expected([text], "gpt2")


def test_threads_do_not_show() -> None:
    texts = [f"text number {i} has some words {'long ' * (i % 7)} {'y' * (i % 90)}" * 40 for i in range(1500)]
    one = count_pieces(texts, "parlance", threads=1)
    assert equal(one, count_pieces(texts, "parlance", threads=3))
    assert equal(one, count_pieces(iter(texts[::-1]), "parlance", threads=2))
    assert equal(one, merge_counts([count_pieces(texts[:700]), count_pieces(texts[700:])]))


def test_merging_adds_up() -> None:
    a = PieceCounts.of([(b"a", 3), (b"a long piece of more bytes", 5), (b"a", 4)])
    b = PieceCounts.of([(b"a long piece of more bytes", 1), (b"a long piece of more bytez", 2)])
    table = merge_counts([a, b, PieceCounts.of([])])
    assert table.to_dict() == {b"a": 7, b"a long piece of more bytes": 6, b"a long piece of more bytez": 2}
    assert table.total == 15
    assert merge_counts([]).to_dict() == {}


def test_long_pieces_with_one_hash_stay_apart() -> None:
    """Two keys of 24 bytes whose hashes in the table are equal: the last 8 bytes make up for the first 16."""
    multiplier, other = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F

    def state_after(start: bytes) -> int:
        mixed = 24 * other % 2**64
        for at in (0, 8):
            mixed = (mixed ^ int.from_bytes(start[at : at + 8], "little")) * multiplier % 2**64
            mixed ^= mixed >> 32
        return mixed

    one, two = b"0123456789abcdef", b"fedcba9876543210"
    difference = state_after(one) ^ state_after(two)
    keys = [one + bytes(8), two + difference.to_bytes(8, "little")]
    table = merge_counts([PieceCounts.of([(keys[0], 1), (keys[1], 2), (keys[0], 3)])])
    assert table.to_dict() == {keys[0]: 4, keys[1]: 2}
    rows = PieceTable()
    rows.add_counts(table)
    assert len(set(rows.rows[rows.rows[:, 1] != 0, 0].tolist())) == 1, "the keys were meant to collide"


@pytest.mark.parametrize("count", [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61])
def test_counts_have_64_bits(count: int) -> None:
    part = PieceCounts.of([(b"ab", count), (b"a piece that is long enough", count)])
    assert merge_counts([part, PieceCounts.of([(b"ab", 1)])]).to_dict() == {
        b"ab": count + 1,
        b"a piece that is long enough": count,
    }


def test_counts_beyond_64_bits_are_refused() -> None:
    with pytest.raises(UserError, match="2\\^63"):
        merge_counts([PieceCounts.of([(b"a", 2**62)]), PieceCounts.of([(b"b", 2**62)])])
    with pytest.raises(UserError, match="negative"):
        merge_counts([PieceCounts.of([(b"a", -1)])])


def test_unknown_pattern() -> None:
    with pytest.raises(UserError, match="choose one of"):
        count_pieces(["a"], "gpt5")  # type: ignore[arg-type]
