"""A sparse feed-forward layer: of E experts, each token uses the k that a router chooses for it.

    layer = MixtureOfExperts(512, 704, experts=8, experts_per_token=2, gated=True, activation=F.silu, normalise=True)
    layer.initialise(torch.Generator().manual_seed(0))
    y = layer(torch.randn(4, 128, 512))                              # (4, 128, 512)
    logits = layer.pop_router_logits()                               # (512, 8), for the auxiliary losses; None in eval

Only pairs of a token and an expert chosen for it are computed, all of them: there is no capacity and no token is
dropped. Tokens are sorted by expert, each expert multiplies its own rows, and every token gathers the weighted sum of
its k results; gathering both ways (no scattered additions) makes the result independent of threads. Weights are fp32
parameters, cast expert by expert and only where rows were routed, so a decoding step reads k experts.

It has no second derivative, no jitter, no shared experts and no expert parallelism. The number of rows per expert is
read on the host, so `torch.compile` breaks the graph here, and on a GPU each call waits for the device.

Shapes: B batch, T time, N = B T tokens, D width, F expert width, E experts, k experts per token, P rows of all experts,
each expert's padded.

Sources: Shazeer et al. 2017 (sparsely gated experts); Fedus et al. 2021 (Switch: balance loss, routing in fp32, a small
router at the start); Du et al. 2021 (GLaM: top-2 of 64 in every second layer); Zoph et al. 2022 (ST-MoE: z-loss);
Jiang et al. 2024 (Mixtral: softmax over all experts, then top-k, then renormalised); Gale et al. 2022 (MegaBlocks: no
token dropped).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.core.errors import UserError
from parlance.models.padding import MULTIPLE


def padded_rows(count: int) -> int:
    """Rows computed for an expert with `count` tokens: a power of two below `MULTIPLE`, else a multiple of it.

    Few different row counts mean few different kernels in the CPU's matrix library, which keeps one per shape.
    """
    if count < MULTIPLE:
        return 0 if count == 0 else 1 << (count - 1).bit_length()
    return -(-count // MULTIPLE) * MULTIPLE


@dataclass(frozen=True)
class Routes:
    """Which rows belong to which expert, and which row each chosen pair of token and expert is."""

    rows: Tensor
    """(N, k) int64: the row of each token's j-th choice."""
    tokens: Tensor
    """(P,) int64: the token of each row; 0 for padding."""
    spans: list[tuple[int, int, int, int]]
    """Of each expert that has tokens: its number, its first row, the end of its real rows, the end of its rows."""


