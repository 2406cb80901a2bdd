"""Expert parallelism: the experts of each layer divided over processes, to which tokens travel and come back.

Every process of the group has tokens of its own (the group divides the batch) and E / R of the experts. A layer sends
each row to the process that has the expert chosen for it, computes the rows that arrive, and sends the results back:
two exchanges forward and two backward, of exactly the rows that are routed (no capacity, no row dropped). The router
and everything else is on every process.

    split = share_experts(model, group)          # dimensions: gate_proj, up_proj, down_proj; partial: all the others
    balance_experts(model, batch_group)          # the auxiliary losses are those of the whole batch

The gradient of an expert's weights is whole where the expert is, for its tokens come from the whole group; all other
gradients have to be summed over the group. The losses that keep experts in balance are no sums over tokens: they need
the router's scores of the whole micro-batch, whichever processes share it, and `balance_experts` gathers them.

Shapes: N tokens of this process, D width, E experts, k experts per token, R processes. Source: Lepikhin et al. 2020
(GShard).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parlance.core.errors import UserError
from parlance.models.mixture_of_experts import MixtureOfExperts, mix_experts
from parlance.training.parallel.collectives import enter, exchange, gather_rows, span, total
from parlance.training.parallel.splits import SplitParameters, keep_part


def share_experts(model: nn.Module, group: ProcessGroup) -> SplitParameters:
    """Divide the experts of every layer of `model` over the group, in place. All processes hold the same whole weights.

    Raises UserError where the model has no experts, or the group is not a divisor of their number.
    """
    check_experts(model, group.size())
    dimensions, sizes = dict[str, int](), dict[str, int]()
    for name, mixture in parallel_experts(model).items():
        mixture.expert_group = group
        for part in ("gate_proj", "up_proj", "down_proj"):
            parameter = getattr(mixture, part)
            if parameter is not None:
                dimensions[f"{name}.{part}"] = 0
                sizes[f"{name}.{part}"] = keep_part(parameter, 0, group)
    partial = tuple(name for name, _ in model.named_parameters() if name not in dimensions)
    return SplitParameters(dimensions, sizes, partial)


def check_experts(model: nn.Module, ways: int) -> None:
    """Raises UserError where the experts of a whole model cannot be divided so many ways."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    if not mixtures:
        raise UserError(
            "expert parallelism divides experts, and this model has none: set model.experts, or expert to 1"
        )
    for mixture in mixtures:
        if mixture.experts % ways:
            raise UserError(f"{mixture.experts} experts cannot be divided over {ways} processes: choose a divisor")


def balance_experts(model: nn.Module, group: ProcessGroup) -> None:
    """Make the auxiliary losses those of the micro-batch that the group's processes divide, in place.

    Each process then has the loss of the whole micro-batch, to which each multiplies its own count, so that the sum
    over the group is the loss of one process. Does nothing to a model without experts.
    """
    for mixture in parallel_experts(model).values():
        mixture.batch_group = group


def parallel_experts(model: nn.Module) -> dict[str, "ParallelExperts"]:
    """Make every mixture of `model` one whose groups can be set, in place; returns them by name."""
    found = dict[str, ParallelExperts]()
    for name, module in list(model.named_modules()):
        if isinstance(module, MixtureOfExperts):
            if not isinstance(module, ParallelExperts):
                module = ParallelExperts(module)
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, module)
            found[name] = module
    return found


class ParallelExperts(MixtureOfExperts):
    """A mixture of experts of which processes hold parts, or the batch. With no group it is what it was."""

    def __init__(self, whole: MixtureOfExperts) -> None:
        """Takes over the parameters of `whole`."""
        experts, width, expert_width = whole.down_proj.shape
        with torch.device("meta"):
            super().__init__(
                width,
                expert_width,
                experts,
                whole.experts_per_token,
                gated=whole.gate_proj is not None,
                activation=whole.activation,
                normalise=whole.normalise,
            )
        self.router, self.gate_proj = whole.router, whole.gate_proj
        self.up_proj, self.down_proj = whole.up_proj, whole.down_proj
        self._apart = torch.compiler.disable(_mix)  # type: ignore[no-untyped-call]
        self.expert_group: ProcessGroup | None = None
        """Divides the experts."""
        self.width_group: ProcessGroup | None = None
        """Divides the width F of each expert; its processes have the same tokens."""
        self.batch_group: ProcessGroup | None = None
        """Divides the micro-batch."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) to (B, T, D), as `MixtureOfExperts.forward`; every process of the groups has to call it."""
        flat = x.reshape(-1, x.shape[-1])
        router_logits = self.router(flat)
        if self.training and torch.is_grad_enabled():
            self._router_logits = router_logits
        weights, chosen = self.route(router_logits)
        y: Tensor = self._apart(self, flat, weights, chosen)
        return y.view(x.shape)

    def pop_router_logits(self) -> Tensor | None:
        """Router scores (B T, E) of the last training call, of all processes that share the batch."""
        router_logits = super().pop_router_logits()
        if router_logits is None or self.batch_group is None:
            return router_logits
        return gather_rows(router_logits, self.batch_group)


def _mix(mixture: ParallelExperts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """What `mix_experts` computes of x (N, D), weights and chosen (N, k), with the groups that there are."""
    if mixture.width_group is not None:
        x, weights = enter(x, mixture.width_group), enter(weights, mixture.width_group)
    y = (mix_experts if mixture.expert_group is None else _travel)(mixture, x, weights, chosen)
    return y if mixture.width_group is None else total(y, mixture.width_group)


def _travel(mixture: ParallelExperts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """`mix_experts` by the processes that hold the experts."""
    group = mixture.expert_group
    assert group is not None
    N, k = chosen.shape
    E, ways = mixture.experts, group.size()
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)  # pairs of token and choice, by expert and so by process
    counts = torch.empty(ways * E, dtype=torch.int64, device=x.device)
    dist.all_gather_single(counts, flat.bincount(minlength=E), group=group)
    counts = counts.view(ways, E)
    first, stop = span(E, group.rank(), ways)
    send = counts[group.rank()].view(ways, -1).sum(1).tolist()
    mine = counts[:, first:stop]  # (R, E / R): how many rows for each of my experts come from each process
    receive = mine.sum(1).tolist()

    arrived = exchange(x.index_select(0, order // k), send, receive, group)
    local = torch.arange(stop - first, device=x.device).repeat(ways).repeat_interleave(mine.reshape(-1))
    ones = torch.ones(len(local), 1, dtype=weights.dtype, device=x.device)
    results = mix_experts(mixture, arrived, ones, local.unsqueeze(1))
    returned = exchange(results, receive, send, group)

    rows = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=x.device))
    return torch.einsum("nkd,nk->nd", returned.index_select(0, rows).view(N, k, -1), weights.to(x.dtype))
