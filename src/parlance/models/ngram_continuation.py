"""The likeliest continuation of a text by an n-gram model: one token after the other, without the law of any.

A guess for who checks it (`inference/speculative.py`), in microseconds a token: of the longest context that was seen
before anything, the word that is likeliest there. Words that were never seen after it are not looked at.

    likeliest(model.trie, np.array([5, 3]), count=8, least=0.1)         # e.g. [5, 3, 5]
"""

import math
from collections.abc import Sequence

import numpy as np

from parlance.core.compiled import compiled
from parlance.models.ngram_counts import Int64
from parlance.models.ngram_trie import Trie, _advance, _children, _word


def likeliest(trie: Trie, before: Sequence[int], count: int, least: float) -> list[int]:
    """At most `count` tokens behind the tokens `before`: as many as the model gives a probability of `least` together.

    A token that ends texts is the last. Ids of `before` outside the vocabulary end what is known of the text.
    """
    last = np.array(before[-(trie.order - 1) :] if trie.order > 1 else [], dtype=np.int64)
    last[(last < 0) | (last >= trie.begin)] = trie.begin
    out = np.empty(count, np.int64)
    found = _likeliest(last, trie, math.log(least), out)
    return [int(token) for token in out[:found]]


@compiled
def _likeliest(before: Int64, trie: Trie, log_least: float, out: Int64) -> int:
    contexts = np.empty(trie.order, np.int64)
    depth = 0
    for token in before:
        depth, _ = _advance(contexts, depth, token, trie)
    total = 0.0
    for place in range(out.size):
        best, value = -1, -np.inf
        for k in range(depth, 0, -1):
            start, stop = _children(contexts[k], trie)
            for node in range(start, stop):
                if trie.log_values[node] > value:
                    best, value = node, trie.log_values[node]
            if best >= 0:
                break
        total += value
        if best < 0 or total < log_least:
            return place
        out[place] = min(_word(best, trie), trie.begin - 1)
        if out[place] == trie.end:
            return place + 1
        depth, _ = _advance(contexts, depth, out[place], trie)
    return out.size
