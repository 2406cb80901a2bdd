"""The stage that tunes a base model on demonstrations.

make_instructed(Path("base"), Path("demonstrations"), Path("sft"), FinetuningConfig(), Budget(steps=100), ...)
"""

from pathlib import Path
from typing import Any

import torch

from parlance.core.metrics import MetricsLog
from parlance.finetuning.demonstrations import read_demonstrations
from parlance.finetuning.supervised import FinetuningConfig, finetune
from parlance.pipeline.base_model import save_checkpoint
from parlance.pipeline.stages.opening import open_transformer
from parlance.text.tokenizers import Tokenizer
from parlance.training.loop import CHECKPOINT_SECONDS, Budget


def make_instructed(
    base: Path,
    demonstrations: Path,
    out: Path,
    config: FinetuningConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Instruction-tune `base` on `demonstrations`/train.jsonl."""
    tokenizer = Tokenizer.load(base)
    model = open_transformer(base, device)
    train = read_demonstrations(demonstrations / "train.jsonl")
    validation = read_demonstrations(demonstrations / "validation.jsonl")
    result = finetune(
        model,
        tokenizer,
        train,
        validation,
        out,
        config,
        budget,
        metrics=metrics,
        seed=seed,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
    )
    save_checkpoint(out, model, tokenizer, chats=True)
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "examples": result.examples,
        "too_long": result.too_long,
        "validation_loss": result.validation_loss,
    }
