"""Learning-rate schedules: pure functions from progress in [0, 1] to a share of the peak rate.

Progress is the share of the budget that is spent, in steps, tokens or seconds, so one schedule serves them all.
Cosine: Loshchilov and Hutter 2017. Trapezoid (also warm-up, stable, decay): Zhai et al. 2022; Hu et al. 2024.
"""

import math
from typing import Literal

Schedule = Literal["trapezoid", "cosine", "linear"]


def trapezoid(progress: float, warmup: float, decay: float, final: float = 0.0) -> float:
    """Linear rise over the first `warmup`, constant, linear fall to `final` over the last `decay` of the budget."""
    if progress < warmup:
        return progress / warmup
    if progress > 1.0 - decay:
        return final + (1.0 - final) * max(0.0, 1.0 - progress) / decay
    return 1.0


def cosine(progress: float, warmup: float, final: float = 0.0) -> float:
    """Linear rise over the first `warmup`, then half a period of a cosine down to `final`."""
    if progress < warmup:
        return progress / warmup
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * _through(progress, warmup)))


def linear(progress: float, warmup: float, final: float = 0.0) -> float:
    """Linear rise over the first `warmup`, then a straight line down to `final`."""
    if progress < warmup:
        return progress / warmup
    return 1.0 - (1.0 - final) * _through(progress, warmup)


def _through(progress: float, warmup: float) -> float:
    """How much of what follows the rise is over, 0..1."""
    return min(1.0, (progress - warmup) / (1.0 - warmup)) if warmup < 1.0 else 0.0


def rate_share(schedule: Schedule, progress: float, warmup: float, decay: float, final: float) -> float:
    """The share of the peak rate by the schedule of that name; only the trapezoid has a `decay`."""
    if schedule == "cosine":
        return cosine(progress, warmup, final)
    if schedule == "linear":
        return linear(progress, warmup, final)
    return trapezoid(progress, warmup, decay, final)
