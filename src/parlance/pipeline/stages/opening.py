"""Models as the stages use them: on the device, in its fast precision.

model = open_transformer(Path("base"), torch.device("cpu"))
"""

from pathlib import Path

import torch

from parlance.alignment.reward_model import RewardModel, load_reward_model
from parlance.core.devices import fast_bfloat16
from parlance.models.checkpoints import load_transformer
from parlance.models.transformer import Transformer


def open_transformer(folder: Path, device: torch.device) -> Transformer:
    """A checkpoint on `device` in its fast precision."""
    model = load_transformer(folder).to(device)
    model.compute_dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return model


def open_reward_model(folder: Path, device: torch.device) -> RewardModel:
    """A reward model in the device's fast precision."""
    model = load_reward_model(folder).to(device)
    model.transformer.compute_dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return model
