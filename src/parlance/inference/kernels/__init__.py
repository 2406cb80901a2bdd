"""Decoding on a processor: a Transformer's step as compiled loops, with nothing of Python between layers.

`KernelBackend` (`kernel_backend.py`) is the model behind the engine's contract, `unsupported` says what of a
configuration the loops do not compute, and what a product is stands in `panel_products.py`.
"""

from parlance.inference.kernels.kernel_backend import KernelBackend
from parlance.inference.kernels.support import unsupported

__all__ = ["KernelBackend", "unsupported"]
