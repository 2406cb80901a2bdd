"""Proximal policy optimisation of a language model against a reward (Schulman et al. 2017; Ouyang et al. 2022).

One update, as in the papers' algorithm boxes:
  1. draw prompts;
  2. sample a response to each from the policy;
  3. score the responses with the reward (those that never ended get `missing_end_score` instead);
  4. log-probabilities and values of the policy before the update, log-probabilities of the reference;
  5. per-token rewards -beta KL, the score added at the last token; GAE; advantages whitened over the batch;
  6. `epochs` passes over the batch in `minibatches`, clipped policy loss plus clipped value loss;
  7. adapt the KL coefficient, log.

Tokens sampled are tokens trained on: nothing is decoded and encoded in between. There is no dropout. Sequences are
padded on the right and attention is causal, so padding never reaches a real token; every statistic is over response
tokens only. Micro-batches are fixed per update, so the first minibatch's probability ratio is 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from parlance.alignment.ppo_math import (
    AdaptiveKL,
    gae,
    per_token_rewards,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
)
from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.inference.generation import Response, generate_batch
from parlance.inference.sampling import COLDEST, SamplingConfig
from parlance.models.padding import pad_right
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Linear
from parlance.training.batching import LengthGroupedBatches
from parlance.training.optimizers import Optimizer, clip_gradients
from parlance.training.schedules import trapezoid


class PPOConfig(Config):
    """Settings of PPO, apart from its budget and the optimizer's rates."""

    batch_size: int = Field(default=64, ge=1)
    """Episodes (prompt and sampled response) an update."""
    epochs: int = Field(default=2, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(default=2, ge=1)
    """Optimizer steps a pass; fewer where the batch fits into fewer micro-batches, of which minibatches are made."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Most padded tokens in one forward and backward pass."""
    max_tokens: int = Field(default=40, ge=1)
    """Longest response."""
    temperature: float = Field(default=1.0, ge=COLDEST)
    """Of the sampling; log-probabilities are taken at the same temperature."""
    kl_coefficient: float = Field(default=0.12, ge=0)
    """beta: price of one nat of divergence from the reference."""
    kl_target: float | None = Field(default=None, gt=0)
    """Where set, beta adapts so that the KL per response (nats) stays near it."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """Range of the probability ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Range of the value's change."""
    value_coefficient: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    missing_end_score: float = -2.0
    """Score of a response that never ends. (`make_policy` gives rewards mean 0 and deviation 1 at the start.)"""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the budget over which the learning rate rises."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest joint gradient norm."""


class PolicyWithValue(nn.Module):
    """A language model and a scalar value of every position, read from the same activations."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.value = Linear(transformer.config.width, 1).to(transformer.device)
        with torch.no_grad():
            self.value.weight.zero_()


@dataclass
class Episodes:
    """A micro-batch of sampled episodes. B rows, T padded tokens, R padded response tokens."""

    tokens: Tensor  # (B, T) prompt, response, padding
    positions: Tensor  # (B, R) where the activation that predicts each response token is
    actions: Tensor  # (B, R) response tokens, 0 where padded
    mask: Tensor  # (B, R) bool: a real response token
    rows: list[int]  # which of the batch's episodes these are


@dataclass
class Experience:
    """What step 4 and 5 compute for the episodes of one micro-batch; all (B, R)."""

    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def pack_episodes(
    prompts: Sequence[list[int]], responses: Sequence[Response], limit: int, device: torch.device
) -> list[Episodes]:
    """Micro-batches of at most `limit` tokens, each row counted as its longest (at least one row each), on `device`."""
    lengths = [len(prompt) + len(response.tokens) for prompt, response in zip(prompts, responses, strict=True)]
    groups: list[list[int]] = [[]]
    for row in sorted(range(len(prompts)), key=lambda row: (lengths[row], row)):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[row] > limit:
            groups.append([])
        groups[-1].append(row)
    packed = []
    for group in groups:
        tokens = pad_right([prompts[row] + responses[row].tokens for row in group], 0)
        actions = pad_right([responses[row].tokens for row in group], -1, multiple=8)
        mask = actions >= 0
        starts = torch.tensor([len(prompts[row]) - 1 for row in group]).unsqueeze(1)
        positions = (starts + torch.arange(actions.shape[1])).clamp_max(tokens.shape[1] - 1)
        packed.append(
            Episodes(tokens.to(device), positions.to(device), actions.clamp_min(0).to(device), mask.to(device), group)
        )
    return packed


def response_activations(model: Transformer, episodes: Episodes) -> Tensor:
    """Activations (B, R, D) that predict each response token."""
    hidden = model.hidden(episodes.tokens)
    return hidden.gather(1, episodes.positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def action_logprobs(
    model: Transformer, activations: Tensor, actions: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log p(action) and the entropy of the distribution at each position, both (B, R) fp32."""
    distribution = (model.logits(activations).float() / temperature).log_softmax(-1)  # (B, R, V)
    logprobs = distribution.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)
    return logprobs, entropy


