"""Quality filters: does Parlance say the same as datatrove of every document, and how much faster?

    python benchmarks/filters.py --data ../shared/data --peer-python /path/to/venv/bin/python --out results.json

The same documents go through Gopher repetition, Gopher quality, C4 (terminal punctuation off) and FineWeb with the
same limits, once as Parlance's `judge` and once as datatrove's four filters one after another, each in a process of
its own, in turns, one thread each; only the filtering is timed. The peer's environment needs `datatrove spacy nltk
regex`; without `--peer-python` only Parlance is measured. Documents: Gutenberg books in pieces of about 4 000
characters, IMDB reviews, Reuters articles, WikiText-2 articles, the filter fixtures, article bodies of web pages.

Prints documents a second with the ratio of each round (minimum, median, maximum); agreement by source, for the four in
a row and for each alone; and every kind of difference. A difference that `count_single_ngrams` ends is due to an n-gram
that occurs once; the others are sorted by what the text holds: writing without spaces (a character is a word in
Parlance, a run in the peer), or white space other than single spaces, a run of which the peer's sentence splitter takes
for a word.
"""

import argparse
import gzip
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

# text -> (reason or None, text left or None)
Judge = Callable[[str], tuple[str | None, str | None]]

# datatrove's names for what Parlance calls otherwise.
PEER_REASONS = {
    "dup_para_frac": "gopher-repetition: duplicate paragraphs",
    "dup_para_char_frac": "gopher-repetition: characters in duplicate paragraphs",
    "dup_line_frac": "gopher-repetition: duplicate lines",
    "dup_line_char_frac": "gopher-repetition: characters in duplicate lines",
    **{f"top_{n}_gram": f"gopher-repetition: characters in most frequent {n}-gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher-repetition: characters in duplicate {n}-grams" for n in range(5, 11)},
    "gopher_short_doc": "gopher-quality: too few words",
    "gopher_long_doc": "gopher-quality: too many words",
    "gopher_below_avg_threshold": "gopher-quality: words too short",
    "gopher_above_avg_threshold": "gopher-quality: words too long",
    "gopher_too_many_hashes": "gopher-quality: too many hash signs",
    "gopher_too_many_ellipsis": "gopher-quality: too many ellipses",
    "gopher_too_many_bullets": "gopher-quality: too many bullet lines",
    "gopher_too_many_end_ellipsis": "gopher-quality: too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "gopher-quality: too few words with letters",
    "gopher_enough_stop_words": "gopher-quality: too few stop words",
    "lorem_ipsum": "c4: lorem ipsum",
    "curly_bracket": "c4: curly bracket",
    "too_few_sentences": "c4: too few sentences",
    "empty": "fineweb: no text",
    "line_punct_ratio": "fineweb: too few lines end in punctuation",
    "short_line_ratio": "fineweb: too many short lines",
    "char_dup_ratio": "fineweb: characters in duplicate lines",
    "list_ratio": "fineweb: too many line ends",
}


def main() -> None:
    """Measure in turns, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--peer-python", help="Python that has datatrove and spaCy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=1, help="use every n-th document")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        return
    if arguments.data is None:
        parser.error("--data: the folder with the data sets")
    documents = read_documents(arguments.data)[:: arguments.sample]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.json"
        path.write_text(json.dumps([text for _, text in documents]))
        workers = {"parlance": Worker(sys.executable, "parlance", path)}
        if arguments.peer_python:
            workers["datatrove"] = Worker(arguments.peer_python, "datatrove", path)
        results = measure(workers, documents, arguments.rounds)
        compatible = Worker(sys.executable, "parlance-compatible", path)
        if "datatrove" in workers:
            ours, peer, same = workers["parlance"].verdicts, workers["datatrove"].verdicts, compatible.verdicts
            results["agreement with the defaults"] = agreement(documents, ours["all"], peer["all"], same["all"])
            results["agreement with count_single_ngrams"] = {
                name: agreement(documents, same[name], peer[name], []) for name in peer
            }
        for worker in (*workers.values(), compatible):
            worker.close()
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def measure(workers: dict[str, "Worker"], documents: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Documents a second of each worker and their ratios, round by round."""
    characters = sum(len(text) for _, text in documents)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.time())
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "documents": len(documents),
        "million characters": round(characters / 1e6, 2),
        "documents a second": {
            name: spread([len(documents) / second for second in times]) for name, times in seconds.items()
        },
        "million characters a second": {
            name: spread([characters / 1e6 / second for second in times]) for name, times in seconds.items()
        },
    }
    if len(workers) == 2:
        ours, peers = seconds.values()
        results["times datatrove's speed"] = spread([peer / our for our, peer in zip(ours, peers, strict=True)])
    return results


