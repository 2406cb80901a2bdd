"""Read SentencePiece's `.model` files: a protobuf message, taken apart here, for which no library is needed.

The fields are those of SentencePiece's `sentencepiece_model.proto`; what is not in the file has that file's default.

    model = read_sentencepiece(Path("tokenizer.model"))
    model.pieces[3].text, model.kind, model.normaliser.dummy_prefix
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

from parlance.core.errors import UserError
from parlance.text.documents import cannot_read


class PieceType(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry; its place is its id."""

    text: str
    """With U+2581 for spaces."""
    score: float
    """Log-probability (Unigram), or minus the rank of the merge (BPE)."""
    type: PieceType = PieceType.NORMAL


@dataclass(frozen=True)
class Normaliser:
    """What happens to a text before it is cut."""

    charsmap: bytes = b""
    """Replacement rules in SentencePiece's compiled form; empty: none."""
    dummy_prefix: bool = True
    """A space is put in front."""
    remove_extra_spaces: bool = True
    """Runs of spaces become one, those at the ends none."""
    escape_spaces: bool = True
    """Spaces become U+2581."""


@dataclass(frozen=True)
class SentencePieceModel:
    """A vocabulary with its rules."""

    kind: Literal["bpe", "unigram"]
    pieces: list[Piece]
    normaliser: Normaliser
    byte_fallback: bool
    """What the vocabulary lacks becomes its UTF-8 bytes instead of the unknown piece."""
    roles: dict[str, int]
    """Ids by `bos_token`, `eos_token`, `unk_token` and `pad_token`, as far as there are such pieces."""


_KINDS: dict[int, Literal["bpe", "unigram"]] = {1: "unigram", 2: "bpe"}
_OTHER_KINDS = {3: "word", 4: "char"}
_ROLES = {40: ("unk_token", 0), 41: ("bos_token", 1), 42: ("eos_token", 2), 43: ("pad_token", -1)}
"""Field of the trainer's message -> role, id where the field is missing."""

Value = int | bytes
Fields = dict[int, list[Value]]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The content of a `.model` file. Raises UserError where it is none, or of a kind that is not read here."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        top = _fields(data)
        pieces = [_piece(_message(value)) for value in top.get(1, [])]
        trainer = _fields(_message(_last(top, 2, b"")))
        normaliser = _fields(_message(_last(top, 3, b"")))
        if not pieces:
            raise ValueError("it has no pieces")
        number = _number(trainer, 3, 1)
        as_suffix = _number(trainer, 24, 0)
        model = SentencePieceModel(
            kind=_KINDS.get(number, "unigram"),
            pieces=pieces,
            normaliser=Normaliser(
                charsmap=_message(_last(normaliser, 2, b"")),
                dummy_prefix=bool(_number(normaliser, 3, 1)),
                remove_extra_spaces=bool(_number(normaliser, 4, 1)),
                escape_spaces=bool(_number(normaliser, 5, 1)),
            ),
            byte_fallback=bool(_number(trainer, 35, 0)),
            roles=_roles(trainer, pieces),
        )
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a SentencePiece model, or is damaged ({error})") from error
    if number not in _KINDS:
        kind = _OTHER_KINDS.get(number, str(number))
        raise UserError(f"{path} is a SentencePiece model of the kind {kind}; BPE and Unigram models can be imported")
    if as_suffix:
        raise UserError(f"{path} marks spaces behind words; only models that mark them before words can be imported")
    return model


def _piece(data: bytes) -> Piece:
    fields = _fields(data)
    score = _last(fields, 2, 0)
    return Piece(
        text=_message(_last(fields, 1, b"")).decode(),
        score=struct.unpack("<f", struct.pack("<I", score))[0] if isinstance(score, int) else 0.0,
        type=PieceType(_number(fields, 3, PieceType.NORMAL)),
    )


def _roles(trainer: Fields, pieces: list[Piece]) -> dict[str, int]:
    """The special pieces; of several that might be meant, those that are control pieces or the unknown one."""
    roles = {}
    for field, (role, default) in _ROLES.items():
        index = _number(trainer, field, default)
        if 0 <= index < len(pieces) and pieces[index].type in (PieceType.CONTROL, PieceType.UNKNOWN):
            roles[role] = index
    return roles


def _fields(data: bytes) -> Fields:
    """The fields of a message by number, in their order: integers (also fixed-width ones) and byte strings."""
    fields: Fields = {}
    for number, value in _wire(data):
        fields.setdefault(number, []).append(value)
    return fields


def _wire(data: bytes) -> Iterator[tuple[int, Value]]:
    """Protocol buffers' wire format: a key (field number, type) before every value. Raises ValueError."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, form = key >> 3, key & 7
        if form == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if form == 2:
            length, place = _varint(data, place)
        elif form in (1, 5):
            length = 8 if form == 1 else 4
        else:
            raise ValueError(f"byte {place} begins a field of the unknown type {form}")
        part = data[place : place + length]
        if not number or len(part) < length:
            raise ValueError(f"it ends inside a field, {len(data)} bytes from its beginning")
        place += length
        yield number, part if form == 2 else int.from_bytes(part, "little")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(value, place behind it): seven bits a byte, the lowest first, the top bit set on all but the last."""
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError(f"byte {place} is no part of a number")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _last(fields: Fields, number: int, default: Value) -> Value:
    return fields.get(number, [default])[-1]


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a text belongs")
    return value


def _number(fields: Fields, number: int, default: int) -> int:
    """A 32-bit integer; negative ones are stored as their complement in 64 bits."""
    value = _last(fields, number, default)
    if not isinstance(value, int):
        raise ValueError("a text stands where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value
