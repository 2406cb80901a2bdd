"""The stage that trains a reward model on rankings.

make_reward(Path("sft"), Path("rankings"), Path("reward"), RewardModelConfig(), Budget(steps=100), ...)
"""

from pathlib import Path
from typing import Any

import torch

from parlance.alignment.preferences import read_rankings
from parlance.alignment.reward_model import RewardModelConfig, save_reward_model, train_reward_model
from parlance.core.metrics import MetricsLog
from parlance.pipeline.stages.opening import open_transformer
from parlance.text.tokenizers import Tokenizer
from parlance.training.loop import CHECKPOINT_SECONDS, Budget


def make_reward(
    model_folder: Path,
    rankings: Path,
    out: Path,
    config: RewardModelConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train the reward model on `rankings`/train.jsonl, but for a twentieth that the curve of its loss is measured on.

    `rankings`/test.jsonl is not looked at: it is for the evaluation.
    """
    tokenizer = Tokenizer.load(model_folder)
    ranked = read_rankings(rankings / "train.jsonl")
    held_out = len(ranked) // 20
    train, validation = ranked[held_out:], ranked[:held_out]
    result = train_reward_model(
        open_transformer(model_folder, device),
        tokenizer,
        train,
        out,
        config,
        budget,
        metrics=metrics,
        seed=seed,
        validation=validation,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
    )
    tokenizer.save(out)
    save_reward_model(out, result.model, end_of_text=tokenizer.end_of_text, pad=tokenizer.pad)
    return {"steps": result.steps, "seconds": result.seconds, "prompts": result.prompts, "left_out": result.left_out}
