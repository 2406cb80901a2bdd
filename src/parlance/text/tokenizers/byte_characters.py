"""Bytes as printable characters, the way byte-level vocabularies spell their tokens in `tokenizer.json` (GPT-2's
convention): printable Latin-1 characters stand for themselves, the 68 other bytes, in order, for those from U+0100 on.

    to_characters(b" a") == "Ġa"
"""

import itertools


def _byte_characters() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


_CHARACTER_OF_BYTE = _byte_characters()
_BYTE_OF_CHARACTER = {character: bytes([value]) for value, character in enumerate(_CHARACTER_OF_BYTE)}


def to_characters(token: bytes) -> str:
    """The spelling of some bytes."""
    return "".join(_CHARACTER_OF_BYTE[value] for value in token)


def to_bytes(spelling: str) -> bytes:
    """The inverse; a character that stands for no byte gives its own UTF-8."""
    return b"".join(_BYTE_OF_CHARACTER.get(character) or character.encode() for character in spelling)
