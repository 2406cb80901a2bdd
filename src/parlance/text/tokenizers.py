"""Text <-> token ids: byte-level BPE and plain bytes, trained here, stored in the format that everybody reads.

Both kinds are lossless on every text that UTF-8 can hold (a lone surrogate becomes U+FFFD). `save` writes
`tokenizer.json` and `tokenizer_config.json`, which `tokenizers` and `transformers` load with identical ids.

BPE (Sennrich et al. 2016, arXiv:1508.07909) joins bytes within the pieces of `PATTERN`:

    letters, with one leading character such as a space, "." or "_";  one or two digits;  other characters, with a
    leading space and the newlines and indentation that follow;  newlines and the indentation after them;  white space

That is GPT-4's idea with three changes. Digits go by two, as suits small vocabularies. A newline and the indentation
behind it are one piece, also when glued to the punctuation before it: on held-out modules of Python's library, tokens
of a vocabulary of 4096 then hold 3.94 bytes instead of 3.67 (8192: 4.37 instead of 4.02). There is no look-around, so
that every regular-expression engine gives the same pieces in linear time. The price: a prompt that ends inside or just
before an indentation is cut unlike the training text, so prompts for code should end behind a word or punctuation.

    tokenizer = train_tokenizer(texts, "bpe", vocab_size=4096)
    tokenizer.decode(tokenizer.encode("any text")) == "any text"
"""

import hashlib
import heapq
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from parlance.core.artifacts import read_json, write_json, write_text
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.chat_template import CHAT_TEMPLATE, END_OF_TURN, START_OF_TURN
from parlance.text.documents import replace_surrogates, utf8_length

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, START_OF_TURN, END_OF_TURN)
"""Appended, in this order, behind the ordinary vocabulary."""

PATTERN = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+(?:[\r\n]+[ \t]*)?"
    r"|\s*[\r\n]+[ \t]*"
    r"|\s+"
)
"""Pieces that BPE never joins across. Every character belongs to one piece."""

MAX_TRAINING_BYTES = 2**31 - 1
"""The trainer counts pairs in 32 bits; there are never more pairs than bytes."""

Kind = Literal["bpe", "byte"]


