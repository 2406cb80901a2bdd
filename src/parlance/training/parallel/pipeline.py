"""Pipeline parallelism: the blocks of a Transformer divided among ranks, the micro-batches of a step flowing through.

Rank r of a process group holds one run of consecutive blocks (with `pieces` > 1 several, dealt out in turns); the first
stage holds the embedding, the last the final norm and the head. What both ends use (an embedding tied to the head) or
all stages use (T5's relative position biases) every user holds, and its gradients are summed. Activations go from stage
to stage and gradients back as `torch.distributed.pipelining` schedules them: 1F1B, its interleaved form where a rank
has several pieces, GPipe (or its interleaved form) where the number of micro-batches does not suit these.

    pipeline = Pipeline(model, group)                             # on every rank of the group, with the same weights
    sums = pipeline.backward(pipeline.part, objective, batches)   # gradients of this rank's parameters, pipeline.part
    sums = pipeline.measure(objective, batches)                   # no gradients: validation

Every rank of the group draws the same batches, all of one shape; they are the pipeline's micro-batches or, where they
are few, their rows are. The loss is that of one process: summed, with the count of the whole step. It trains decoders
and encoders on `TokenBatch`es; it does not divide encoder-decoders, nor generate. `distributed.py` joins it with other
divisions.

Sources: Huang et al. 2019 (GPipe); Narayanan et al. 2021 (1F1B, interleaved).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parlance.core.errors import UserError
from parlance.models.transformer import Transformer
from parlance.training.gradients import StepSums
from parlance.training.loss_scaling import ScaledObjective
from parlance.training.objectives import LossTerms, Objective, TokenBatch
from parlance.training.parallel.sharding import like, local
from parlance.training.parallel.stages import Stage, check_stages, divide_layers

MICRO_BATCHES = 2
"""Micro-batches a stage that are worth having: 2 S of them leave S ranks idle for S - 1 of 3 S - 1 turns."""


@dataclass
class _Work:
    """What the stages of a rank work on: the micro-batches of a step, and what the last stage finds."""

    batches: Sequence[TokenBatch]
    objective: Objective[Any, Any]
    terms: list[LossTerms | None]
    """Of the last stage, by micro-batch; without graph."""
    differentiate: bool = True


class _Runner(nn.Module):
    """A stage as `torch.distributed.pipelining` calls it: micro-batches are known by their number."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.work: _Work | None = None

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """Activations or, of the last stage, the loss to minimise. x: activations received; of the first, nothing."""
        assert self.work is not None
        stage, work = self.stage, self.work
        batch = work.batches[int(number)]
        if not stage.first:
            # Code compiled for training expects activations with a gradient, in validation too.
            stage.received = x if work.differentiate else x.detach().requires_grad_()
        try:
            if not stage.last:
                y = stage.activations(batch)
            else:
                terms = work.objective(stage, batch)
                y = terms.loss_sum if terms.regulariser is None else terms.loss_sum + terms.regulariser
                work.terms[int(number)] = LossTerms(terms.loss_sum.detach(), terms.count, terms.metrics)
        finally:
            stage.received = None
        return y if work.differentiate else y.detach()


