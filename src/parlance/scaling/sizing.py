"""How many parameters and tokens: given, or the best division of compute or money by a scaling law.

size = choose_size(CORRECTED, flops=1e21)
size.parameters, size.tokens, size.how
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from parlance.core.errors import UserError
from parlance.scaling.accelerators import Accelerator, Precision
from parlance.scaling.laws import Optimum
from parlance.scaling.model_shape import ModelShape

CLOSE = 0.01
"""How near the weights that a token meets come to what was asked."""


class Division(Protocol):
    """What divides compute: a law, or a fitted surface that refuses where its runs do not tell."""

    def optimum(self, flops: float) -> Optimum:
        """The best N and D of a budget."""
        ...

    def tokens_for(self, parameters: float) -> float:
        """The D for which N is the best size."""
        ...


@dataclass(frozen=True)
class Size:
    """What is trained on how much."""

    parameters: float
    """N, the weights that a token meets."""
    tokens: float
    """D."""
    how: str
    """Where they are from, in words."""


def choose_size(
    law: Division, *, parameters: float | None = None, tokens: float | None = None, flops: float | None = None
) -> Size:
    """N and D from any two of `parameters`, `tokens` and `flops` = 6 N D, or from one by the law's optimum.

    Raises UserError for tokens alone, for nothing, and for all three.
    """
    given = [
        name for name, value in (("params", parameters), ("tokens", tokens), ("flops", flops)) if value is not None
    ]
    if len(given) == 3:
        raise UserError("give two of --params, --tokens and --flops (or --money): the third follows")
    if parameters is not None and tokens is not None:
        return Size(parameters, tokens, "given")
    if parameters is not None and flops is not None:
        return Size(parameters, flops / (6.0 * parameters), "tokens: what the compute allows")
    if tokens is not None and flops is not None:
        return Size(flops / (6.0 * tokens), tokens, "parameters: what the compute allows")
    if parameters is not None:
        return Size(parameters, law.tokens_for(parameters), "tokens: for which this size is the best")
    if flops is not None:
        best = law.optimum(flops)
        return Size(best.parameters, best.tokens, "parameters and tokens: best division of the compute")
    raise UserError(
        "say what to train: --params (like 65b), --flops or --money; --tokens alone does not say how large a model"
    )


def shape_of_active(shape: Callable[[float], ModelShape], parameters: float) -> ModelShape:
    """The shape whose token meets `parameters` weights, where `shape` derives one from all weights.

    Without experts these are the same; with them, all weights are those times what is idle, found in a few rounds.
    """
    total = parameters
    found = shape(total)
    for _ in range(20):
        active = found.active_parameters()
        if found.experts == 1 or abs(active / parameters - 1.0) <= CLOSE:
            break
        total *= parameters / active
        found = shape(total)
    return found


def affordable_flops(
    money: float, accelerator: Accelerator, precision: Precision, mfu: float | None, price: float | None
) -> float:
    """Model FLOPs that `money` dollars buy. Raises UserError where no price is known."""
    hourly = price if price is not None else accelerator.price
    if hourly is None:
        raise UserError(f"--money needs the price of a {accelerator.name}: give --price, in dollars an hour")
    reached = mfu if mfu is not None else accelerator.reached_for(precision)
    return money / hourly * 3600.0 * accelerator.peak_for(precision) * reached
