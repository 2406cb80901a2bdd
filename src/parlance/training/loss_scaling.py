"""Loss scaling: keeps small gradients of fp16 activations from becoming zero (Micikevicius et al. 2018).

The loss is multiplied before the backward pass and the gradients are divided after it. Where they are not finite the
factor is halved and the step left out; after `GROWTH_STEPS` steps without that it is doubled.
"""

import math
from typing import Any

from torch import nn

from parlance.training.objectives import LossTerms, Objective

FIRST_FACTOR = 2.0**15
LARGEST_FACTOR = 2.0**24
GROWTH_STEPS = 2000
"""Finite steps in a row after which the factor is doubled."""


class LossScaler:
    """The factor, and how it follows what the gradients were like."""

    def __init__(self) -> None:
        self.factor = FIRST_FACTOR
        self.finite_steps = 0

    def overflows(self, norm: float) -> bool:
        """Whether a step's gradient norm says that the factor was too large; moves the factor."""
        if math.isfinite(norm):
            self.finite_steps += 1
            if self.finite_steps == GROWTH_STEPS:
                self.factor, self.finite_steps = min(LARGEST_FACTOR, self.factor * 2), 0
            return False
        self.finite_steps = 0
        if self.factor == 1.0:
            return False
        self.factor = max(1.0, self.factor / 2)
        return True

    def capture(self) -> dict[str, float]:
        """What must be stored to go on exactly."""
        return {"factor": self.factor, "finite_steps": self.finite_steps}

    def restore(self, state: dict[str, float]) -> None:
        """Take back what `capture` gave."""
        self.factor, self.finite_steps = state["factor"], int(state["finite_steps"])


class ScaledObjective:
    """An objective whose loss and regulariser are multiplied by the scaler's factor; metrics stay as they are."""

    def __init__(self, objective: Objective[Any, Any], scaler: LossScaler) -> None:
        self._objective, self._scaler = objective, scaler

    def __call__(self, model: nn.Module, batch: Any) -> LossTerms:
        terms = self._objective(model, batch)
        factor = self._scaler.factor
        regulariser = None if terms.regulariser is None else terms.regulariser * factor
        return LossTerms(terms.loss_sum * factor, terms.count, terms.metrics, regulariser)
