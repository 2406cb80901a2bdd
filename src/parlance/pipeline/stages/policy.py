"""The stage that optimises an instructed model against a reward: a reward model, or a Python function.

make_policy(Path("sft"), prompts, Path("reward"), Path("policy"), PolicyConfig(), Budget(steps=10), ...)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parlance.alignment import labeller
from parlance.alignment.ppo import PolicyWithValue, PPOTrainer, TokenReward
from parlance.alignment.reward import Reward
from parlance.alignment.reward_model import RewardModel
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.evaluation.statistics import distinct_ratio
from parlance.finetuning.demonstrations import read_demonstrations
from parlance.inference.generation import Response
from parlance.inference.sampling import SamplingConfig
from parlance.pipeline.base_model import save_checkpoint
from parlance.pipeline.recipe import PolicyConfig
from parlance.pipeline.stages.opening import open_reward_model, open_transformer
from parlance.pipeline.stages.sampling import derived_seed, prompt_tokens, response_text, sample_responses, select
from parlance.text.tokenizers import Tokenizer
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop
from parlance.training.optimizers import Optimizer
from parlance.training.rates import parameter_groups

REFERENCE_PROMPTS = 256
"""Prompts whose responses set the scale of PPO's reward (Ziegler et al. 2019 use as many)."""


def make_policy(
    model_folder: Path,
    prompts_file: Path,
    reward: Path | Reward,
    out: Path,
    config: PolicyConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    score_labeller: bool = False,
) -> dict[str, Any]:
    """Optimise the instructed model against a reward with PPO.

    The reward is standardised to mean 0 and deviation 1 over sampled responses of the model as it is before, so that
    the KL coefficient and the score of a response that never ends mean the same for every reward.
    `prompts_file` holds demonstrations (their prompts are used). With `score_labeller`, the simulated labeller's score
    of the sampled responses is logged; it is never seen by the policy or the reward model.
    """
    tokenizer = Tokenizer.load(model_folder)
    policy = PolicyWithValue(open_transformer(model_folder, device))
    reference = open_transformer(model_folder, device).inference_copy()
    rows = read_demonstrations(prompts_file)
    limit = reference.config.context_length - config.ppo.max_tokens
    prompts = [prompt_tokens(tokenizer, row.messages[:-1]) for row in rows]
    kept = [index for index, prompt in enumerate(prompts) if len(prompt) <= limit]
    if not kept:
        raise UserError(f"no prompt of {prompts_file} leaves room for {config.ppo.max_tokens} tokens in the context")
    prompts, rows = [prompts[index] for index in kept], [rows[index] for index in kept]
    if isinstance(reward, Path):
        raw_reward = model_reward(open_reward_model(reward, device), prompts)
    else:
        raw_reward = text_reward(reward, tokenizer, [row.messages[-2]["content"] for row in rows])
    chosen = select(range(len(prompts)), REFERENCE_PROMPTS, seed)
    sampling = SamplingConfig(
        max_tokens=config.ppo.max_tokens, temperature=config.ppo.temperature, seed=derived_seed(seed, "reference")
    )
    sampled = sample_responses(reference, [prompts[index] for index in chosen], tokenizer, sampling, "reference")
    token_reward = standardised(raw_reward, raw_reward(chosen, sampled))

    def observe(chosen: list[int], responses: list[Response]) -> dict[str, float]:
        texts = [response_text(tokenizer, response) for response in responses]
        figures = {"distinct_ratio": distinct_ratio(texts)}
        if score_labeller:
            scores = [
                labeller.score(text, rows[index].messages[-1]["content"], response.ended).total
                for index, text, response in zip(chosen, texts, responses, strict=True)
            ]
            figures["labeller_score"] = sum(scores) / len(scores)
        return figures

    optimizer = Optimizer(parameter_groups(policy, config.rates, config.rate_scale), reference.compute_dtype)
    stop = frozenset({tokenizer.end_of_turn, tokenizer.end_of_text})
    trainer = PPOTrainer(policy, reference, prompts, token_reward, stop, optimizer, config.ppo, seed, observe)
    states = TrainingStates(out / "training")
    loop = Loop("ppo", budget, states, metrics, checkpoint_seconds=checkpoint_seconds, log_seconds=0.0, background=True)
    result = loop.run(trainer, resume=resume)
    save_checkpoint(out, policy.transformer, tokenizer, chats=True)
    return {"updates": result.steps, "episodes": trainer.episodes, "seconds": result.seconds, "last": result.last}


def model_reward(model: RewardModel, prompts: Sequence[list[int]]) -> TokenReward:
    """A reward model as PPO's reward, on the very tokens that were sampled."""

    def reward(chosen: list[int], responses: list[Response]) -> list[float]:
        rows = [prompts[index] + response.tokens for index, response in zip(chosen, responses, strict=True)]
        return model.rewards(rows)

    return reward


def standardised(reward: TokenReward, references: Sequence[float]) -> TokenReward:
    """`reward` less the mean of its values for reference responses, over their standard deviation (where not 0)."""
    mean, deviation = float(np.mean(references)), float(np.std(references)) or 1.0
    return lambda chosen, responses: [(value - mean) / deviation for value in reward(chosen, responses)]


def text_reward(function: Reward, tokenizer: Tokenizer, texts: Sequence[str]) -> TokenReward:
    """A Python function of prompts and responses as PPO's reward."""

    def reward(chosen: list[int], responses: list[Response]) -> list[float]:
        return function([texts[index] for index in chosen], [response_text(tokenizer, each) for each in responses])

    return reward
