"""Repairs what copying, decoding and web pages do to text, and changes nothing that may be meant: one text at a time.

    normalise("caf\\u00c3\\u00a9\\r\\n\\ufeffna\\u00efve").text      # "café\\nnaïve"

In this order, each by a field of `NormalisationConfig`:

1. encoding: UTF-8 that was decoded as Windows-1252 or Latin-1, line by line, by ftfy (Speer 2019,
   doi 10.5281/zenodo.2591652) where a line holds characters that would be a UTF-8 sequence; then C1 control characters
   become what the same bytes mean in Windows-1252, as in HTML;
2. line ends: CR LF, CR, U+2028, U+2029, form feed and vertical tab become newlines;
3. control characters other than newline and tab vanish, terminal colour sequences as a whole;
4. invisible characters vanish: byte-order mark, word joiner, soft hyphen, zero-width space (except beside letters of
   Thai, Lao, Burmese and Khmer, where it divides words), and the joiners U+200C and U+200D (except behind letters of
   Arabic, Indic and other scripts that use them, and in emoji);
5. Unicode form NFC;
6. by choice, blanks at line ends, runs of blanks within lines, and runs of blank lines.

The steps repeat until nothing changes, so that normalising twice is normalising once. The defaults keep indentation,
blanks at line ends (a line break in Markdown) and blank lines. Not done: compatibility forms (NFKC), quotation marks,
HTML entities, marks of writing direction, lost characters (U+FFFD), and encodings other than the two.
A text that quotes broken encoding on purpose is "repaired" as well.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from parlance.core.config import Config


class NormalisationConfig(Config):
    """What `normalise` changes. The defaults are safe for source code and Markdown."""

    repair_encoding: bool = True
    """Repair UTF-8 that was decoded as Windows-1252 or Latin-1."""
    line_ends: bool = True
    """Every line end becomes a newline."""
    control_characters: bool = True
    """Remove control characters except newline and tab."""
    invisible_characters: bool = True
    """Remove byte-order marks, soft hyphens and zero-width characters where no script needs them."""
    unicode_form: bool = True
    """Compose characters and their marks: Unicode form NFC."""
    strip_line_ends: bool = False
    """Remove spaces and tabs at line ends; two spaces there are a line break in Markdown."""
    collapse_blanks: bool = False
    """Runs of spaces and tabs within a line become one space; indentation stays. Harms tables and source code."""
    max_blank_lines: int = Field(default=0, ge=0)
    """At most this many empty lines one after the other; 0: any number."""


@dataclass(frozen=True)
class Normalised:
    """A text and what was done to it."""

    text: str
    changes: dict[str, int]
    """How often each kind of change was made, in the order of the steps; empty where nothing changed.

    `encoding`: lines and characters; `unicode form`: texts; `trailing blanks`, `blanks`, `blank lines`: places; else
    characters."""


DEFAULT = NormalisationConfig()

# What work looks like in UTF-8: searching bytes for one first byte is several times quicker than a text for characters.
_ASCII_SUSPECTS = bytes([*range(9), *range(11, 32), 127])
_SUSPECTS = (
    re.compile(rb"\xc2[\x80-\x9f\xad]"),  # C1 controls, soft hyphen
    re.compile(rb"\xe2(?:\x80[\x8b-\x8d\xa8\xa9]|\x81\xa0)"),  # zero-width characters and line ends
    re.compile(rb"\xef\xbb\xbf"),
)
_MAYBE_MOJIBAKE = re.compile(rb"\xc3[\x82-\xb4][\xc2\xc5\xc6\xcb\xe2]")

# A UTF-8 sequence whose bytes were each read as a character of Windows-1252 or Latin-1. Most lines that match are right
# (ß before a quotation mark, say): ftfy decides.
_REST = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[\xc2-\xdf]{_REST}|[\xe0-\xef]{_REST}{{2}}|[\xf0-\xf4]{_REST}{{3}}")

_C1 = re.compile("[\x80-\x9f]")
_LINE_ENDS = re.compile("[\r\x0b\x0c\u2028\u2029]")
_CONTROLS = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIVIDED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"  # scripts without spaces between words
_JOINED = "\u0590-\u1cff\u2190-\u2bff\ua800-\uabff\ufe00-\ufe0f\ufb50-\ufdff\U00010a00-\U0010ffff"
_INVISIBLE = re.compile(
    f"[\xad\u2060\ufeff]|(?<![{_DIVIDED}])\u200b(?![{_DIVIDED}])|[\u200c\u200d](?<![{_JOINED}][\u200c\u200d])"
)
_TRAILING_BLANKS = re.compile("(?<![ \t])[ \t]++(?=\n|\\Z)")
_INNER_BLANKS = re.compile("(?<=\\S)(?: [ \t]++|\t[ \t]*+)(?=\\S)")
# What the bytes of C1 control characters mean in Windows-1252; five of them mean nothing there and stay controls.
_WINDOWS_1252 = {
    byte: character
    for byte in range(0x80, 0xA0)
    if (character := bytes([byte]).decode("windows-1252", "replace")) != "\ufffd"
}


def normalise(text: str, config: NormalisationConfig = DEFAULT) -> Normalised:
    """Apply the steps of the module's docstring that `config` asks for. No text makes it fail."""
    has_layout = config.strip_line_ends or config.collapse_blanks or config.max_blank_lines > 0
    if not has_layout and _is_clean(text):
        return Normalised(text, {})
    counts = dict.fromkeys((name for name, _ in _STEPS), 0)
    while True:
        before = text
        for name, step in _STEPS:
            text, count = step(text, config)
            counts[name] += count
        if text == before or (not has_layout and _is_clean(text)):
            return Normalised(text, {name: count for name, count in counts.items() if count})


