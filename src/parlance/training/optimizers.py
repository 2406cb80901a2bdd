"""AdamW and Muon: the update rules of every training stage.

Muon moves a matrix by the orthogonal factor of its momentum (all singular values near 1); it is for the hidden
matrices of a network. Embeddings, heads and vectors take AdamW. Matrices of one shape are updated in one batch.

    optimizer = Optimizer(parameter_groups(model, LearningRates()), compute_dtype=torch.bfloat16)     # rates.py
    loss.backward(); optimizer.step(scale=0.5)          # scale: the schedule's share of the peak learning rate

Sources: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon); Amsel et al. 2025 (Polar Express: the
coefficients of the polynomial iteration).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from parlance.training.row_updates import coalesced, update_rows

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Odd polynomials a x + b x^3 + c x^5 whose composition takes singular values in (0.001, 1] close to 1."""


Orthogonal = Callable[[Mapping[str, Tensor], torch.dtype], dict[str, Tensor]]
"""Muon's updates by name, from its directions by name and the dtype of the products: see `orthogonal_updates`."""


@dataclass
class ParameterGroup:
    """Parameters that share an update rule and a learning rate."""

    rule: Literal["adamw", "muon", "rows"]
    """`rows`: Adagrad of the rows of a table that the step read (`row_updates.py`)."""
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW: decay of the first and second moment. Muon: the first is its momentum."""
    weight_decay: float = 0.0
    """Decoupled; applied to an entry only where it and its update agree in sign (cautious decay)."""
    epsilon: float = 1e-8
    moments: dict[str, Tensor] = field(default_factory=dict)


def orthogonalise(matrices: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """The nearly orthogonal factor of each matrix: U S V^T with S between 0.85 and 1.15, where the matrix is U S' V^T.

    Singular values S' below a thousandth of the matrix's norm come out smaller than that.

    `matrices` is (N, rows, columns); the result has the same shape and dtype. The products run in `dtype`.
    """
    transpose = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if transpose else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) * 1.02 + 1e-7)).to(dtype)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if transpose else x).to(matrices.dtype)


def orthogonal_updates(directions: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Muon's update for each direction (..., rows, columns): its orthogonal factor times sqrt(max(1, rows / columns)).

    Matrices of one shape are one batch. The products run in `dtype`.
    """
    shapes: dict[torch.Size, list[str]] = {}
    for name, direction in directions.items():
        shapes.setdefault(direction.shape, []).append(name)
    updates: dict[str, Tensor] = {}
    for shape, names in shapes.items():
        # The experts of a layer are one tensor (E, rows, columns) and as many matrices.
        stacked = torch.stack([directions[name] for name in names])
        factors = orthogonalise(stacked.reshape(-1, *shape[-2:]), dtype).view_as(stacked)
        if shape[-2] > shape[-1]:
            factors *= (shape[-2] / shape[-1]) ** 0.5
        updates |= dict(zip(names, factors, strict=True))
    return updates


class Optimizer:
    """Applies each group's rule in place. `compute_dtype` is that of Muon's matrix products, which `orthogonal` makes:
    processes that share matrices make them together."""

    def __init__(
        self,
        groups: list[ParameterGroup],
        compute_dtype: torch.dtype = torch.float32,
        orthogonal: Orthogonal = orthogonal_updates,
    ) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.compute_dtype = compute_dtype
        self._orthogonal = orthogonal
        self.steps = 0
        for group in self.groups:
            for name, parameter in group.parameters.items():
                group.moments[f"{name}.first"] = torch.zeros_like(parameter, requires_grad=False)
                if group.rule == "adamw":
                    group.moments[f"{name}.second"] = torch.zeros_like(parameter, requires_grad=False)

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter, in a fixed order."""
        return [parameter for group in self.groups for parameter in group.parameters.values()]

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One update with `scale` times each group's learning rate. Parameters without a gradient stay as they are."""
        self.steps += 1
        for group in self.groups:
            updated = {name: p for name, p in group.parameters.items() if p.grad is not None}
            if group.rule == "muon":
                self._muon(group, updated, scale)
            elif group.rule == "rows":
                for name, table in updated.items():
                    assert table.grad is not None
                    update_rows(table, table.grad, group.moments[f"{name}.first"], group.learning_rate * scale)
            else:
                self._adamw(group, updated, scale)

    def _adamw(self, group: ParameterGroup, parameters: dict[str, nn.Parameter], scale: float) -> None:
        if not parameters:
            return
        beta1, beta2 = group.betas
        rate = group.learning_rate * scale
        if group.weight_decay == 0:
            self._fused_adamw(group, parameters, rate)
            return
        for name, parameter in parameters.items():
            gradient = parameter.grad
            assert gradient is not None
            first, second = group.moments[f"{name}.first"], group.moments[f"{name}.second"]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            # Bias corrections folded into the step size and the denominator: epsilon is outside them, as in the paper.
            denominator = (second / (1 - beta2**self.steps)).sqrt_().add_(group.epsilon)
            update = (first / (1 - beta1**self.steps)).div_(denominator)
            _apply(parameter, update, rate, group.weight_decay)

    def _fused_adamw(self, group: ParameterGroup, parameters: dict[str, nn.Parameter], rate: float) -> None:
        """The same without decay in one pass over memory. (The kernel is torch's own; `torch.optim`, which wraps it,
        takes a second to import.)"""
        weights: list[Tensor] = list(parameters.values())
        step = torch.tensor(float(self.steps), device=weights[0].device)
        torch._fused_adamw_(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [group.moments[f"{name}.first"] for name in parameters],
            [group.moments[f"{name}.second"] for name in parameters],
            [],
            [step] * len(weights),
            lr=rate,
            beta1=group.betas[0],
            beta2=group.betas[1],
            weight_decay=0.0,
            eps=group.epsilon,
            amsgrad=False,
            maximize=False,
        )

    def _muon(self, group: ParameterGroup, parameters: dict[str, nn.Parameter], scale: float) -> None:
        momentum = group.betas[0]
        rate = group.learning_rate * scale
        directions = {}
        for name, parameter in parameters.items():
            gradient = parameter.grad
            assert gradient is not None
            first = group.moments[f"{name}.first"]
            first.lerp_(gradient, 1 - momentum)
            directions[name] = gradient.lerp(first, momentum)  # Nesterov
        for name, update in self._orthogonal(directions, self.compute_dtype).items():
            _apply(parameters[name], update, rate, group.weight_decay)

    def divide_gradients(self, count: float) -> None:
        """Turn gradients of a sum into gradients of a mean."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = coalesced(parameter.grad)
                parameter.grad.div_(count)

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything besides `steps` that must be stored to continue exactly."""
        return {name: tensor for group in self.groups for name, tensor in group.moments.items()}

    def load_state(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `state_tensors` gave, from a dictionary whose keys have the prefix `optimizer.`."""
        for name, tensor in self.state_tensors().items():
            tensor.copy_(tensors[f"optimizer.{name}"])
        self.steps = steps


def _apply(parameter: Tensor, update: Tensor, rate: float, weight_decay: float) -> None:
    if weight_decay:
        agree = (update * parameter) > 0
        parameter.addcmul_(parameter, agree.to(parameter.dtype), value=-rate * weight_decay)
    parameter.add_(update, alpha=-rate)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their joint L2 norm is at most `limit`; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / (norm + 1e-6))
    return norm
