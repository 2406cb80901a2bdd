"""Vocabularies as `tokenizers` objects with their special tokens: what `train_tokenizer` and the imports build.

Each function gives a `Tokenizer` that decodes to the text it was given wherever its vocabulary can spell it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from parlance.text.chat_template import CHAT_TEMPLATE, END_OF_TURN, START_OF_TURN
from parlance.text.tokenizers.byte_characters import to_characters
from parlance.text.tokenizers.patterns import PATTERNS, WORD_PATTERN, PatternName
from parlance.text.tokenizers.special_tokens import END_OF_TEXT, PAD, SPACE, SPECIAL_TOKENS, UNKNOWN, name_of
from parlance.text.tokenizers.tokenizer import FORMAT, Tokenizer


def byte_level_backend(
    vocab: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], pattern: str | None
) -> Backend:
    """Byte-level BPE: split by the regular expression `pattern`, bytes as characters, merges within the pieces."""
    backend = Backend(
        models.BPE(
            vocab={to_characters(token): index for token, index in vocab.items()},
            merges=[(to_characters(left), to_characters(right)) for left, right in merges],
        )
    )
    set_byte_level(backend, pattern)
    return backend


def set_byte_level(backend: Backend, pattern: str | None) -> None:
    """Let `backend` cut a text by `pattern` (None: not at all) and spell its bytes as characters."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pattern is None:
        backend.pre_tokenizer = to_bytes
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()


def plain_bytes() -> Tokenizer:
    """256 bytes and the special tokens."""
    return _finished(byte_level_backend({bytes([value]): value for value in range(256)}, [], None), {"kind": "byte"})


def byte_level(tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], pattern: PatternName) -> Tokenizer:
    """Byte-level BPE with the merges in their order; the place of a token is its id."""
    vocab = {token: index for index, token in enumerate(tokens)}
    # Where nothing is joined, the pieces do not matter.
    backend = byte_level_backend(vocab, merges, PATTERNS[pattern] if merges else None)
    return _finished(backend, {"kind": "bpe", "pattern": pattern})


def characters(alphabet: Sequence[str]) -> Tokenizer:
    """One token a character; `<unk>` for each character that is not in `alphabet`."""
    vocab = {character: index for index, character in enumerate([*alphabet, UNKNOWN])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    backend.decoder = decoders.Fuse()
    return _finished(backend, {"kind": "char"}, unknown=UNKNOWN)


def word_backend() -> Backend:
    """A word vocabulary that is still empty: cut by `WORD_PATTERN`, `<unk>` for what is missing."""
    backend = Backend(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend


def words(vocabulary: Sequence[str]) -> Tokenizer:
    """One token a word, digit or other character, with the space before it; `<unk>` for those not in `vocabulary`."""
    backend = word_backend()
    vocab = {word: index for index, word in enumerate([*vocabulary, UNKNOWN])}
    backend.model = models.WordLevel(vocab, unk_token=UNKNOWN)
    return _finished(backend, {"kind": "word"}, unknown=UNKNOWN)


def spaced_words(vocabulary: Sequence[str], end: str) -> Tokenizer:
    """One token a word between spaces, the place of a word its id, as n-gram toolkits have them; `end` is a word.

    `<unk>`, where it is a word, stands for those that are not. Only ASCII white space and NUL part words.
    """
    vocab = {word if word in (end, UNKNOWN) else f"{SPACE}{word}": index for index, word in enumerate(vocabulary)}
    unknown = UNKNOWN if UNKNOWN in vocab else None
    backend = Backend(models.WordLevel(vocab, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\x00\t-\r ]+"), behavior="removed"),
            pre_tokenizers.Metaspace(SPACE, "always", split=True),
        ]
    )
    backend.decoder = decoders.Metaspace(SPACE, "always")
    add_special(backend, [end] if unknown is None else [end, unknown])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        **({} if unknown is None else {"unk_token": unknown}),
        "parlance": {"format": FORMAT, "kind": "word", "source": "arpa"},
    }
    return Tokenizer(backend, config)


def surrounded(tokenizer: Tokenizer, *, begins: bool, ends: bool) -> Tokenizer:
    """A tokenizer whose whole texts stand between its BOS (`begins`) and its EOS (`ends`): see `Tokenizer.surrounding`.

    Where it has no BOS of its own, EOS begins texts too (OPT). Raises UserError where there is neither.
    """
    if not begins and not ends:
        return tokenizer
    config = tokenizer.config
    last = name_of(config.get("eos_token") or END_OF_TEXT)
    first = name_of(config.get("bos_token") or last)
    template = [first] * begins + ["$A"] + [last] * ends
    names = dict.fromkeys([first] * begins + [last] * ends)
    backend = Backend.from_str(tokenizer.backend_json())
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, tokenizer.special_id(name)) for name in names]
    )
    return Tokenizer(backend, config)


def add_special(backend: Backend, names: Iterable[str]) -> None:
    """Make `names` special tokens; those that are in the vocabulary keep their ids, the others follow behind it."""
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _finished(backend: Backend, facts: dict[str, Any], unknown: str | None = None) -> Tokenizer:
    """Add the special tokens and the configuration of a tokenizer of our own."""
    add_special(backend, SPECIAL_TOKENS if unknown is None else (unknown, *SPECIAL_TOKENS))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        **({} if unknown is None else {"unk_token": unknown}),
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": CHAT_TEMPLATE,
        "parlance": {"format": FORMAT, **facts},
    }
    return Tokenizer(backend, config)
