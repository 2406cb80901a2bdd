"""The reward model: its loss by hand, its scores whatever the padding, its normalisation, its files, its learning."""

import itertools
import json
import math
import os
import random
import signal

import pytest
import torch

from parlance.alignment.preferences import Ranking
from parlance.alignment.reward_model import (
    RankedBatches,
    RankedExample,
    RewardModel,
    RewardModelConfig,
    common_length,
    encode_rankings,
    load_reward_model,
    packed_length,
    pairwise_objective,
    ranked_batch,
    ranked_sequences,
    response_tokens,
    save_reward_model,
    train_reward_model,
)
from parlance.core.errors import Interrupted, UserError
from parlance.core.metrics import MetricsLog
from parlance.text.chat_template import encode_chat
from parlance.training.loop import Budget
from parlance.training.trainer import Trainer


@pytest.fixture
def model(tiny_transformer) -> RewardModel:
    reward = RewardModel(tiny_transformer(heads=4, kv_heads=2, head_width=8))
    reward.initialise_head(torch.Generator().manual_seed(1))
    return reward


def sequences(*lengths: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(256) for _ in range(length)] for length in lengths]


# --- scores ----------------------------------------------------------------------------------------------------------


def test_the_score_is_read_at_the_last_token(model):
    (row,) = sequences(20)
    activation = model.transformer.hidden(torch.tensor([row]))[0, -1]
    expected = float((activation @ model.score.weight[0]).detach())
    assert model.rewards([row]) == pytest.approx([expected], abs=1e-5)
    model.mean = 2.5
    assert model.rewards([row]) == pytest.approx([expected - 2.5], abs=1e-5)


