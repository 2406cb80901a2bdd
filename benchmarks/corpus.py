"""How fast, how large, how it grows: `parlance corpus prepare` beside datatrove on the same documents.

    python benchmarks/corpus.py pipeline --data DATA --peer-python PYTHON --rounds 3
    python benchmarks/corpus.py growth --data DATA
    python benchmarks/corpus.py memory --data DATA --gigabytes 1

Documents are made from real prose: sentences of Gutenberg books, film reviews and newswire, drawn at random into
documents of about 2.5 kB, 5 % of which repeat another one with small changes. datatrove (its own interpreter, with its
`processing` extra and spaCy) runs the same filters, then its four MinHash steps with the same parameters, then its PII
formatter, with as many tasks at a time as Parlance has workers. Documents per second are of the whole run, start of the
processes included. Memory is the sum over all processes of the memory that is theirs (PSS), sampled.
"""

import argparse
import gzip
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILTERS = ("gopher-repetition", "gopher-quality", "c4", "fineweb")

PEER = """
import sys, time
folder, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.time()
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline import dedup, filters
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

def run(name, steps, tasks):
    LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{name}").run()

def removed(name):
    return JsonlWriter(f"{out}/removed/{name}")

def main():
    config = MinhashConfig()
    tasks = workers * 2
    kept, signatures, buckets, remove = (f"{out}/{name}" for name in ("filtered", "signatures", "buckets", "remove"))
    run("filter", [
        JsonlReader(folder),
        filters.GopherRepetitionFilter(exclusion_writer=removed("repetition")),
        filters.GopherQualityFilter(exclusion_writer=removed("quality")),
        filters.C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=removed("c4")),
        filters.FineWebQualityFilter(exclusion_writer=removed("fineweb")),
        JsonlWriter(kept),
    ], tasks)
    run("sign", [JsonlReader(kept), dedup.MinhashDedupSignature(output_folder=signatures, config=config)], tasks)
    find = dedup.MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)
    run("buckets", [find], config.num_buckets)
    run("cluster", [dedup.MinhashDedupCluster(input_folder=buckets, output_folder=remove, config=config)], 1)
    keep = dedup.MinhashDedupFilter(input_folder=remove)
    run("write", [JsonlReader(kept), keep, PIIFormatter(), JsonlWriter(f"{out}/final")], tasks)

if __name__ == "__main__":
    main()
    print("SECONDS", time.time() - start)
"""


