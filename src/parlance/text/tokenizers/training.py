"""Train a tokenizer of any kind on texts.

- `bpe`: byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) within a pattern's pieces; lossless.
- `byte`: the 256 bytes; lossless, needs no training.
- `char`: the characters of the texts, most frequent first; lossless on them, `<unk>` for each other one.
- `word`: the most frequent words, digits and other characters of the texts, each with the one space before it, further
  white space one token a character. Lossless where every piece is known; of an unknown one, its spelling and the space
  before it are lost, and nothing else. Ask for fewer tokens than there are words, so that a model sees `<unk>` too.

The same texts give the same tokenizer.

    tokenizer = train_tokenizer(texts, "bpe", vocab_size=4096)
    tokenizer.decode(tokenizer.encode("any text")) == "any text"
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from tokenizers import trainers

from parlance.core.errors import UserError
from parlance.core.progress import Progress, say
from parlance.text.bpe.counting import PieceCounts, count_pieces
from parlance.text.bpe.training import tokens_of_merges, train_merges
from parlance.text.documents import replace_surrogates, utf8_length
from parlance.text.tokenizers import assembly
from parlance.text.tokenizers.bulk import BULK_NAMES
from parlance.text.tokenizers.merges import merges_of_ranks
from parlance.text.tokenizers.patterns import PATTERNS, PatternName
from parlance.text.tokenizers.special_tokens import SPECIAL_TOKENS
from parlance.text.tokenizers.tokenizer import Tokenizer

Kind = Literal["bpe", "byte", "char", "word"]


def train_tokenizer(
    texts: Iterable[str], kind: Kind = "bpe", vocab_size: int = 4096, pattern: PatternName = "parlance"
) -> Tokenizer:
    """Train a tokenizer with at most `vocab_size` tokens, the special ones (and `<unk>`) included.

    "byte" always has 260 tokens (`texts` is not read), "char" as many as the texts have characters. "bpe" and "word"
    stop early, and say so on standard error, where the texts hold no more pairs to join or no more words.
    `pattern`: where "bpe" cuts. Raises UserError for no text, for a vocabulary that cannot hold the bytes, the
    characters or one word beside the special tokens.
    """
    if kind == "byte":
        return assembly.plain_bytes()
    if kind == "char":
        return _trained_characters(texts, vocab_size - len(SPECIAL_TOKENS) - 1)
    if kind == "word":
        return _trained_words(texts, vocab_size - len(SPECIAL_TOKENS) - 1)
    check_size(vocab_size)
    return tokenizer_of_counts(count_pieces(_counted(texts), BULK_NAMES[PATTERNS[pattern]]), vocab_size, pattern)


def check_size(vocab_size: int) -> int:
    """The tokens of BPE beside the special ones. Raises UserError where they cannot hold the bytes."""
    size = vocab_size - len(SPECIAL_TOKENS)
    if size < 256:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small; bytes and special tokens alone are {256 + len(SPECIAL_TOKENS)}"
        )
    return size


def tokenizer_of_counts(counts: PieceCounts, vocab_size: int, pattern: PatternName) -> Tokenizer:
    """Byte-level BPE from counted pieces, which may have been counted anywhere (`shared_counting`).

    Raises UserError for a vocabulary that cannot hold the bytes.
    """
    size = check_size(vocab_size)
    tokens, merges = merges_of_ranks(tokens_of_merges(train_merges(counts, size)))
    _warn_where_short(len(tokens) + len(SPECIAL_TOKENS), vocab_size, "no more pairs to join")
    return assembly.byte_level(tokens, merges, pattern)


def _trained_characters(texts: Iterable[str], room: int) -> Tokenizer:
    beside = len(SPECIAL_TOKENS) + 1
    counts = Counter[str]()
    for text in _counted(texts):
        counts.update(text)
    if len(counts) > room:
        raise UserError(
            f"a vocabulary of {room + beside} is too small: the text has {len(counts)} different characters, which "
            f"with {beside} special tokens make {len(counts) + beside}; ask for that many, or train bytes or bpe"
        )
    return assembly.characters(sorted(counts, key=lambda character: (-counts[character], character)))


def _trained_words(texts: Iterable[str], room: int) -> Tokenizer:
    beside = len(SPECIAL_TOKENS) + 1
    if room < 1:
        raise UserError(
            f"a vocabulary of {room + beside} is too small; it must hold {beside} special tokens and at least one word"
        )
    backend = assembly.word_backend()
    # It orders words by their counts, equal ones by their spelling.
    trainer = trainers.WordLevelTrainer(vocab_size=room, min_frequency=1, show_progress=False, special_tokens=[])
    backend.train_from_iterator(_counted(texts), trainer)
    vocab = backend.get_vocab()
    reason = "no more different words, so that it never shows a model <unk>"
    _warn_where_short(len(vocab) + beside, room + beside, reason)
    return assembly.words(sorted(vocab, key=vocab.__getitem__))


def _warn_where_short(reached: int, wanted: int, reason: str) -> None:
    if reached < wanted:
        say(
            f"tokenizer: {reached} tokens instead of the {wanted} asked for: the text has {reason}; "
            "give more text, or ask for fewer tokens"
        )


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """The texts without lone surrogates, while their bytes are counted. Raises UserError for none."""
    total = 0
    with Progress("tokenizer", unit="bytes") as progress:
        for text in texts:
            text, _ = replace_surrogates(text)
            length = utf8_length(text)
            total += length
            progress.update(length)
            yield text
    if not total:
        raise UserError("the tokenizer was given no text to train on")
