r"""A tokenizer as the keys of a GGUF file: byte-level BPE as "gpt2", SentencePiece's BPE with byte pieces as "llama".

    metadata = tokenizer_metadata(tokenizer, rows=model.vocab_size, source=folder)

llama.cpp knows the places where a byte-level tokenizer cuts by name alone (`tokenizer.ggml.pre`), from a list in its
source (`llm_tokenizer_bpe` in llama-vocab.cpp); `pre_of` finds the name. GPT-2's rule, cl100k's and o200k's, LLaMA 3's,
Qwen's and that of single digits are there. Our own default (`text/tokenizers/patterns.py`) is not: the nearest is
written, and `exact` is false. That is "superbpe", which cuts at numbers alone and leaves the rest to the merges: of the
tokens of a vocabulary of 4096, 93 % were the same on Python modules and 98 % on English prose (43 % and 98 % with the
rule of LLaMA 3), the others mostly in numbers of more than two digits and where spaces align code. Vocabularies of
characters, words, WordPiece and Unigram are refused.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parlance.core.artifacts import os_errors
from parlance.core.errors import UserError
from parlance.models.gguf_file import Value
from parlance.text.chat_template import END_OF_TURN
from parlance.text.tokenizers import Tokenizer
from parlance.text.tokenizers.patterns import PATTERNS
from parlance.text.tokenizers.special_tokens import SPACE, name_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"

CUTS = {
    PATTERNS["gpt2"]: "gpt-2",
    PATTERNS["gpt4"]: "dbrx",
    PATTERNS["o200k"]: "gpt-4o",
    _LLAMA3: "dbrx",
    _QWEN2: "qwen2",
}
"""llama.cpp's name for a regular expression that cuts texts."""
WHOLE_FIRST = {"dbrx": "llama-bpe"}
"""Of names, that of the same cuts where a piece that is a token is not divided before it is joined."""
NEAREST = {PATTERNS["parlance"]: "superbpe"}
"""Of those that it has none for, the name of what cuts most alike."""
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks for training alone, which other readers of templates do not know."""


@dataclass(frozen=True)
class TokenizerKeys:
    """What a file says of a tokenizer."""

    metadata: dict[str, Value]
    exact: bool
    """Whether llama.cpp divides every text into the same tokens."""


def tokenizer_metadata(tokenizer: Tokenizer, *, rows: int, ends: list[int], source: Path) -> TokenizerKeys:
    """The keys `tokenizer.*` for a model of `rows` tokens whose texts end with one of `ends`; `source` is its folder.

    Raises UserError for a tokenizer that the format cannot hold.
    """
    content = json.loads(tokenizer.backend_json())
    model = content["model"]
    exact = True
    keys: dict[str, Value] = {}
    names = _names(tokenizer, rows, source)
    if model["type"] == "BPE" and _is_byte_level(content):
        pre, exact = pre_of(content)
        keys |= {"model": "gpt2", "pre": pre, "tokens": names, "token_type": _kinds(content, names)}
        keys["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    elif model["type"] == "BPE" and model.get("byte_fallback"):
        kinds = _kinds(content, names)
        keys |= {"model": "llama", "tokens": names, "scores": _scores(model, names), "token_type": kinds}
        keys |= {"add_space_prefix": _begins_with_space(content)}
    else:
        raise UserError(
            f"{source}: GGUF files hold byte-level BPE and SentencePiece's BPE with byte pieces, and this tokenizer is "
            f"of the kind {tokenizer.kind}; train the model with --tokenizer bpe:SIZE"
        )
    before, after = tokenizer.surrounding
    first = name_of(tokenizer.config["bos_token"]) if tokenizer.config.get("bos_token") is not None else None
    beginning = before[0] if before else tokenizer.special_tokens.get(first or "", tokenizer.end_of_text)
    last = ends[0] if ends else tokenizer.end_of_text
    ids = {"bos": beginning, "eos": last, "padding": tokenizer.pad, "unknown": tokenizer.unknown}
    ids["eot"] = tokenizer.special_tokens.get(END_OF_TURN)
    keys |= {f"{name}_token_id": index for name, index in ids.items() if index is not None and index < rows}
    keys |= {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    template = _template(tokenizer, source)
    if template is not None:
        metadata["tokenizer.chat_template"] = _GENERATION.sub("", template)
    return TokenizerKeys(metadata, exact)


def pre_of(content: dict[str, Any]) -> tuple[str, bool]:
    """llama.cpp's name for where a byte-level `tokenizer.json` cuts, and whether it is the same rule. UserError."""
    if content.get("normalizer") is not None and content["normalizer"].get("type") != "NFC":
        raise UserError(
            f"the tokenizer changes its texts first ({content['normalizer'].get('type')}), which llama.cpp does not"
        )
    steps = _steps(content.get("pre_tokenizer"))
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    others = [step for step in steps if step["type"] != "ByteLevel"]
    if any(step.get("add_prefix_space") for step in levels):
        raise UserError("the tokenizer puts a space before every text, which llama.cpp's byte-level BPE does not")
    by_gpt2 = any(step.get("use_regex", True) for step in levels)
    if not others and (by_gpt2 or not content["model"]["merges"]):  # where nothing is joined, no cut matters
        return "gpt-2", True
    if len(others) == 1 and by_gpt2 and others[0]["type"] == "Digits" and others[0].get("individual_digits"):
        return "smollm", True
    if len(others) == 1 and not by_gpt2 and others[0]["type"] == "Split" and not others[0].get("invert"):
        pattern = others[0]["pattern"].get("Regex")
        if pattern in CUTS:
            name = CUTS[pattern]
            return (WHOLE_FIRST.get(name, name) if content["model"].get("ignore_merges") else name), True
        if pattern in NEAREST:
            return NEAREST[pattern], False
    raise UserError("llama.cpp has no name for where this tokenizer cuts its texts (its pre_tokenizer)")