def sentences(data: Path) -> list[str]:
    """Sentences of 20 to 400 characters from real prose."""
    texts = [gzip.decompress(path.read_bytes()).decode() for path in sorted(data.glob("gutenberg_ml5/*.txt.gz"))]
    for path in sorted(data.glob("imdb/*.jsonl.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().strip().split("\n")
        texts += [json.loads(line)["text"].replace("<br />", " ") for line in lines]
    joined = re.sub(r"\s+", " ", " ".join(texts))
    return [s for s in re.split(r"(?<=[.!?]) ", joined) if 20 <= len(s) <= 400 and "{" not in s]


def documents(pool: list[str], count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` documents of about 25 sentences, in paragraphs."""
    generator = random.Random(seed)
    before: list[list[str]] = []
    for number in range(count):
        if before and generator.random() < 0.05:
            lines = list(generator.choice(before))
            lines[generator.randrange(len(lines))] = generator.choice(pool)
        else:
            lines = [generator.choice(pool) for _ in range(generator.randint(10, 40))]
            if len(before) < 20_000:
                before.append(lines)
        if generator.random() < 0.02:
            lines.append(f"Write to person{number}@example.org or 84.21.{number % 256}.{number % 199}.")
        text = "\n".join(" ".join(lines[i : i + 5]) for i in range(0, len(lines), 5))
        yield {"id": f"doc{number}", "text": text}


def write_corpus(folder: Path, pool: list[str], count: int) -> int:
    """JSON lines in files of 5 000 documents; returns the bytes of the texts."""
    folder.mkdir(parents=True)
    total, file = 0, None
    for number, record in enumerate(documents(pool, count)):
        if number % 5000 == 0:
            if file:
                file.close()
            file = (folder / f"{number:08d}.jsonl").open("w", encoding="utf-8")
        assert file is not None
        total += len(record["text"].encode())
        file.write(json.dumps(record) + "\n")
    if file:
        file.close()
    return total


class Memory:
    """Largest sum of PSS over this process's children, sampled in a thread, bytes."""

    def __init__(self, pid: int) -> None:
        self.peak, self._pid, self._stop = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, sum(_pss(pid) for pid in _tree(self._pid)))

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.peak


def _tree(pid: int) -> list[int]:
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                queue += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run_ours(folder: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """One `parlance corpus prepare`: seconds, peak memory, card."""
    shutil.rmtree(out, ignore_errors=True)
    program = str(Path(sys.executable).with_name("parlance"))
    command = [program, "corpus", "prepare", str(folder), "--out", str(out), "--json"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    output, errors = process.communicate()
    seconds, peak = time.perf_counter() - start, memory.stop()
    if process.returncode:
        raise SystemExit(errors[-2000:])
    steps = {match[1]: float(match[2]) for match in re.finditer(r"^(\S+)\s.* in ([\d.]+) s", errors, re.MULTILINE)}
    return {"seconds": seconds, "peak_memory": peak, "card": json.loads(output.strip().split("\n")[-1]), "steps": steps}


def ours_options() -> list[str]:
    options = [word for name in FILTERS for word in ("--filter", name)]
    settings = ["pii.categories=[EMAIL, IP]", "identify_languages=false"]
    return [*options, "--personal-data", "placeholder", *(word for pair in settings for word in ("--set", pair))]


def pipeline(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Documents per second of both, in turns."""
    pool = sentences(arguments.data)
    size = write_corpus(folder / "corpus", pool, arguments.documents)
    (folder / "peer.py").write_text(PEER)
    run_ours(folder / "corpus", folder / "warm", ours_options())  # compiles what is not compiled yet
    ours, theirs = [], []
    card: dict[str, Any] = {}
    for number in range(arguments.rounds):
        done = run_ours(folder / "corpus", folder / f"ours{number}", ours_options())
        card = done["card"]
        ours.append(arguments.documents / done["seconds"])
        if arguments.peer_python:
            out = folder / f"peer{number}"
            start = time.perf_counter()
            command = [
                arguments.peer_python,
                str(folder / "peer.py"),
                str(folder / "corpus"),
                str(out),
                str(arguments.workers),
            ]
            subprocess.run(command, check=True, capture_output=True)
            theirs.append(arguments.documents / (time.perf_counter() - start))
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=False))
    result = {
        "documents": arguments.documents,
        "bytes": size,
        "ours_per_second": sorted(ours),
        "peer_per_second": sorted(theirs),
        "ratios": ratios,
        "ours_left": card["steps"][-1]["documents"],
        "ours_steps": card["steps"],
    }
    if theirs:
        result["peer_left"] = sum(
            gzip.decompress(path.read_bytes()).count(b"\n") for path in (folder / "peer0" / "final").glob("*.jsonl.gz")
        )
        print(f"ratio {ratios[0]:.1f} / {statistics.median(ratios):.1f} / {ratios[-1]:.1f} (min, median, max)")
    return result


def growth(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Documents per second at 1, 4 and 16 times the documents, and the seconds of every step."""
    pool = sentences(arguments.data)
    rows = []
    for factor in (1, 4, 16):
        count = arguments.documents * factor
        size = write_corpus(folder / f"corpus{factor}", pool, count)
        runs = [run_ours(folder / f"corpus{factor}", folder / "out", ours_options()) for _ in range(arguments.rounds)]
        done = min(runs, key=lambda run: run["seconds"])
        without = done["seconds"] - done["steps"].get("duplicates", 0.0)
        rows.append(
            {
                "documents": count,
                "bytes": size,
                "seconds": done["seconds"],
                "steps": done["steps"],
                "per_second": count / done["seconds"],
                "per_second_without_duplicates": count / without,
                "peak_memory": done["peak_memory"],
            }
        )
        print(json.dumps(rows[-1]))
        shutil.rmtree(folder / f"corpus{factor}")
    return {"rows": rows}


def memory(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory of preparing a corpus of that many gigabytes."""
    pool = sentences(arguments.data)
    sample = sum(len(record["text"]) for record in documents(pool, 2000)) / 2000
    size = write_corpus(folder / "corpus", pool, round(arguments.gigabytes * 1e9 / sample))
    done = run_ours(folder / "corpus", folder / "out", ours_options())
    return {"bytes": size, "seconds": done["seconds"], "steps": done["steps"], "peak_memory": done["peak_memory"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pipeline", "growth", "memory"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PARLANCE_DATA", "../shared/data")))
    parser.add_argument("--peer-python", help="interpreter of an environment with datatrove")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"pipeline": pipeline, "growth": growth, "memory": memory}[arguments.what](arguments, Path(folder))
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
