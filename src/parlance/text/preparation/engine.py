"""The corpus engine: tasks over shards and group-bys over their tables, as Daft plans, here or on a Ray cluster.

    engine = Engine("native", workers=2)
    for result in engine.run(Path("work"), "judge", [0, 1, 2]): ...

`run` is a Daft plan with one row a shard and a Python function over it, in `workers` processes: Daft brings the rows to
the processes of this machine ("native") or of a Ray cluster ("ray"; every machine must see the same files under the
same paths, and have Parlance installed). What a task writes depends on its shard alone, so that the output is the same
byte for byte whatever the runner and the number of workers. `equal_keys` is a Daft group-by, and `components` joins
and group-bys (large-star / small-star; Kiveris et al. 2014, doi:10.1145/2670979.2670997).

Nothing is sent over the network by Daft itself: its usage reports are switched off before it is imported.
"""

import contextlib
import errno
import functools
import json
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from parlance.core.artifacts import os_errors
from parlance.core.devices import usable_cores
from parlance.core.errors import Interrupted, UserError
from parlance.core.interrupts import stop_requests

JUDGE, WRITE, COUNT = "judge", "write", "count"
"""The steps that run once for every shard: two of a preparation, one of training a tokenizer."""
REACH_SECONDS = 10
"""How long a Ray cluster may take to answer."""
STOPPED = "the preparation was stopped; the same command with --resume goes on"
Runner = Literal["native", "ray"]
RUNNERS: tuple[str, ...] = get_args(Runner)


