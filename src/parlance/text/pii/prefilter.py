"""Cheap tests that rule out most categories for most texts.

    traits("Call me Ishmael.")   # -> Traits(has_digits=False, has_token=False)

Table translation of bytes and substring search run several times faster than the simplest regular expression. A text
without six digits close together has no card, phone or social security number; one without a long run of letters,
digits and `_-+/=` has no key.
"""

from typing import NamedTuple

from parlance.text.pii.config import Category

CLOSE_DIGITS = 6
TOKEN_LENGTH = 15
_DIGITS = bytes(48 if chr(code) in "0123456789" else 32 for code in range(256))
_SEPARATORS = b" .-()/+"
_TOKEN_BYTES = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-+/="
_TOKENS = bytes(119 if code in _TOKEN_BYTES else 32 for code in range(256))


class Traits(NamedTuple):
    """What a text has."""

    has_digits: bool
    """Six ASCII digits with nothing but spaces, points, hyphens, brackets, slashes and plus signs between them."""
    has_token: bool
    """A run of 15 characters of which keys, hashes and addresses are made."""


def traits(text: str) -> Traits:
    """The traits of `text`."""
    raw = text.encode("utf-8", "surrogatepass")
    return Traits(
        b"0" * CLOSE_DIGITS in raw.translate(_DIGITS, _SEPARATORS), b"w" * TOKEN_LENGTH in raw.translate(_TOKENS)
    )


def is_possible(category: Category, has: Traits) -> bool:
    """Whether a text with these traits can hold `category`.

    An IBAN in one piece is a token; in groups it has six digits in a row but for a few countries whose account numbers
    may be letters.
    """
    match category:
        case "CREDIT_CARD" | "US_SSN" | "PHONE":
            return has.has_digits
        case "NATIONAL_ID" | "IBAN":
            return has.has_digits or has.has_token
        case "CRYPTO":
            return has.has_token
        case _:
            return True
