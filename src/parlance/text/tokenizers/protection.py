"""A copy of a tokenizer that cannot produce special tokens from a text that spells their names.

`tokenizers` can be told not to look for special tokens in a text, but where they are entries of the vocabulary, some
models find them on their own: a Unigram vocabulary from SentencePiece holds `</s>` with the best score of all.
In the copy these entries have the same ids and names that no text contains.
"""

from collections.abc import Mapping
from typing import Any

GUARD = "\ufffe \ufffe"
"""Before the names. A noncharacter, which no text holds, and a space, which pieces that begin otherwise never hold."""


def protected(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of such a copy's `tokenizer.json`; None where `content` itself is safe."""
    names = {token["content"] for token in content.get("added_tokens") or () if token["special"]}
    model = content["model"]
    if not _finds(model, names):
        return None

    def guarded(name: str) -> str:
        return GUARD + name if name in names else name

    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab = {guarded(name): index for name, index in vocab.items()}
    else:
        vocab = [[guarded(name), score] for name, score in vocab]
    model = model | {"vocab": vocab}
    if model.get("unk_token") is not None:
        model["unk_token"] = guarded(model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in map(_pair, model["merges"]) if not {*pair, "".join(pair)} & names]
    added = [token | {"content": guarded(token["content"])} for token in content["added_tokens"]]
    return {**content, "model": model, "added_tokens": added, "post_processor": None}


def _finds(model: Mapping[str, Any], names: set[str]) -> bool:
    """Whether the model itself could come upon one of `names` in a text."""
    present = names & (
        model["vocab"].keys() if isinstance(model["vocab"], dict) else {name for name, _ in model["vocab"]}
    )
    if not present or model.get("type") != "BPE":
        return bool(present)
    if model.get("ignore_merges") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return True
    return any(len(name) == 1 for name in present) or any("".join(_pair(pair)) in present for pair in model["merges"])


def _pair(merge: str | list[str]) -> list[str]:
    """A merge as its two sides; older files write them as one string with a space between."""
    return merge.split(" ", 1) if isinstance(merge, str) else merge
