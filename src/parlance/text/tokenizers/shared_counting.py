"""Counting the pieces of a prepared corpus on several processes or machines, for training a BPE vocabulary.

    tokenizer = train_on_engine(Path("my-corpus"), 8192, "parlance", Engine("ray"), out=Path("my-tokenizer"))

Each task counts one shard of the training split and stores (piece, count) as `.npz`; the tables are added here. Counts
are 64 bits wide and addition does not mind the order, so that the vocabulary is the one that a single process trains.
What is counted stays in `OUT.counting` until training is done, so that a killed count goes on.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parlance.core.artifacts import ensure_directory, read_json, write_json
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.bpe.counting import PieceCounts, count_pieces, merge_counts
from parlance.text.documents import ReadingReport
from parlance.text.preparation.engine import COUNT, Engine
from parlance.text.readers import FileCorpus
from parlance.text.shards import open_shard
from parlance.text.tokenizers.bulk import BULK_NAMES
from parlance.text.tokenizers.patterns import PATTERNS, PatternName
from parlance.text.tokenizers.tokenizer import Tokenizer
from parlance.text.tokenizers.training import check_size, tokenizer_of_counts

SHARD_BYTES = 64 << 20
"""Stored bytes that one task counts, about."""


def train_on_engine(corpus: Path, vocab_size: int, pattern: PatternName, engine: Engine, out: Path) -> Tokenizer:
    """Byte-level BPE trained on the training split of `corpus`; nothing is written to `out`, but beside it.

    Raises UserError for a vocabulary that cannot hold the bytes, and what `count_corpus` raises.
    """
    check_size(vocab_size)
    work = out.with_name(out.name + ".counting")
    tokenizer = tokenizer_of_counts(count_corpus(corpus, pattern, engine, work), vocab_size, pattern)
    shutil.rmtree(work)
    return tokenizer


def count_corpus(corpus: Path, pattern: PatternName, engine: Engine, work: Path) -> PieceCounts:
    """Pieces of the training split of a prepared corpus, counted on `engine`; `work` is a folder that all machines see.

    Raises UserError where `work` holds the counts of something else, and what reading raises.
    """
    shards = [shard.to_json() for shard in FileCorpus([corpus / "train.jsonl"]).shards(SHARD_BYTES)]
    stat = (corpus / "train.jsonl").stat()
    plan = {"pattern": pattern, "shards": shards, "changed": stat.st_mtime_ns}
    if work.exists() and not (work / "plan.json").exists():
        raise UserError(f"{work} is in the way, and was not made by an earlier count; remove or rename it")
    if work.exists() and read_json(work / "plan.json") != plan:
        raise UserError(f"{work} holds the counts of another corpus or pattern; remove it")
    write_json(ensure_directory(work) / "plan.json", plan)
    left = [index for index in range(len(shards)) if not _part(work, index).exists()]
    with Progress("count", total=sum(shards[index]["bytes"] for index in left), unit="bytes") as progress:
        for result in engine.run(work, COUNT, left):
            progress.update(shards[result["shard"]]["bytes"])
    return merge_counts(_read(_part(work, index)) for index in range(len(shards)))


def counting_task(work: Path) -> Callable[[int], dict[str, Any]]:
    """The function that counts the shard of a given index of the plan in `work`."""
    plan = read_json(work / "plan.json")

    def count(index: int) -> dict[str, Any]:
        texts: Iterator[str] = (document.text for document in open_shard(plan["shards"][index], ReadingReport()))
        counts = count_pieces(texts, BULK_NAMES[PATTERNS[plan["pattern"]]], threads=1)
        growing = work / f"{index:05d}.growing.npz"
        np.savez(growing, **counts._asdict())
        growing.replace(_part(work, index))
        return {"shard": index}

    return count


def _part(work: Path, index: int) -> Path:
    return work / f"{index:05d}.npz"


def _read(path: Path) -> PieceCounts:
    with np.load(path, allow_pickle=False) as arrays:
        return PieceCounts(**{name: arrays[name] for name in PieceCounts._fields})
