"""Step 2: which documents, and which spans of documents, repeat others.

Exact: group by content hash. Near: group by every band of MinHash, which gives edges; connected components of the edges
are clusters. Of equals the longest document stays, of equally long ones that with the smallest id. Every group-by is
checkpointed as a folder of Parquet files. Up to `EDGES` edges the components are found here by union-find, beyond that
by star contraction on the engine; the components, and so the survivors, are the same.

Spans: every occurrence but the first of a run of words and punctuation marks that is long enough (Lee et al. 2022,
arXiv:2107.06499), through a suffix array over the parts of the drawn documents in which anything can repeat, on one
machine.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parlance.core.progress import Progress
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.decisions import NOT_DRAWN
from parlance.text.preparation.engine import Engine
from parlance.text.preparation.work_folder import NUMBER_BITS, WorkFolder, growing

EDGES = 10_000_000
"""Edges that are clustered in this process; beyond that the engine does it."""
ROWS = 1_000_000
"""Rows of one group-by, about: more bands at a time need more memory, fewer more time."""

EXACT, NEAR = "exact duplicate", "near duplicate"


def find_duplicates(
    work: WorkFolder, config: PreparationConfig, engine: Engine, shards: int, limit: int = EDGES
) -> None:
    """Write `duplicates.parquet`: number, reason, similarity, and the id of the document that stays, by number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if work.duplicates.exists():
        return
    files = [work.documents(index) for index in range(shards)]
    bands = [f"band{band:03d}" for band in range(config.duplicate_bands)] if config.near_duplicates else []
    documents = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    at_once = max(1, ROWS // max(1, documents))
    wanted = {"exact": [["digest_low", "digest_high"]]} if config.exact_duplicates else {}
    wanted |= {
        bands[first]: [[band] for band in bands[first : first + at_once]] for first in range(0, len(bands), at_once)
    }
    with Progress("duplicates", total=len(wanted), unit="group-bys") as progress:
        for name, keys in wanted.items():
            target = work.edges / name
            if not target.exists():
                with growing(target) as folder:
                    engine.equal_keys(files, keys, folder)
            progress.update(1)
    # 1. Exact duplicates: each class is a component already.
    low, number = _edges([work.edges / "exact"] if config.exact_duplicates else [])
    members = _Members(files, np.union1d(low, number), [])
    rows: list[tuple[int, str, float, str]] = []
    best = members.best(low, number)
    rows += [(n, EXACT, 1.0, members.id(b)) for n, b in best.items() if n != b]
    # 2. Near duplicates: among those that stay.
    names = [name for name in wanted if name != "exact"]
    low, number = _near_components(work, names, best, engine, limit)
    members = _Members(files, np.union1d(low, number), bands, config.duplicate_rows)
    rows += [(n, NEAR, members.similarity(n, b), members.id(b)) for n, b in members.best(low, number).items() if n != b]
    rows.sort()
    table = pa.table(
        {
            "number": pa.array([row[0] for row in rows], pa.int64()),
            "reason": pa.array([row[1] for row in rows], pa.string()),
            "similarity": pa.array([row[2] for row in rows], pa.float64()),
            "stays": pa.array([row[3] for row in rows], pa.string()),
        }
    )
    with growing(work.duplicates) as path:
        pq.write_table(table, path)


def _edges(folders: Sequence[Path]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(low, number) of all edges in the folders' Parquet files."""
    import pyarrow.parquet as pq

    parts = [pq.read_table(file, columns=["low", "number"]) for file in _parquet_files(folders)]
    empty = np.empty(0, dtype=np.int64)
    low = np.concatenate([empty, *(part["low"].to_numpy() for part in parts)])
    return low, np.concatenate([empty, *(part["number"].to_numpy() for part in parts)])


def _parquet_files(folders: Sequence[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.rglob("*.parquet"))]


def _near_components(
    work: WorkFolder, names: Sequence[str], best: dict[int, int], engine: Engine, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(smallest member, member) of every cluster of near duplicates; for exact duplicates, the one that stays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = [work.edges / name for name in names]
    size = sum(pq.ParquetFile(file).metadata.num_rows for file in _parquet_files(folders))
    if size > limit:
        # The engine's components have the same members; the smallest number of each may be an exact duplicate.
        merged = work.edges / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir()
        for count, file in enumerate(_parquet_files(folders)):
            table = pq.read_table(file, columns=["low", "number"])
            low, number = _replaced(table["low"].to_numpy(), best), _replaced(table["number"].to_numpy(), best)
            keep = low != number
            ordered = np.sort(np.stack([low[keep], number[keep]]), axis=0)
            pq.write_table(pa.table({"low": ordered[0], "number": ordered[1]}), merged / f"{count:05d}.parquet")
        return _edges([engine.components(merged, work.edges)])
    low, number = _edges(folders)
    low, number = _replaced(low, best), _replaced(number, best)
    nodes, dense = np.unique(np.concatenate([low, number]), return_inverse=True)
    from parlance.text.minhash import connected  # compiled code: not before it is needed

    if not len(nodes):
        return low, number
    smallest = nodes[connected(dense[: len(low)], dense[len(low) :], len(nodes))]
    others = smallest != nodes
    return smallest[others], nodes[others]


def _replaced(numbers: NDArray[np.int64], best: dict[int, int]) -> NDArray[np.int64]:
    """`numbers` with every exact duplicate replaced by the document that stays for it."""
    if not best:
        return numbers
    old = np.array(sorted(best), dtype=np.int64)
    new = np.array([best[number] for number in old.tolist()], dtype=np.int64)
    place = np.minimum(np.searchsorted(old, numbers), len(old) - 1)
    return np.where(old[place] == numbers, new[place], numbers)


class _Members:
    """Size, id and bands of the documents that are in any cluster."""

    def __init__(
        self, files: Sequence[Path], numbers: NDArray[np.int64], bands: Sequence[str], rows_of_band: int = 1
    ) -> None:
        """`numbers`: sorted, distinct; `bands`: columns to compare."""
        import pyarrow.parquet as pq

        self._rows_of_band = rows_of_band
        self._rows: dict[int, tuple[int, str]] = {}
        self._bands: dict[int, NDArray[np.uint64]] = {}
        for index, file in enumerate(files):
            first, last = np.searchsorted(numbers, [index << NUMBER_BITS, (index + 1) << NUMBER_BITS])
            if first == last:
                continue
            rows = numbers[first:last] - (index << NUMBER_BITS)
            table = pq.read_table(file, columns=["number", "bytes", "id", *bands]).take(rows)
            columns = (table[name].to_pylist() for name in ("number", "bytes", "id"))
            self._rows |= {number: (size, name) for number, size, name in zip(*columns, strict=True)}
            if bands:
                keys = np.stack([table[band].to_numpy() for band in bands], axis=1)
                self._bands |= dict(zip(table["number"].to_pylist(), keys, strict=True))

    def id(self, number: int) -> str:
        return self._rows[number][1]

    def best(self, low: NDArray[np.int64], number: NDArray[np.int64]) -> dict[int, int]:
        """For every member of the components (low, member): the longest one of its component, then the smallest id."""
        clusters: dict[int, list[int]] = {}
        for first, other in zip(low.tolist(), number.tolist(), strict=True):
            clusters.setdefault(first, [first]).append(other)
        best: dict[int, int] = {}
        for cluster in clusters.values():
            winner = min(cluster, key=lambda n: (-self._rows[n][0], self._rows[n][1], n))
            best |= dict.fromkeys(cluster, winner)
        return best

    def similarity(self, first: int, second: int) -> float:
        """Jaccard similarity guessed from the bands in common; 0.0: only other documents link the two."""
        from parlance.text.minhash import similarity_of_bands

        return round(similarity_of_bands(self._bands[first], self._bands[second], self._rows_of_band), 4)


def drawn(work: WorkFolder, shards: int) -> Iterator[tuple[int, str]]:
    """(number, text) of the documents that will be written, in reading order."""
    import pyarrow.parquet as pq

    for index in range(shards):
        decided = pq.read_table(work.decisions(index), columns=["destination"])["destination"].to_pylist()
        place = 0
        with pq.ParquetFile(work.documents(index)) as file:
            for batch in file.iter_batches(batch_size=256, columns=["number", "text"]):
                for number, text in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
                    if decided[place] < NOT_DRAWN:
                        yield number, text.as_py()
                    place += 1


def find_repeated_spans(work: WorkFolder, config: PreparationConfig, shards: int) -> None:
    """Write `spans.parquet`: number, first and last piece (see `repeated_spans.py`) of every span to cut, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from parlance.text.repeated_spans import repeated_spans_of_texts

    if work.spans.exists():
        return
    with Progress("spans", unit="documents") as progress:

        def texts() -> Iterator[str]:
            for _, text in drawn(work, shards):
                progress.update(1)
                yield text

        spans = repeated_spans_of_texts(texts, config.repeated_span)
    numbers = np.array([number for number, _ in drawn(work, shards)], dtype=np.int64)
    found = numbers[spans.documents]
    with growing(work.spans) as path:
        pq.write_table(pa.table({"number": found, "first": spans.starts, "last": spans.ends}), path)
