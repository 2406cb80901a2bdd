"""Step 3: where each document goes: training, validation, test, by position, or out.

Mixture: with weights, the largest corpus is drawn in which the named sources have these shares of the bytes and no
document is used twice. A document is drawn if the hash of seed and id, as a number in 0..1, is below its source's
fraction: what is drawn does not depend on anything else. Division: whole groups (see `splits.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.artifacts import write_json
from parlance.core.errors import UserError
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.work_folder import NUMBER_BITS, WorkFolder, growing
from parlance.text.splits import assign_groups

BY_POSITION, NOT_DRAWN, DUPLICATE = 3, 4, 5
"""Destinations beyond 0, 1 and 2, which are the splits in the order of `SPLITS`."""


@dataclass
class _Rows:
    """Columns of all documents that passed the filters, in reading order."""

    number: NDArray[np.int64]
    bytes: NDArray[np.int64]
    group_key: NDArray[np.uint64]
    order_key: NDArray[np.uint64]
    origin: NDArray[np.int16]
    """Index of the named source."""


def decide(work: WorkFolder, config: PreparationConfig, origins: list[str], shards: int, *, has_long: bool) -> None:
    """Write `decide/NNNNN.parquet` for every shard, and `decided.json` with what was drawn and how it was divided."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if work.decided.exists():
        return
    rows = _read(work, origins, shards)
    duplicates = pq.read_table(work.duplicates)
    gone = np.isin(rows.number, duplicates["number"].to_numpy(), assume_unique=True)
    fractions = _fractions(rows, gone, config.weights, origins)
    drawn = ~gone & (rows.order_key.astype(np.float64) / 2.0**64 < fractions[rows.origin])
    groups, inverse = np.unique(rows.group_key[drawn], return_inverse=True)
    sizes = np.bincount(inverse, weights=rows.bytes[drawn], minlength=len(groups)).astype(np.int64)
    splits = assign_groups(groups, sizes, config.validation_share, config.test_share)
    destination = np.full(len(rows.number), DUPLICATE, dtype=np.int8)
    destination[~gone & ~drawn] = NOT_DRAWN
    destination[drawn] = BY_POSITION if splits is None else splits[inverse]
    for index in range(shards):
        mine = (rows.number >> NUMBER_BITS) == index
        first, last = np.searchsorted(
            duplicates["number"].to_numpy(), [index << NUMBER_BITS, (index + 1) << NUMBER_BITS]
        )
        part = duplicates.slice(first, last - first)
        count = int(mine.sum())
        details: dict[str, list[Any]] = {name: [None] * count for name in ("reason", "similarity", "stays")}
        for place, row in zip(np.flatnonzero(destination[mine] == DUPLICATE).tolist(), part.to_pylist(), strict=True):
            for name, values in details.items():
                values[place] = row[name]
        columns = {
            "destination": pa.array(destination[mine], pa.int8()),
            "reason": pa.array(details["reason"], pa.string()),
            "similarity": pa.array(details["similarity"], pa.float64()),
            "stays": pa.array(details["stays"], pa.string()),
        }
        with growing(work.decisions(index)) as path:
            pq.write_table(pa.table(columns), path)
    origin_rows = {
        name: {
            "weight": config.weights.get(name),
            "available_bytes": int(rows.bytes[~gone & (rows.origin == place)].sum()),
            "fraction": round(float(fractions[place]), 6),
            "documents": int((drawn & (rows.origin == place)).sum()),
            "bytes": int(rows.bytes[drawn & (rows.origin == place)].sum()),
        }
        for place, name in enumerate(origins)
    }
    write_json(work.decided, {"by_group": splits is not None, "has_long": has_long, "mixture": origin_rows})


def _read(work: WorkFolder, origins: list[str], shards: int) -> _Rows:
    import pyarrow.parquet as pq

    names = ["number", "bytes", "group_key", "order_key", "origin"]
    tables = [pq.read_table(work.documents(index), columns=names) for index in range(shards)]
    joined = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in names[:4]}
    # A shard has documents of one source.
    places = [origins.index(table["origin"][0].as_py()) if table.num_rows else 0 for table in tables]
    origin = np.concatenate([np.full(t.num_rows, place, np.int16) for t, place in zip(tables, places, strict=True)])
    return _Rows(origin=origin, **joined)


def _fractions(
    rows: _Rows, gone: NDArray[np.bool_], weights: Mapping[str, float], origins: list[str]
) -> NDArray[np.float64]:
    """Share of each source's documents that is drawn, shape (sources,)."""
    if not weights:
        return np.ones(len(origins))
    available = np.bincount(rows.origin[~gone], weights=rows.bytes[~gone], minlength=len(origins))
    if empty := [name for name, size in zip(origins, available.tolist(), strict=True) if not size]:
        raise UserError(
            f"nothing is left of the source {', '.join(empty)}, so that no mixture with its weight exists; loosen the "
            "filters or leave it out"
        )
    wanted = np.array([weights[name] for name in origins])
    total = (available / wanted).min()
    fractions: NDArray[np.float64] = wanted * total / available
    return fractions