class Engine:
    """Where tasks run: `runner` "native" is this machine, "ray" a cluster (`ray_address`; None starts a local one)."""

    def __init__(
        self, runner: Runner = "native", *, ray_address: str | None = None, workers: int | None = None
    ) -> None:
        """`workers`: processes at a time; None takes one for each usable core, of this machine or of the cluster.

        Raises UserError for an unknown runner, without the library `ray`, and where the cluster does not answer.
        """
        if runner not in RUNNERS:
            raise UserError(f"there is no runner {runner}; choose {' or '.join(RUNNERS)}")
        if workers is not None and workers < 1:
            raise UserError(f"{workers} workers cannot do anything; give at least 1")
        if ray_address is not None and runner != "ray":
            raise UserError("a Ray address was given, but the runner is not ray; add --runner ray")
        self.runner = runner
        self.workers = workers or usable_cores()
        self._daft = _import_daft()
        if runner == "ray":
            cluster_cores = _connect(self._daft, ray_address, workers)
            self.workers = workers or cluster_cores

    def run(self, folder: Path, step: str, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Run the step called `step` (see `tasks.py`) on the shards numbered `indices`; yields results as they come.

        Raises UserError where a task does, and Interrupted where the user asks to stop; shards that are done stay done.
        """
        if not indices:
            return
        answered, stopped = 0, "the count was stopped; the same command goes on" if step == COUNT else STOPPED
        rows = self._rows_here if self.runner == "native" and min(self.workers, len(indices)) == 1 else self._rows
        with stop_requests() as stop:
            for row in rows(folder, step, indices):
                result = json.loads(row)
                if "user_error" in result:
                    cause = None if result["errno"] is None else OSError(result["errno"], os.strerror(result["errno"]))
                    raise UserError(result["user_error"]) from cause
                if "bug" in result:
                    raise RuntimeError(f"a worker failed: {result['bug']}")
                if stop.requested:
                    raise Interrupted(stopped)
                answered += 1
                yield result
            # Daft hears of a Ctrl-C too, and then ends its answers without a word.
            if stop.requested:
                raise Interrupted(stopped)
            if answered < len(indices):
                raise RuntimeError(f"only {answered} of {len(indices)} tasks of the step {step} gave an answer")

    def _rows_here(self, folder: Path, step: str, indices: Sequence[int]) -> Iterator[str]:
        """One shard after the other in this process: what a single worker does, without starting one."""
        task = Task(folder, step)
        for index in indices:
            yield task.run(index)

    def _rows(self, folder: Path, step: str, indices: Sequence[int]) -> Iterator[str]:
        """The Daft plan: one row a shard, in the order in which the workers finish."""
        daft = self._daft
        workers = min(self.workers, len(indices))
        task = _task_class(daft, workers)(str(folder.resolve()), step)
        frame = self._spread(daft.from_pydict({"index": list(indices)}).into_batches(1))
        results = frame.select(task.run(daft.col("index")).alias("result"))
        for row in results.iter_rows(results_buffer_size=workers):
            yield str(row["result"])

    def _spread(self, frame: Any) -> Any:
        """`frame` in one partition a worker, where the runner has partitions."""
        return frame.into_partitions(self.workers) if self.runner == "ray" else frame

    def equal_keys(self, files: Sequence[Path], keys: Sequence[Sequence[str]], out: Path) -> None:
        """Write (low, number) for the rows of the Parquet `files` that are equal to another one in one of the `keys`.

        `keys`: lists of columns, each of the same length; rows with a first column of 0 are left out. `number`
        identifies a row, `low` is the smallest number of its equals; rows with number == low are not written. `out` is
        a new folder of Parquet files.
        """
        col, names = self._daft.col, [f"key{place}" for place in range(len(keys[0]))]
        frame = self._daft.read_parquet([str(path) for path in files])
        parts = []
        for place, columns in enumerate(keys):
            renamed = [col(column).alias(name) for column, name in zip(columns, names, strict=True)]
            parts.append(frame.select(col("number"), *renamed, self._daft.lit(place).alias("place")))
        rows = functools.reduce(lambda first, second: first.concat(second), parts).where(col(names[0]) != 0)
        number = col("number")
        groups = rows.groupby("place", *names).agg(
            number.min().alias("low"), number.count().alias("size"), number.list_agg().alias("numbers")
        )
        pairs = groups.where(col("size") > 1).select("low", "numbers").explode("numbers")
        pairs = pairs.select("low", col("numbers").alias("number")).where(col("low") != col("number"))
        _write(pairs, out)

    def components(self, edges: Path, folder: Path) -> Path:
        """The smallest number of each connected component, for graphs too large for one machine's memory.

        `edges`: folder of Parquet files (low, number). Alternates large-star and small-star, each written below
        `folder`, until the edges are stars; returns the folder with (low, number), low the component's smallest.
        """
        col, daft = self._daft.col, self._daft
        current = edges
        for iteration in range(64):
            # Joins multiply partitions: without a fixed number, a third round takes minutes on Ray.
            frame = daft.read_parquet(f"{current}/**/*.parquet").select("low", "number")
            frame = self._spread(frame).distinct()
            # Large star: every node connects its larger neighbours to the smallest among itself and its neighbours.
            both = frame.select(col("low").alias("u"), col("number").alias("v")).concat(
                frame.select(col("number").alias("u"), col("low").alias("v"))
            )
            large = _star(daft, both).where(col("v") > col("u")).select(col("m").alias("low"), col("v").alias("number"))
            large = self._spread(large.where(col("low") != col("number"))).distinct().collect()
            # Small star: every node connects itself and its smaller neighbours to the smallest of them.
            down = large.select(col("number").alias("u"), col("low").alias("v"))
            small = _star(daft, down)
            to_neighbours = small.select(col("m").alias("low"), col("v").alias("number"))
            to_itself = small.select(col("m").alias("low"), col("u").alias("number"))
            joined = to_neighbours.concat(to_itself).where(col("low") != col("number"))
            joined = self._spread(joined).distinct()
            current = folder / f"stars-{iteration:02d}"
            _write(joined, current)
            if _are_stars(daft, daft.read_parquet(f"{current}/**/*.parquet")):
                return current
        raise AssertionError("star contraction halves the depth of every tree, so that 64 rounds are always enough")


def _star(daft: Any, edges: Any) -> Any:
    """(u, v, m) for the edges (u, v): m is the smallest number among u and its neighbours."""
    lowest = edges.groupby("u").agg(daft.col("v").min().alias("least"))
    m = daft.functions.when(daft.col("least") < daft.col("u"), daft.col("least")).otherwise(daft.col("u"))
    return edges.join(lowest, on="u").select("u", "v", m.alias("m"))


def _write(frame: Any, folder: Path) -> None:
    """Run a plan and write its rows to a folder of Parquet files. Raises OSError for a full disk."""
    try:
        frame.write_parquet(str(folder), write_mode="overwrite").collect()
    except Exception as error:  # Daft has no class of its own for what the system refuses
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _are_stars(daft: Any, edges: Any) -> bool:
    """Whether no center of an edge (low, number) is a leaf, and no leaf has two centers."""
    col = daft.col
    centers = edges.select(col("low").alias("number")).distinct()
    chained = edges.select("number").join(centers, on="number", how="semi").count_rows()
    return bool(chained == 0 and edges.select("number").distinct().count_rows() == edges.count_rows())


def _import_daft() -> Any:
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    import daft

    return daft


def _connect(daft: Any, address: str | None, workers: int | None) -> int:
    """Make Daft run on Ray; returns the number of the cluster's cores."""
    try:
        import ray
    except ImportError as error:
        raise UserError("the runner ray needs the library ray; install parlance[cluster]") from error
    if address and address != "auto":
        _reach(address)
    try:
        if not ray.is_initialized():
            local = {} if address else {"num_cpus": workers or usable_cores(), "include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level="error", **local)
        daft.set_runner_ray(noop_if_initialized=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot use the Ray cluster {address or '(local)'}: {reason}") from error
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _reach(address: str) -> None:
    """Raise UserError unless somebody answers at HOST:PORT or ray://HOST:PORT; Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"nobody answers at the Ray address {address} ({error}); write it as HOST:PORT or auto"
        ) from error


def _task_class(daft: Any, workers: int) -> Any:
    """The class whose `run` Daft calls in every process; only the folder and the name of the step travel there."""

    @daft.cls(use_process=True, max_concurrency=workers)
    class DaftTask:
        task: "Task | None"

        def __init__(self, folder: str, step: str) -> None:
            self.folder, self.step = folder, step
            self.task = None

        @daft.method(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
        def run(self, index: int) -> str:
            if self.task is None:
                with contextlib.suppress(ValueError):  # not the main thread: nothing to do
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which stops its workers
                from parlance.text.preparation.engine import Task

                self.task = Task(Path(self.folder), self.step)
            return self.task.run(index)

    return DaftTask


class Task:
    """A step of the preparation in `folder`, which is opened when it first runs."""

    def __init__(self, folder: Path, step: str) -> None:
        self._folder, self._step = folder, step
        self._run: Callable[[int], dict[str, Any]] | None = None

    def run(self, index: int) -> str:
        """What the step returns for a shard, as JSON; a mistake in the input is a result too, so that its sentence
        arrives unchanged."""
        from parlance.text.preparation.tasks import open_step

        try:
            with os_errors("write", self._folder):
                self._run = self._run or open_step(self._folder, self._step)
                return json.dumps(self._run(index))
        except UserError as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            return json.dumps({"user_error": str(error), "errno": number})
        except Exception:
            return json.dumps({"bug": traceback.format_exc()})