class Pipeline:
    """A Transformer divided over the ranks of a group."""

    def __init__(self, model: Transformer, group: dist.ProcessGroup, pieces: int = 1) -> None:
        """`model` is whole, and the same on every rank; `pieces`: runs of blocks a rank.

        What the rank does not hold is released when the caller lets go of `model`. Raises UserError where the model
        cannot be divided so.
        """
        check_stages(model, dist.get_world_size(group) * pieces)
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self._spans = divide_layers(model.config, self.ranks * pieces)
        mine = range(self.rank, len(self._spans), self.ranks)
        self.part = self._stage(model, mine)
        """What this rank holds: the trainer's model."""
        self._runners = [
            _Runner(self.part if pieces == 1 else self._stage(model, range(number, number + 1))) for number in mine
        ]
        self.shared = self._find_shared(model)
        """Parameters that several ranks hold, and these ranks; `backward` leaves the same gradient on all of them."""
        self._schedules: dict[Any, Any] = {}

    def backward(self, model: nn.Module, objective: Objective[Any, Any], batches: Sequence[Any]) -> StepSums:
        """Add the gradient of the summed loss of `batches`, which are a whole step's, to the `.grad` of `model`.

        That is `part`. The batches are the same on every rank of the group, and so are the sums.

        Raises UserError where the batches are not of one shape, or not `TokenBatch`es.
        """
        assert model is self.part
        sums = self._run(objective, batches, differentiate=True)
        self._sum_shared_gradients()
        return sums

    def measure(self, objective: Objective[Any, Any], batches: Sequence[Any]) -> StepSums:
        """The same sums without gradients, for validation.

        Runs in gradient mode, so that code compiled for training serves here too.
        """
        return self._run(objective, batches, differentiate=False)

    # --- how it is done ---

    def _stage(self, model: Transformer, numbers: range) -> Stage:
        """The stages of these numbers as one."""
        blocks = {block for number in numbers for block in self._spans[number]}
        last = len(self._spans) - 1 in numbers
        return Stage(model, blocks, first=0 in numbers, last=last)

    def _find_shared(self, model: Transformer) -> dict[str, tuple[int, ...]]:
        held = [
            {name for name, _ in self._stage(model, range(rank, len(self._spans), self.ranks)).named_parameters()}
            for rank in range(self.ranks)
        ]
        holders = {
            name: tuple(rank for rank, names in enumerate(held) if name in names)
            for name, _ in model.named_parameters()
        }
        return {name: ranks for name, ranks in holders.items() if len(ranks) > 1}

    def _run(self, objective: Objective[Any, Any], batches: Sequence[Any], *, differentiate: bool) -> StepSums:
        """All micro-batches through all stages, and back where `differentiate`."""
        if isinstance(objective, ScaledObjective) and self.part.config.experts is not None:
            raise UserError("experts in pipeline stages cannot train in fp16: set training.precision=bf16")
        batches = self._micro_batches(batches)
        schedule = self._schedule(tuple(batches[0].inputs.shape), len(batches), differentiate)
        work = _Work(batches, objective, [None] * len(batches), differentiate)
        for runner in self._runners:
            runner.work = work
        numbers = torch.arange(len(batches))
        inputs = (numbers,) if self.part.first else ()
        target = numbers if self.part.last else None
        step = schedule.step if differentiate else schedule.eval
        try:
            step(*inputs, number=numbers, target=target, return_outputs=False)
        except RuntimeError as error:
            # What a stage raises comes wrapped.
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        finally:
            for runner in self._runners:
                runner.work = None
        return self._tell(_sums(work.terms) if self.part.last else None)

    def _micro_batches(self, batches: Sequence[Any]) -> Sequence[TokenBatch]:
        """The batches or, where they are too few to keep all stages at work, equal parts of their rows.

        A batch is left whole where experts are balanced within it.
        """
        if not all(isinstance(batch, TokenBatch) for batch in batches):
            raise UserError("pipeline stages read batches of tokens alone: set parallel.pipeline=1 for this objective")
        shapes = sorted({tuple(batch.inputs.shape) for batch in batches})
        if len(shapes) > 1:
            raise UserError(
                f"micro-batches of one step have shapes {shapes}, and pipeline stages need one: set parallel.pipeline=1"
            )
        rows, wanted = shapes[0][0], MICRO_BATCHES * len(self._spans)
        if self.part.config.experts is not None or len(batches) >= wanted:
            return batches
        parts = next(n for n in range(1, rows + 1) if rows % n == 0 and (n == rows or n * len(batches) >= wanted))
        step = rows // parts
        return [batch.part(first, first + step) for batch in batches for first in range(0, rows, step)]

    def _schedule(self, shape: tuple[int, ...], count: int, differentiate: bool) -> Any:
        """The schedule of `count` micro-batches of shape (B, T), made when first needed."""
        key = (shape, count, differentiate, self.part.compute_dtype)
        if key in self._schedules:
            return self._schedules[key]
        # Imported here: it takes as long as torch itself.
        from torch.distributed.pipelining import (
            PipelineStage,
            Schedule1F1B,
            ScheduleGPipe,
            ScheduleInterleaved1F1B,
            ScheduleLoopedBFS,
        )

        device = self.part.device
        activations = torch.empty(
            *shape, self.part.config.width, dtype=self.part.compute_dtype, device=device, requires_grad=True
        )
        stages = [
            PipelineStage(
                runner,
                number,
                len(self._spans),
                device,
                input_args=torch.zeros(1, dtype=torch.int64) if runner.stage.first else activations,
                output_args=torch.zeros((), device=device, requires_grad=True) if runner.stage.last else activations,
                group=self.group,
            )
            for number, runner in zip(range(self.rank, len(self._spans), self.ranks), self._runners, strict=True)
        ]
        made: Any
        if len(stages) > 1:
            in_turns = differentiate and count % max(1, count // self.ranks) == 0
            made = (ScheduleInterleaved1F1B if in_turns else ScheduleLoopedBFS)(
                list(stages), count, _as_it_is, scale_grads=False
            )
        else:
            one_by_one = differentiate and count >= len(self._spans)
            made = (Schedule1F1B if one_by_one else ScheduleGPipe)(stages[0], count, _as_it_is, scale_grads=False)
        self._schedules[key] = made
        return made

    def _tell(self, sums: StepSums | None) -> StepSums:
        """The sums that the last rank has, on all ranks."""
        device, last = self.part.device, self.ranks - 1
        if sums is None:
            text = b""
        else:
            text = json.dumps([sums.loss, sums.count, sums.metrics]).encode()
        length = torch.tensor([len(text)], device=device)
        dist.broadcast(length, group=self.group, group_src=last)
        if sums is None:
            letters = torch.empty(int(length), dtype=torch.uint8, device=device)
        else:
            letters = torch.tensor(list(text), dtype=torch.uint8, device=device)
        dist.broadcast(letters, group=self.group, group_src=last)
        return StepSums(*json.loads(bytes(letters.tolist())))

    @torch.no_grad()
    def _sum_shared_gradients(self) -> None:
        """Of each parameter that several ranks hold, the sum of their gradients on all of them, in one order."""
        parameters = dict(self.part.named_parameters())
        for name, (first, *others) in self.shared.items():
            if self.rank not in (first, *others):
                continue
            parameter = parameters[name]
            # Where weights are divided further, ranks of one pipeline hold the same rows.
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradient = local(own).contiguous()
            if self.rank == first:
                for other in others:
                    part = torch.empty_like(gradient)
                    dist.recv(part, group=self.group, group_src=other)
                    gradient += part
                for other in others:
                    dist.send(gradient, group=self.group, group_dst=other)
            else:
                dist.send(gradient, group=self.group, group_dst=first)
                dist.recv(gradient, group=self.group, group_src=first)
            parameter.grad = like(gradient, own)


def _as_it_is(loss: Tensor, _number: Tensor) -> Tensor:
    """The loss of a micro-batch: the last stage has computed it."""
    return loss


def _sums(terms: Sequence[LossTerms | None]) -> StepSums:
    sums = StepSums()
    for term in terms:
        assert term is not None
        sums.loss += float(term.loss_sum)
        sums.count += term.count
        for name, value in term.metrics.items():
            sums.metrics[name] = sums.metrics.get(name, 0.0) + value
    return sums
