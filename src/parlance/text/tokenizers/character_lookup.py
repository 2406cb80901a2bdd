"""Ids of characters by one table lookup each, for vocabularies that have one token a character.

    lookup = character_lookup(json.loads(backend.to_str()))       # None: tokens are not characters
    ids, offsets = lookup.encode_batch(["any text"])              # text i has ids[offsets[i] : offsets[i + 1]]

A megabyte takes some milliseconds; the library `tokenizers` takes a second for one long text. The ids are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.text.documents import replace_surrogates


class CharacterLookup:
    """One id a character; `unknown` for all others."""

    def __init__(self, ids: Mapping[str, int], unknown: int) -> None:
        largest = max(map(ord, ids), default=0)
        self._ids = np.full(largest + 2, unknown, dtype=np.uint32)  # the last one stands for all beyond
        for character, index in ids.items():
            self._ids[ord(character)] = index

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all texts, and where each begins and the last ends."""
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        points = np.frombuffer("".join(map(_sound, texts)).encode("utf-32-le"), dtype="<u4")
        return self._ids[np.minimum(points, len(self._ids) - 1)], offsets


def _sound(text: str) -> str:
    return replace_surrogates(text)[0]


def character_lookup(content: Mapping[str, Any]) -> CharacterLookup | None:
    """The lookup for the content of a `tokenizer.json`, or None where it would not give the same ids."""
    model = content["model"]
    plain = model["type"] == "BPE" and not (model["merges"] or model.get("fuse_unk") or model.get("byte_fallback"))
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if not plain or affixes or content.get("normalizer") or content.get("pre_tokenizer"):
        return None
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    if len(special) < len(content["added_tokens"]) or model.get("unk_token") not in model["vocab"]:
        return None
    ids = {name: index for name, index in model["vocab"].items() if len(name) == 1 and name not in special}
    return CharacterLookup(ids, model["vocab"][model["unk_token"]])
