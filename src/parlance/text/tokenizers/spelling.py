"""What the tokens of any `tokenizer.json` stand for, as bytes, and how its texts are put together again.

The bytes of a token are those it adds in the middle of a text: LLaMA's `▁the` is " the", its `<0x0A>` a newline,
BERT's `##ing` is "ing" and its `the` is " the" (a space comes before it). Where `is_concatenation` holds, a text is
nothing but the bytes of its tokens one after the other; elsewhere the decoder also drops the first space, or the space
before a comma, and only the library's own `decode` gives the text.

    spelling_of(read_json(Path("tokenizer.json")))("▁the") == b" the"
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from parlance.text.tokenizers.byte_characters import to_bytes

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def is_concatenation(content: Mapping[str, Any]) -> bool:
    """Whether the text of some tokens is their bytes one after the other. `content`: a `tokenizer.json`."""
    return {step["type"] for step in _decoders(content)} in ({"ByteLevel"}, {"ByteLevel", "Fuse"}, {"Fuse"})


def spelling_of(content: Mapping[str, Any]) -> Callable[[str], bytes]:
    """A function from an entry of the vocabulary to its bytes. `content`: a `tokenizer.json`."""
    steps = _decoders(content)
    if any(step["type"] == "ByteLevel" for step in steps):
        return to_bytes
    if not steps:
        return lambda piece: b" " + piece.encode()

    def spelling(piece: str) -> bytes:
        for step in steps:
            kind = step["type"]
            if kind == "ByteFallback" and (byte := _BYTE.fullmatch(piece)):
                return bytes([int(byte[1], 16)])
            if kind == "Replace" and "String" in step["pattern"]:
                piece = piece.replace(step["pattern"]["String"], step["content"])
            elif kind == "Metaspace":
                piece = piece.replace(step["replacement"], " ")
            elif kind == "WordPiece":
                piece = piece[len(step["prefix"]) :] if piece.startswith(step["prefix"]) else " " + piece
            elif kind == "BPEDecoder":
                piece = piece.replace(step["suffix"], " ")
        return piece.encode()

    return spelling


def _decoders(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The decoder as a flat list of steps."""
    decoder = content.get("decoder")
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoders({"decoder": part})]
    return [decoder]
