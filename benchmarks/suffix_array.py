"""Suffix arrays: tokens a second and memory as the text grows, beside libdivsufsort; and exact-substring deduplication.

    python benchmarks/suffix_array.py --data ../shared/data --rounds 5 --out benchmarks/results/suffix_array.json

Needs `pip install pydivsufsort` (libdivsufsort by Yuta Mori, for bytes) for the comparison. One thread each, in turns,
on the same bytes of real prose (books, newswire); the ratio is the peer's time over Parlance's: above 1 Parlance is
faster. The two arrays are compared. Three questions:

1. `bytes`: MB/s of `suffix_array` and of `common_prefixes` (the peer: Kasai's algorithm) at 1x, 4x and 16x of 0.75 MB.
2. `ids`: the same over word ids, which libdivsufsort does not sort, and the memory that sorting takes, the returned
   array included, in bytes a token beside the ids (growth of the largest resident set of a process of its own).
3. `spans`: text deduplicated a second, from raw text to cut text, at 1x, 4x and 16x; what a second pass still finds.
"""

import argparse
import gzip
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.text.repeated_spans import PieceNumbering, pieces, repeated_spans_of_texts, without_spans
from parlance.text.suffix_array import common_prefixes, suffix_array
from turns import in_turns

ROOT = Path(__file__).resolve().parent.parent
UNIT = 750_000
GROWTH = (1, 4, 16)


def main() -> None:
    """Answer the three questions and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", type=Path, help="only sort the ids in this .npy file and print the memory")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory(np.load(arguments.memory_of))))
        return
    texts = documents(arguments.data)
    result = {
        "bytes": compare_bytes(texts, arguments.rounds),
        "ids": grow_ids(texts, arguments.rounds),
        "spans": grow_spans(texts, arguments.rounds),
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def documents(data: Path) -> list[str]:
    """Newswire articles and pieces of books in turns, so that a beginning of the list is like the whole."""
    files = sorted((data / "reuters21578").glob("*.sgm.gz"))
    whole = "".join(gzip.decompress(path.read_bytes()).decode("latin-1") for path in files)
    articles = re.findall(r"<BODY>(.*?)</BODY>", whole, flags=re.DOTALL)
    books = "".join(
        gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        for path in sorted((data / "gutenberg_ml5").rglob("*.gz"))
    )
    size = -(-len(books) // len(articles))
    parts = [books[i * size : (i + 1) * size] for i in range(len(articles))]
    return [text for pair in zip(articles, parts, strict=True) for text in pair if text]


def word_ids(texts: list[str]) -> NDArray[np.uint32]:
    """All pieces of the texts, numbered."""
    numbering = PieceNumbering()
    return np.concatenate([numbering.ids(pieces(text).hashes) for text in texts])


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Their time over ours, round by round."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"min": min(each), "median": statistics.median(each), "max": max(each)}


def compare_bytes(texts: list[str], rounds: int) -> list[dict[str, Any]]:
    """Bytes, against libdivsufsort where it is installed."""
    try:
        import pydivsufsort
    except ImportError:
        pydivsufsort = None
        print("pydivsufsort is not installed: no comparison")
    whole = np.frombuffer("\n".join(texts).encode(), dtype=np.uint8).copy()
    rows = []
    for factor in GROWTH:
        tokens = whole[: factor * UNIT]
        order = suffix_array(tokens)
        functions: dict[str, Callable[[], object]] = {
            "sort": lambda tokens=tokens: suffix_array(tokens),
            "prefixes": lambda tokens=tokens, order=order: common_prefixes(tokens, order),
        }
        if pydivsufsort:
            assert (pydivsufsort.divsufsort(tokens) == order).all()
            functions["peer_sort"] = lambda tokens=tokens: pydivsufsort.divsufsort(tokens)
            functions["peer_prefixes"] = lambda tokens=tokens, order=order: pydivsufsort.kasai(tokens, order)
        seconds = in_turns(rounds, functions)
        row: dict[str, Any] = {"bytes": len(tokens)}
        row |= {name: len(tokens) / statistics.median(times) / 1e6 for name, times in seconds.items()}
        print(f"{len(tokens)} bytes, MB/s: " + ", ".join(f"{k} {v:.1f}" for k, v in row.items() if k != "bytes"))
        if pydivsufsort:
            row["sort_ratio"] = ratio(seconds["sort"], seconds["peer_sort"])
            row["prefixes_ratio"] = ratio(seconds["prefixes"], seconds["peer_prefixes"])
            for name in ("sort_ratio", "prefixes_ratio"):
                print(f"    {name}: {row[name]['median']:.2f} ({row[name]['min']:.2f} to {row[name]['max']:.2f})")
        rows.append(row)
    return rows


def grow_ids(texts: list[str], rounds: int) -> list[dict[str, Any]]:
    """Word ids: tokens a second and the memory of sorting."""
    ids = word_ids(texts)
    rows = []
    for factor in GROWTH:
        count = len(ids) * factor // GROWTH[-1]
        tokens = ids[:count]
        seconds = in_turns(rounds, {"sort": lambda tokens=tokens: suffix_array(tokens)})
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "ids.npy", tokens)
            command = [sys.executable, __file__, "--memory-of", str(Path(folder) / "ids.npy")]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = {
            "tokens": count,
            "distinct": int(tokens.max()) + 1,
            "million_tokens_per_second": count / statistics.median(seconds["sort"]) / 1e6,
            **json.loads(printed),
        }
        print(
            f"{count} ids, {row['distinct']} distinct: {row['million_tokens_per_second']:.1f} million/s, "
            f"{row['bytes_per_token']:.1f} bytes a token while sorting"
        )
        rows.append(row)
    return rows


def memory(tokens: NDArray[np.uint32]) -> dict[str, float]:
    """Growth of the resident set at its largest by sorting, the returned array included, in bytes a token (Linux)."""
    suffix_array(tokens[:1000].copy())
    Path("/proc/self/clear_refs").write_text("5")  # the largest begins anew
    before = resident("VmRSS")
    suffix_array(tokens)
    return {"bytes_per_token": (resident("VmHWM") - before) / len(tokens)}


def resident(name: str) -> int:
    """Bytes of this process as /proc names them: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def deduplicated(texts: list[str]) -> tuple[list[str], int]:
    """The texts without repeated spans, and how many tokens were removed."""
    spans = repeated_spans_of_texts(lambda: iter(texts))
    cut = [without_spans(text, pieces(text).starts, spans.of(d)) for d, text in enumerate(texts)]
    return cut, int((spans.ends - spans.starts).sum())


def grow_spans(texts: list[str], rounds: int) -> list[dict[str, Any]]:
    """From raw text to cut text, and a second pass."""
    rows = []
    for factor in GROWTH:
        some = texts[: len(texts) * factor // GROWTH[-1]]
        characters = sum(map(len, some))
        seconds = in_turns(rounds, {"deduplicate": lambda some=some: deduplicated(some)})
        cut, removed = deduplicated(some)
        _, again = deduplicated(cut)
        row = {
            "documents": len(some),
            "characters": characters,
            "million_characters_per_second": characters / statistics.median(seconds["deduplicate"]) / 1e6,
            "removed_tokens": removed,
            "removed_by_a_second_pass": again,
        }
        print(
            f"{len(some)} documents: {row['million_characters_per_second']:.1f} million characters/s, "
            f"{removed} tokens removed, {again} by a second pass"
        )
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
