"""How well does a small vocabulary of ours compress, against GPT-2's and GPT-4's? Bytes per token by kind of text.

    PARLANCE_DATA=data python benchmarks/compression.py --vocab-size 8192 --out compression.json

Trains BPE with each pattern, and words, on wikitext-2 (validation), Multi30k (train, three languages) and half of this
Python's standard library; measures on wikitext-2 (test), Multi30k (test) and the other half. GPT-2's and cl100k's
vocabularies are imported from the data folder. Tokens are counted, not timed: the figures repeat exactly on one Python.
"""

import argparse
import gzip
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from parlance.text.tokenizers import PATTERNS, Tokenizer, import_tokenizer, train_tokenizer
from parlance.text.tokenizers.compression import Comparison, compare_compression

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"en": "English", "de": "German", "fr": "French"}


def main() -> None:
    """Train, import, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARLANCE_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokenizers = dict(vocabularies(arguments.data, arguments.vocab_size))
    comparison = compare_compression(tokenizers, texts(arguments.data, held_out=True))
    print_table(comparison, tokenizers)
    if arguments.out:
        write(arguments.out, comparison, tokenizers)


def vocabularies(data: Path, size: int) -> Iterator[tuple[str, Tokenizer]]:
    """(name, tokenizer) of ours and of theirs."""
    training = [text for _, text in texts(data, held_out=False)]
    for pattern in PATTERNS:
        yield f"bpe {size}, {pattern}", train_tokenizer(training, "bpe", size, pattern)
    yield f"word {size}", train_tokenizer(training, "word", size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("encoder.json", "vocab.bpe"):
            (folder / file).write_bytes(unpacked(data / "gpt2_bpe" / f"{file}.gz"))
        yield "GPT-2", import_tokenizer(folder)
        file = folder / "cl100k_base.tiktoken"
        file.write_bytes(unpacked(data / "cl100k_tiktoken" / f"{file.name}.gz"))
        yield "cl100k (GPT-4)", import_tokenizer(file)


def texts(data: Path, *, held_out: bool) -> Iterator[tuple[str, str]]:
    """(kind, text) of the training or of the held-out part."""
    name = "test" if held_out else "valid"
    yield "wikitext-2", unpacked(data / "wikitext2" / f"{name}.txt.gz").decode()
    part = "test_2016_flickr" if held_out else "train"
    for code, language in LANGUAGES.items():
        yield f"Multi30k, {language}", unpacked(data / "multi30k" / f"{part}.{code}.gz").decode()
    for number, path in enumerate(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))):
        if number % 2 == held_out:
            yield "Python source", path.read_text(encoding="utf-8", errors="replace")


def unpacked(path: Path) -> bytes:
    """The content of a gzip file."""
    return gzip.decompress(path.read_bytes())


def print_table(comparison: Comparison, tokenizers: dict[str, Tokenizer]) -> None:
    """One line a tokenizer: bytes per token of each kind of text, share of <unk>, tokens that never occur."""
    labels = list(dict.fromkeys(row.text for row in comparison.rows))
    print("bytes per token (tokens per word)")
    print(" | ".join(["tokenizer".ljust(20), *(label.rjust(17) for label in labels), "   <unk>", "never occur"]))
    for name, tokenizer in tokenizers.items():
        rows = [row for row in comparison.rows if row.tokenizer == name]
        cells = [f"{row.bytes_per_token:.2f} ({row.tokens_per_word:.2f})".rjust(17) for row in rows]
        unknown = sum(row.unknown for row in rows) / sum(row.tokens for row in rows)
        dead = f"{comparison.dead[name]} of {tokenizer.vocab_size}"
        print(" | ".join([name.ljust(20), *cells, f"{unknown:8.1%}", dead]))


def write(path: Path, comparison: Comparison, tokenizers: dict[str, Tokenizer]) -> None:
    """The figures as JSON."""
    rows = [
        {**vars(row), "bytes_per_token": row.bytes_per_token, "tokens_per_word": row.tokens_per_word}
        for row in comparison.rows
    ]
    facts = {
        name: {"vocab_size": tokenizer.vocab_size, "dead": comparison.dead[name]}
        for name, tokenizer in tokenizers.items()
    }
    result = {"date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0], "texts": rows, "tokenizers": facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
