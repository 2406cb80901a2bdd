"""N-gram embeddings against a Python dictionary of n-grams, and what stands before a token in every layout."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlance.models.hashed_embeddings import MULTIPLIER, NGramEmbeddings, ngram_rows, preceding


def by_hand(row: list[int], back: int, none: int) -> list[list[int]]:
    padded = [none] * back + row
    return [list(reversed(padded[at : at + back + 1])) for at in range(len(row))]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 4))
def test_windows_hold_the_tokens_before_newest_first(row, back):
    found = preceding(torch.tensor([row]), back, none=10)
    assert found.tolist() == [by_hand(row, back, 10)]
    left = torch.arange(len(row))[None] - 1
    assert torch.equal(preceding(torch.tensor([row]), back, 10, left), found)


@given(st.lists(st.integers(-1, 11), min_size=12, max_size=12), st.integers(1, 4))
def test_windows_follow_the_previous_token_wherever_it_stands(links, back):
    """Each token names the one before it; what is named must be further left, so that there is a beginning."""
    previous = [link if link < at else -1 for at, link in enumerate(links)]
    row = list(range(100, 112))
    found = preceding(torch.tensor([row]), back, 99, torch.tensor([previous]))[0].tolist()
    for at in range(12):
        chain, here = [row[at]], at
        for _ in range(back):
            here = previous[here] if here >= 0 else -1
            chain.append(row[here] if here >= 0 else 99)
        assert found[at] == chain


@pytest.mark.parametrize(("n", "symbols"), [(2, 7), (3, 5), (2, 66)])
def test_a_table_that_is_large_enough_has_one_row_for_each_ngram(n, symbols):
    ngrams = torch.tensor(list(itertools.product(range(symbols), repeat=n)))
    rows = ngram_rows(ngrams, n, symbols**n, symbols)
    assert sorted(rows.tolist()) == list(range(symbols**n))


def hashed(ngram: list[int], rows: int) -> int:
    """The same in Python's integers, modulo 2^64."""
    index = 0
    for token in reversed(ngram):
        index = (index + token + 1) * MULTIPLIER % 2**64
        index ^= index >> 29
    return index % 2**63 % rows


@given(st.lists(st.integers(0, 300), min_size=3, max_size=5), st.integers(1, 10**6))
def test_hashes_are_those_of_whole_numbers(ngram, rows):
    assert ngram_rows(torch.tensor(ngram), 3, rows, 301).item() == hashed(ngram[:3], rows)


def test_hashed_rows_are_evenly_filled():
    ngrams = torch.tensor(list(itertools.product(range(66), repeat=3)))
    counts = ngram_rows(ngrams, 3, 16384, 66).bincount(minlength=16384).double()
    expected = len(ngrams) / 16384
    # Chi-squared over its degrees of freedom: 1 for a random function, with a deviation of sqrt(2 / 16384).
    assert abs(((counts - expected) ** 2 / expected).mean().item() - 1) < 0.06


def test_embeddings_are_the_sum_of_what_a_dictionary_holds():
    generator = torch.Generator().manual_seed(0)
    embeddings = NGramEmbeddings([(2, 36), (3, 50)], symbols=6, width=4)
    with torch.no_grad():
        embeddings.weight.normal_(generator=generator)
    table = {(2, row): embeddings.weight[row] for row in range(36)}
    table |= {(3, row): embeddings.weight[36 + row] for row in range(50)}
    tokens = torch.randint(0, 5, (2, 9), generator=generator)
    found = embeddings(preceding(tokens, 2, 5))
    for row, line in enumerate(tokens.tolist()):
        for at, window in enumerate(by_hand(line, 2, 5)):
            expected = table[2, window[0] + 6 * window[1]] + table[3, hashed(window, 50)]
            torch.testing.assert_close(found[row, at], expected)


def test_what_was_never_seen_adds_nothing_and_gradients_are_of_the_rows_that_were_read():
    embeddings = NGramEmbeddings([(2, 36)], symbols=6, width=4)
    embeddings.initialise()
    window = preceding(torch.tensor([[1, 2, 1, 2]]), 1, 5)
    assert embeddings(window).abs().max() == 0
    embeddings(window).sum().backward()
    gradient = embeddings.weight.grad
    assert gradient._indices()[0].tolist() == sorted([1 + 6 * 5, 2 + 6 * 1, 1 + 6 * 2])
    assert gradient.to_dense()[2 + 6 * 1].tolist() == [2.0] * 4


def test_gradients_are_those_of_plain_embeddings():
    generator = torch.Generator().manual_seed(0)
    embeddings = NGramEmbeddings([(2, 20), (3, 30)], symbols=6, width=4)
    embeddings.initialise()
    window = preceding(torch.randint(0, 5, (3, 40), generator=generator), 2, 5)
    weight = torch.randn(3, 40, 4, generator=generator)
    (embeddings(window) * weight).sum().backward()
    plain = torch.zeros(50, 4, requires_grad=True)
    sums = plain[ngram_rows(window, 2, 20, 6)] + plain[20 + ngram_rows(window, 3, 30, 6)]
    (sums * weight).sum().backward()
    torch.testing.assert_close(embeddings.weight.grad.to_dense(), plain.grad)
