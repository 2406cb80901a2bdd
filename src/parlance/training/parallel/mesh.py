"""How the processes of a run are arranged: the sizes of six axes, and one named device mesh over those in use.

    sizes = ParallelConfig(tensor=2).sizes(8)            # data 4 x tensor 2
    mesh = Mesh(sizes, "cpu")                            # on every process, of the default process group
    mesh.place("data", "tensor"), mesh.group("tensor")

Neighbouring ranks share the last axes: tensor parallelism talks most and gets the fastest links.
"""

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self, get_args

import torch.distributed as dist
from pydantic import Field, model_validator
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from parlance.core.config import Config
from parlance.core.errors import UserError

Axis = Literal["pipeline", "data", "shard", "expert", "context", "tensor"]
AXES: tuple[Axis, ...] = get_args(Axis)
"""Slowest links first."""
BATCH_AXES: tuple[Axis, ...] = ("data", "shard", "expert")
"""Those that divide the rows of a batch."""
TOKEN_AXES: tuple[Axis, ...] = (*BATCH_AXES, "context")
"""Those that divide the tokens of a batch: losses and gradients are summed over them."""


class ParallelConfig(Config):
    """How many ways each axis divides the work; their product is the number of processes."""

    data: int | None = Field(default=None, ge=1)
    """Copies of the model that read different rows; None: as many as the processes allow."""
    shard: int = Field(default=1, ge=1)
    """Ways the weights, gradients and moments are divided while rows are (FSDP2)."""
    expert: int = Field(default=1, ge=1)
    """Ways the experts of each layer are divided while rows are."""
    context: int = Field(default=1, ge=1)
    """Ways the tokens of each row are divided."""
    tensor: int = Field(default=1, ge=1)
    """Ways each weight matrix is divided."""
    pipeline: int = Field(default=1, ge=1)
    """Ways the layers are divided."""
    pieces: int = Field(default=1, ge=1)
    """Runs of layers that a stage of the pipeline has, dealt out in turns: less waiting, more exchanges."""
    timeout_minutes: float = Field(default=10.0, gt=0)
    """How long a process waits for another before it gives up."""

    @model_validator(mode="after")
    def _pieces_are_of_a_pipeline(self) -> Self:
        if self.pieces > 1 and self.pipeline == 1:
            raise ValueError(f"pieces {self.pieces} divides the stages of a pipeline: set parallel.pipeline too")
        if self.pieces > 1 and self.shard > 1:
            raise ValueError("pieces goes without shard: leave one of the two at 1")
        return self

    def sizes(self, processes: int) -> dict[Axis, int]:
        """The size of every axis. Raises UserError where they do not multiply to the number of processes."""
        sizes: dict[Axis, int] = {
            "pipeline": self.pipeline,
            "data": 1,
            "shard": self.shard,
            "expert": self.expert,
            "context": self.context,
            "tensor": self.tensor,
        }
        fixed = math.prod(sizes.values())
        sizes["data"] = max(1, processes // fixed) if self.data is None else self.data
        total = fixed * sizes["data"]
        if total != processes:
            product = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "data 1"
            raise UserError(
                f"parallel: {product} takes {total} processes and there {_are(processes)}: start as many with torchrun "
                "--nproc-per-node, or change the sizes"
            )
        return sizes

    def rows(self, processes: int) -> "Place":
        """The first place among those that divide the rows of a batch."""
        sizes = self.sizes(processes)
        return Place(0, math.prod(sizes[axis] for axis in BATCH_AXES))


def _are(processes: int) -> str:
    return "is one" if processes == 1 else f"are {processes}"


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that differ along some axes alone."""

    index: int
    ways: int


class Mesh:
    """The processes of the default process group on named axes. Made on all of them alike."""

    def __init__(self, sizes: dict[Axis, int], device_type: str, timeout_minutes: float = 10.0) -> None:
        self.sizes = sizes
        self._timeout = timedelta(minutes=timeout_minutes)
        # Axes of one process would cost groups that nobody uses.
        self._axes = tuple(axis for axis in AXES if sizes[axis] > 1) or ("data",)
        self.devices: DeviceMesh = init_device_mesh(
            device_type, tuple(sizes[axis] for axis in self._axes), mesh_dim_names=self._axes
        )
        for axis in self._axes:
            # Groups do not take over the timeout of the default one.
            _set_pg_timeout(self._timeout, self.devices.get_group(axis))
        coordinates = self.devices.get_coordinate()
        assert coordinates is not None
        self.coordinates: dict[Axis, int] = dict.fromkeys(AXES, 0)
        self.coordinates.update(zip(self._axes, coordinates, strict=True))
        self._groups: dict[tuple[Axis, ...], dist.ProcessGroup] = {}

    def place(self, *axes: Axis) -> Place:
        """This process's place along `axes` together, the last one fastest."""
        index, ways = 0, 1
        for axis in AXES:
            if axis in axes:
                index = index * self.sizes[axis] + self.coordinates[axis]
                ways *= self.sizes[axis]
        return Place(index, ways)

    def group(self, *axes: Axis) -> dist.ProcessGroup | None:
        """The processes that differ from this one along `axes` alone, in the order of `place`; None: this one alone.

        Every process must ask for the same groups in the same order.
        """
        wanted = tuple(axis for axis in AXES if axis in axes and self.sizes[axis] > 1)
        if not wanted:
            return None
        if wanted not in self._groups:
            if len(wanted) == 1:
                self._groups[wanted] = self.devices.get_group(wanted[0])
            else:
                own, _ = dist.new_subgroups_by_enumeration(self._ranks(wanted), timeout=self._timeout)  # type: ignore[no-untyped-call]
                assert own is not None
                self._groups[wanted] = own
        return self._groups[wanted]

    def _ranks(self, axes: tuple[Axis, ...]) -> list[list[int]]:
        """The ranks of all groups along `axes`."""
        dims = [self._axes.index(axis) for axis in axes]
        others = [dim for dim in range(len(self._axes)) if dim not in dims]
        ways = math.prod(self.sizes[axis] for axis in axes)
        rows = self.devices.mesh.permute(*others, *dims).reshape(-1, ways)
        return [[int(rank) for rank in row] for row in rows]