def plan_routes(chosen: Tensor, experts: int) -> Routes:
    """Sort the pairs of chosen (N, k) int64 by expert, each expert's rows padded to `padded_rows`."""
    N, k = chosen.shape
    flat = chosen.reshape(-1)
    counts = flat.bincount(minlength=experts).tolist()
    spans, shifts, first, start = [], [], 0, 0
    for expert, count in enumerate(counts):
        shifts.append(start - first)
        if count:
            end = start + padded_rows(count)
            spans.append((expert, start, start + count, end))
            start, first = end, first + count
    order = flat.argsort(stable=True)
    sorted_rows = torch.tensor(shifts, device=flat.device)[flat[order]] + torch.arange(N * k, device=flat.device)
    rows = torch.empty_like(flat).scatter_(0, order, sorted_rows)
    tokens = flat.new_zeros(start).scatter_(0, sorted_rows, order // k)
    return Routes(rows.view(N, k), tokens, spans)


def _rows_of(x: Tensor, routes: Routes, span: tuple[int, int, int, int]) -> Tensor:
    """The tokens (rows, D) of one expert; its padding is zero, so that it adds nothing to any gradient."""
    _, start, real, end = span
    rows = x.index_select(0, routes.tokens[start:end])
    rows[real - start :] = 0
    return rows


def _inner(activation: Callable[[Tensor], Tensor], parts: list[Tensor]) -> Tensor:
    """activation(gate) * up of parts [gate, up], or activation(up) of [up]."""
    return activation(parts[0]) * parts[1] if len(parts) == 2 else activation(parts[0])


def _product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a b, rounded to the dtype of `out` where that differs."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


class _Experts(torch.autograd.Function):
    """sum over j of weights[:, j] * expert_{chosen[:, j]}(x).

    Written by hand so that one expert's tensors stay in the processor's cache while it is worked on, weights are cast
    and their gradients rounded one expert at a time, and the backward pass gathers where autograd would scatter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        routes: Routes,
        keep: bool,
        activation: Callable[[Tensor], Tensor],
        down: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        """x (N, D), weights (N, k), down (E, D, F), inputs: gate and up, or up, (E, F, D) each.

        `keep`: whether a backward pass will come.
        """
        y = x.new_empty(len(routes.tokens), x.shape[1])
        kept: list[Tensor] = []
        for span in routes.spans:
            expert, start, _, end = span
            rows = _rows_of(x, routes, span)
            parts = [rows @ matrix[expert].to(x.dtype).t() for matrix in inputs]
            torch.mm(_inner(activation, parts), down[expert].to(x.dtype).t(), out=y[start:end])
            if keep:
                kept += parts
        ctx.save_for_backward(x, weights, y, down, *inputs, *kept)
        ctx.routes, ctx.activation, ctx.matrices = routes, activation, len(inputs)
        return _weighted_sum(y, routes.rows, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (dout,) = gradients  # (N, D)
        x, weights, y, down, *others = ctx.saved_tensors
        inputs, kept = others[: ctx.matrices], others[ctx.matrices :]
        routes: Routes = ctx.routes
        row_weights = x.new_zeros(len(y), 1)
        row_weights[routes.rows.reshape(-1), 0] = weights.reshape(-1).to(x.dtype)
        row_dots = weights.new_empty(len(y))
        dx_rows = torch.empty_like(y)
        ddown, *dinputs = (torch.empty_like(matrix) for matrix in (down, *inputs))
        used = {span[0] for span in routes.spans}
        for expert in range(len(down)):
            if expert not in used:
                for gradient in (ddown, *dinputs):
                    gradient[expert].zero_()
        for number, span in enumerate(routes.spans):
            expert, start, _, end = span
            dy = dout.index_select(0, routes.tokens[start:end])
            torch.sum(y[start:end] * dy, -1, dtype=weights.dtype, out=row_dots[start:end])
            dy *= row_weights[start:end]
            parts = [part.detach().requires_grad_() for part in kept[number * len(inputs) : (number + 1) * len(inputs)]]
            with torch.enable_grad():
                inner = _inner(ctx.activation, parts)
            dparts = torch.autograd.grad(inner, parts, dy @ down[expert].to(x.dtype))
            _product_into(ddown[expert], dy.t(), inner.detach())
            rows = _rows_of(x, routes, span)
            for part, (dpart, matrix, dmatrix) in enumerate(zip(dparts, inputs, dinputs, strict=True)):
                _product_into(dmatrix[expert], dpart.t(), rows)
                into = dx_rows[start:end]  # empty before the first part: beta 0 does not read it
                torch.addmm(into, dpart, matrix[expert].to(x.dtype), beta=float(part > 0), out=into)
        dx = F.embedding_bag(routes.rows, dx_rows, mode="sum")
        return dx, row_dots[routes.rows], None, None, None, ddown, *dinputs


def _one_token(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    activation: Callable[[Tensor], Tensor],
    down: Tensor,
    inputs: Sequence[Tensor],
) -> Tensor:
    """What `_Experts` computes of x (1, D): a decoding step, where sorting would take longer than multiplying."""
    results = []
    for expert in chosen[0].tolist():
        parts = [F.linear(x, matrix[expert].to(x.dtype)) for matrix in inputs]
        results.append(F.linear(_inner(activation, parts), down[expert].to(x.dtype)))
    return weights.to(x.dtype) @ torch.cat(results)


def _weighted_sum(y: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """sum over j of weights[:, j] * y[rows[:, j]]: (N, D) of y (P, D), rows and weights (N, k)."""
    return F.embedding_bag(rows, y, mode="sum", per_sample_weights=weights.to(y.dtype))


class Router(nn.Module):
    """Scores of the experts, x W^T, in fp32 (or fp64 where x is): near-ties decide which expert runs."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype))


class MixtureOfExperts(nn.Module):
    """Takes the place of a block's feed-forward: E of them, of which each token uses k.

    Parameters: `router.weight` (E, D); `gate_proj` (E, F, D), None where not `gated`; `up_proj` (E, F, D);
    `down_proj` (E, D, F). An expert is down(activation(gate(x)) * up(x)), or down(activation(up(x))).
    """

    def __init__(
        self,
        width: int,
        expert_width: int,
        experts: int,
        experts_per_token: int,
        *,
        gated: bool,
        activation: Callable[[Tensor], Tensor],
        normalise: bool,
    ) -> None:
        """`normalise`: whether the k chosen probabilities are made to sum to one (Mixtral) or used as they are."""
        super().__init__()
        if min(width, expert_width, experts) < 1:
            raise UserError(f"mixture of experts: width, expert_width and experts ({experts}) must be at least 1")
        if not 1 <= experts_per_token <= experts:
            raise UserError(f"mixture of experts: experts_per_token ({experts_per_token}) must be 1 to {experts}")
        self.experts, self.experts_per_token = experts, experts_per_token
        self.activation, self.normalise = activation, normalise
        self.router = Router(width, experts)
        self.gate_proj = nn.Parameter(torch.empty(experts, expert_width, width)) if gated else None
        self.up_proj = nn.Parameter(torch.empty(experts, expert_width, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, expert_width))
        self._router_logits: Tensor | None = None
        # Here and not as a decorator: it imports the compiler, which takes a second.
        self._apart: Callable[..., Tensor] = torch.compiler.disable(mix_experts)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the module has made no call yet; logits inside a graph could not be copied.
        return {**self.__dict__, "_router_logits": None}

    def initialise(self, generator: torch.Generator) -> None:
        """N(0, 1/D) for gate and up, zero for down (the layer starts as nothing), N(0, 0.01/D) for the router.

        Unit-sized activations then get router scores of about 0.1: experts start nearly equally probable.
        """
        spread = self.up_proj.shape[2] ** -0.5
        with torch.no_grad():
            self.router.weight.normal_(0.0, 0.1 * spread, generator=generator)
            for matrix in self._inputs():
                matrix.normal_(0.0, spread, generator=generator)
            self.down_proj.zero_()

    def _inputs(self) -> list[nn.Parameter]:
        return [self.up_proj] if self.gate_proj is None else [self.gate_proj, self.up_proj]

    def route(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, k) and numbers (N, k) of the chosen experts, the most probable first."""
        weights, chosen = router_logits.softmax(-1).topk(self.experts_per_token, dim=-1)
        return weights / weights.sum(-1, keepdim=True) if self.normalise else weights, chosen

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) to (B, T, D), in the dtype of x.

        In training mode with gradients on, the router's scores of this call stay here for `pop_router_logits`.
        """
        flat = x.reshape(-1, x.shape[-1])
        router_logits = self.router(flat)
        if self.training and torch.is_grad_enabled():
            self._router_logits = router_logits
        weights, chosen = self.route(router_logits)
        if len(flat) == 1 and not torch.is_grad_enabled():
            y = _one_token(flat, weights, chosen, self.activation, self.down_proj, self._inputs())
        else:
            y = self._apart(self, flat, weights, chosen)
        return y.view(x.shape)

    def pop_router_logits(self) -> Tensor | None:
        """Router scores (B T, E) of the last training call, with their graph; None when there was none since."""
        router_logits, self._router_logits = self._router_logits, None
        return router_logits

    def total_parameters(self) -> int:
        """Weights of the router and of all experts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def active_parameters(self) -> int:
        """Weights that one token uses: the router and k experts."""
        shared = self.router.weight.numel()
        return shared + (self.total_parameters() - shared) // self.experts * self.experts_per_token

    def forward_flops_per_token(self) -> float:
        """Operations of the matrix products per token (a multiply-add is two), without those of padding."""
        return 2.0 * self.active_parameters()


def mix_experts(module: MixtureOfExperts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """sum over j of weights[:, j] * expert_{chosen[:, j]}(x): (N, D) of x (N, D), weights and chosen (N, k)."""
    routes = plan_routes(chosen, module.experts)
    y: Tensor = _Experts.apply(  # type: ignore[no-untyped-call]
        x, weights, routes, torch.is_grad_enabled(), module.activation, module.down_proj, *module._inputs()
    )
    return y


def load_balancing_loss(router_logits: Tensor, experts_per_token: int) -> Tensor:
    """E * sum over experts of f_e P_e, for one layer's scores (N, E): k when balanced, more when not.

    f_e is the number of tokens that chose e over N, so f sums to k (the convention of Mixtral's published code; Switch
    has k = 1); P_e is the mean probability of e. The gradient flows through P. Rows that are padding are left out by
    passing `router_logits[mask]`.
    """
    probabilities = router_logits.softmax(-1)
    N, E = probabilities.shape
    chosen = probabilities.topk(experts_per_token, dim=-1).indices
    share = chosen.reshape(-1).bincount(minlength=E).to(probabilities.dtype) / N
    return E * (share * probabilities.mean(0)).sum()


def router_z_loss(router_logits: Tensor) -> Tensor:
    """Mean over tokens of logsumexp(scores)^2, for one layer's scores (N, E): keeps them small (ST-MoE)."""
    return router_logits.logsumexp(-1).square().mean()
