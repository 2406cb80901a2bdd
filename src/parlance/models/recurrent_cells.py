"""Recurrences over time with gradients of their own: what `recurrent.py` runs where torch has nothing as fast.

Autograd through a loop adds up a whole gradient of the recurrent matrix at every step and keeps a dozen nodes a step.
Here the loop back in time makes one matrix product a step, and the gradients of weights are one product over all steps
at the end. Factors that do not depend on the gradient are computed for all steps at once before it. Inputs come
projected: the products of the layer's input with its weights do not depend on the past.

    outputs = ElmanRecurrence.apply(projected, weight, first)                           # (T, B, D)

Shapes: T time, B batch, D width. Time comes first, so that a step is one piece of memory.

Sources: Elman 1990; Cho et al. 2014 (GRU, with the reset gate behind the recurrent product, as torch has it);
Hochreiter and Schmidhuber 1997, Gers et al. 2000 (LSTM); Krause et al. 2016 (multiplicative LSTM).
"""

from typing import Any

import torch
from torch import Tensor


class ElmanRecurrence(torch.autograd.Function):
    """h_t = tanh(z_t + W h_{t-1})."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, first: Tensor) -> Tensor:
        """projected z (T, B, D), weight W (D, D), first h_0 (B, D); returns h (T, B, D)."""
        states = torch.cat((first.unsqueeze(0), projected))
        h, transposed = states.unbind(0), weight.t()
        for t in range(len(projected)):
            h[t + 1].addmm_(h[t], transposed).tanh_()
        ctx.save_for_backward(weight, states)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of projected, weight and first."""
        weight, states = ctx.saved_tensors
        slopes = 1 - states[1:].square()
        back, a = gradients[0].unbind(0), slopes.unbind(0)
        dh = back[-1]
        for t in range(len(back) - 1, -1, -1):
            a[t].mul_(dh)
            dh = torch.addmm(back[t - 1], a[t], weight) if t else a[t] @ weight
        return slopes, _weight_gradient(slopes, states[:-1]), dh


class GRURecurrence(torch.autograd.Function):
    """r, z = sigmoid(x_rz + W_rz h); n = tanh(x_n + r (W_n h + b)); h = (1 - z) n + z h."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, bias: Tensor, first: Tensor) -> Tensor:
        """projected x (T, B, 3 D) and weight W (3 D, D) in the order r, z, n; bias b (D,); first h_0 (B, D)."""
        T, B, D = *projected.shape[:2], first.shape[1]
        gates, products = projected.clone(), torch.empty_like(projected)
        states = projected.new_empty(T + 1, B, D)
        states[0] = first
        rz, n = gates[..., : 2 * D].unbind(0), gates[..., 2 * D :].unbind(0)
        r, z = gates[..., :D].unbind(0), gates[..., D : 2 * D].unbind(0)
        p, p_rz, p_n = products.unbind(0), products[..., : 2 * D].unbind(0), products[..., 2 * D :].unbind(0)
        h, transposed = states.unbind(0), weight.t()
        for t in range(T):
            torch.mm(h[t], transposed, out=p[t])
            rz[t].add_(p_rz[t]).sigmoid_()
            n[t].addcmul_(r[t], p_n[t].add_(bias)).tanh_()
            torch.lerp(n[t], h[t], z[t], out=h[t + 1])
        ctx.save_for_backward(weight, gates, products[..., 2 * D :], states)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of projected, weight, bias and first."""
        weight, gates, products, states = ctx.saved_tensors
        T, B, D = products.shape
        r, z, n = gates.view(T, B, 3, D).unbind(2)
        # What the gradient of h_t is multiplied with on its way to each pre-activation; `slopes` then holds the result.
        through_n = (1 - z) * (1 - n.square())
        through_product = through_n * r
        slopes = torch.stack(
            (through_product * products * (1 - r), (states[:-1] - n) * z * (1 - z), through_product), 2
        )
        total = torch.empty_like(through_n)
        back, dhs, keep = gradients[0].unbind(0), total.unbind(0), z.unbind(0)
        gate, flat = slopes.unbind(0), slopes.view(T, B, 3 * D).unbind(0)
        dhs[-1].copy_(back[-1])
        dh = dhs[-1]
        for t in range(T - 1, -1, -1):
            gate[t].mul_(dh.unsqueeze(1))
            if t:
                dh = torch.addcmul(back[t - 1], dh, keep[t], out=dhs[t - 1]).addmm_(flat[t], weight)
            else:
                dh = torch.addmm(dh * keep[t], flat[t], weight)
        of_products = slopes.view(T, B, 3 * D)
        of_projected = torch.cat((of_products[..., : 2 * D], total * through_n), dim=-1)
        return of_projected, _weight_gradient(of_products, states[:-1]), slopes[:, :, 2].sum((0, 1)), dh


