"""Learning-rate schedules: pure functions from progress in [0, 1] to a share of the peak rate.

Progress is the share of the budget that is spent, in steps or in seconds, so one schedule serves both.
"""


def trapezoid(progress: float, warmup: float, decay: float, final: float = 0.0) -> float:
    """Linear rise over the first `warmup`, constant, linear fall to `final` over the last `decay` of the budget."""
    if progress < warmup:
        return progress / warmup
    if progress > 1.0 - decay:
        return final + (1.0 - final) * max(0.0, 1.0 - progress) / decay
    return 1.0
