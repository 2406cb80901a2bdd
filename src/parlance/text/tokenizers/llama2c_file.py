"""The tokenizer files of llama2.c (`tokenizer.bin`, `tok512.bin`): LLaMA's SentencePiece BPE, written flat.

A 32-bit number (the longest token), then for every token its score (float32), its length (int32) and its bytes,
little-endian, with spaces for U+2581. Ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`; the 256 byte pieces follow.

    model = read_llama2c(Path("tok512.bin"))
"""

import struct
from pathlib import Path

from parlance.core.errors import UserError
from parlance.text.documents import cannot_read
from parlance.text.tokenizers.sentencepiece_model import Normaliser, Piece, PieceType, SentencePieceModel
from parlance.text.tokenizers.special_tokens import SPACE

_FIRST = [
    Piece("<unk>", 0.0, PieceType.UNKNOWN),
    Piece("<s>", 0.0, PieceType.CONTROL),
    Piece("</s>", 0.0, PieceType.CONTROL),
    *(Piece(f"<0x{value:02X}>", 0.0, PieceType.BYTE) for value in range(256)),
]


def read_llama2c(path: Path) -> SentencePieceModel:
    """The vocabulary of a file. Raises UserError where it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    texts: list[tuple[str, float]] = []
    place = 4
    try:
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            text = data[place + 8 : place + 8 + length]
            if length < 1 or len(text) < length:
                raise ValueError(f"a token of {length} bytes stands at byte {place}")
            texts.append((text.decode(), score))
            place += 8 + length
        if [text.strip() for text, _ in texts[: len(_FIRST)]] != [piece.text for piece in _FIRST]:
            raise ValueError("it does not begin with <unk>, <s>, </s> and the bytes")
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is not a tokenizer of llama2.c, or is damaged ({error})") from error
    return SentencePieceModel(
        kind="bpe",
        pieces=_FIRST + [Piece(text.replace(" ", SPACE), score) for text, score in texts[len(_FIRST) :]],
        normaliser=Normaliser(remove_extra_spaces=False),
        byte_fallback=True,
        roles={"unk_token": 0, "bos_token": 1, "eos_token": 2},
    )
