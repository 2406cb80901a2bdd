"""How well tokenizers fit texts: bytes per token, tokens per word, and tokens that never occur.

Words are what white space divides: for languages written without it, tokens per word say nothing. A token is counted as
dead where it occurs in none of the texts, so give texts like those the vocabulary is meant for, and enough of them.
Special tokens and `<unk>` are never dead. `<unk>` flatters: what it swallows counts as text, so its share is stated.

    table = compare_compression({"mine": mine, "gpt2": gpt2}, [("English", text), ("French", other)])
    table.rows[0].bytes_per_token, table.dead["mine"]
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parlance.core.errors import UserError
from parlance.text.documents import cannot_read, decode_utf8, utf8_length
from parlance.text.tokenizers.tokenizer import Tokenizer

BATCH_BYTES = 1 << 20
"""Text that is encoded at a time."""


@dataclass
class Compression:
    """One tokenizer on the texts of one name."""

    text: str
    tokenizer: str
    documents: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    """Tokens that are `<unk>`."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text by token: the higher, the shorter the sequences."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_word(self) -> float:
        """Tokens by word (fertility)."""
        return self.tokens / self.words if self.words else 0.0


@dataclass(frozen=True)
class Comparison:
    """What `compare_compression` found."""

    rows: list[Compression]
    """By text, in the order they came, and then by tokenizer."""
    dead: dict[str, int]
    """Ordinary tokens of each tokenizer that occur nowhere."""
    ordinary: dict[str, int]
    """Ordinary tokens of each tokenizer."""


def compare_compression(tokenizers: Mapping[str, Tokenizer], texts: Iterable[tuple[str, str]]) -> Comparison:
    """Encode every (name, text) with every tokenizer; texts of one name are counted together. They are read once.

    Raises UserError where there is no text.
    """
    rows: dict[tuple[str, str], Compression] = {}
    used = {name: np.zeros(tokenizer.vocab_size, dtype=bool) for name, tokenizer in tokenizers.items()}
    for batch in _batches(texts):
        for name, tokenizer in tokenizers.items():
            for (label, text), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
                row = rows.setdefault((label, name), Compression(label, name))
                row.documents += 1
                row.bytes += utf8_length(text)
                row.words += len(text.split())
                row.tokens += len(ids)
                row.unknown += ids.count(tokenizer.unknown) if tokenizer.unknown is not None else 0
                used[name][ids] = True
    if not any(row.bytes for row in rows.values()):
        raise UserError("there is no text to compare tokenizers on")
    labels, names = dict.fromkeys(label for label, _ in rows), list(tokenizers)
    dead, ordinary = {}, {}
    for name, tokenizer in tokenizers.items():
        text_tokens = tokenizer.token_byte_lengths > 0
        ordinary[name], dead[name] = int(text_tokens.sum()), int((text_tokens & ~used[name]).sum())
    return Comparison([rows[label, name] for label in labels for name in names], dead, ordinary)


def named_texts(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(name, text) of files, and of the test split of prepared corpora, whose documents are named by their language
    where they have one. Raises UserError for what cannot be read."""
    from parlance.text.preparation import read_split

    for path in paths:
        if path.is_dir():
            for document in read_split(path, "test"):
                language = document.metadata.get("language")
                yield (path.name if language is None else f"{path.name}: {language}"), document.text
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            raise cannot_read(path, error) from error
        yield path.name, decode_utf8(data)[0]


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for label, text in texts:
        batch.append((label, text))
        size += utf8_length(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
