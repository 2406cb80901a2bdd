"""Words around a candidate that make it more or less likely to be personal data.

    supported(0.4, "my phone number is 555 0100", 19, frozenset({"phone"}))   # -> 0.75

A context word among the five words before a candidate adds 0.35 to its score (the rule that presidio uses).
"""

import re

WORDS_BEFORE = 5
GAIN = 0.35
_REACH = 80
_WORD = re.compile(r"[^\W_]+")


def word_set(text: str) -> frozenset[str]:
    """The words of `text`, which white space divides."""
    return frozenset(text.split())


def words_before(text: str, start: int, count: int = WORDS_BEFORE) -> list[str]:
    """The last `count` words before `start`, in lower case; at most 80 characters back."""
    return _WORD.findall(text[max(0, start - _REACH) : start].lower())[-count:]


def has_context(text: str, start: int, words: frozenset[str]) -> bool:
    """Whether one of the five words before `start` is in `words`."""
    return not words.isdisjoint(words_before(text, start))


def supported(score: float, text: str, start: int, words: frozenset[str]) -> float:
    """`score`, or `score + 0.35` (at most 1) when one of `words` is among the five words before `start`."""
    return min(1.0, score + GAIN) if has_context(text, start, words) else score


def mentioned_near(text: str, start: int, end: int, words: tuple[str, ...], reach: int = 100) -> bool:
    """Whether any of `words` (lower case) occurs within `reach` characters before `start` or after `end`."""
    around = (text[max(0, start - reach) : start] + "\0" + text[end : end + reach]).lower()
    return any(word in around for word in words)
