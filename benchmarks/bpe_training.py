"""How long does training a byte-pair vocabulary take? Parlance, rustbpe and tokenizers in turns on the same texts.

    python benchmarks/bpe_training.py --rounds 5 --out benchmarks/results/bpe_training.json

The corpus is the text files of `--corpus`, else Python sources: the standard library and the packages beside it, up to
`--bytes`. All use two threads. Parlance's tokens are compared with rustbpe's, one by one. The parts of Parlance's time
are measured on one thread, beside the time that reading the text once from memory takes.
"""

import argparse
import json
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("RAYON_NUM_THREADS", "2")

import numpy as np
import rustbpe
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from parlance.text.bpe.counting import PieceTable, count_pieces
from parlance.text.bpe.parallel import chunks_of
from parlance.text.bpe.patterns import PATTERNS, pattern_named, scan_arguments, utf8
from parlance.text.bpe.scan_kernels import scan
from parlance.text.bpe.training import train, train_merges

THREADS = 2
Result = TypeVar("Result")


def corpus(folder: Path | None, limit: int) -> list[str]:
    """Texts in the order of their paths, as many as fit into `limit` bytes."""
    roots = [folder] if folder else [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    texts, size = list[str](), 0
    seen = set[Path]()
    for root in roots:
        for path in sorted(root.rglob("*" if folder else "*.py")):
            if (
                path in seen
                or not path.is_file()
                or (root == roots[0] and not folder and "site-packages" in path.parts)
            ):
                continue
            seen.add(path)
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            if size + path.stat().st_size > limit:
                return texts
            texts.append(text)
            size += path.stat().st_size
    return texts


def of_rustbpe(texts: Sequence[str], size: int, expression: str) -> list[bytes]:
    """Tokens by rank."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size, pattern=expression)
    return [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]


def of_tokenizers(texts: Sequence[str], size: int, expression: str) -> int:
    """Size of the vocabulary."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False), length=len(texts)
    )
    return backend.get_vocab_size()


def timed(function: Callable[..., Result], *arguments: object) -> tuple[float, Result]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def parts_of_time(texts: Sequence[str], size: int, name: str) -> dict[str, float]:
    """Seconds on one thread, the least of three."""
    rows = list[dict[str, float]]()
    for _ in range(3):
        seconds = dict.fromkeys(("to UTF-8", "scan", "count", "merge", "read once"), 0.0)
        table, one = PieceTable(), np.ones(1, dtype=np.int64)
        ends = np.empty(1 << 16, dtype=np.int32)
        for chunk in chunks_of(texts):
            took, batch = timed(utf8, chunk)
            seconds["to UTF-8"] += took
            seconds["read once"] += timed(batch.data.copy)[0]
            cursor, start = np.zeros(2, dtype=np.int64), 0
            while True:
                took, found = timed(scan, batch.words, batch.bounds, cursor, ends, *scan_arguments(pattern_named(name)))
                seconds["scan"] += took
                if not found:
                    break
                seconds["count"] += timed(table.add, batch.words, ends[:found], start, one)[0]
                start = int(ends[found - 1])
        took, counts = timed(table.counts)
        seconds["count"] += took
        seconds["merge"] = timed(train_merges, counts, size)[0]
        rows.append(seconds)
    return {part: min(row[part] for row in rows) for part in rows[0]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder with text files")
    parser.add_argument("--bytes", type=int, default=31_500_000)
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--pattern", choices=PATTERNS, default="parlance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-tokenizers", action="store_true", help="leave out the slowest")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    texts = corpus(arguments.corpus, arguments.bytes)
    size, expression = 256 + arguments.merges, PATTERNS[arguments.pattern].expression
    first_call, _ = timed(train, texts[:2], size, arguments.pattern, THREADS)
    seconds: dict[str, list[float]] = {"parlance": [], "rustbpe": [], "tokenizers": []}
    equal = True
    for _ in range(arguments.rounds):
        took, ours = timed(train, texts, size, arguments.pattern, THREADS)
        seconds["parlance"].append(took)
        took, theirs = timed(of_rustbpe, texts, size, expression)
        seconds["rustbpe"].append(took)
        equal = equal and ours == theirs
        if not arguments.without_tokenizers:
            seconds["tokenizers"].append(timed(of_tokenizers, texts, size, expression)[0])
    counts = count_pieces(texts, arguments.pattern)
    result = {
        "texts": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "pieces": counts.total,
        "different_pieces": len(counts.counts),
        "merges": arguments.merges,
        "pattern": arguments.pattern,
        "same_tokens_as_rustbpe": equal,
        "seconds": {name: spread(values) for name, values in seconds.items() if values},
        "times_faster": {
            name: spread([peer / own for peer, own in zip(values, seconds["parlance"], strict=True)])
            for name, values in seconds.items()
            if values and name != "parlance"
        },
        "one_thread_seconds": parts_of_time(texts, size, arguments.pattern),
        "first_call_seconds": first_call,
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
