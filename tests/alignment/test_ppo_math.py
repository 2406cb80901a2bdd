"""PPO's arithmetic against hand tables, enumeration and closed forms."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parlance.alignment.ppo_math import (
    AdaptiveKL,
    entropy,
    exact_kl,
    gae,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_sum,
    missing_eos_penalty,
    per_token_rewards,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
)
from parlance.core.errors import UserError

P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_masked_sum_and_mean():
    x = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.inf, -math.inf]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_sum(x, mask) == 6.0
    assert masked_mean(x, mask) == 2.0
    assert masked_mean(x, torch.zeros_like(mask)) == 0.0


def test_whiten_is_a_population_standard_score():
    x, mask = random(4, 7), mask_of([7, 2, 5, 1], 7)
    real = x[mask]
    white = whiten(x, mask)
    torch.testing.assert_close(white[mask], (real - real.mean()) / real.std(correction=0), rtol=1e-7, atol=1e-7)
    assert not white[~mask].any()
    unshifted = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(unshifted[mask], white[mask] + real.mean())
    assert not unshifted[~mask].any()
    # Any shape, and a constant does not divide by zero.
    torch.testing.assert_close(whiten(x.flatten(), mask.flatten()), white.flatten())
    assert not whiten(torch.ones(2, 3), torch.ones(2, 3)).any()


# --- divergence ------------------------------------------------------------------------------------------------------


def test_expectations_of_the_kl_estimators_over_three_tokens():
    p, q = P.log(), Q.log()
    truth = sum(pv * math.log(pv / qv) for pv, qv in zip(P.tolist(), Q.tolist(), strict=True))
    assert float(exact_kl(p + 3.0, q - 1.0)) == pytest.approx(truth, abs=1e-12)  # logits up to a constant
    assert float((P * kl_k1(p, q)).sum()) == pytest.approx(truth, abs=1e-12)
    assert float((P * kl_k3(p, q)).sum()) == pytest.approx(truth, abs=1e-12)
    assert float((P * kl_k2(p, q)).sum()) == pytest.approx(
        sum(pv * math.log(pv / qv) ** 2 / 2 for pv, qv in zip(P.tolist(), Q.tolist(), strict=True)), abs=1e-12
    )
    assert (kl_k3(p, q) >= 0).all()
    assert float(kl_k1(p, q).min()) < 0
    assert float(exact_kl(p, p)) == 0.0


def test_the_gradient_of_expected_k2_is_that_of_the_kl():
    """On samples of p held fixed, d k2 averages to d KL(p || q); d k1 averages to zero."""
    logits = P.log().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (by_k2,) = torch.autograd.grad((P * kl_k2(logprobs, Q.log())).sum(), logits, retain_graph=True)
    (by_k1,) = torch.autograd.grad((P * kl_k1(logprobs, Q.log())).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(exact_kl(logits, Q.log()), logits)
    torch.testing.assert_close(by_k2, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_k1, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_entropy():
    logits = torch.stack([P.log(), torch.zeros(3, dtype=torch.float64), torch.full((3,), math.nan)]).unsqueeze(0)
    expected = (1.5 * math.log(2) + math.log(3)) / 2
    assert float(entropy(logits, torch.tensor([[1, 1, 0]]))) == pytest.approx(expected, abs=1e-12)


# --- rewards and advantages ------------------------------------------------------------------------------------------


def test_the_score_is_paid_at_the_last_token():
    kl = torch.tensor([[0.5, -1.0, 9.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    rewards = per_token_rewards(kl, torch.tensor([10.0, 20.0, 30.0]), mask_of([2, 3, 0], 3), beta=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 10.1, 0.0], [-0.1, -0.2, 19.7], [0.0, 0.0, 0.0]]))


def test_missing_eos_penalty():
    scores = missing_eos_penalty(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), 3.0)
    assert scores.tolist() == [1.0, -1.0]


def test_gae_by_hand():
    """gamma 1/2, lambda 1/2: delta = r + V'/2 - V, A = delta + A'/4."""
    rewards = torch.tensor([[1.0, 0.0, 4.0], [2.0, 8.0, 7.0]])
    values = torch.tensor([[2.0, 4.0, 2.0], [4.0, 2.0, 9.0]])
    advantages, returns = gae(rewards, values, mask_of([3, 2], 3), gamma=0.5, lam=0.5)
    # Row 0: delta = [1, -3, 2]; A = [1 - 2.5/4, -3 + 2/4, 2]. Row 1: delta = [2 + 1 - 4, 8 - 2]; A = [-1 + 6/4, 6].
    assert advantages.tolist() == [[0.375, -2.5, 2.0], [0.5, 6.0, 0.0]]
    assert returns.tolist() == [[2.375, 1.5, 4.0], [4.5, 8.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_against_direct_sums(gamma, lam):
    lengths = [6, 1, 4, 0]
    rewards, values = random(4, 6, seed=1), random(4, 6, seed=2)
    advantages, returns = gae(rewards, values, mask_of(lengths, 6), gamma, lam)
    for b, length in enumerate(lengths):
        r, v = rewards[b, :length].tolist(), [*values[b, :length].tolist(), 0.0]
        for t in range(6):
            deltas = [r[s] + gamma * v[s + 1] - v[s] for s in range(t, length)]
            direct = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas))
            assert float(advantages[b, t]) == pytest.approx(direct, abs=1e-12)
            assert float(returns[b, t]) == pytest.approx(direct + v[t] if t < length else 0.0, abs=1e-12)
        if lam == 1.0 and length:  # then the returns are the discounted rewards to go
            assert float(returns[b, 0]) == pytest.approx(sum(gamma**k * x for k, x in enumerate(r)), abs=1e-12)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_policy_gradient_at_ratio_one_is_reinforce():
    """Each token as often as its probability says: the gradient is that of -sum_a p_a A_a, -p_a (A_a - mean A)."""
    logits = P.log().clone().requires_grad_()
    actions = torch.tensor([[0, 0], [1, 2]])  # probabilities 1/2, 1/4, 1/4
    value = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)[actions]
    mask = torch.ones_like(actions)
    loss, statistics = ppo_policy_loss(logprobs, logprobs.detach(), value[actions], mask, clip=0.2)
    loss.backward()
    torch.testing.assert_close(logits.grad, -P * (value - (P * value).sum()), rtol=1e-12, atol=1e-12)
    assert float(loss.detach()) == pytest.approx(-float((P * value).sum()))
    assert statistics.max_ratio_deviation == statistics.approximate_kl == statistics.clip_fraction == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        # Gains beyond the clip do not count and have no gradient; losses always count.
        (1.1, 2.0, 2.2, 2.2),
        (1.3, 2.0, 2.4, 0.0),
        (0.7, 2.0, 1.4, 1.4),
        (1.3, -2.0, -2.6, -2.6),
        (0.9, -2.0, -1.8, -1.8),
        (0.7, -2.0, -1.6, 0.0),
    ],
)
def test_clip_boundaries(ratio, advantage, surrogate, slope):
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, statistics = ppo_policy_loss(
        new, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[advantage]]), torch.ones(1, 1), clip=0.2
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-surrogate)
    assert float(new.grad) == pytest.approx(-slope)  # d ratio / d log p = ratio
    assert statistics.clip_fraction == (abs(ratio - 1) > 0.2)
    assert statistics.max_ratio_deviation == pytest.approx(abs(ratio - 1))
    assert statistics.approximate_kl == pytest.approx(math.log(ratio) ** 2 / 2)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, -0.9),  # inside the clip
        (1.5, 1.0, 2.0, 0.5 * 0.8**2, 0.0),  # moved too far towards the return: clipped value 1.2, no gradient
        (0.5, 1.0, 2.0, 0.5 * 1.5**2, -1.5),  # moved away: always paid for
    ],
)
def test_value_loss_by_hand(value, old, target, loss, slope):
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    result = ppo_value_loss(values, torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1), clip=0.2)
    result.backward()
    assert float(result.detach()) == pytest.approx(loss, rel=1e-6)
    assert float(values.grad) == pytest.approx(slope, rel=1e-6, abs=1e-12)


lengths_and_padding = st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any), st.integers(1, 4))


@settings(max_examples=40, deadline=None)
@given(lengths_and_padding, st.sampled_from([0.0, 1e9, math.nan, math.inf, -math.inf]), st.integers(0, 1000))
def test_padding_changes_nothing(shape, rubbish, seed):
    """More columns of padding, with anything in them: same results, same gradients, zeros in the padding."""
    lengths, extra = shape
    rows, width = len(lengths), max(lengths)
    mask = mask_of(lengths, width)
    columns = [random(rows, width, seed=seed + k) / 4 for k in range(6)]
    scores, logits = random(rows, seed=seed), random(rows, width, 3, seed=seed)

    def pad(x: Tensor, fill: float) -> Tensor:
        wide = torch.full((rows, width + extra, *x.shape[2:]), fill, dtype=x.dtype)
        wide[:, :width] = torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x, fill)
        return wide

    def everything(columns: list[Tensor], logits: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor], list]:
        new, old, advantages, values, old_values, returns = columns
        new, values = new.clone().requires_grad_(), values.clone().requires_grad_()
        policy, statistics = ppo_policy_loss(new, old, advantages, mask, 0.2)
        value = ppo_value_loss(values, old_values, returns, mask, 0.2)
        gradients = torch.autograd.grad(policy + value, [new, values])
        rewards = per_token_rewards(kl_k1(new.detach(), old), scores, mask, 0.1)
        wide = [
            *gradients,
            *gae(rewards, values.detach(), mask, 0.99, 0.95),
            rewards,
            whiten(advantages, mask),
            whiten(advantages, mask, False),
        ]
        flat = [policy.detach(), value.detach(), entropy(logits, mask), masked_mean(old, mask), masked_sum(old, mask)]
        return wide, flat, [statistics.approximate_kl, statistics.clip_fraction, statistics.max_ratio_deviation]

    wide, flat, statistics = everything(columns, logits, mask)
    padded_wide, padded_flat, padded_statistics = everything(
        [pad(column, rubbish) for column in columns], pad(logits, rubbish), pad(mask, False)
    )
    for narrow, padded in zip(wide, padded_wide, strict=True):
        torch.testing.assert_close(padded[:, :width], narrow, rtol=1e-12, atol=1e-12)
        assert not narrow[~mask].any()
        assert not padded[:, width:].any()
    torch.testing.assert_close(padded_flat, flat, rtol=1e-12, atol=1e-12)
    assert padded_statistics == pytest.approx(statistics, rel=1e-12, abs=1e-12)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_adaptive_kl():
    beta = AdaptiveKL(0.1, target=6.0, horizon=100)
    beta.update(6.0, 50)
    assert beta.value == 0.1
    beta.update(6.6, 50)
    assert beta.value == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    beta.update(1000.0, 100)  # the error is clipped at 0.2
    assert beta.value == pytest.approx(0.105 * 1.2)
    beta.update(-1000.0, 100_000)  # and so is the step
    assert beta.value == pytest.approx(0.105 * 1.2 * 0.8)
    again = AdaptiveKL(json.loads(json.dumps(beta.value)), target=6.0, horizon=100)
    for controller in (beta, again):
        controller.update(7.0, 33)
    assert again.value == beta.value
    fixed = AdaptiveKL(0.05)
    fixed.update(1000.0, 64)
    assert fixed.value == 0.05


@pytest.mark.parametrize(
    "arguments", [(-0.1, None, 10), (0.1, 0.0, 10), (0.1, -1.0, 10), (0.1, None, 0), (0.0, 6.0, 10)]
)
def test_adaptive_kl_refuses_nonsense(arguments):
    with pytest.raises(UserError):
        AdaptiveKL(*arguments)


def test_ppo_on_a_bandit_finds_the_optimum_that_can_be_computed():
    """One-token episodes over 3 tokens: rewards minus beta KL are maximal at q exp(score / beta) / Z."""
    score = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    beta, reference = 0.5, Q.log()
    logits = reference.clone().requires_grad_()
    baseline = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, baseline], lr=0.03)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(512, 1, dtype=torch.bool)
    for _ in range(80):
        with torch.no_grad():
            old = logits.log_softmax(-1)
            actions = torch.multinomial(old.exp(), 512, replacement=True, generator=generator).unsqueeze(1)
            rewards = per_token_rewards(kl_k1(old, reference)[actions], score[actions[:, 0]], mask, beta)
            old_values = baseline.expand(512, 1).clone()
            advantages, returns = gae(rewards, old_values, mask, 1.0, 0.95)
            advantages = whiten(advantages, mask)
        for epoch in range(4):
            loss, statistics = ppo_policy_loss(logits.log_softmax(-1)[actions], old[actions], advantages, mask, 0.2)
            value_loss = ppo_value_loss(baseline.expand(512, 1), old_values, returns, mask, 0.2)
            if epoch == 0:
                assert statistics.max_ratio_deviation == 0.0
            optimizer.zero_grad()
            (loss + value_loss).backward()
            optimizer.step()
    policy = logits.detach().softmax(-1)
    optimum = (reference + score / beta).softmax(-1)
    before, after = float((Q * score).sum()), float((policy * score).sum())
    assert after > before + 0.2
    torch.testing.assert_close(policy, optimum, rtol=0, atol=0.05)
    best = beta * float((reference + score / beta).logsumexp(-1))  # the optimum's value, in closed form
    assert float((policy * score).sum() - beta * exact_kl(logits.detach(), reference)) == pytest.approx(best, abs=0.01)
