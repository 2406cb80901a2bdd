"""`Tokenizer`: text <-> token ids, for every kind that is trained or imported here.

It stands on the library `tokenizers`, and is stored as `tokenizer.json` and `tokenizer_config.json`, which `tokenizers`
and `transformers` load with identical ids. `tokenizer_config.json` holds one key of ours, `parlance`, with the version
of this form and the kind; a folder of a later version is refused.

What a text that names special tokens becomes is the one difference: `transformers` takes the name for the token, we
take it for text unless it is allowed. That holds for imported vocabularies too.

**Bytes.** Byte, BPE and, on its alphabet, char tokenizers are lossless (a lone surrogate becomes U+FFFD): the bytes of
a text's tokens are the text. A char or word vocabulary has `<unk>` for what it lacks. `token_byte_lengths` gives it 0
bytes: a model that says `<unk>` has not said which word it was, so bits per byte must not credit it with that word's
bytes. Such a figure pays for every `<unk>` and divides by the bytes that were really predicted; it compares with a
lossless tokenizer's only where `<unk>` is rare, so say how much of the text it covers (`compression` does).
Imported vocabularies that normalise (SentencePiece with NFKC, BERT) count the bytes of the normalised text, and
LLaMA's and T5's one byte more for the space they put in front of it.

    tokenizer = Tokenizer.load(Path("runs/demo/tokenizer"))
    tokenizer.decode(tokenizer.encode("any text")) == "any text"
"""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

from parlance.core.artifacts import read_json, write_json, write_text
from parlance.core.errors import UserError
from parlance.text.chat_template import END_OF_TURN
from parlance.text.documents import replace_surrogates
from parlance.text.tokenizers.character_lookup import CharacterLookup, character_lookup
from parlance.text.tokenizers.protection import protected
from parlance.text.tokenizers.special_tokens import END_OF_TEXT, PAD, name_of
from parlance.text.tokenizers.spelling import is_concatenation, spelling_of

if TYPE_CHECKING:
    from parlance.text.bpe.encoding import Encoder

FORMAT = 1
"""Version of what `parlance` in `tokenizer_config.json` promises."""


