"""The arithmetic of PPO for language models, as pure functions of tensors; no model, no loop.

Shapes: B responses, T response tokens (padded), V vocabulary. `mask` (B, T), bool or 0/1, marks real response tokens;
padding never enters any result, whatever it holds (infinities and NaN included), and outputs are 0 there.

    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    loss, statistics = ppo_policy_loss(logprobs, old_logprobs, whiten(advantages, mask), mask, clip=0.2)

Sources: Schulman et al. 2016 (GAE), eqs. 11-16; Schulman et al. 2017 (PPO), eqs. 7 and 9; Ziegler et al. 2019
(per-token KL penalty, adaptive coefficient, section 2.2); Schulman 2020, "Approximating KL divergence" (k1, k2, k3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from parlance.core.errors import UserError


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x over real tokens: (B, T) -> scalar."""
    return _zero_padding(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over real tokens: (B, T) -> scalar; 0 where there are none."""
    return masked_sum(x, mask) / mask.bool().sum().clamp_min(1)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over real tokens, population variance; any shape.

    With `shift_mean` False the mean is added back: the scale changes, the sign of a mean reward does not.
    """
    mean = masked_mean(x, mask)
    centred = _zero_padding(x - mean, mask)
    white = centred * torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)
    return white if shift_mean else _zero_padding(white + mean, mask)


# --- divergence and entropy ------------------------------------------------------------------------------------------
# For x drawn from p, with the log-ratio l = log q(x) - log p(x), each of k1, k2, k3 estimates KL(p || q) per token.


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """k1 = -l: unbiased, may be negative; the one used inside rewards. Any shape -> same shape."""
    return logprobs - reference_logprobs


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """k2 = l^2 / 2: biased, never negative; its expected gradient is the KL's. Any shape -> same shape."""
    return (reference_logprobs - logprobs).square() / 2


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """k3 = e^l - 1 - l: unbiased and never negative. Any shape -> same shape."""
    ratio = reference_logprobs - logprobs
    return torch.expm1(ratio) - ratio


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) over the vocabulary: (..., V) twice -> (...), nats."""
    p, q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens of -sum_v p_v log p_v: logits (B, T, V), mask (B, T) -> scalar, nats."""
    logprobs = logits.masked_fill(~mask.bool().unsqueeze(-1), 0.0).log_softmax(-1)
    return masked_mean(-(logprobs.exp() * logprobs).sum(-1), mask)


# --- rewards and advantages ------------------------------------------------------------------------------------------


def missing_eos_penalty(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Scores (B,), lowered by `penalty` for each response that did not end by itself (`ended` (B,) bool)."""
    return torch.where(ended.bool(), scores, scores - penalty)


def per_token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t = -beta kl_t, plus the score at the last real token: kl (B, T), scores (B,) -> (B, T).

    A response without real tokens gets no reward. Ziegler et al. 2019, eq. 2.
    """
    real = mask.bool()
    later = real.flip(1).cumsum(1).flip(1)  # (B, T) real tokens from here on
    last = real & (later == 1)
    return _zero_padding(-beta * kl, mask) + torch.where(last, scores.unsqueeze(1), 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) of right-padded responses; the value after the last real token is 0.

    delta_t = r_t + gamma V_{t+1} - V_t;   A_t = delta_t + gamma lam A_{t+1};   R_t = A_t + V_t.
    Returns use the advantages as they are here: whiten afterwards.
    """
    real = mask.bool()
    rewards, values = _zero_padding(rewards, real), _zero_padding(values, real)
    advantage = next_value = torch.zeros_like(values[:, 0])
    backwards = []
    for t in reversed(range(values.shape[1])):
        # In padding all terms are 0, so nothing flows from it into the last real token.
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


# --- losses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyStatistics:
    """How far an update has moved the policy, over real tokens."""

    approximate_kl: float
    """Mean of (log p_new - log p_old)^2 / 2, nats a token."""
    clip_fraction: float
    """Share of tokens whose ratio lies outside [1 - clip, 1 + clip]."""
    max_ratio_deviation: float
    """Largest |ratio - 1|; 0 up to rounding at the first step on a batch, or sampling and training disagree."""


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, PolicyStatistics]:
    """Clipped surrogate, negated: -mean_t min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = p_new / p_old.

    All inputs (B, T); the loss is a scalar, a mean over real tokens. Schulman et al. 2017, eq. 7.
    """
    delta = _zero_padding(logprobs - old_logprobs, mask)
    ratio = delta.exp()
    advantages = _zero_padding(advantages, mask)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    with torch.no_grad():
        deviation = _zero_padding((ratio - 1).abs(), mask)
        statistics = PolicyStatistics(
            approximate_kl=float(masked_mean(delta.square(), mask) / 2),
            clip_fraction=float(masked_mean((deviation > clip).float(), mask)),
            max_ratio_deviation=float(deviation.max()) if deviation.numel() else 0.0,
        )
    return -masked_mean(surrogate, mask), statistics


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """1/2 mean_t max((V - R)^2, (V' - R)^2) with V' = V_old + clamp(V - V_old, -clip, clip); (B, T) -> scalar."""
    values, old_values, returns = (_zero_padding(x, mask) for x in (values, old_values, returns))
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return masked_mean(torch.maximum((values - returns).square(), (clipped - returns).square()), mask) / 2


# --- the KL coefficient ----------------------------------------------------------------------------------------------


class AdaptiveKL:
    """The KL coefficient beta; with a target it is a proportional controller, without one it stays as it is.

    e = clamp(KL / target - 1, -0.2, 0.2);   beta <- beta (1 + e n / horizon) after n episodes.
    Ziegler et al. 2019, section 2.2 (there: target 6 nats a response, horizon 10 000 episodes). Its state is `value`.
    """

    def __init__(self, value: float, target: float | None = None, horizon: int = 10_000) -> None:
        """`value` is the initial coefficient, `target` the wanted KL in nats a response, `horizon` in episodes."""
        if value < 0 or horizon <= 0:
            raise UserError(f"KL coefficient {value}, horizon {horizon}: neither may be negative, nor the horizon 0")
        if target is not None and (target <= 0 or value == 0):
            raise UserError(f"KL target {target}, coefficient {value}: a target needs both above 0")
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, kl: float, episodes: int) -> None:
        """Adapt to the mean KL (nats a response) of a batch of `episodes`; at most `horizon` of them count."""
        if self.target is not None:
            error = min(0.2, max(-0.2, kl / self.target - 1.0))
            self.value *= 1.0 + error * min(episodes, self.horizon) / self.horizon


def _zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is set, else 0; multiplying would keep NaN and infinities, and their gradients."""
    return torch.where(mask.bool(), x, 0.0)
