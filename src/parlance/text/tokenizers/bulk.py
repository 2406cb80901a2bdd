"""Which vocabularies the compiled encoder of `parlance.text.bpe` knows how to encode with, for large amounts of text.

    encoder = bulk_encoder(json.loads(backend.to_str()))     # None: only `tokenizers` knows

It knows byte-level BPE that cuts by one of our patterns, Llama 3's or Qwen 2's, whose tokens are numbered in the order
of their merges, and in which joining by the lowest id leads to every token through its own merge; then both rules give
the same ids (see `bpe.encoding`). Training makes such vocabularies; merge lists put together by hand may be others.
"""

from collections.abc import Mapping
from typing import Any

from parlance.text.bpe import patterns as bpe_patterns
from parlance.text.bpe.encoding import Encoder
from parlance.text.tokenizers.byte_characters import to_bytes
from parlance.text.tokenizers.merges import reductions
from parlance.text.tokenizers.patterns import PATTERNS

BULK_NAMES: dict[str, bpe_patterns.PatternName] = {
    **{bpe_patterns.PATTERNS[name].expression: name for name in ("llama3", "qwen2")},
    **{expression: name for name, expression in PATTERNS.items()},
}
"""The compiled scanner of each regular expression that a `tokenizer.json` may cut by."""


def bulk_encoder(content: Mapping[str, Any]) -> Encoder | None:
    """The compiled encoder for the content of a `tokenizer.json`, or None where it would not give the same ids."""
    model = content["model"]
    pattern = _pattern(content.get("pre_tokenizer"))
    plain = not (model.get("unk_token") or model.get("dropout") or model.get("byte_fallback"))
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    words = [token for token in content["added_tokens"] if not token["special"]]
    if model["type"] != "BPE" or content.get("normalizer") or pattern is None or not plain or affixes or words:
        return None
    special = {token["content"] for token in content["added_tokens"]}
    vocab: dict[str, int] = {name: index for name, index in model["vocab"].items() if name not in special}
    if len(vocab) != 256 + len(model["merges"]):
        return None
    names = sorted(vocab, key=vocab.__getitem__)
    place = {name: number for number, name in enumerate(names)}
    spellings = [to_bytes(name) for name in names]
    # Joining by rank must lead to each token through its own merge, and through no other.
    reached = {tuple(parts) for parts in reductions(spellings) if len(parts) == 2}
    pairs = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    listed = {(place.get(left, -1), place.get(right, -1)) for left, right in pairs}
    in_order = [place.get(left + right, -1) for left, right in pairs]
    if reached != listed or in_order != sorted(set(in_order)):
        return None
    ranks = [b""] * (max(vocab.values()) + 1)
    for name, spelling in zip(names, spellings, strict=True):
        ranks[vocab[name]] = spelling
    return Encoder(ranks, pattern)


def _pattern(pre_tokenizer: Any) -> bpe_patterns.PatternName | None:
    """The pattern by which a pre-tokenizer cuts, where it does nothing else but spell bytes as characters."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer and pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if not steps or not steps[-1] or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return "gpt2" if steps[0]["use_regex"] else None
    first = steps[0]
    if len(steps) > 2 or first["type"] != "Split" or first["behavior"] != "Isolated" or first["invert"]:
        return None
    return None if steps[1]["use_regex"] else BULK_NAMES.get(first["pattern"].get("Regex", ""))