class Tokenizer:
    """A tokenizer with its special tokens. Make one with `train_tokenizer`, `Tokenizer.load` or `import_tokenizer`."""

    def __init__(self, backend: Backend, config: Mapping[str, Any]) -> None:
        """`backend`: any `tokenizers.Tokenizer`; `config`: the content of `tokenizer_config.json`."""
        self._backend = backend
        self._config = dict(config)
        content = json.loads(backend.to_str())
        self._model: dict[str, Any] = {name: value for name, value in content["model"].items() if name != "merges"}
        self._is_concatenation = is_concatenation(content)
        self._spelling = spelling_of(content)
        safe = protected(content)
        self._encoder = backend if safe is None else Backend.from_str(json.dumps(safe))
        # Text that spells a special token is ordinary text; `encode` inserts the ids of those that are allowed itself.
        self._encoder.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {token.content: i for i, token in sorted(added.items()) if token.special}
        """Ids by name."""
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        """One more than the largest id, special tokens included. Imported vocabularies may have ids without a token."""

    @property
    def kind(self) -> str:
        """ "bpe", "byte", "char" or "word" where trained here; else the model's: "bpe", "unigram", "wordpiece", ..."""
        ours = self._config.get("parlance")
        return str(ours["kind"]) if isinstance(ours, dict) and "kind" in ours else str(self._model["type"]).lower()

    @property
    def reads_lines(self) -> bool:
        """Whether its words are those of an n-gram toolkit, for which every line is a sentence."""
        ours = self._config.get("parlance")
        return isinstance(ours, dict) and ours.get("source") == "arpa"

    @property
    def has_chat_template(self) -> bool:
        """Whether a form for conversations is stored along."""
        return bool(self._config.get("chat_template"))

    def encode(self, text: str, allowed_special: Collection[str] = frozenset()) -> list[int]:
        """Ids of `text`. The names of special tokens in it are ordinary text, except for those in `allowed_special`.

        Takes about 600 bytes of memory for a token while it runs; `encode_batch` takes about 430.
        """
        if not allowed_special:
            return self._ids([replace_surrogates(text)[0]])[0]
        # Longest names first, should one be the beginning of another.
        names = sorted(allowed_special, key=len, reverse=True)
        known = {name: self.special_id(name) for name in names}
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
            ids += [known[part]] if part in known else self.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        return self._ids([replace_surrogates(text)[0] for text in texts])

    def encode_arrays(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """`encode_batch` for large amounts of text: (ids of all texts, where each begins and the last ends).

        The ids are those of `encode`. Text i has `ids[offsets[i] : offsets[i + 1]]`. Byte-level BPE runs in compiled
        loops on all cores (the first call in a process takes a second or so more), characters are looked up in a table;
        other kinds as in `encode_batch`.
        """
        if self._lookup is not None:
            return self._lookup.encode_batch(texts)
        if self._bulk is not None:
            return self._bulk.encode_batch(texts)
        documents = self.encode_batch(texts)
        offsets = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in documents], out=offsets[1:])
        joined = itertools.chain.from_iterable(documents)
        return np.fromiter(joined, dtype=np.uint32, count=int(offsets[-1])), offsets

    @cached_property
    def _lookup(self) -> CharacterLookup | None:
        return character_lookup(json.loads(self._backend.to_str()))

    @cached_property
    def _bulk(self) -> "Encoder | None":
        from parlance.text.tokenizers.bulk import bulk_encoder

        return bulk_encoder(json.loads(self._backend.to_str()))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without lone surrogates: the one place where text becomes tokens. One text starts no threads."""
        if len(texts) == 1:
            return [list(self._encoder.encode(texts[0], add_special_tokens=False).ids)]
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 (a character cut in two) become U+FFFD.

        `<unk>` is shown also where special tokens are skipped: something stood there. Raises IndexError for ids outside
        the vocabulary.
        """
        kept = self._kept(ids, skip_special)
        if self._is_concatenation:
            return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")
        for token in kept:
            self.token_bytes(token)  # the library passes over ids that it does not know
        return str(self._backend.decode(kept, skip_special_tokens=False))

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = True) -> bytes:
        """The exact bytes of `ids`; of imported vocabularies that are not byte-level, those of `decode`."""
        if self._is_concatenation:
            return b"".join(map(self.token_bytes, self._kept(ids, skip_special)))
        return self.decode(ids, skip_special).encode()

    def _kept(self, ids: Iterable[int], skip_special: bool) -> list[int]:
        skipped = self._special_ids - {self.unknown} if skip_special else frozenset()
        return [i for i in map(int, ids) if i not in skipped]

    @property
    def config(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`; a copy."""
        return dict(self._config)

    def backend_json(self) -> str:
        """The content of `tokenizer.json`."""
        return self._backend.to_str()

    def entries(self) -> list[str]:
        """The entry of each id in the vocabulary as tokenizer.json spells it: bytes as characters, U+2581 for space."""
        return [self._backend.id_to_token(index) or f"<{index}>" for index in range(self.vocab_size)]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for in the middle of a text; for a special token, those of its name, and none
        for an id without a token. Raises IndexError outside the vocabulary."""
        if token < 0:  # such as the -100 of masked targets
            raise IndexError(f"{token} is not a token id")
        return self._bytes_of_ids[token]

    def continued_bytes(self, token: int) -> bytes:
        """What `token` adds to a text that it continues: nothing for special tokens, `<unk>` by its name."""
        return b"".join(map(self.token_bytes, self._kept([token], skip_special=True)))

    @cached_property
    def token_byte_lengths(self) -> NDArray[np.int64]:
        """Text bytes of every token, shape (vocab_size,); 0 for special tokens and for `<unk>` (see above)."""
        silent = self._special_ids | {self.unknown}
        lengths = [0 if i in silent else len(data) for i, data in enumerate(self._bytes_of_ids)]
        return np.array(lengths, dtype=np.int64)

    @cached_property
    def unknown(self) -> int | None:
        """Id of the token for what the vocabulary lacks; None for vocabularies that lack nothing."""
        if self._model["type"] == "Unigram":
            return None if self._model["unk_id"] is None else int(self._model["unk_id"])
        name = self._model.get("unk_token")
        return None if name is None else self._backend.token_to_id(name)

    def special_id(self, name: str) -> int:
        """Id of a special token. Raises UserError where the tokenizer has none of this name."""
        if name not in self.special_tokens:
            raise UserError(f"this tokenizer has no special token {name}; it has {', '.join(self.special_tokens)}")
        return self.special_tokens[name]

    @property
    def end_of_text(self) -> int:
        """Id of the token behind every document: `eos_token` of the configuration, else `<|endoftext|>`."""
        name = self._config.get("eos_token")
        if name is None and END_OF_TEXT not in self.special_tokens:
            raise UserError(
                f"this tokenizer has no {END_OF_TEXT}, and no tokenizer_config.json beside its tokenizer.json names "
                "its eos_token; add that file"
            )
        return self.special_id(END_OF_TEXT if name is None else name_of(name))

    @property
    def ends_texts(self) -> bool:
        """Whether there is a token behind every document: see `end_of_text`."""
        return self._config.get("eos_token") is not None or END_OF_TEXT in self.special_tokens

    @property
    def pad(self) -> int:
        """Id that fills up short sequences: `pad_token` of the configuration, else `<|pad|>`; where there is neither,
        as in GPT-2's and LLaMA's, the end of text (whoever pads knows the lengths and does not ask for the id)."""
        name = self._config.get("pad_token")
        if name is None and PAD not in self.special_tokens:
            return self.end_of_text
        return self.special_id(PAD if name is None else name_of(name))

    @cached_property
    def surrounding(self) -> tuple[list[int], list[int]]:
        """Ids that a whole text is put between, by the post-processor of tokenizer.json: BOS, [CLS]; EOS, [SEP].

        `encode` leaves them out, since what is encoded may be a part of a text. Our own tokenizers have none.
        """
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

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
        """Read a folder that `save` or another program wrote: any `tokenizer.json`. Raises UserError."""
        config = folder / "tokenizer_config.json"
        return cls(read_backend(folder / "tokenizer.json"), read_config(config) if config.exists() else {})

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _bytes_of_ids(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        added = self._backend.get_added_tokens_decoder()
        for name, index in self._backend.get_vocab(with_added_tokens=True).items():
            table[index] = name.encode() if index in added or index == self.unknown else self._spelling(name)
        return table


def read_backend(path: Path) -> Backend:
    """The object that a `tokenizer.json` describes, without what would change ids silently. Raises UserError."""
    content = read_json(path)
    problem = f"{path} is not a tokenizer that the library `tokenizers` can read"
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{problem} (it has no model)")
    # Merges that are dropped at random are for training only.
    if content["model"].get("dropout") is not None:
        content["model"]["dropout"] = None
    try:
        backend = Backend.from_str(json.dumps(content))
    except Exception as error:  # the Rust library raises nothing more precise
        raise UserError(f"{problem} ({error})") from error
    if not backend.get_vocab_size(with_added_tokens=True):
        raise UserError(f"{problem} (its vocabulary is empty)")
    # Truncation and padding that were stored along would change ids silently.
    backend.no_truncation()
    backend.no_padding()
    return backend


def read_config(path: Path) -> dict[str, Any]:
    """The content of a `tokenizer_config.json`. Raises UserError for what is no object, and for a later version."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not the configuration of a tokenizer: it holds no JSON object")
    ours = config.get("parlance")
    if ours is not None:
        version = ours.get("format") if isinstance(ours, dict) else None
        if not isinstance(version, int) or version < 1:
            raise UserError(f"{path}: `parlance.format` is {version!r}, not a version; make the tokenizer again")
        if version > FORMAT:
            raise UserError(
                f"{path} was written by a later Parlance (format {version}; this one reads up to {FORMAT}); update "
                "Parlance, or train the tokenizer again"
            )
    return config