def _is_clean(text: str) -> bool:
    """Whether no step that is on by default has work in `text`; cheap, and right where it says so."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data.translate(None, _ASCII_SUSPECTS)) != len(data):
        return False
    if len(data) == len(text):
        return True
    return (
        not any(pattern.search(data) for pattern in _SUSPECTS)
        and (_MAYBE_MOJIBAKE.search(data) is None or _MOJIBAKE.search(text) is None)
        and unicodedata.is_normalized("NFC", text)
    )


def _repair_encoding(text: str, config: NormalisationConfig) -> tuple[str, int]:
    if not config.repair_encoding or text.isascii():
        return text, 0
    pieces, end, count = [], 0, 0
    match = _MOJIBAKE.search(text)
    while match is not None:
        start, after = text.rfind("\n", end, match.start()) + 1, text.find("\n", match.end())
        start, after = max(start, end), len(text) if after < 0 else after
        line = text[start:after]
        repaired = _repair_line(line)
        if repaired != line:
            pieces += [text[end:start], repaired]
            end = after
            count += 1
        match = _MOJIBAKE.search(text, after)
    text = "".join([*pieces, text[end:]]) if count else text
    if controls := _C1.findall(text):
        count += sum(ord(control) in _WINDOWS_1252 for control in controls)
        text = text.translate(_WINDOWS_1252)
    return text, count


def _repair_line(line: str) -> str:
    import ftfy

    # Only steps that lose nothing: not those that put U+FFFD for bytes which are gone.
    settings = ftfy.TextFixerConfig(replace_lossy_sequences=False, fix_c1_controls=False)
    repaired: str = ftfy.fix_encoding(line, settings)
    return repaired


def _line_ends(text: str, config: NormalisationConfig) -> tuple[str, int]:
    if not config.line_ends:
        return text, 0
    pairs = text.count("\r\n")
    text, others = _LINE_ENDS.subn("\n", text.replace("\r\n", "\n"))
    return text, pairs + others


def _control_characters(text: str, config: NormalisationConfig) -> tuple[str, int]:
    return _removed(_CONTROLS, text) if config.control_characters else (text, 0)


def _invisible_characters(text: str, config: NormalisationConfig) -> tuple[str, int]:
    return _removed(_INVISIBLE, text) if config.invisible_characters and not text.isascii() else (text, 0)


def _unicode_form(text: str, config: NormalisationConfig) -> tuple[str, int]:
    if not config.unicode_form or unicodedata.is_normalized("NFC", text):
        return text, 0
    return unicodedata.normalize("NFC", text), 1


def _trailing_blanks(text: str, config: NormalisationConfig) -> tuple[str, int]:
    return _TRAILING_BLANKS.subn("", text) if config.strip_line_ends else (text, 0)


def _inner_blanks(text: str, config: NormalisationConfig) -> tuple[str, int]:
    return _INNER_BLANKS.subn(" ", text) if config.collapse_blanks else (text, 0)


def _blank_lines(text: str, config: NormalisationConfig) -> tuple[str, int]:
    most = config.max_blank_lines
    if not most:
        return text, 0
    return re.subn(f"\n(?:[ \t]*+\n){{{most + 1},}}", "\n" * (most + 1), text)


def _removed(pattern: re.Pattern[str], text: str) -> tuple[str, int]:
    """`text` without what matches, and how many characters that was."""
    shorter = pattern.sub("", text)
    return shorter, len(text) - len(shorter)


_STEPS: tuple[tuple[str, Callable[[str, NormalisationConfig], tuple[str, int]]], ...] = (
    ("encoding", _repair_encoding),
    ("line ends", _line_ends),
    ("control characters", _control_characters),
    ("invisible characters", _invisible_characters),
    ("unicode form", _unicode_form),
    ("trailing blanks", _trailing_blanks),
    ("blanks", _inner_blanks),
    ("blank lines", _blank_lines),
)
