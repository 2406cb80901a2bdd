"""Replace personal data by typed placeholders, or by pseudonyms that are the same for the same value.

    Redactor(PIIConfig()).redact("mail ada@lovelace.org").text                           # -> "mail <EMAIL>"
    Redactor(PIIConfig(), mode="pseudonym", key=secret).redact("mail ada@lovelace.org")  # -> "mail <EMAIL_hjoe...>"

A pseudonym is the first 64 bits of HMAC-SHA-256 (RFC 2104) of category and normalised value, written in the letters
a to p: no digits, so that it is not taken for a number. The same key gives the same pseudonyms in every document and
every run. Whoever has the key can test whether a guessed value is behind a pseudonym, and phone numbers can be
guessed through: keep it secret.

Replacement is by span: equal characters elsewhere stay as they are. No value is kept, logged, or put into an error.
"""

import hmac
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from parlance.core.errors import UserError
from parlance.text.pii.config import Category, PIIConfig
from parlance.text.pii.finding import find_pii

RedactionMode = Literal["placeholder", "pseudonym"]
LEAST_KEY_BYTES = 16
_PSEUDONYM_BYTES = 8
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_WRITTEN_WITH_SEPARATORS = frozenset({"IBAN", "CREDIT_CARD", "US_SSN", "NATIONAL_ID", "PHONE", "MAC"})
_CASE_INSENSITIVE = frozenset({"EMAIL", "IBAN", "NATIONAL_ID", "IP", "MAC", "ADDRESS", "PERSON", "USER_NAME"})


@dataclass(frozen=True)
class Redaction:
    """A text without its personal data."""

    text: str
    counts: dict[str, int]
    """Replacements by category, categories in alphabetical order; empty when nothing was found."""


class Redactor:
    """Replaces what `find_pii` finds."""

    def __init__(self, config: PIIConfig, *, mode: RedactionMode = "placeholder", key: bytes | None = None) -> None:
        """`key`: at least 16 bytes, for pseudonyms only. Raises UserError where it is missing or too short."""
        if mode == "pseudonym" and (key is None or len(key) < LEAST_KEY_BYTES):
            raise UserError(f"pseudonyms need a key of at least {LEAST_KEY_BYTES} bytes; give one, or use placeholders")
        self._config = config
        self._key = key if mode == "pseudonym" else None

    def redact(self, text: str) -> Redaction:
        """`text` with every span replaced; everything outside the spans is unchanged."""
        spans = find_pii(text, self._config)
        if not spans:
            return Redaction(text, {})
        pieces: list[str] = []
        place = 0
        for span in spans:
            pieces += text[place : span.start], self._replacement(span.category, text[span.start : span.end])
            place = span.end
        pieces.append(text[place:])
        counts = Counter(span.category for span in spans)
        return Redaction("".join(pieces), {category: counts[category] for category in sorted(counts)})

    def _replacement(self, category: Category, value: str) -> str:
        if self._key is None:
            return f"<{category}>"
        message = f"{category}\0{_normalised(category, value)}".encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._key, message, "sha256")[:_PSEUDONYM_BYTES]
        return f"<{category}_{digest.hex().translate(_LETTERS)}>"


def _normalised(category: Category, value: str) -> str:
    """One spelling for a value that can be written in several ways."""
    if category in _WRITTEN_WITH_SEPARATORS:
        value = "".join(character for character in value if character.isalnum() or character == "+")
    if category in _CASE_INSENSITIVE:
        value = " ".join(value.casefold().split())
    return value
