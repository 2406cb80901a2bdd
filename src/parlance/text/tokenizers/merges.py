"""Which two tokens each token of a BPE vocabulary was joined from, where a file gives only their order.

merges_of_ranks([*(bytes([value]) for value in range(256)), b"ab"])[1] == [(b"a", b"b")]
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import TypeVar

Symbols = TypeVar("Symbols", str, bytes)


def merges_of_ranks(tokens: Sequence[bytes]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """(tokens, merges) from tokens in rank order, the 256 bytes first: the pair that each other token was joined from.

    The pair is what the earlier merges leave of the token's bytes. Two merges of the trainer can give the same bytes;
    the later one adds no token and is dropped.
    """
    kept, merges = list(tokens[:256]), list[tuple[bytes, bytes]]()
    for token, parts in zip(tokens[256:], reductions(tokens)[256:], strict=True):
        if len(parts) == 2:
            merges.append((tokens[parts[0]], tokens[parts[1]]))
            kept.append(token)
    return kept, merges


def reductions(tokens: Sequence[Symbols]) -> list[list[int]]:
    """What the merges of earlier tokens leave of each token, as indices into `tokens`, which are in order of rank.

    Tokens are of bytes or characters, and those of length one may stand anywhere. Two indices are the pair the token is
    joined from; a token that comes out as more cannot be reached by merges, and one with a symbol that is no token
    itself comes out as nothing.
    """
    index: dict[Symbols, int] = {}
    for place, token in enumerate(tokens):
        index.setdefault(token, place)
    joined: dict[tuple[int, int], int] = {}
    out: list[list[int]] = []
    for place, token in enumerate(tokens):
        symbols = [index.get(token[k : k + 1], -1) for k in range(len(token))]
        parts = [] if -1 in symbols else _join(symbols, joined)
        if len(parts) == 2:
            joined[parts[0], parts[1]] = place
        out.append(parts)
    return out


def _join(ids: list[int], joined: Mapping[tuple[int, int], int]) -> list[int]:
    """Join neighbours, the pair with the lowest result first, the leftmost of equals, until no pair can be joined.

    A heap of candidates over a linked list: n log n, because a run of blanks can become a token of many kilobytes.
    """
    count = len(ids)
    following, preceding = list(range(1, count + 1)), list(range(-1, count - 1))
    heap: list[tuple[int, int, int, int]] = []

    def consider(left: int) -> None:
        right = following[left]
        if right < count and (result := joined.get((ids[left], ids[right]))) is not None:
            heapq.heappush(heap, (result, left, ids[left], ids[right]))

    for index in range(count - 1):
        consider(index)
    while heap:
        result, left, left_id, right_id = heapq.heappop(heap)
        right = following[left]
        if ids[left] != left_id or right == count or ids[right] != right_id:
            continue  # one of the two has been joined with something else since
        ids[left], ids[right] = result, -1
        following[left] = following[right]
        if following[left] < count:
            preceding[following[left]] = left
        consider(left)
        if preceding[left] >= 0:
            consider(preceding[left])
    return [value for value in ids if value >= 0]
