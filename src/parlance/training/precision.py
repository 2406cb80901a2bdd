"""What training computes in: fp32, bf16 where the machine has instructions for it, fp16 with loss scaling on CUDA.

Weights, gradients and the optimizer's moments are fp32 whatever the precision. Nothing is slow without saying so: on a
processor without bf16 instructions such products take many times as long as fp32 ones, which is measured and told.

    model.compute_dtype = training_dtype("auto", device)
"""

from typing import Literal

import torch

from parlance.core.devices import fast_bfloat16, matrix_rate
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.models.neural import NeuralLanguageModel

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(model: NeuralLanguageModel, precision: Precision) -> None:
    """Let a model that is trained further compute in a precision; auto leaves it as it is."""
    if precision != "auto":
        model.compute_dtype = training_dtype(precision, model.device)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises UserError where the device cannot train in a precision."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision fp16 is for CUDA devices, and this run is on {device.type}: choose precision auto, bf16 or fp32"
        )


def training_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of activations and matrix products. Raises UserError where the device cannot train in it."""
    fast = fast_bfloat16(device)
    if precision == "auto":
        return torch.bfloat16 if fast else torch.float32
    check_precision(precision, device)
    if precision == "bf16" and not fast:
        asked, plain = (matrix_rate(device, dtype) for dtype in (torch.bfloat16, torch.float32))
        if asked < plain:
            say(
                f"precision bf16: this {device.type} has no instructions for it; its matrix products run at "
                f"{asked / 1e9:.1f} GFLOP/s, those of fp32 at {plain / 1e9:.1f}: training goes on "
                f"{plain / asked:.1f} times as slowly as with precision fp32"
            )
    return DTYPES[precision]
