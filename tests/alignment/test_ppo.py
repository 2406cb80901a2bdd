"""PPO's loop: what is read from the model against a slow reading, its invariants, its state, and that it learns."""

import json
import math
import os
import signal

import pytest
import torch

from parlance.alignment.ppo import (
    PolicyWithValue,
    PPOConfig,
    PPOTrainer,
    action_logprobs,
    pack_episodes,
    response_activations,
)
from parlance.core.errors import Interrupted, UserError
from parlance.core.metrics import MetricsLog
from parlance.inference.generation import Response
from parlance.models.padding import MULTIPLE
from parlance.models.transformer import Transformer
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import Budget, Loop
from parlance.training.optimizers import Optimizer
from parlance.training.rates import LearningRates, parameter_groups

CPU = torch.device("cpu")
END = 7
PROMPTS = [[1, 2, 3], [4], [5, 6, 8, 9, 10], [11, 12], [13, 14, 15], [16]]
QUICK = PPOConfig(batch_size=4, max_tokens=6, micro_batch_tokens=64, minibatches=2, epochs=2)


def small_model(tiny_transformer, dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    model = tiny_transformer(seed=seed, vocab_size=24, context_length=32, width=64, heads=1, head_width=64)
    model.compute_dtype = dtype
    return model


def length_reward(_chosen: list[int], responses: list[Response]) -> list[float]:
    return [float(len(response.tokens)) for response in responses]


@pytest.fixture
def trainer(tiny_transformer):
    """A function (reward, settings) -> PPOTrainer on a random tiny policy and a copy of it as the reference."""

    def make(
        reward=length_reward,
        *,
        prompts=PROMPTS,
        config: PPOConfig = QUICK,
        stop=frozenset({END}),
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        scale: float = 0.1,
    ) -> PPOTrainer:
        policy = PolicyWithValue(small_model(tiny_transformer, dtype))
        reference = small_model(tiny_transformer, dtype).inference_copy()
        optimizer = Optimizer(parameter_groups(policy, LearningRates(), scale), dtype)
        return PPOTrainer(policy, reference, prompts, reward, stop, optimizer, config, seed)

    return make


# --- packing and reading ---------------------------------------------------------------------------------------------


def responses() -> list[Response]:
    lengths = [1, 6, 3, 6, 2, 4]
    return [
        Response([(3 * row + place) % 24 for place in range(length)], length < 6) for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("limit", [1, 16, 30, 1000])
def test_packed_episodes_hold_every_response_once(limit):
    packed = pack_episodes(PROMPTS, responses(), limit, CPU)
    assert sorted(row for episodes in packed for row in episodes.rows) == list(range(6))
    for episodes in packed:
        longest = max(len(PROMPTS[row]) + len(responses()[row].tokens) for row in episodes.rows)
        assert len(episodes.rows) == 1 or len(episodes.rows) * longest <= limit
        assert episodes.tokens.shape[1] % MULTIPLE == 0
        for place, row in enumerate(episodes.rows):
            prompt, response = PROMPTS[row], responses()[row].tokens
            tokens = episodes.tokens[place].tolist()
            assert tokens[: len(prompt) + len(response)] == prompt + response
            assert set(tokens[len(prompt) + len(response) :]) <= {0}
            assert int(episodes.mask[place].sum()) == len(response)
            assert episodes.actions[place][episodes.mask[place]].tolist() == response
            # The activation that predicts a token is that of the token before it.
            for step, position in enumerate(episodes.positions[place][: len(response)].tolist()):
                assert position == len(prompt) - 1 + step
                assert tokens[position + 1] == response[step]
    lengths = [len(PROMPTS[row]) + len(responses()[row].tokens) for episodes in packed for row in episodes.rows]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_logprobs_values_and_entropies_are_those_of_a_slow_reading(tiny_transformer, temperature):
    policy = PolicyWithValue(small_model(tiny_transformer))
    policy.value.weight.normal_(generator=torch.Generator().manual_seed(0))
    for episodes in pack_episodes(PROMPTS, responses(), 30, CPU):
        activations = response_activations(policy.transformer, episodes)
        logprobs, entropies = action_logprobs(policy.transformer, activations, episodes.actions, temperature)
        values = policy.value(activations).squeeze(-1)
        for place, row in enumerate(episodes.rows):
            for step, token in enumerate(responses()[row].tokens):
                before = torch.tensor([PROMPTS[row] + responses()[row].tokens[:step]])
                distribution = (policy.transformer.forward(before)[0][0, -1] / temperature).softmax(-1)
                entropy = -sum(p * math.log(p) for p in distribution.tolist() if p > 0)
                value = float(policy.value(policy.transformer.hidden(before)[0, -1]))
                assert float(logprobs[place, step]) == pytest.approx(math.log(distribution[token]), abs=1e-4)
                assert float(entropies[place, step]) == pytest.approx(entropy, abs=1e-4)
                assert float(values[place, step]) == pytest.approx(value, abs=1e-4)


# --- one update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_one_and_the_first_divergence_is_zero(trainer, dtype, temperature):
    """Old and new log-probabilities come from the same computation on the same micro-batches, in bfloat16 too."""
    it = trainer(dtype=dtype, config=QUICK.model_copy(update={"temperature": temperature}))
    first = it.step(0.0)
    assert first["first_ratio_deviation"] < 1e-5
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["ratio_deviation"] > 1e-4  # later minibatches have moved
    second = it.step(0.3)
    assert second["first_ratio_deviation"] < 1e-5
    assert second["kl"] != 0.0


def test_the_first_ratio_would_show_a_policy_that_moved(trainer, monkeypatch):
    """The figure measures what it claims: with experience from other weights it is far from zero."""
    it = trainer()
    original = it._experience

    def stale(batch, scores):
        out = original(batch, scores)
        with torch.no_grad():
            it.policy.transformer.lm_head.weight.mul_(1.1)
        return out

    monkeypatch.setattr(it, "_experience", stale)
    assert it.step(0.0)["first_ratio_deviation"] > 0.01


def test_figures_of_an_update(trainer):
    seen = []

    def reward(chosen, given):
        seen.append((chosen, given))
        return length_reward(chosen, given)

    it = trainer(reward, config=QUICK.model_copy(update={"batch_size": 6}), stop=frozenset({0, 1, END}))
    figures = it.step(0.0)
    ((chosen, given),) = seen
    ended = [response.ended for response in given]
    assert 0 < sum(ended) < 6, "the seed should give both kinds"
    lengths = [len(response.tokens) for response in given]
    assert figures["episodes"] == len(set(chosen)) == 6
    assert figures["reward"] == pytest.approx(sum(lengths) / 6)
    assert figures["response_tokens"] == pytest.approx(sum(lengths) / 6)
    assert figures["ended_share"] == sum(ended) / 6
    assert figures["score"] == pytest.approx(
        sum(length if end else -2.0 for length, end in zip(lengths, ended, strict=True)) / 6
    )
    assert 0 < figures["entropy"] <= math.log(24)
    assert figures["kl_coefficient"] == QUICK.kl_coefficient
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in figures.values())
    json.dumps(figures)


def test_a_response_that_never_ends_gets_the_missing_end_score(trainer):
    figures = trainer(lambda chosen, _: [5.0] * len(chosen), stop=frozenset()).step(0.0)
    assert (figures["reward"], figures["score"], figures["ended_share"]) == (5.0, QUICK.missing_end_score, 0.0)
    # And it is that score the update sees: with equal scores, no value and no divergence, all returns are alike.
    assert figures["explained_variance"] == pytest.approx(0.0, abs=1e-3)


def test_responses_are_the_policys_own_and_end_at_a_stop_token(trainer):
    texts = []
    it = trainer(lambda chosen, given: (texts.extend(given), length_reward(chosen, given))[1])
    it.step(0.0)
    for response in texts:
        assert 1 <= len(response.tokens) <= QUICK.max_tokens
        assert response.ended == (response.tokens[-1] == END)
        assert END not in response.tokens[:-1]


def test_only_the_policy_is_trained(trainer):
    it = trainer()
    reference = [value.clone() for value in it.reference.parameters()]
    policy = [value.detach().clone() for value in it.policy.parameters()]
    it.step(0.5)
    assert all(torch.equal(one, two) for one, two in zip(reference, it.reference.parameters(), strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(policy, it.policy.parameters(), strict=True))
    assert all(value.grad is None for value in it.policy.parameters())


def test_gradients_do_not_depend_on_the_micro_batches(trainer, monkeypatch):
    """One minibatch of everything, cut into micro-batches in different ways, gives the same gradient."""
    found = []
    for tokens in (1, 24, 10_000):
        sizes = {"micro_batch_tokens": tokens, "minibatches": 1, "epochs": 1, "batch_size": 6}
        lengths = []

        def reward(chosen, given, lengths=lengths):
            lengths.extend(len(response.tokens) for response in given)
            return length_reward(chosen, given)

        it = trainer(reward, config=QUICK.model_copy(update=sizes), stop=frozenset(range(8)))
        with monkeypatch.context() as patch:
            gradients = []
            patch.setattr(
                it.optimizer,
                "step",
                lambda _scale, it=it, out=gradients: out.extend(value.grad.clone() for value in it.policy.parameters()),
            )
            it.step(0.0)
        assert len(set(lengths)) > 2
        found.append(gradients)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_and_said(trainer, capsys):
    it = trainer(lambda chosen, _: [math.nan] * len(chosen), stop=frozenset(range(24)))
    before = [value.detach().clone() for value in it.policy.parameters()]
    it.step(0.0)
    assert all(torch.equal(one, two) for one, two in zip(before, it.policy.parameters(), strict=True))
    assert "a step was skipped" in capsys.readouterr().err


def test_observed_figures_are_added(trainer):
    it = trainer()
    it.observe = lambda chosen, given: {"seen": float(len(chosen) == len(given))}
    assert it.step(0.0)["seen"] == 1.0


def test_an_adaptive_coefficient_moves_towards_its_target(trainer):
    it = trainer(config=QUICK.model_copy(update={"kl_target": 3.0, "batch_size": 6}))
    # The divergence begins at 0, below the target, so divergence gets cheaper: by 20 % times 6 episodes in 10 000.
    assert it.step(0.0)["kl_coefficient"] == pytest.approx(QUICK.kl_coefficient * (1 - 0.2 * 6 / 10_000), rel=1e-6)


# --- order, state ----------------------------------------------------------------------------------------------------


def test_prompts_come_in_a_seeded_order_in_full_batches_and_each_at_most_once_a_round(trainer):
    orders = []
    for seed in (0, 0, 1):
        drawn = []
        it = trainer(
            lambda chosen, given, drawn=drawn: (drawn.extend(chosen), length_reward(chosen, given))[1], seed=seed
        )
        for _ in range(4):  # six prompts: one batch of four a round, the two left over are passed by
            it.step(0.0)
        assert len(drawn) == 16
        assert all(len(set(drawn[start : start + 4])) == 4 for start in range(0, 16, 4))
        assert set(drawn) == set(range(6))
        orders.append(drawn)
    assert orders[0] == orders[1] != orders[2]


def test_fewer_prompts_than_a_batch(trainer):
    assert trainer(prompts=PROMPTS[:2]).step(0.0)["episodes"] == 2
    with pytest.raises(UserError, match="PPO needs at least one prompt"):
        trainer(prompts=[])


def test_a_captured_state_goes_on_exactly(trainer):
    config = QUICK.model_copy(update={"kl_target": 3.0})
    whole = trainer(config=config)
    for step in range(5):
        expected = whole.step(step / 5)
    first = trainer(config=config)
    for step in range(2):
        first.step(step / 5)
    tensors, info = first.capture()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    info = json.loads(json.dumps(info))
    other = trainer(config=config, seed=9)
    other.step(0.0)
    other._order.seed = 0  # the seed is an option of the command, not state
    other.restore(tensors, info)
    for step in range(2, 5):
        figures = other.step(step / 5)
    assert figures == expected
    torch.testing.assert_close(other.policy.state_dict(), whole.policy.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(trainer, tmp_path, stop):
    def run(name: str, reward=length_reward, resume: bool = False) -> PPOTrainer:
        it = trainer(reward)
        folder = tmp_path / name
        states, log = TrainingStates(folder / "training"), MetricsLog(folder / "metrics.jsonl")
        Loop("ppo", Budget(steps=5), states, log, log_seconds=0.0).run(it, resume=resume)
        return it

    calls = 0

    def stopping(chosen, given):
        nonlocal calls
        calls += 1
        if calls == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return length_reward(chosen, given)

    whole = run("whole")
    with pytest.raises(Interrupted, match=f"ppo stopped at step {stop}"):
        run("stopped", stopping)
    resumed = run("stopped", resume=True)
    torch.testing.assert_close(resumed.policy.state_dict(), whole.policy.state_dict(), atol=0, rtol=0)
    logs = []
    for name in ("whole", "stopped"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 5


# --- it learns -------------------------------------------------------------------------------------------------------


def test_the_policy_learns_what_is_rewarded_and_the_leash_holds_it(tiny_transformer):
    """The reward counts one token, where the response ends; PPO raises both, unless divergence has a high price."""

    def count_threes(_chosen: list[int], given: list[Response]) -> list[float]:
        return [float(response.tokens.count(3)) for response in given]

    last = {}
    for price in (0.02, 50.0):
        model = small_model(tiny_transformer)
        model.initialise(torch.Generator().manual_seed(0))  # begins near the uniform distribution
        reference = model.inference_copy()
        policy = PolicyWithValue(model)
        config = PPOConfig(
            batch_size=32, max_tokens=8, micro_batch_tokens=150, kl_coefficient=price, missing_end_score=-1.0
        )
        optimizer = Optimizer(parameter_groups(policy, LearningRates(), 0.3))
        prompts = [[place % 20 + 1] for place in range(64)]
        it = PPOTrainer(policy, reference, prompts, count_threes, frozenset({END}), optimizer, config, seed=0)
        rows = [it.step(step / 40) for step in range(40)]
        names = ("reward", "score", "kl", "ended_share")
        last[price] = {name: sum(row[name] for row in rows[-3:]) / 3 for name in names}
        start = {name: sum(row[name] for row in rows[:3]) / 3 for name in names}
        assert start["reward"] < 0.7  # 8 tokens of 24 kinds: about a third
    assert last[0.02]["reward"] > 2.0  # other seeds: 3.3 to 5.0
    assert last[0.02]["score"] > start["score"] + 1.5
    assert last[0.02]["ended_share"] > start["ended_share"] + 0.2
    assert last[50.0]["reward"] < 0.7
    assert last[50.0]["kl"] < 0.2 < last[0.02]["kl"]


@pytest.mark.gpu
def test_an_update_runs_on_the_gpu(tiny_transformer):
    policy = PolicyWithValue(small_model(tiny_transformer).to("cuda"))
    reference = policy.transformer.inference_copy()
    optimizer = Optimizer(parameter_groups(policy, LearningRates(), 0.1))
    it = PPOTrainer(policy, reference, PROMPTS, length_reward, frozenset({END}), optimizer, QUICK, seed=0)
    figures = it.step(0.0)
    assert figures["first_ratio_deviation"] < 1e-4
    tensors, info = it.capture()
    it.restore({name: tensor.cpu() for name, tensor in tensors.items()}, info)
    assert math.isfinite(it.step(0.5)["policy_loss"])