class Tokenizer:
    """A byte-level tokenizer with its special tokens. Make one with `train_tokenizer` or `Tokenizer.load`."""

    def __init__(self, backend: Backend, config: Mapping[str, Any]) -> None:
        """`backend`: a byte-level `tokenizers.Tokenizer`; `config`: the content of `tokenizer_config.json`."""
        self._backend = backend
        self._config = dict(config)
        # Text that spells a special token is ordinary text; `encode` inserts the ids of those that are allowed itself.
        backend.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {token.content: i for i, token in sorted(added.items()) if token.special}
        """Ids by name."""
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        """One more than the largest id, special tokens included."""

    def encode(self, text: str, allowed_special: Collection[str] = frozenset()) -> list[int]:
        """Ids of `text`. The names of special tokens in it are ordinary text, except for those in `allowed_special`.

        Takes about 600 bytes of memory for a token while it runs; `encode_batch` takes about 430.
        """
        if not allowed_special:
            return list(self._backend.encode(replace_surrogates(text)[0], add_special_tokens=False).ids)
        # Longest names first, should one be the beginning of another.
        names = sorted(allowed_special, key=len, reverse=True)
        known = {name: self.special_id(name) for name in names}
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
            ids += [known[part]] if part in known else self.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        clean = [replace_surrogates(text)[0] for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(clean, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 (a character cut in two) become U+FFFD."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = True) -> bytes:
        """The exact bytes of `ids`. Raises IndexError for ids outside the vocabulary."""
        special = self._special_ids if skip_special else frozenset[int]()
        return b"".join(self.token_bytes(i) for i in map(int, ids) if i not in special)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; for a special token, those of its name. Raises IndexError."""
        if token < 0:  # such as the -100 of masked targets
            raise IndexError(f"{token} is not a token id")
        return self._bytes_of_ids[token]

    @cached_property
    def token_byte_lengths(self) -> NDArray[np.int64]:
        """Text bytes of every token, shape (vocab_size,); 0 for special tokens."""
        lengths = [0 if i in self._special_ids else len(data) for i, data in enumerate(self._bytes_of_ids)]
        return np.array(lengths, dtype=np.int64)

    def special_id(self, name: str) -> int:
        """Id of a special token. Raises UserError where the tokenizer has none of this name."""
        if name not in self.special_tokens:
            raise UserError(f"this tokenizer has no special token {name}; it has {', '.join(self.special_tokens)}")
        return self.special_tokens[name]

    @property
    def end_of_text(self) -> int:
        """Id of the token behind every document: `eos_token` of the configuration."""
        return self._configured("eos_token", END_OF_TEXT)

    @property
    def pad(self) -> int:
        """Id of the token that fills up short sequences: `pad_token` of the configuration."""
        return self._configured("pad_token", PAD)

    def _configured(self, role: str, default: str) -> int:
        """Id of the special token that the configuration names for `role`, else of `default`."""
        name = self._config.get(role)
        if name is None and default not in self.special_tokens:
            raise UserError(
                f"this tokenizer has no {default}, and no tokenizer_config.json beside its tokenizer.json names its "
                f"{role}; add that file"
            )
        return self.special_id(default if name is None else _name(name))

    @property
    def end_of_turn(self) -> int:
        """Id of the token behind every message of a conversation."""
        return self.special_id(END_OF_TURN)

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of vocabulary, merges and rules, hexadecimal."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `tokenizer_config.json` (with the chat template) and then `tokenizer.json` into `folder`.

        In this order, a kill between them leaves nothing that looks like a tokenizer.
        """
        write_json(folder / "tokenizer_config.json", self._config)
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read a folder that `save`, or another program with byte-level BPE, wrote. Raises UserError."""
        path = folder / "tokenizer.json"
        content = read_json(path)
        config = folder / "tokenizer_config.json"
        try:
            backend = Backend.from_str(json.dumps(content))
        except Exception as error:  # the Rust library raises nothing more precise
            raise UserError(f"{path} is not a tokenizer that the library `tokenizers` can read ({error})") from error
        if '"ByteLevel"' not in json.dumps(content.get("decoder")):
            raise UserError(
                f"{path} is not a byte-level tokenizer; Parlance reads those of GPT-2, Llama 3, Qwen and kin"
            )
        # Truncation and padding that were stored along would change ids silently.
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, read_json(config) if config.exists() else {})

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _bytes_of_ids(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        added = self._backend.get_added_tokens_decoder()
        for name, index in self._backend.get_vocab(with_added_tokens=True).items():
            table[index] = name.encode() if index in added else bytes(_BYTE_OF_CHARACTER[c] for c in name)
        return table


def train_tokenizer(texts: Iterable[str], kind: Kind = "bpe", vocab_size: int = 4096) -> Tokenizer:
    """Train a tokenizer with `vocab_size` tokens, the special ones included.

    "byte" needs no training and always has 260 tokens (`texts` is not read). "bpe" stops early where `texts` have no
    more pairs to join; `tokenizer.vocab_size` says how many tokens came out. The same texts give the same tokenizer.
    Raises UserError for a vocabulary below 260, no text, and 2^31 bytes of text or more.
    """
    if kind == "byte":
        return _build([bytes([value]) for value in range(256)], [])
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"a vocabulary of {vocab_size} is too small; bytes and special tokens alone are {smallest}")
    tokens = _trained_ranks(texts, vocab_size - len(SPECIAL_TOKENS))
    return _build(*merges_of_ranks(tokens))


def _trained_ranks(texts: Iterable[str], size: int) -> list[bytes]:
    """Tokens in the order of their ranks: 256 bytes and up to `size` - 256 joined ones."""
    import rustbpe

    total = 0

    def counted(progress: Progress) -> Iterator[str]:
        nonlocal total
        for text in texts:
            text, _ = replace_surrogates(text)
            length = utf8_length(text)
            total += length
            if total > MAX_TRAINING_BYTES:
                raise UserError(
                    f"the tokenizer was given more than {MAX_TRAINING_BYTES} bytes, which its counters cannot hold; "
                    "train it on a part of the corpus"
                )
            progress.update(length)
            yield text

    trainer = rustbpe.Tokenizer()
    with Progress("tokenizer", unit="bytes") as progress:
        trainer.train_from_iterator(counted(progress), size, pattern=PATTERN)
    if not total:
        raise UserError("the tokenizer was given no text to train on")
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return [bytes(token) for token, _ in ranks]


def merges_of_ranks(tokens: Sequence[bytes]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """(tokens, merges) from tokens in rank order, the 256 bytes first: the pair that each other token was joined from.

    The pair is what the earlier merges leave of the token's bytes. Two merges of the trainer can give the same bytes;
    the later one adds no token and is dropped.
    """
    byte_ids = {token[0]: index for index, token in enumerate(tokens[:256])}
    kept, merges = list(tokens[:256]), list[tuple[bytes, bytes]]()
    joined: dict[tuple[int, int], int] = {}
    for token in tokens[256:]:
        parts = _join([byte_ids[value] for value in token], joined)
        if len(parts) == 2:
            joined[parts[0], parts[1]] = len(kept)
            merges.append((kept[parts[0]], kept[parts[1]]))
            kept.append(token)
    return kept, merges


def _join(ids: list[int], joined: Mapping[tuple[int, int], int]) -> list[int]:
    """Join neighbours, the pair with the lowest result first, the leftmost of equals, until no pair can be joined.

    A heap of candidates over a linked list: n log n, because a run of blanks can become a token of many kilobytes.
    """
    count = len(ids)
    following, preceding = list(range(1, count + 1)), list(range(-1, count - 1))
    heap: list[tuple[int, int, int, int]] = []

    def consider(left: int) -> None:
        right = following[left]
        if right < count and (result := joined.get((ids[left], ids[right]))) is not None:
            heapq.heappush(heap, (result, left, ids[left], ids[right]))

    for index in range(count - 1):
        consider(index)
    while heap:
        result, left, left_id, right_id = heapq.heappop(heap)
        right = following[left]
        if ids[left] != left_id or right == count or ids[right] != right_id:
            continue  # one of the two has been joined with something else since
        ids[left], ids[right] = result, -1
        following[left] = following[right]
        if following[left] < count:
            preceding[following[left]] = left
        consider(left)
        if preceding[left] >= 0:
            consider(preceding[left])
    return [value for value in ids if value >= 0]


def _build(tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]]) -> Tokenizer:
    """Assemble the `tokenizers` object: split by `PATTERN` (where there are merges), bytes as characters, BPE."""
    vocab = {_characters(token): index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=[(_characters(a), _characters(b)) for a, b in merges]))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes]) if merges else to_bytes
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return Tokenizer(backend, config)


def _characters(token: bytes) -> str:
    return "".join(_CHARACTER_OF_BYTE[value] for value in token)


def _name(token: object) -> str:
    """Configurations write a special token as its name, or as an object with the name in `content`."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in `tokenizer.json` (GPT-2's convention): printable Latin-1
    characters stand for themselves, the 68 other bytes, in order, for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


_CHARACTER_OF_BYTE = _byte_characters()
_BYTE_OF_CHARACTER = {character: value for value, character in enumerate(_CHARACTER_OF_BYTE)}
