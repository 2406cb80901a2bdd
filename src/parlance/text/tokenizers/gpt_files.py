"""The vocabulary files of GPT-2 (`encoder.json` + `vocab.bpe`, or `vocab.json` + `merges.txt`) and GPT-1.

GPT-2's are byte-level BPE. GPT-1's (`encoder_bpe_40000.json` + `vocab_40000.bpe`) are of characters with `</w>` behind
words; its text was lower-cased and cut at white space and punctuation, and `decode` joins words with single spaces.
(GPT-1's authors used spaCy and ftfy for that; here, as in `transformers`, it is BERT's rule.)

    backend = gpt_backend(Path("encoder.json"), Path("vocab.bpe"), PATTERNS["gpt2"])
"""

from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from parlance.core.artifacts import read_json
from parlance.core.errors import UserError
from parlance.text.documents import cannot_read
from parlance.text.tokenizers.assembly import set_byte_level
from parlance.text.tokenizers.special_tokens import UNKNOWN

WORD_END = "</w>"


def gpt_backend(vocab_file: Path, merges_file: Path, pattern: str) -> Backend:
    """The vocabulary and merges of two files; `pattern` is where byte-level ones cut. Raises UserError."""
    vocab = read_json(vocab_file)
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if not ids or not all(type(index) is int and index >= 0 for index in ids):
        raise UserError(f"{vocab_file} is not a vocabulary: it holds no JSON object of tokens and their ids")
    merges = _read_merges(merges_file)
    of_words = any(right.endswith(WORD_END) for _, right in merges)
    try:
        model = models.BPE(vocab=vocab, merges=merges, **({"end_of_word_suffix": WORD_END} if of_words else {}))
    except Exception as error:  # the Rust library raises nothing more precise
        raise UserError(f"{vocab_file} and {merges_file} do not belong together ({error})") from error
    backend = Backend(model)
    if of_words:
        model.unk_token = UNKNOWN if UNKNOWN in vocab else None
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    else:
        set_byte_level(backend, pattern)
    return backend


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """One pair a line, in the order of the merges; a first line `#version` is passed over. Raises UserError."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a file of merges: byte {error.start} is not UTF-8") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        parts = line.rstrip("\r").split(" ")
        if (number == 1 and line.startswith("#version")) or parts == [""]:
            continue
        if len(parts) != 2 or not all(parts):
            raise UserError(f"{path}, line {number}: not a pair of tokens with a space between")
        merges.append((parts[0], parts[1]))
    return merges