def _steps(part: dict[str, Any] | None, inner: str = "pretokenizers") -> list[dict[str, Any]]:
    """A step of a `tokenizer.json`, or those of a sequence, as a flat list."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for each in part[inner] for step in _steps(each, inner)]


def _is_byte_level(content: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(content.get("pre_tokenizer")))


def _begins_with_space(content: dict[str, Any]) -> bool:
    """Whether a space is put before every text."""
    normalising = _steps(content.get("normalizer"), "normalizers")
    cutting = _steps(content.get("pre_tokenizer"))
    return any(step["type"] == "Prepend" and step["prepend"] in (" ", SPACE) for step in normalising) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in cutting
    )


def _names(tokenizer: Tokenizer, rows: int, source: Path) -> list[str]:
    """The entry of each of the model's ids, no two alike; ids without a token get a name."""
    entries = tokenizer.entries()
    beyond = set(range(rows, len(entries))) - set(tokenizer.special_tokens.values())
    if beyond:
        raise UserError(f"{source}: the tokenizer has {len(entries)} tokens, and the model knows {rows}")
    return entries[:rows] + [f"<|unused {index}|>" for index in range(len(entries), rows)]


def _kinds(content: dict[str, Any], names: list[str]) -> list[int]:
    model = content["model"]
    known = model["vocab"].keys()
    special = {token["content"]: bool(token["special"]) for token in content["added_tokens"]}

    def kind(name: str) -> int:
        if name == model.get("unk_token"):
            return UNKNOWN
        if name in special:
            return CONTROL if special[name] else USER_DEFINED
        if name not in known:
            return UNUSED
        return BYTE if model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", name) else NORMAL

    return [kind(name) for name in names]


def _scores(model: dict[str, Any], names: list[str]) -> list[float]:
    """A score for each piece by the order of the merges: what is joined first is best."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(name, len(model["merges"]))) for name in names]


def _template(tokenizer: Tokenizer, source: Path) -> str | None:
    """The Jinja form of conversations, where there is one."""
    stored = tokenizer.config.get("chat_template")
    file = source / "chat_template.jinja"
    if stored is None and file.is_file():
        with os_errors("read", file):
            return file.read_text(encoding="utf-8", errors="replace")
    return stored if isinstance(stored, str) else None
