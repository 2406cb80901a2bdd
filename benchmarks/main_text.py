"""Main text of web pages: how good is the extraction, and how fast?

    python benchmarks/main_text.py --data ../shared/data --out results.json

181 pages with the article's body as people marked it (scrapinghub/article-extraction-benchmark). A text is the multiset
of its 4-word shingles; precision and recall are means over the pages, F1 is made of the two means, as in that
benchmark. Rows: Parlance's reader with and without `favour_precision`; trafilatura called directly with other options
(what was chosen among); the output of trafilatura that is stored with the benchmark. Pages a second: CPU time of one
thread, decoding included, variants in turns.
"""

import argparse
import gzip
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trafilatura

from parlance.text.readers.html import decode_page, main_text
from parlance.text.readers.problems import BadInput

WORD = re.compile(r"\w+")
LIBRARY: dict[str, dict[str, Any]] = {
    "trafilatura": {},
    "trafilatura favor_precision": {"favor_precision": True},
    "trafilatura favor_recall": {"favor_recall": True},
    "trafilatura fast": {"fast": True},
    "trafilatura fast favor_precision": {"fast": True, "favor_precision": True},
    "trafilatura without tables": {"include_tables": False},
    "trafilatura favor_precision without tables": {"favor_precision": True, "include_tables": False},
    "trafilatura with comments": {"include_comments": True},
}


def main() -> None:
    """Extract, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    folder = arguments.data / "html_article_extraction"
    truth = json.loads(gzip.decompress((folder / "ground-truth.json.gz").read_bytes()))
    stored = json.loads(gzip.decompress((folder / "output" / "trafilatura.json.gz").read_bytes()))["output"]
    pages = {name: gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes()) for name in sorted(truth)}
    bodies = {name: truth[name]["articleBody"] for name in truth}
    variants: dict[str, Callable[[bytes], str]] = {
        "parlance favour_precision": lambda data: read(data, True),
        "parlance": lambda data: read(data, False),
    }
    for label, options in LIBRARY.items():
        variants[label] = lambda data, options=options: call(data, options)
    texts: dict[str, dict[str, str]] = {}
    rates: dict[str, list[float]] = {label: [] for label in variants}
    for _ in range(arguments.rounds):
        for label, extract in variants.items():
            start = time.process_time()
            texts[label] = {name: extract(data) for name, data in pages.items()}
            rates[label].append(len(pages) / (time.process_time() - start))
    texts["stored output of trafilatura"] = {name: stored[name]["articleBody"] for name in bodies}
    rows = []
    for label, found in texts.items():
        precision, recall, f1 = score(bodies, found)
        row = {
            "variant": label,
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "pages_per_second": rates.get(label),
        }
        rows.append(row)
        rate = rates.get(label)
        speed = f"{min(rate):6.1f} {statistics.median(rate):6.1f} {max(rate):6.1f} pages/s" if rate else ""
        print(f"{label:<45} F1 {f1:.4f}  precision {precision:.4f}  recall {recall:.4f}  {speed}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"pages": len(pages), "rows": rows}, indent=2) + "\n")


def read(data: bytes, favour_precision: bool) -> str:
    """What Parlance takes for the main text."""
    try:
        return main_text(decode_page(data)[0], favour_precision=favour_precision)
    except BadInput:
        return ""


def call(data: bytes, options: dict[str, Any]) -> str:
    """What the library makes of the page by itself."""
    return trafilatura.extract(data, **({"include_comments": False} | options)) or ""


def shingles(text: str, n: int = 4) -> Counter[tuple[str, ...]]:
    """The n-word shingles of a text; shorter texts are one shingle."""
    words = WORD.findall(text)
    return Counter(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))) if words else Counter()


def score(truth: dict[str, str], found: dict[str, str]) -> tuple[float, float, float]:
    """(precision, recall, F1). A page where neither side has text counts as right."""
    precisions, recalls = [], []
    for name, body in truth.items():
        wanted, got = shingles(body), shingles(found[name])
        hits = sum((wanted & got).values())
        precisions.append(hits / got.total() if got else float(not wanted))
        recalls.append(hits / wanted.total() if wanted else float(not got))
    precision, recall = statistics.fmean(precisions), statistics.fmean(recalls)
    return precision, recall, 2 * precision * recall / (precision + recall)


if __name__ == "__main__":
    main()
