"""Are token shards fast to write and to draw from, how fast is a far sample reached, and what does packing keep whole?

    python benchmarks/token_stream.py [--tokens 67108864] [--rounds 5] [--out FILE.json]

1. Rows of T targets, tokens a second: `batches` and `packed_batches` against the plain way, random windows sliced out
   of one numpy memmap and stacked (the idea of nanoGPT's `get_batch`, inputs and targets each on their own), in turns.
2. Writing encoded batches, tokens a second, against the plain way, slices of a preallocated memmap without document
   boundaries, checksums or an end-of-text token put in, in turns.
3. Seconds from `state` to the first batch at sample 10^9.
4. Planning a million documents: seconds, and memory by tracemalloc.
5. Real documents (lengths by GPT-2's vocabulary): what "stream" and "best-fit" cut, and what a row that is filled by
   cropping the shortest document of a buffer of 1000 loses (the idea of nanochat's best fit).

The documents of 5 are the standard library of this Python and, where PARLANCE_DATA or ../shared/data is, WikiText-2,
IMDB and TinyStories; without that folder the lengths are in bytes.
"""

import argparse
import gzip
import json
import os
import platform
import re
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.text.packing import PackingPlan
from parlance.text.standard_library import StandardLibraryCorpus
from parlance.text.token_dataset import TokenDataset
from parlance.text.token_shards import token_writer
from parlance.text.tokenizers import Tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PARLANCE_DATA") or ROOT / ".." / "shared" / "data")
VOCAB_SIZE, END_OF_TEXT = 50_257, 256
BUFFER = 1000


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def in_turns(ways: dict[str, Callable[[], float]], plain: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of each way, measured in turns, and the ratio of each to the plain one, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(way())
    return {
        name: {
            "tokens_per_second": spread(values),
            "ratio_to_plain": spread([a / b for a, b in zip(values, rates[plain], strict=True)]),
        }
        for name, values in rates.items()
    }


def some_tokenizer() -> Tokenizer:
    """One with as many ids as GPT-2's; only the number matters here."""
    tokenizer = train_tokenizer([], "byte")
    tokenizer.vocab_size = VOCAB_SIZE
    return tokenizer


def made_up_batches(tokens: int) -> list[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """Encoded documents of log-normal length (median 245 ids), about 2^18 ids a batch."""
    generator = np.random.default_rng(0)
    batches = []
    while tokens > 0:
        lengths = np.exp(generator.normal(5.5, 1.2, 500)).astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        batches.append((generator.integers(0, VOCAB_SIZE, offsets[-1], dtype=np.uint32), offsets))
        tokens -= int(offsets[-1])
    return batches


def writing(folder: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Write a dataset into `folder`/tokens, again and again, in turns with the plain way."""
    batches = made_up_batches(tokens)
    total = sum(len(ids) + len(offsets) - 1 for ids, offsets in batches)

    def shards() -> float:
        start = time.perf_counter()
        with token_writer(folder / "tokens", some_tokenizer()) as writer:
            for ids, offsets in batches:
                writer.write_encoded("train", ids, offsets, text_bytes=len(ids))
        return total / (time.perf_counter() - start)

    def plain() -> float:
        start, at = time.perf_counter(), 0
        out = np.memmap(folder / "plain.bin", dtype=np.uint16, mode="w+", shape=(total,))
        for ids, _ in batches:
            out[at : at + len(ids)] = ids
            at += len(ids)
        out.flush()
        return total / (time.perf_counter() - start)

    return in_turns({"shards": shards, "plain": plain}, "plain", rounds)


def drawing(folder: Path, context_length: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Draw rows in turns from the dataset in `folder`/tokens."""
    dataset = TokenDataset.open(folder / "tokens", "train")
    data = np.memmap(folder / "tokens" / "train-00000.bin", dtype=np.uint16, mode="r")
    generator = np.random.default_rng(0)
    draws = max(1, 2**24 // (batch_size * context_length))

    def plain_batch() -> object:
        places = generator.integers(0, len(data) - context_length - 1, batch_size).tolist()
        inputs = np.stack([data[at : at + context_length].astype(np.int64) for at in places])
        return inputs, np.stack([data[at + 1 : at + 1 + context_length].astype(np.int64) for at in places])

    streams = {
        "stream": dataset.batches(batch_size, context_length, seed=0).__next__,
        "best-fit": dataset.packed_batches(batch_size, context_length, seed=0).__next__,
        "plain": plain_batch,
    }

    def measured(draw: Callable[[], object]) -> Callable[[], float]:
        def way() -> float:
            draw()
            start = time.perf_counter()
            for _ in range(draws):
                draw()
            return draws * batch_size * context_length / (time.perf_counter() - start)

        return way

    return in_turns({name: measured(draw) for name, draw in streams.items()}, "plain", rounds)


def seeking(folder: Path, context_length: int) -> dict[str, float]:
    """Seconds until the first batch from sample 10^9 on."""
    dataset = TokenDataset.open(folder / "tokens", "train")
    seconds = {}
    for name, draw in (("stream", dataset.batches), ("best-fit", dataset.packed_batches)):
        _, state = next(draw(8, context_length, 0))
        start = time.perf_counter()
        next(draw(8, context_length, 0, {**state, "sample": 10**9}))
        seconds[name] = time.perf_counter() - start
    return seconds


def planning(context_length: int) -> dict[str, float]:
    """Best-fit over a million documents of log-normal length."""
    lengths = 1 + np.exp(np.random.default_rng(0).normal(6, 1.2, 10**6)).astype(np.int64)
    starts, total = np.cumsum(lengths) - lengths, int(lengths.sum())
    start = time.perf_counter()
    plan = PackingPlan.best_fit(starts, total, context_length)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    PackingPlan.best_fit(starts, total, context_length)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = plan.starts.nbytes + plan.lengths.nbytes + plan.bounds.nbytes
    return {
        "documents": len(lengths),
        "tokens": total,
        "rows": plan.rows,
        "utilisation": plan.utilisation,
        "seconds": seconds,
        "plan_bytes": kept,
        "peak_bytes": peak,
    }


def real_documents() -> dict[str, list[str]]:
    """Texts by name."""
    sets = {"standard library": [document.text for document in StandardLibraryCorpus()]}
    if not DATA.is_dir():
        return sets

    def unpacked(name: str) -> str:
        return gzip.decompress((DATA / name).read_bytes()).decode()

    wiki = "".join(unpacked(f"wikitext2/{part}.txt.gz") for part in ("valid", "test"))
    sets["WikiText-2"] = [text for text in re.split(r"(?m)^(?= = [^=].*[^=] = \n)", wiki) if text.strip()]
    sets["IMDB"] = [json.loads(line)["text"] for line in unpacked("imdb/train.jsonl.gz").strip().split("\n")]
    sets["TinyStories"] = unpacked("tinystories_parts/toyrnn_2MiB.txt.gz").split("<|endoftext|>")
    return sets


def document_lengths(texts: list[str]) -> NDArray[np.int64]:
    """Ids of each text and its end-of-text."""
    path = DATA / "gpt2_bpe" / "gpt2_tokenizer.json.gz"
    if not path.is_file():
        return np.array([1 + len(text.encode()) for text in texts])
    from tokenizers import Tokenizer as Backend

    encoder = Backend.from_str(gzip.decompress(path.read_bytes()).decode())
    lengths: list[int] = []
    for at in range(0, len(texts), 256):
        lengths += [1 + len(encoding) for encoding in encoder.encode_batch_fast(texts[at : at + 256])]
    return np.array(lengths)


def cropped_share(lengths: NDArray[np.int64], row: int) -> float:
    """Share of the ids that is lost where rows are filled by the longest document of a buffer that fits, and closed by
    cropping the shortest one."""
    waiting, buffer = iter(lengths.tolist()), list[int]()
    lost = room = 0
    while True:
        while len(buffer) < BUFFER and (length := next(waiting, 0)):
            buffer.append(length)
        if not buffer:
            return lost / int(lengths.sum())
        if room == 0:
            room = row
        fitting = [length for length in buffer if length <= room]
        length = max(fitting) if fitting else min(buffer)
        buffer.remove(length)
        lost += max(0, length - room)
        room -= min(length, room)


def keeping_whole(lengths: NDArray[np.int64], context_length: int) -> dict[str, float]:
    """Shares of documents that are cut, and of ids that stand in a row without the beginning of their document."""
    T, total = context_length, int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    plan = PackingPlan.best_fit(starts, total, T)
    # The window that has position p as a target, without a shift of the ring, is (p - 1) // T.
    first, last = (starts - 1) // T, (starts + lengths - 2) // T
    in_first_window = np.minimum(lengths, (first + 1) * T + 1 - starts)
    fits = lengths <= T
    return {
        "documents": len(lengths),
        "tokens": total,
        "mean_length": total / len(lengths),
        "longer_than_a_row": float((~fits).mean()),
        "stream_documents_cut": float((first != last).mean()),
        "best_fit_documents_cut": float((~fits).mean()),
        "stream_ids_without_beginning": float((lengths - in_first_window).sum() / total),
        "best_fit_ids_without_beginning": float(np.maximum(lengths - T, 0).sum() / total),
        "best_fit_padded": 1 - plan.utilisation,
        "best_fit_cropped": 0.0,
        "cropping_lost": cropped_share(lengths, T),
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 26)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": platform.platform(), "cores": os.cpu_count(), "tokens": arguments.tokens}

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        results["writing"] = writing(folder, arguments.tokens, arguments.rounds)
        show("write", results["writing"])
        for T in (256, 1024, 4096):
            results[f"drawing {T}"] = drawing(folder, T, arguments.batch_size, arguments.rounds)
            show(f"draw, T = {T}", results[f"drawing {T}"])
        results["seek seconds at sample 10^9"] = seeking(folder, 256)
        print("seek to sample 10^9, s:", results["seek seconds at sample 10^9"])
    for T in (256, 2048):
        results[f"planning {T}"] = planning(T)
        print(f"plan, T = {T}:", results[f"planning {T}"])
    for name, texts in real_documents().items():
        lengths = document_lengths(texts)
        for T in (256, 1024, 2048):
            results[f"{name} {T}"] = row = keeping_whole(lengths, T)
            print(f"{name}, T = {T}:", {key: round(value, 5) for key, value in row.items()})
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


def show(title: str, rows: dict[str, Any]) -> None:
    """One line a way."""
    for name, row in rows.items():
        rate, ratio = row["tokens_per_second"], row["ratio_to_plain"]
        print(
            f"{title:<16} {name:<9} {rate['median'] / 1e6:8.1f} M tokens/s, "
            f"{ratio['median']:.2f} x plain ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )


if __name__ == "__main__":
    main()