def test_padding_company_and_order_do_not_change_scores(model):
    rows = sequences(3, 40, 17, 64, 1, 33)
    alone = [model.rewards([row])[0] for row in rows]
    assert model.rewards(rows) == pytest.approx(alone, abs=1e-5)
    assert model.rewards(rows[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert model.rewards(rows, batch_size=2) == pytest.approx(alone, abs=1e-5)
    assert model.rewards([]) == []
    # With and without any padding at all.
    with torch.inference_mode():
        exact = [float(model(torch.tensor([row]), torch.tensor([len(row)]))) for row in rows]
    assert exact == pytest.approx(alone, abs=1e-5)


def test_a_fresh_head_has_the_stated_spread(tiny_transformer):
    reward = RewardModel(tiny_transformer(width=1024, layers=1))
    reward.initialise_head(torch.Generator().manual_seed(0))
    assert float(reward.score.weight.detach().std()) == pytest.approx(1025**-0.5, rel=0.1)


def test_normalising_gives_mean_zero_and_deviation_one(model):
    rows = sequences(*range(1, 50))
    before = model.rewards(rows)
    model.normalise(rows)
    after = torch.tensor(model.rewards(rows), dtype=torch.float64)
    assert float(after.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(after.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    # Order and relative distances are kept.
    raw = torch.tensor(before, dtype=torch.float64)
    torch.testing.assert_close(after, (raw - raw.mean()) / raw.std(correction=0), atol=1e-5, rtol=0)
    # Once more changes nothing.
    model.normalise(rows)
    torch.testing.assert_close(torch.tensor(model.rewards(rows), dtype=torch.float64), after, atol=1e-5, rtol=0)


def test_equal_scores_are_centred_and_not_divided_by_zero(model):
    row = sequences(9)
    model.normalise(row * 3)
    assert model.rewards(row) == pytest.approx([0.0], abs=1e-6)


# --- the loss --------------------------------------------------------------------------------------------------------


def sigmoid_loss(margin: float) -> float:
    return math.log1p(math.exp(-margin))


def test_the_loss_of_four_responses_with_a_tie_by_hand(model, tiny_tokenizer):
    ranking = Ranking("Hi", ["a", "bb", "ccc", "dddd"], [2, 1, 3, 2])
    (example,), left_out = encode_rankings(tiny_tokenizer, [ranking], 64)
    assert left_out == 0
    # bb beats all, a and dddd beat ccc, a and dddd tie: five of the six pairs.
    assert example.pairs == [(1, 0), (0, 2), (1, 2), (1, 3), (3, 2)]
    a, b, c, d = model.rewards(example.sequences)
    expected = sum(map(sigmoid_loss, (b - a, a - c, b - c, b - d, d - c))) / 5
    terms = pairwise_objective(model, ranked_batch([example]))
    assert terms.count == 1
    assert float(terms.loss_sum.detach()) == pytest.approx(expected, abs=1e-5)
    correct = sum(margin > 0 for margin in (b - a, a - c, b - c, b - d, d - c)) / 5
    assert terms.metrics["accuracy"] == pytest.approx(correct)


def test_each_prompt_weighs_the_same_however_many_pairs_it_has(model):
    examples = [
        RankedExample(sequences(5, 9), [(1, 0)]),
        RankedExample(sequences(30, 4, 12, 7), list(itertools.combinations(range(4), 2))),
        RankedExample(sequences(8, 3, 3), [(0, 2), (1, 2)]),
    ]
    alone = [pairwise_objective(model, ranked_batch([example])) for example in examples]
    together = pairwise_objective(model, ranked_batch(examples))
    assert together.count == 3
    total = sum(float(terms.loss_sum.detach()) for terms in alone)
    assert float(together.loss_sum.detach()) == pytest.approx(total, abs=1e-5)
    assert together.metrics["accuracy"] == pytest.approx(sum(terms.metrics["accuracy"] for terms in alone))


def test_equal_scores_are_half_right(model):
    with torch.no_grad():
        model.score.weight.zero_()
    terms = pairwise_objective(model, ranked_batch([RankedExample(sequences(6, 3), [(0, 1)])]))
    assert terms.metrics["accuracy"] == 0.5
    assert float(terms.loss_sum.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_what_sequences_share_is_read_once():
    assert common_length([[1, 2, 3, 4], [1, 2, 5, 6]]) == 2
    assert common_length([[1, 2, 3], [1, 2, 3]]) == 2  # each keeps one token of its own
    assert common_length([[1, 2, 3, 4], [1, 2]]) == 1
    assert common_length([[1], [1, 2]]) == 0
    example = RankedExample([[1, 2, 3, 4], [1, 2, 5, 6, 7]], [(0, 1)])
    assert packed_length(example) == 7
    batch = ranked_batch([example])
    assert batch.tokens[0, :7].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert batch.layout.positions[0, :7].tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert batch.ends.tolist() == [3, 6]
    seen = [[place for place in range(7) if batch.layout.mask[0, row, place]] for row in range(7)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6]]


@pytest.mark.parametrize("shared", [0, 1, 12])
def test_packed_scores_and_gradients_are_those_of_single_sequences(model, shared):
    start = sequences(shared)[0]
    examples = [
        RankedExample([start + rest for rest in sequences(*lengths)], [(0, 1), (1, 2), (0, 2)])
        for lengths in ((5, 9, 1), (20, 3, 30), (1, 1, 1))
    ]
    expected = torch.zeros(())
    for example in examples:
        scores = [model(torch.tensor([row]), torch.tensor([len(row)]))[0] for row in example.sequences]
        for winner, loser in example.pairs:
            expected = expected - torch.nn.functional.logsigmoid(scores[winner] - scores[loser]) / 3
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    terms = pairwise_objective(model, ranked_batch(examples))
    terms.loss_sum.backward()
    torch.testing.assert_close(terms.loss_sum, expected, atol=1e-5, rtol=1e-5)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_responses_are_read_up_to_the_end_of_their_turn(tiny_tokenizer):
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    ]
    tokens = response_tokens(tiny_tokenizer, prompt, "ok")
    opened, _ = encode_chat(tiny_tokenizer, prompt, add_generation_prompt=True)
    # The very tokens that PPO samples behind the generation prompt.
    assert tokens == [*opened, *b"ok", tiny_tokenizer.end_of_turn]
    assert response_tokens(tiny_tokenizer, "Hi", "ok") == response_tokens(tiny_tokenizer, prompt[:1], "ok")


def test_a_response_that_was_cut_off_is_read_without_an_end(tiny_tokenizer):
    ranking = Ranking("hi", ["yes", "yes"], [1, 2], {"ended": [True, False]})
    whole, cut = ranked_sequences(tiny_tokenizer, ranking)
    assert whole == [*cut, tiny_tokenizer.end_of_turn]


def test_ties_and_long_responses_are_left_out(tiny_tokenizer):
    rankings = [
        Ranking("Hi", ["a", "b"], [1, 2]),
        Ranking("Hi", ["a", "b"], [1, 1]),
        Ranking("Hi", ["a" * 200, "b"], [1, 2]),
    ]
    examples, left_out = encode_rankings(tiny_tokenizer, rankings, 100)
    assert ([example.pairs for example in examples], left_out) == ([[(0, 1)]], 2)


def test_batches_go_on_where_they_were():
    examples = [RankedExample(sequences(5, length), [(0, 1)]) for length in range(3, 20)]
    batches = RankedBatches(examples, 80, seed=0)
    source = batches(None)
    drawn = [next(source) for _ in range(9)]
    batch, after = next(batches(drawn[5][1]))
    assert after == drawn[6][1]
    assert torch.equal(batch.tokens, drawn[6][0].tokens)
    assert torch.equal(batch.losers, drawn[6][0].losers)


# --- files -----------------------------------------------------------------------------------------------------------


def test_saving_and_loading_keeps_every_bit(model, tmp_path):
    model.mean = 0.123
    save_reward_model(tmp_path, model, end_of_text=256, pad=257)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["reward_mean"] == 0.123
    loaded = load_reward_model(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    rows = sequences(4, 30)
    assert loaded.rewards(rows) == model.rewards(rows)


# --- training --------------------------------------------------------------------------------------------------------


def rankings(count: int, seed: int) -> list[Ranking]:
    """The response with more "z" is better."""
    generator = random.Random(seed)
    out = []
    for _ in range(count):
        numbers = generator.sample(range(6), 3)
        texts = [
            "".join(generator.sample("abcde", 5 - number) + ["z"] * number) for number in (min(n, 5) for n in numbers)
        ]
        order = sorted(numbers, reverse=True)
        out.append(Ranking(generator.choice("pqrs"), texts, [1 + order.index(number) for number in numbers]))
    return out


@pytest.fixture
def run(tiny_transformer, tiny_tokenizer, tmp_path):
    """A function (name, budget, ...) that trains a reward model from a fresh tiny Transformer."""

    def start(name: str, budget: Budget, train: list[Ranking], validation=(), *, resume=False):
        transformer = tiny_transformer(width=64, heads=1, head_width=64)
        transformer.initialise(torch.Generator().manual_seed(0))
        folder = tmp_path / name
        return train_reward_model(
            transformer,
            tiny_tokenizer,
            train,
            folder,
            RewardModelConfig(rate_scale=0.5, tokens_per_batch=2000),
            budget,
            metrics=MetricsLog(folder / "metrics.jsonl"),
            seed=2,
            validation=validation,
            resume=resume,
        )

    return start


def test_a_simple_ranking_is_learnt(run, tiny_tokenizer, tmp_path):
    train, test = rankings(120, seed=0), rankings(60, seed=1)
    result = run("reward", Budget(steps=40), train, test)
    assert (result.steps, result.prompts, result.left_out) == (40, 120, 0)
    right = total = 0
    for example in encode_rankings(tiny_tokenizer, test, 64)[0]:
        scores = result.model.rewards(example.sequences)
        right += sum(scores[winner] > scores[loser] for winner, loser in example.pairs)
        total += len(example.pairs)
    assert right / total > 0.9
    # The responses it was trained on are the reference of its scale.
    examples, _ = encode_rankings(tiny_tokenizer, train, 64)
    scores = torch.tensor(result.model.rewards([row for example in examples for row in example.sequences]))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "reward" / "metrics.jsonl").read_text().splitlines()]
    checks = [row for row in rows if "validation_accuracy" in row]
    assert len(checks) == 4
    assert checks[-1]["validation_accuracy"] > 0.9
    assert checks[-1]["validation_loss"] < math.log(2)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(run, monkeypatch, stop):
    train = rankings(20, seed=0)
    whole = run("whole", Budget(steps=6), train)
    original, count = Trainer.step, 0

    def step(self, progress):
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Interrupted, match=f"reward stopped at step {stop}"):
            run("stopped", Budget(steps=6), train)
    resumed = run("stopped", Budget(steps=6), train, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    assert resumed.model.mean == whole.model.mean


def test_a_budget_in_time_ends_after_the_set_number_of_passes(run):
    """20 rankings in batches of up to 2000 packed tokens are one batch; one pass is one step, long before 60 s."""
    assert run("reward", Budget(seconds=60.0), rankings(20, seed=0)).steps == 1


def test_nothing_to_learn_from_is_a_user_error(run):
    tied = [Ranking("Hi", ["a", "b"], [1, 1])]
    with pytest.raises(UserError, match="none of the 1 rankings has a pair of responses that differ in rank"):
        run("reward", Budget(steps=1), tied)


def test_held_out_rankings_without_a_pair_are_no_reason_to_fail(run):
    result = run("reward", Budget(steps=1), rankings(3, seed=0), [Ranking("Hi", ["a", "b"], [1, 1])])
    assert result.steps == 1


@pytest.mark.gpu
def test_scores_and_gradients_on_the_gpu(tiny_transformer):
    rows = sequences(5, 30)
    scores = {}
    for device in ("cpu", "cuda"):
        reward = RewardModel(tiny_transformer().to(device))
        reward.initialise_head(torch.Generator().manual_seed(1))
        scores[device] = reward.rewards(rows)
        terms = pairwise_objective(reward, ranked_batch([RankedExample(rows, [(0, 1)])]))
        terms.loss_sum.backward()
        assert reward.score.weight.grad.device.type == device
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=1e-2)
