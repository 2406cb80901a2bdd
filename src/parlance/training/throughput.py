"""How fast a stage trains: tokens a second, and the share of the machine's peak that they use (MFU).

    speed = Speed(flops_per_token=model_flops_per_token(model, 256), peak=lambda: matrix_rate(device, dtype))
    speed.count(2048, 0.1); speed.figures()            # {"tokens_per_second": 20480.0}, and after a while "mfu": 0.41

MFU counts the operations that the model needs, not those that were made: work done twice does not count. Of a
Transformer they are those of PaLM's definition (Chowdhery et al. 2022, appendix B), as in `parlance.scaling`:
6 N + 12 L H E T per token, where N are the weights of all matrices, the head's included, and attention counts all T
keys of a window, those behind a mask too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer

WORTH_SECONDS = 10.0
"""Seconds of training from which on the share of the peak is told: measuring the peak takes a moment itself."""


def model_flops_per_token(model: NeuralLanguageModel, length: int) -> float:
    """Operations of training on a token in windows of `length`, as MFU counts them."""
    if isinstance(model, Transformer):
        return 3.0 * model.config.forward_flops_per_token(length, masked=True)
    return model.training_flops_per_token(length)


@dataclass
class Speed:
    """Counts what was read in how much time of training, without what validation took."""

    flops_per_token: float | None = None
    """Floating-point operations of training on a token; None: unknown."""
    peak: Callable[[], float] | None = None
    """Operations a second of the machine's matrix products in the compute dtype; None: unknown."""
    bits: dict[str, float] = field(default_factory=dict)
    """For a loss by its name in the log: what makes bits per byte of its nats per token."""
    tokens: float = 0.0
    seconds: float = 0.0
    _trained: float = 0.0
    _measured: float | None = None

    def count(self, tokens: float, seconds: float) -> None:
        """Add a step."""
        self.tokens += tokens
        self.seconds += seconds
        self._trained += seconds

    def bits_per_byte(self, figures: dict[str, float]) -> dict[str, float]:
        """Of every loss that is known to be nats per token of some text."""
        return {
            name.replace("loss", "bits_per_byte"): figures[name] * factor
            for name, factor in self.bits.items()
            if name in figures
        }

    def figures(self) -> dict[str, float]:
        """Tokens a second and MFU since the last call; nothing where no tokens were counted."""
        tokens, seconds, self.tokens, self.seconds = self.tokens, self.seconds, 0.0, 0.0
        if tokens <= 0 or seconds <= 0:
            return {}
        rate = tokens / seconds
        figures = {"tokens_per_second": round(rate, 1)}
        if self.flops_per_token is not None and self.peak is not None and self._trained >= WORTH_SECONDS:
            if self._measured is None:
                self._measured = self.peak()
            figures["mfu"] = round(rate * self.flops_per_token / self._measured, 4)
        return figures