def agreement(
    documents: list[tuple[str, str]], ours: list[Any], peers: list[Any], compatible: list[Any]
) -> dict[str, Any]:
    """How many verdicts are the same, by source, and what the others look like."""
    table: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    for index, (source, text) in enumerate(documents):
        our, peer = ours[index], peers[index]
        row = table.setdefault(source, Counter())
        row["documents"] += 1
        row["kept"] += our[0] is None
        if our == peer:
            row["same"] += 1
            continue
        kind = "other text" if our[0] == peer[0] else "other reason" if our[0] and peer[0] else "other decision"
        row[kind] += 1
        if compatible and compatible[index] == peer:
            cause = "an n-gram that occurs once"
        elif re.search("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]", text):
            cause = "writing without spaces"
        elif re.search(r"[^\S\n]{2}|[^\S\n ]", text):
            cause = "perhaps white space"
        else:
            cause = "another"
        name = f"{kind}: {our[0] or 'keep'} | datatrove: {peer[0] or 'keep'} | cause: {cause}"
        kinds[name] += 1
        examples.setdefault(name, []).append({"source": source, "begins": text[:80]})
    total = sum((row for row in table.values()), Counter())
    return {
        "all": dict(total),
        "share of same verdicts": total["same"] / total["documents"],
        "by source": {source: dict(row) for source, row in table.items()},
        "differences": dict(kinds.most_common()),
        "examples": {name: found[:3] for name, found in examples.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2), "max": round(max(values), 2)}


class Worker:
    """A process that filters the documents when told to; it has done so once before the first timing."""

    def __init__(self, python: str, kind: str, documents: Path) -> None:
        command = [python, "-P", __file__, "--worker", kind, str(documents)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.verdicts: dict[str, list[Any]] = json.loads(self._answer())

    def time(self) -> float:
        """Seconds of one more pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def work(kind: str, path: str) -> None:
    """The worker's side: verdicts on the first line, then the seconds of a pass for every line of input."""
    texts = json.loads(Path(path).read_text())
    judges = peer_judges() if kind == "datatrove" else our_judges(kind == "parlance-compatible")
    print(json.dumps({name: [one(text) for text in texts] for name, one in judges.items()}), flush=True)
    judge_text = judges["all"]
    for _ in sys.stdin:
        if (
            kind != "datatrove"
        ):  # what was learned of the words of these very documents would make the next pass quicker
            from parlance.text.filters.table import thread_table

            thread_table().clear()
        start = time.perf_counter()
        for text in texts:
            judge_text(text)
        print(time.perf_counter() - start, flush=True)


def our_judges(count_single: bool) -> dict[str, Judge]:
    """Parlance: all filters in a row, and each one alone."""
    from parlance.text.filters import FILTER_NAMES, FiltersConfig, GopherRepetitionConfig, judge

    config = FiltersConfig(gopher_repetition=GopherRepetitionConfig(count_single_ngrams=count_single))

    def judge_with(names: Any, text: str) -> tuple[str | None, str | None]:
        verdict = judge(text, names, config)
        return verdict.reason, None if verdict.reason else text if verdict.text is None else verdict.text

    rows = {"all": FILTER_NAMES, **{name: (name,) for name in FILTER_NAMES}}
    return {name: partial(judge_with, row) for name, row in rows.items()}


def peer_judges() -> dict[str, Judge]:
    """The same with datatrove."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    filters = {
        "gopher-repetition": GopherRepetitionFilter(),
        "gopher-quality": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }

    def judge_with(row: Any, text: str) -> tuple[str | None, str | None]:
        document = Document(text=text, id="")
        for one in row:
            answer = one.filter(document)
            if answer is not True:
                return PEER_REASONS[answer[1]], None
        return None, document.text

    rows = {"all": list(filters.values()), **{name: [one] for name, one in filters.items()}}
    return {name: partial(judge_with, row) for name, row in rows.items()}


def read_documents(data: Path) -> list[tuple[str, str]]:
    """(source, text) of every document that is not empty."""
    found = [("imdb", json.loads(line)["text"]) for line in _lines(data / "imdb" / "test.jsonl.gz")]
    for path in sorted((data / "gutenberg_ml5").glob("*.txt.gz")):
        found += [("gutenberg_ml5", piece) for piece in _pieces(_text(path).replace("\r\n", "\n"), 4000)]
    for path in sorted((data / "reuters21578").glob("*.sgm*")):
        found += [
            ("reuters21578", unescape(b, {"&#3;": ""}))
            for b in re.findall(r"<BODY>(.*?)</BODY>", _text(path), re.DOTALL)
        ]
    for path in sorted((data / "wikitext2").glob("*.txt.gz")):
        found += [("wikitext2", article) for article in re.split(r"\n (?== [^=])", _text(path))]
    for path in sorted((data / "data_filter_fixtures").rglob("*.txt")):
        found.append(("data_filter_fixtures", _text(path)))
    articles = json.loads(_text(data / "html_article_extraction" / "ground-truth.json.gz"))
    found += [("html_article_extraction", articles[key]["articleBody"]) for key in sorted(articles)]
    return [(source, text) for source, text in found if text.strip()]


def _pieces(text: str, size: int) -> list[str]:
    pieces = [""]
    for paragraph in text.split("\n\n"):
        pieces[-1] += paragraph + "\n\n"
        if len(pieces[-1]) >= size:
            pieces.append("")
    return pieces


def _lines(path: Path) -> list[str]:
    return [line for line in _text(path).split("\n") if line]


def _text(path: Path) -> str:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


if __name__ == "__main__":
    main()