class LSTMRecurrence(torch.autograd.Function):
    """i, f, o, u = z + W m, through sigmoid (i, f, o) and tanh (u); c = f c + i u; h = o tanh(c).

    LSTM: m = h_{t-1}. Multiplicative LSTM: m = p_t (W_m h_{t-1}), where p comes from the input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        weight: Tensor,
        first: Tensor,
        first_cell: Tensor,
        factors: Tensor | None,
        factor_weight: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """projected z (T, B, 4 D), weight W (4 D, D), first h_0 and first_cell c_0 (B, D).

        Multiplicative: factors p (T, B, D) and factor_weight W_m (D, D). Returns h (T, B, D) and the last c (B, D).
        """
        T, B, D = *projected.shape[:2], first.shape[1]
        gates = projected.clone()
        states, cells = projected.new_empty(T + 1, B, D), projected.new_empty(T + 1, B, D)
        squashed = projected.new_empty(T, B, D)
        states[0], cells[0] = first, first_cell
        z, ifo, u = gates.unbind(0), gates[..., : 3 * D].unbind(0), gates[..., 3 * D :].unbind(0)
        i, f, o = (gates[..., k * D : (k + 1) * D].unbind(0) for k in range(3))
        h, c, s, transposed = states.unbind(0), cells.unbind(0), squashed.unbind(0), weight.t()
        inner = mixed = None
        m = h
        if factors is not None and factor_weight is not None:
            inner, mixed = torch.empty_like(factors), torch.empty_like(factors)
            q, m, p, factor_transposed = inner.unbind(0), mixed.unbind(0), factors.unbind(0), factor_weight.t()
        for t in range(T):
            if inner is not None:
                torch.mul(torch.mm(h[t], factor_transposed, out=q[t]), p[t], out=m[t])
            z[t].addmm_(m[t], transposed)
            ifo[t].sigmoid_()
            u[t].tanh_()
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], u[t])
            torch.mul(o[t], torch.tanh(c[t + 1], out=s[t]), out=h[t + 1])
        ctx.save_for_backward(weight, gates, states, cells, squashed, factors, factor_weight, inner, mixed)
        return states[1:], cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's tensors, in their order."""
        weight, gates, states, cells, squashed, factors, factor_weight, inner, mixed = ctx.saved_tensors
        T, B, D = squashed.shape
        i, f, o, u = gates.view(T, B, 4, D).unbind(2)
        # What dc (i, f, u) or dh (o) is multiplied with on its way to each pre-activation; then the result itself.
        slopes = torch.stack((u * i * (1 - i), cells[:-1] * f * (1 - f), squashed * o * (1 - o), i * (1 - u * u)), 2)
        into_cell = (o * (1 - squashed * squashed)).unbind(0)
        by_if, by_o, by_u = slopes[:, :, :2].unbind(0), slopes[:, :, 2].unbind(0), slopes[:, :, 3].unbind(0)
        back, keep, flat = gradients[0].unbind(0), f.unbind(0), slopes.view(T, B, 4 * D).unbind(0)
        of_mixed = None
        if factors is not None:
            of_mixed, of_inner = torch.empty_like(factors), torch.empty_like(factors)
            dm, dq, p = of_mixed.unbind(0), of_inner.unbind(0), factors.unbind(0)
        dh, dc = back[-1], gradients[1].clone()
        for t in range(T - 1, -1, -1):
            dc.addcmul_(dh, into_cell[t])
            by_if[t].mul_(dc.unsqueeze(1))
            by_u[t].mul_(dc)
            by_o[t].mul_(dh)
            dc.mul_(keep[t])
            if of_mixed is None:
                step, matrix = flat[t], weight
            else:
                step, matrix = torch.mul(torch.mm(flat[t], weight, out=dm[t]), p[t], out=dq[t]), factor_weight
            dh = torch.addmm(back[t - 1], step, matrix) if t else step @ matrix
        dz = slopes.view(T, B, 4 * D)
        if of_mixed is None:
            return dz, _weight_gradient(dz, states[:-1]), dh, dc, None, None
        of_weights = _weight_gradient(dz, mixed), _weight_gradient(of_inner, states[:-1])
        return dz, of_weights[0], dh, dc, of_mixed * inner, of_weights[1]


def _weight_gradient(of_outputs: Tensor, inputs: Tensor) -> Tensor:
    """Sum over time and batch of (T, B, N)^T (T, B, D): (N, D)."""
    return of_outputs.flatten(0, 1).t() @ inputs.flatten(0, 1)
