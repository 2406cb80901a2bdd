"""tiktoken's rank files: one token a line, base64 of its bytes, a space, and its rank, which is its id.

Neither the special tokens nor the pattern are in the file; for OpenAI's own they follow from the number of ranks.

    vocab, encoding = read_ranks(Path("cl100k_base.tiktoken"))
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer as Backend

from parlance.core.errors import UserError
from parlance.text.documents import cannot_read
from parlance.text.tokenizers.assembly import add_special, byte_level_backend
from parlance.text.tokenizers.merges import reductions
from parlance.text.tokenizers.patterns import PATTERNS, PatternName
from parlance.text.tokenizers.special_tokens import END_OF_TEXT


@dataclass(frozen=True)
class Encoding:
    """What belongs to a rank file and is not in it."""

    pattern: PatternName
    special: Mapping[str, int] = field(default_factory=dict)
    """Special tokens and their ids."""


_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_KNOWN = {
    50256: Encoding("gpt2", {END_OF_TEXT: 50256}),  # gpt2, r50k
    50280: Encoding("gpt2", {END_OF_TEXT: 50256}),  # p50k: the end of the text stands among the ranks
    100256: Encoding(
        "gpt4",
        {END_OF_TEXT: 100257, **{name: 100258 + i for i, name in enumerate(_FIM)}, "<|endofprompt|>": 100276},
    ),
    199998: Encoding("o200k", {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}
"""OpenAI's encodings by their number of ranks."""


def known_encoding(ranks: int) -> Encoding | None:
    """The encoding of OpenAI's that has so many ranks."""
    return _KNOWN.get(ranks)


MOST_RANKS = 1 << 24
"""Larger ranks are damage: a table of that many tokens would be made."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """Ids by token, in the order of the ids. Raises UserError naming the line that is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            spelt = base64.b64decode(token, validate=True)
            if spelt in ranks or not spelt or not 0 <= int(rank) < MOST_RANKS:
                raise ValueError
            ranks[spelt] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{path}, line {number}: not a new token in base64 and its rank; is this a whole tiktoken file?"
            ) from error
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise UserError(f"{path} is not a whole tiktoken file: {len(missing)} of the 256 single bytes have no rank")
    if len(set(ranks.values())) < len(ranks):
        raise UserError(f"{path} gives two tokens one rank; the file is damaged")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def ranks_backend(ranks: Mapping[bytes, int], encoding: Encoding) -> Backend:
    """The encoding with its special tokens. Raises UserError where one of these has an id that is a rank."""
    tokens = list(ranks)
    parts = reductions(tokens)
    merges = [(tokens[pair[0]], tokens[pair[1]]) for pair in parts if len(pair) == 2]
    special = {name.encode(): index for name, index in encoding.special.items()}
    if taken := set(special.values()) & set(ranks.values()):
        raise UserError(f"the special token with id {min(taken)} would replace a token of the file; is it cut short?")
    backend = byte_level_backend({**ranks, **special}, merges, PATTERNS[encoding.pattern])
    # tiktoken takes a piece that is a token for it at once; that matters where no merges lead to the token.
    backend.model.ignore_merges = any(len(pair) > 2 for pair in parts)
    add_special(backend, encoding.special)
    return backend
