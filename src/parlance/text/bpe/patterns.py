"""The pre-tokenization patterns: where text is cut before bytes are joined, so that tokens never reach across.

`split` cuts as a regular-expression engine would with `PATTERNS[name].expression`, with characters classified as in
Unicode 16.0 (`unicode_classes`). Every character belongs to exactly one piece. Text is what `str` holds; a lone
surrogate counts as U+FFFD.

    split("Hello world", "gpt2") == ["Hello", " world"]

Sources of the expressions: tiktoken 0.14 (gpt2, gpt4, o200k) and the `tokenizer.json` of Llama 3 and Qwen 2; "parlance"
is described in `parlance.text.tokenizers`. "llama3" differs from "gpt4" in white space at the end of a text that has a
newline in it ("a \\n " is " \\n", " " there and one piece in gpt4); "qwen2" takes digits one by one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.text.documents import replace_surrogates

PatternName = Literal["gpt2", "gpt4", "o200k", "llama3", "qwen2", "parlance"]

PADDING = 16
"""Bytes behind the last text in `Utf8.data`, so that whole words can be read anywhere."""
MAX_BYTES = 2**31 - 1 - PADDING
"""UTF-8 bytes of one batch of texts; places in it are 32-bit numbers."""


@dataclass(frozen=True)
class Pattern:
    """One pattern, as an expression for other engines and as arguments of `scan_kernels.scan`."""

    expression: str
    """For engines with look-ahead and possessive repetition: the Python library `regex`, fancy-regex, Oniguruma."""
    family: int
    """Which hand-written function."""
    digits: int
    """At most this many digits in a piece; 0 where there is no limit."""
    whole_end: int
    """1 where white space at the end of the text is one piece before newlines are looked at."""


_GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PARLANCE = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+(?:[\r\n]+[ \t]*)?|\s*[\r\n]+[ \t]*|\s+"
)
PATTERNS: dict[PatternName, Pattern] = {
    "gpt2": Pattern(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", family=0, digits=0, whole_end=0
    ),
    "gpt4": Pattern(_GPT4, family=1, digits=3, whole_end=1),
    "o200k": Pattern(_O200K, family=2, digits=3, whole_end=0),
    "llama3": Pattern(_LLAMA3, family=1, digits=3, whole_end=0),
    "qwen2": Pattern(_LLAMA3.replace("{1,3}", ""), family=1, digits=1, whole_end=0),
    "parlance": Pattern(_PARLANCE, family=3, digits=2, whole_end=0),
}


class Utf8(NamedTuple):
    """A batch of texts as UTF-8, one behind the other."""

    data: NDArray[np.uint8]
    """The bytes, then `PADDING` zeros."""
    words: NDArray[np.int64]
    """The eight bytes that start at each place, an unaligned view of `data`."""
    bounds: NDArray[np.int64]
    """Where each text starts, and where the last one ends."""


def pattern_named(name: PatternName) -> Pattern:
    """The pattern called `name`. Raises UserError for a name that is not in `PATTERNS`."""
    if name not in PATTERNS:
        raise UserError(f"there is no pre-tokenization pattern {name!r}; choose one of {', '.join(PATTERNS)}")
    return PATTERNS[name]


def utf8(texts: Sequence[str]) -> Utf8:
    """Raises UserError above `MAX_BYTES`."""
    parts = [_encoded(text) for text in texts]
    bounds = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=bounds[1:])
    if bounds[-1] > MAX_BYTES:
        raise UserError(f"a batch of {bounds[-1]} bytes is too large to tokenize at once; give at most {MAX_BYTES}")
    parts.append(bytes(PADDING))
    data = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return Utf8(data, unaligned_words(data), bounds)


def unaligned_words(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The 64-bit integer at every byte of `data` (n >= 16 bytes): shape (n - 7,), sharing memory with it."""
    return np.ndarray((len(data) - 7,), dtype=np.int64, buffer=data.data, strides=(1,))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return replace_surrogates(text)[0].encode()


def scan_arguments(pattern: Pattern) -> tuple[int, int, int]:
    """The last arguments of `scan_kernels.scan`."""
    return pattern.family, pattern.digits, pattern.whole_end


def split(text: str, pattern: PatternName) -> list[str]:
    """The pieces of `text`, in order; joined they are `text`. Raises UserError for an unknown pattern."""
    from parlance.text.bpe.scan_kernels import scan

    batch = utf8([text])
    ends = np.empty(batch.bounds[-1], dtype=np.int32)  # a piece has a byte at least
    count = scan(batch.words, batch.bounds, np.zeros(2, dtype=np.int64), ends, *scan_arguments(pattern_named(pattern)))
    raw = batch.data.tobytes()
    places = [0, *ends[:count].tolist()]
    return [raw[start:end].decode() for start, end in itertools.pairwise(places)]
