"""A model that many processes train together: each computes a part, and the gradient is that of one process.

    parts = Distributed(model, ParallelConfig(shard=2), world, MemoryFit())   # on every process, with the same weights
    optimizer = parts.optimizer(parameter_groups(parts.model, rates))
    Trainer(parts.model, objective, batches, optimizer, config, gradients=parts)
    parts.loss_sums(objective, validation), parts.whole()

All processes draw the same micro-batches; each takes its rows, positions, layers, experts and weights of them, as the
mesh says. Losses, counts and gradients are summed, never averaged, so the trainer's division by the global count gives
the update of one process for any division. Which axes a gradient is summed over:

- over data, shard, expert and context, for these divide the tokens;
- not over expert for the experts' own weights: their tokens came to them;
- over tensor too where each process of that axis has but a part of the sum (norms within heads, shared key heads);
- over shard by FSDP2 itself, straight into the rows a process holds.

Weights are checked against their copies by `check`. Batches that do not fit in memory are only halved where nothing but
the rows is divided: elsewhere processes meet within a layer, and one cannot begin again alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parlance.core.errors import UserError
from parlance.models.building import build
from parlance.models.mixture_of_experts import MixtureOfExperts
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer
from parlance.training.gradients import SingleProcess, StepSums
from parlance.training.memory_fit import MemoryFit, is_out_of_memory
from parlance.training.objectives import Batch, Objective, loss_sums
from parlance.training.optimizers import Optimizer, ParameterGroup
from parlance.training.parallel import sharding
from parlance.training.parallel.collectives import span
from parlance.training.parallel.context import context_part, share_context
from parlance.training.parallel.division import divide_batch
from parlance.training.parallel.experts import balance_experts, share_experts
from parlance.training.parallel.matrices import DividedMatrices
from parlance.training.parallel.mesh import AXES, BATCH_AXES, TOKEN_AXES, Axis, Mesh, ParallelConfig
from parlance.training.parallel.piece_table import PieceTable
from parlance.training.parallel.pipeline import Pipeline
from parlance.training.parallel.processes import World
from parlance.training.parallel.reduction import reduce_gradients
from parlance.training.parallel.refusals import check_division, check_rows, rows_needed
from parlance.training.parallel.replicas import check_replicas
from parlance.training.parallel.sharded_states import ShardedStates
from parlance.training.parallel.splits import SplitParameters
from parlance.training.parallel.tensor import shard_tensors
from parlance.training.pieces import Piece

ResultT = TypeVar("ResultT")
UNDIVIDED = SplitParameters({}, {}, ())


class Distributed:
    """An `Arrangement`, and the `Gradients` of its trainer."""

    background = False

    def __init__(self, model: NeuralLanguageModel, config: ParallelConfig, world: World, fit: MemoryFit) -> None:
        """Divides `model`, which is whole and the same on every process, in place. `fit`: of this process's batches.

        Raises UserError where the processes do not fit the configuration, or the model cannot be divided so.
        """
        self.world = world
        self.mesh = Mesh(config.sizes(world.size), model.device.type, config.timeout_minutes)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._pipeline: Pipeline | None = None
        self._experts = self._tensor = UNDIVIDED
        check_division(model, self.mesh.sizes, config.pieces)
        self._needs_rows = rows_needed(model, self.mesh.sizes)
        self.model = self._divide(model, config.pieces)
        """What this process trains: the whole, or its layers of it, with its part of each weight."""
        self.rows = sharding.local_parameters(self.model)
        """Its parameters as plain tensors: what the optimizer updates."""
        self.table = PieceTable.gather(world, {name: self._piece(name) for name in self.rows})
        """What all processes hold."""
        self._sums_group = self.mesh.group(*TOKEN_AXES)
        self._groups = self._reductions()
        self._metrics: list[str] | None = None
        others = any(size > 1 for axis, size in self.mesh.sizes.items() if axis != "data")
        experts = any(isinstance(module, MixtureOfExperts) for module in self.model.modules())
        self._undivided = not others and not experts
        """Whether every process has the whole model and computes its rows without meeting the others."""
        self._inner = SingleProcess(fit if self._undivided else NoSecondAttempt())

    # --- dividing --------------------------------------------------------------------------------------------------

    def _divide(self, model: NeuralLanguageModel, pieces: int) -> NeuralLanguageModel:
        mesh = self.mesh
        if not isinstance(model, Transformer):
            return model
        if (group := mesh.group("expert")) is not None:
            self._experts = share_experts(model, group)
        if (group := mesh.group(*TOKEN_AXES)) is not None:
            balance_experts(model, group)
        if (group := mesh.group("tensor")) is not None:
            self._tensor = shard_tensors(model, group)
        if (group := mesh.group("context")) is not None:
            share_context(model, group)
        if (group := mesh.group("pipeline")) is not None:
            self._pipeline = Pipeline(model, group, pieces)
            model = self._pipeline.part
        if mesh.sizes["shard"] > 1:
            sharding.shard(model, mesh.devices["shard"], interleaved=self._pipeline is not None)
        return model

    def _piece(self, name: str) -> Piece:
        """What this process holds of a weight."""
        piece = Piece.whole(self._shapes[name])
        axes: tuple[tuple[SplitParameters, Axis], ...] = ((self._experts, "expert"), (self._tensor, "tensor"))
        for split, axis in axes:
            if name in split.dimensions:
                place = self.mesh.place(axis)
                start, stop = span(split.sizes[name], place.index, place.ways)
                piece = piece.split(split.dimensions[name], start, stop - start)
        rows = sharding.rows_of(dict(self.model.named_parameters())[name])
        return piece if rows is None else piece.split(0, *rows)

    def _axes(self, name: str) -> tuple[Axis, ...]:
        """Over which axes the gradient of a weight is still to be summed after the backward pass."""
        axes: set[Axis] = {*TOKEN_AXES, "tensor"}
        if name in self._experts.dimensions:
            axes.discard("expert")
        if name not in self._tensor.partial:
            axes.discard("tensor")
        if self.mesh.sizes["shard"] > 1:
            axes.discard("shard")
        return tuple(axes)

    def _reductions(self) -> list[tuple[dist.ProcessGroup, list[str]]]:
        """Names of weights by the group over which their gradients are summed."""
        # Groups are made by all processes in one order, whichever weights a process has.
        for without in ((), ("expert",), ("shard",), ("shard", "expert")):
            for axes in (TOKEN_AXES, (*TOKEN_AXES, "tensor")):
                self.mesh.group(*(axis for axis in axes if axis not in without))
        found: dict[dist.ProcessGroup, list[str]] = {}
        for name in self.rows:
            group = self.mesh.group(*self._axes(name))
            if group is not None:
                found.setdefault(group, []).append(name)
        return list(found.items())

    # --- a step ----------------------------------------------------------------------------------------------------

    @property
    def gradients(self) -> Self:
        """See `Arrangement`."""
        return self

    def backward(self, model: nn.Module, objective: Objective[Any, Any], batches: Sequence[Any]) -> StepSums:
        """See `Gradients`: the batches are the whole step's on every process, and so are the sums."""
        inner = self._inner if self._pipeline is None else self._pipeline
        check_rows(min(len(batch) for batch in batches), self._needs_rows)
        sums = inner.backward(model, objective, [self.part(batch) for batch in batches])
        if self.mesh.sizes["shard"] > 1:
            if self._pipeline is not None:
                sharding.drop_gathered(self.model)
            sharding.take_gradients(self.model, self.rows)
        sums, present = self._summed(sums, [name for name, weight in self.rows.items() if weight.grad is not None])
        for name, weight in self.rows.items():
            if name in present and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        reduce_gradients(
            [(group, [self.rows[name] for name in names if name in present]) for group, names in self._groups]
        )
        return sums

    def clip(self, optimizer: Optimizer, limit: float) -> float:
        """See `Gradients`: the norm is that of the whole model, whatever is held where."""
        named = {name: weight for group in optimizer.groups for name, weight in group.parameters.items()}
        gradients = {name: weight.grad for name, weight in named.items() if weight.grad is not None}
        squares = [_norm(gradient) ** 2 / self.table.copies(name) for name, gradient in gradients.items()]
        total = torch.stack(squares).sum().cpu() if squares else torch.zeros((), dtype=torch.float64)
        dist.all_reduce(total)
        norm = float(total.sqrt())
        if norm > limit:
            for gradient in gradients.values():
                gradient.mul_(limit / (norm + 1e-6))
        return norm

    def optimizer(self, groups: list[ParameterGroup], compute_dtype: torch.dtype = torch.float32) -> Optimizer:
        """See `Arrangement`: of this process's part of the weights in `groups`."""
        stage = self.mesh.group(*(axis for axis in AXES if axis != "pipeline"))
        for group in groups:
            group.parameters = {name: self.rows[name] for name in group.parameters}
        return Optimizer(groups, compute_dtype, DividedMatrices(self.table, stage))

    def part(self, batch: Batch) -> Any:
        """See `Arrangement`."""
        batch = divide_batch(batch, self.mesh.place(*BATCH_AXES))
        place = self.mesh.place("context")
        return batch if place.ways == 1 else context_part(batch, place.index, place.ways)  # type: ignore[arg-type]

    def _summed(self, sums: StepSums, names: Sequence[str]) -> tuple[StepSums, set[str]]:
        """Losses, counts and metrics of all tokens; and the weights of which any process has a gradient."""
        if self._metrics is None:
            said = self.world.exchange(sorted(sums.metrics))
            self._metrics = sorted({name for metrics in said for name in metrics})
        present = set(names)
        metrics = [sums.metrics.get(name, 0.0) for name in self._metrics]
        here = [float(name in present) for name in self.rows]
        loss, count, *rest = self._total([sums.loss, float(sums.count), *metrics, *here])
        found = rest[len(metrics) :]
        totals = StepSums(loss, round(count), dict(zip(self._metrics, rest, strict=False)))
        return totals, {name for name, number in zip(self.rows, found, strict=True) if number}

    def _total(self, numbers: list[float]) -> list[float]:
        """Sums over the processes that divide the tokens."""
        if self._sums_group is None:
            return numbers
        vector = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(vector, group=self._sums_group)
        return vector.tolist()

    # --- the whole -------------------------------------------------------------------------------------------------

    def loss_sums(self, objective: Objective[Any, Any], batches: Sequence[Any]) -> tuple[float, int]:
        """See `Arrangement`: over batches that all processes have alike; the same on all of them."""
        parts = [self.part(batch) for batch in batches]
        if self._pipeline is not None:
            sums = self._pipeline.measure(objective, parts)
        else:
            sums = StepSums(*self._inner.fit.run(lambda some: loss_sums(self.model, some, objective), parts))
        if self.mesh.sizes["shard"] > 1:
            sharding.drop_gathered(self.model)
        loss, count = self._total([sums.loss, float(sums.count)])
        return loss, round(count)

    @torch.no_grad()
    def take(self, whole: NeuralLanguageModel) -> None:
        """See `Arrangement`: this process's part of the weights."""
        weights = dict(whole.named_parameters())
        for name, own in self.rows.items():
            own.copy_(self.table.own[name].of(weights[name]))

    def whole(self) -> NeuralLanguageModel | None:
        """See `Arrangement`: on the first process, a copy unless it has the whole model. All must call it.

        Raises UserError where copies of a weight differ.
        """
        self.check()
        if self._undivided:
            return self.model if self.world.first else None
        weights = self._collected()
        if not self.world.first:
            return None
        model = build(self.model.config)
        model.compute_dtype = self.model.compute_dtype
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights.pop(name))
        return model.to(self.model.device)

    @torch.no_grad()
    def _collected(self) -> dict[str, Tensor]:
        """Whole weights by name, on the CPU of the first process; nothing on the others."""
        weights: dict[str, Tensor] = {}
        for name in self.table.names:
            for piece, holders in self.table.holders(name).items():
                if not piece.size:
                    continue
                own = self.world.rank in holders
                box = (self.rows[name].detach().cpu() if own else torch.empty(piece.lengths)).contiguous()
                if self.world.first and not own:
                    dist.recv(box, src=holders[0])
                elif self.world.rank == holders[0] != 0 and 0 not in holders:
                    dist.send(box, dst=0)
                if self.world.first:
                    weights.setdefault(name, box.new_empty(piece.shape))[piece.slices] = box
        return weights

    def states(self, folder: Path, kept: int) -> ShardedStates:
        """See `Arrangement`."""
        return ShardedStates(folder, self.world, self.table, self.model, kept)

    def check(self) -> None:
        """Raises UserError, on all processes, where copies of a weight have come to differ."""
        check_replicas(self.table, self.rows)


class NoSecondAttempt(MemoryFit):
    """Batches are computed as they are, or not at all."""

    def run(
        self, work: Callable[[list[Any]], ResultT], batches: Sequence[Batch], undo: Callable[[], None] = lambda: None
    ) -> ResultT:
        """`work` on the batches. Raises UserError where they do not fit in memory."""
        try:
            return work(list(batches))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            undo()
            raise UserError(
                "a batch does not fit in the memory of a process: set a smaller batch_size and a larger "
                "training.accumulation, or divide the model further"
            ) from error


def _norm(gradient: Tensor) -> Tensor:
    """L2 norm, fp64."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return values.norm().double()  # type: ignore[no-any-return]