TokenReward = Callable[[list[int], list[Response]], list[float]]
"""Scores sampled responses: (indices of the prompts, responses) -> one score each."""


class PPOTrainer:
    """A `LoopBody`: one step is one update on a fresh batch of episodes."""

    def __init__(
        self,
        policy: PolicyWithValue,
        reference: Transformer,
        prompts: Sequence[list[int]],
        reward: TokenReward,
        stop: frozenset[int],
        optimizer: Optimizer,
        config: PPOConfig,
        seed: int,
        observe: Callable[[list[int], list[Response]], dict[str, float]] | None = None,
    ) -> None:
        """`prompts` are tokenised up to the generation prompt; `observe` adds figures about sampled text to the log."""
        if not prompts:
            raise UserError("PPO needs at least one prompt")
        self.policy, self.reference, self.prompts, self.reward = policy, reference, prompts, reward
        self.stop, self.optimizer, self.config, self.observe = stop, optimizer, config, observe
        self.beta = AdaptiveKL(config.kl_coefficient, config.kl_target)
        self.generator = torch.Generator().manual_seed(seed)
        self.sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
        # One "token" an example: a batch is `batch_size` prompts in random order.
        self._order = LengthGroupedBatches([1] * len(prompts), min(config.batch_size, len(prompts)), seed)
        self._draws: Iterator[tuple[list[int], int]] | None = None
        self._drawn = 0
        self.episodes = 0

    def step(self, progress: float) -> dict[str, float]:
        """One update; see the module's docstring for the numbered steps."""
        config = self.config
        # 1-2. Prompts and responses.
        if self._draws is None:
            self._draws = self._order(self._drawn)
        # The few prompts left at an epoch's end are too few to whiten over; they have their turn in another epoch.
        full = min(config.batch_size, len(self.prompts))
        chosen, self._drawn = next(self._draws)
        while len(chosen) < full:
            chosen, self._drawn = next(self._draws)
        prompts = [self.prompts[index] for index in chosen]
        responses = generate_batch(
            self.policy.transformer.inference_copy(), prompts, self.sampling, self.stop, self.generator
        )
        # 3. Scores.
        rewards = self.reward(chosen, responses)
        ended = [response.ended for response in responses]
        scores = [reward if end else config.missing_end_score for reward, end in zip(rewards, ended, strict=True)]
        # 4-5. Experience.
        device = self.reference.device
        batch = pack_episodes(prompts, responses, config.micro_batch_tokens, device)
        experience, figures = self._experience(batch, torch.tensor(scores, device=device))
        # 6. Updates.
        scale = trapezoid(max(progress, 1e-3), config.warmup, 1.0 - config.warmup)
        losses = [
            self._update(batch, experience, part, scale)
            for _ in range(config.epochs)
            for part in self._minibatches(len(batch))
        ]
        # 7. Coefficient and log.
        self.episodes += len(chosen)
        self.beta.update(figures["kl"], len(chosen))
        figures |= {name: sum(loss[name] for loss in losses) / len(losses) for name in losses[0]}
        figures |= {
            "episodes": self.episodes,
            "reward": sum(rewards) / len(rewards),
            "score": sum(scores) / len(scores),
            "ended_share": sum(ended) / len(ended),
            "response_tokens": sum(len(response.tokens) for response in responses) / len(responses),
            "kl_coefficient": self.beta.value,
            "first_ratio_deviation": losses[0]["ratio_deviation"],
            "rate_share": scale,
        }
        if self.observe is not None:
            figures |= self.observe(chosen, responses)
        return figures

    @torch.no_grad()
    def _experience(self, batch: list[Episodes], scores: Tensor) -> tuple[list[Experience], dict[str, float]]:
        """Log-probabilities, values, advantages and returns of each micro-batch; whitened over the whole batch."""
        config, temperature = self.config, self.config.temperature
        reference = self.reference
        parts, kls, entropies = [], [], []
        for episodes in batch:
            activations = response_activations(self.policy.transformer, episodes)
            logprobs, entropy = action_logprobs(self.policy.transformer, activations, episodes.actions, temperature)
            values = self.policy.value(activations.float()).squeeze(-1)
            anchor = response_activations(reference, episodes)
            reference_logprobs, _ = action_logprobs(reference, anchor, episodes.actions, temperature)
            kl = (logprobs - reference_logprobs) * episodes.mask
            rewards = per_token_rewards(kl, scores[episodes.rows], episodes.mask, self.beta.value)
            advantages, returns = gae(rewards, values, episodes.mask, config.gamma, config.lam)
            parts.append(Experience(logprobs, values, advantages, returns))
            kls.append(kl.sum(1))
            entropies.append((entropy * episodes.mask).sum())
        mask = torch.cat([episodes.mask.flatten() for episodes in batch])
        white = whiten(torch.cat([part.advantages.flatten() for part in parts]), mask)
        for part, piece in zip(parts, torch.split(white, [part.advantages.numel() for part in parts]), strict=True):
            part.advantages = piece.view_as(part.advantages)
        returns = torch.cat([part.returns.flatten() for part in parts])[mask]
        errors = returns - torch.cat([part.values.flatten() for part in parts])[mask]
        variance = float(returns.var(correction=0))
        figures = {
            "kl": float(torch.cat(kls).mean()),
            "entropy": float(torch.stack(entropies).sum() / mask.sum()),
            "explained_variance": 1.0 - float(errors.var(correction=0)) / variance if variance > 0 else 0.0,
        }
        return parts, figures

    def _minibatches(self, count: int) -> list[list[int]]:
        """A fresh random division of the micro-batches into at most `minibatches` parts."""
        order = torch.randperm(count, generator=self.generator).tolist()
        size = -(-count // self.config.minibatches)
        return [order[start : start + size] for start in range(0, count, size)]

    def _update(
        self, batch: list[Episodes], experience: list[Experience], part: list[int], scale: float
    ) -> dict[str, float]:
        """One optimizer step on some micro-batches; returns mean losses and statistics over its response tokens."""
        config = self.config
        total = sum(int(batch[index].mask.sum()) for index in part)
        sums: dict[str, float] = {}
        deviation = 0.0
        for index in part:
            episodes, old = batch[index], experience[index]
            activations = response_activations(self.policy.transformer, episodes)
            logprobs, _ = action_logprobs(self.policy.transformer, activations, episodes.actions, config.temperature)
            values = self.policy.value(activations.float()).squeeze(-1)
            policy_loss, statistics = ppo_policy_loss(
                logprobs, old.logprobs, old.advantages, episodes.mask, config.clip
            )
            value_loss = ppo_value_loss(values, old.values, old.returns, episodes.mask, config.value_clip)
            share = int(episodes.mask.sum()) / total
            ((policy_loss + config.value_coefficient * value_loss) * share).backward()  # type: ignore[no-untyped-call]
            deviation = max(deviation, statistics.max_ratio_deviation)
            means = {
                "policy_loss": float(policy_loss.detach()),
                "value_loss": float(value_loss.detach()),
                "approximate_kl": statistics.approximate_kl,
                "clip_fraction": statistics.clip_fraction,
            }
            for name, value in means.items():
                sums[name] = sums.get(name, 0.0) + value * share
        norm = clip_gradients(self.optimizer.parameters(), config.gradient_clip)
        if math.isfinite(norm):
            self.optimizer.step(scale)
        else:
            say("a step was skipped: its gradient is not finite")
        self.optimizer.zero_gradients()
        return sums | {"gradient_norm": norm, "ratio_deviation": deviation}

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `LoopBody`."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.policy.named_parameters()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        tensors["generator"] = self.generator.get_state()
        info = {
            "drawn": self._drawn,
            "episodes": self.episodes,
            "beta": self.beta.value,
            "optimizer_steps": self.optimizer.steps,
        }
        return tensors, info

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """See `LoopBody`."""
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.optimizer.load_state(tensors, info["optimizer_steps"])
        self.generator.set_state(tensors["generator"])
        self._drawn, self.episodes, self._draws = info["drawn"], info["episodes"], None
        self.beta.value = info["beta"]
