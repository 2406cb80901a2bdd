"""Pre-training end to end on a tiny corpus: pilots, prediction, size, resuming, and what is refused."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parlance.core.errors import Interrupted, UserError
from parlance.core.metrics import MetricsLog
from parlance.models.checkpoints import save_model
from parlance.scaling.frontier import Run
from parlance.scaling.pilot_law import PilotLaw
from parlance.text.token_dataset import TokenDataset, write_token_dataset
from parlance.training import dial, loop, precision, run_plan, sized_run, throughput
from parlance.training.architectures import ARCHITECTURES
from parlance.training.checkpointing import TrainingStates
from parlance.training.counted_loss import CountedLoss
from parlance.training.dial import Candidate, measured_candidates
from parlance.training.loop import Budget
from parlance.training.objectives import LossTerms, NextTokenObjective, TokenBatch, mean_loss, packed_batch
from parlance.training.parallel import ALONE
from parlance.training.pretraining import pretrain
from parlance.training.pretraining_config import PretrainingConfig, check, check_start, make_task, shape
from parlance.training.sized_run import Setting
from parlance.training.tasks import Task
from parlance.training.trainer import Trainer, TrainingConfig

CPU = torch.device("cpu")
LADDER = ARCHITECTURES["transformer"].ladder
SMALL = PretrainingConfig(
    context_length=32, layers=1, width=64, batch_size=2, validation_tokens=200, pilot_share=0.5, compile=False
)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """The same numbers on every machine."""
    monkeypatch.setattr(precision, "fast_bfloat16", lambda _device: False)


@pytest.fixture(scope="module")
def splits(tiny_tokenizer, tmp_path_factory) -> tuple[TokenDataset, TokenDataset]:
    """Documents that count upwards from a random number, in two splits."""
    generator = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        starts = generator.integers(0, 100, count)
        return [[(start + step) % 100 for step in range(60)] for start in starts.tolist()]

    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    write_token_dataset(folder, {"train": documents(60), "validation": documents(5)}, tiny_tokenizer)
    return TokenDataset.open(folder, "train"), TokenDataset.open(folder, "validation")


@pytest.fixture
def run(splits, tmp_path):
    """A function (name, budget, ...) that pre-trains in a folder of that name."""

    def start(name: str, budget: Budget, config: PretrainingConfig = SMALL, **options):
        folder = tmp_path / name
        settings = {"vocab_size": 260, "metrics": MetricsLog(folder / "metrics.jsonl"), "seed": 3, "device": CPU}
        return pretrain(*splits, folder, config, budget, **(settings | options))

    return start


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Send this process a SIGINT in the given trainer step, counted from now on."""
    original, count = Trainer.step, 0

    def step(self: Trainer, progress: float) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, progress)

    monkeypatch.setattr(Trainer, "step", step)


def task_of(config: PretrainingConfig) -> Task:
    """What a model of one block is trained on."""
    return make_task(config, shape(1, 64, 260, config), 260)


def metrics(folder: Path) -> list[dict]:
    """The rows of the log without what the clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = {"seconds", "tokens_per_second", "mfu"}
    return [{key: value for key, value in row.items() if key not in clock} for row in rows if "validation_loss" in row]


def without_clock(prediction: dict) -> dict:
    """A prediction without the seconds that its pilots took."""
    pilots = [{key: value for key, value in pilot.items() if key != "seconds"} for pilot in prediction["pilot"]]
    return prediction | {"pilot": pilots}


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_pilots_predict_and_the_run_reaches(run, splits, tmp_path, capsys):
    result = run("base", Budget(steps=40), SMALL.model_copy(update={"pilot_share": 0.33}))
    prediction = result.prediction
    # A third of 40 steps, of which the pilots take a seventh, two and four; rounded down.
    assert [point["x"] for point in prediction["pilot"]] == [1 * 64, 3 * 64, 7 * 64]
    assert prediction["planned_x"] == pytest.approx(40 * 64)
    assert prediction["reached_x"] == result.tokens == 40 * 64
    assert prediction["low"] < prediction["predicted_loss"] < prediction["high"]
    losses = [point["loss"] for point in prediction["pilot"]]
    assert math.log(260) > losses[0] > losses[1] > losses[2] > prediction["reached_loss"]
    assert prediction["curve"][-1] == [prediction["planned_x"], prediction["predicted_loss"]]
    assert prediction["curve"][0][0] == 64
    # The law of the pilots, beside what counting reaches.
    counted = CountedLoss(*splits, tokens=200, window=32, seed=3)
    runs = [Run(point["parameters"], point["x"], point["loss"]) for point in prediction["pilot"]]
    law = PilotLaw.fit(runs, [counted(run.tokens) for run in runs], counted.copying())
    assert prediction["predicted_loss"] == law.interval(runs[0].parameters, 2560, counted(2560)).value
    assert result.choices == ["1 layers of width 64: as asked"]
    assert not result.compiled
    told = capsys.readouterr().err
    assert f"predicted validation loss {prediction['predicted_loss']:.3f} (95 % interval" in told
    # Four validations on the way, evenly; the last row is the last step.
    assert [row["step"] for row in metrics(tmp_path / "base")] == [8, 16, 24, 32]
    # The model that comes back is the one that was measured.
    checks = task_of(SMALL).validation(splits[1], SMALL.validation_tokens, CPU)
    assert mean_loss(result.model, checks) == prediction["reached_loss"]


def test_the_pilots_do_not_change_the_run(run):
    with_pilots = run("a", Budget(steps=6))
    without = run("b", Budget(steps=6), SMALL.model_copy(update={"pilot_share": 0.0}))
    assert without.prediction is None
    torch.testing.assert_close(with_pilots.model.state_dict(), without.model.state_dict(), atol=0, rtol=0)


def test_seeds_decide(run):
    budget, quick = Budget(steps=3), SMALL.model_copy(update={"pilot_share": 0.0})
    one, same, other = (run(name, budget, quick, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    torch.testing.assert_close(one.model.state_dict(), same.model.state_dict(), atol=0, rtol=0)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


@pytest.mark.parametrize(("steps", "lengths"), [(1, []), (8, []), (40, [1, 2]), (70, [1, 2, 4])])
def test_pilots_take_no_more_than_their_share(run, steps, lengths, capsys):
    result = run("base", Budget(steps=steps), SMALL.model_copy(update={"pilot_share": 0.1}))
    assert (result.prediction is None) == (not lengths)
    assert result.tokens == steps * 64
    if lengths:
        assert sorted({point["steps"] for point in result.prediction["pilot"]}) == lengths
        assert sum(lengths) <= 0.1 * steps
    else:
        assert "no prediction: the budget is too small for pilots" in capsys.readouterr().err


@pytest.fixture
def step_seconds(monkeypatch):
    """A function that sets how long a step takes on a clock that nothing else moves."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, original, length = Clock(), Trainer.step, [1.0]

    def step(self: Trainer, progress: float) -> dict[str, float]:
        clock.now += length[0]
        return original(self, progress)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(run_plan, "time", clock)
    return lambda seconds: length.__setitem__(0, seconds)


def test_a_budget_in_seconds_pays_for_its_pilots(run, step_seconds):
    """At one second a step, half of 42 seconds are 3, 6 and 12 steps of pilots, and 21 are left for the run."""
    step_seconds(1.0)
    prediction = run("base", Budget(seconds=42.0)).prediction
    assert [point["x"] for point in prediction["pilot"]] == [3 * 64, 6 * 64, 12 * 64]
    assert prediction["planned_x"] == prediction["reached_x"] == 21 * 64


@pytest.mark.parametrize(("stop", "step"), [(2, 2), (3, 3), (4, 1), (17, 8)])
def test_a_pilot_that_was_stopped_is_paid_once(run, step_seconds, monkeypatch, stop, step):
    step_seconds(1.0)
    with monkeypatch.context() as patch:
        stop_in_step(patch, stop)
        with pytest.raises(Interrupted, match=f"pilot stopped at step {step}; its state is"):
            run("base", Budget(seconds=42.0))
    prediction = run("base", Budget(seconds=42.0), resume=True).prediction
    assert [point["x"] for point in prediction["pilot"]] == [3 * 64, 6 * 64, 12 * 64]
    assert prediction["planned_x"] == pytest.approx(21 * 64, rel=0.01)
    assert prediction["reached_x"] == 21 * 64


def test_pilots_survive_any_number_of_stops(run, monkeypatch):
    """A run that is stopped in every second step ends, and as if it had not been stopped."""
    whole = run("whole", Budget(steps=14))
    for attempt in range(6):
        with monkeypatch.context() as patch:
            stop_in_step(patch, 2)
            with pytest.raises(Interrupted):
                run("stopped", Budget(steps=14), resume=attempt > 0)
    resumed = run("stopped", Budget(steps=14), resume=True)
    assert without_clock(resumed.prediction) == without_clock(whole.prediction)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)


def test_pilots_of_several_sizes_choose_one_and_predict_it(run, step_seconds, monkeypatch, tmp_path, capsys):
    """The size that the speeds suggest and its neighbours; a resumed run measures and chooses nothing anew."""
    step_seconds(1.0)
    speeds = {64: 1e-4, 128: 1e-3, 192: 1.0}
    monkeypatch.setattr(dial, "seconds_per_token", lambda model, _objective, _batch: speeds[model.config.width])
    free = SMALL.model_copy(update={"layers": None, "width": None, "tokens_per_parameter": 1e-2})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 10)
        with pytest.raises(Interrupted):
            run("base", Budget(seconds=56.0), free)
    monkeypatch.delattr(dial, "seconds_per_token")
    prediction = run("base", Budget(seconds=56.0), free, resume=True).prediction
    plan = json.loads((tmp_path / "base" / "training" / "plan.json").read_text())
    assert [candidate["name"] for candidate in plan["candidates"]] == [
        "1 layers of width 64",
        "2 layers of width 128",
        "3 layers of width 192",
    ]
    # 28 seconds of pilots in seven parts.
    assert [(pilot["candidate"], pilot["steps"]) for pilot in plan["pilots"]] == [(0, 4), (1, 8), (1, 16)]
    assert "seconds_per_token" in plan["candidates"][0]
    chosen = plan["candidates"][plan["chosen"]]
    told = capsys.readouterr().err
    assert f"{chosen['name']}: pilots predict {prediction['predicted_loss']:.3f} nats per token for it" in told
    assert len(prediction["pilot"]) + len(prediction["others"]) == 3
    # By its speed: the first size is ten times as fast as the second, the third a thousand times as slow.
    assert prediction["planned_x"] == pytest.approx(28 * 64 * {0: 10.0, 1: 1.0, 2: 1e-3}[plan["chosen"]])
    assert prediction["reached_x"] == 28 * 64
    others = told.split("for it (")[1].split(")")[0].split(", ")
    assert len(others) == 2
    assert all(prediction["predicted_loss"] < float(other.split()[-1]) + 1e-3 for other in others)


def test_pilots_that_take_longer_than_planned_are_left_out(run, step_seconds, monkeypatch, capsys):
    step_seconds(30.0)
    monkeypatch.setattr(dial, "seconds_per_token", lambda model, *_: model.matrix_parameters() * 1e-8)
    free = SMALL.model_copy(update={"layers": None, "width": None, "tokens_per_parameter": 1e-3})
    result = run("base", Budget(seconds=40.0), free)
    assert len(result.prediction["pilot"] + result.prediction["others"]) == 1
    assert result.tokens == 64
    assert "pilots take longer than planned: the rest of them is left out" in capsys.readouterr().err


def test_with_a_budget_in_seconds_the_size_is_chosen_by_measuring(run, step_seconds, monkeypatch):
    step_seconds(1.0)
    monkeypatch.setattr(
        dial, "seconds_per_token", lambda model, _objective, _batch: model.config.matrix_parameters() * 2e-11
    )
    free = SMALL.model_copy(update={"layers": None, "width": None, "pilot_share": 0.0, "tokens_per_parameter": 0.5})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Interrupted):
            run("base", Budget(seconds=3.0), free)
    # A resumed run keeps the size, even where the machine is slower now.
    monkeypatch.setattr(dial, "seconds_per_token", lambda _model, _objective, _batch: 1e9)
    result = run("base", Budget(seconds=3.0), free, resume=True)
    fitting = [rung for rung in LADDER if 3.0 / (shape(*rung, 260, SMALL).matrix_parameters() ** 2 * 2e-11) >= 0.5]
    assert (result.model.config.layers, result.model.config.width) == fitting[-1] != LADDER[0]
    assert result.tokens == 3 * 64
    assert "tokens/s (measured)" in result.choices[0]


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 6, 9, 18], ids=["first", "second", "third pilot", "run", "late in the run"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch, stop):
    """14 steps; the pilots take steps 1, 2 to 3 and 4 to 7 of the process, the run the 14 behind them."""
    whole = run("whole", Budget(steps=14))
    with monkeypatch.context() as patch:
        stop_in_step(patch, stop)
        with pytest.raises(Interrupted):
            run("stopped", Budget(steps=14))
    trained = []
    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, progress: trained.append(progress) or original(self, progress))
    resumed = run("stopped", Budget(steps=14), resume=True)
    # What was done is not done again, in pilots neither.
    assert len(trained) == 7 + 14 - stop
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    assert without_clock(resumed.prediction) == without_clock(whole.prediction)
    assert (resumed.tokens, resumed.choices) == (whole.tokens, whole.choices)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_a_run_in_bfloat16_resumes_exactly_too(run, monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda _device: True)
    quick = SMALL.model_copy(update={"pilot_share": 0.0})
    whole = run("whole", Budget(steps=6), quick)
    assert whole.model.compute_dtype == torch.bfloat16
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3)
        with pytest.raises(Interrupted):
            run("stopped", Budget(steps=6), quick)
    resumed = run("stopped", Budget(steps=6), quick, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)


def test_a_run_may_be_killed_again_and_again(run, monkeypatch):
    quick = SMALL.model_copy(update={"pilot_share": 0.0})
    whole = run("whole", Budget(steps=9), quick)
    for attempt in range(4):
        with monkeypatch.context() as patch:
            stop_in_step(patch, 2)
            with pytest.raises(Interrupted):
                run("stopped", Budget(steps=9), quick, resume=attempt > 0)
    resumed = run("stopped", Budget(steps=9), quick, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)


def test_a_new_run_in_the_same_folder_forgets_the_old_one(run, monkeypatch):
    quick = SMALL.model_copy(update={"pilot_share": 0.0})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Interrupted):
            run("base", Budget(steps=5), quick, seed=8)
    again, fresh = run("base", Budget(steps=5), quick), run("fresh", Budget(steps=5), quick)
    torch.testing.assert_close(again.model.state_dict(), fresh.model.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "budget", "seed", "told"),
    [
        ({"batch_size": 4}, Budget(steps=5), 3, "config.batch_size 2 -> 4"),
        ({"training": TrainingConfig(clip=2.0)}, Budget(steps=5), 3, "config.training.clip 1.0 -> 2.0"),
        ({}, Budget(steps=6), 3, "budget.steps 5 -> 6"),
        ({}, Budget(steps=5, until_loss=2.0), 3, "budget.until_loss none -> 2.0"),
        ({}, Budget(steps=5), 4, "seed 3 -> 4"),
    ],
)
def test_a_resume_with_another_configuration_says_what_has_changed(run, monkeypatch, changes, budget, seed, told):
    quick = SMALL.model_copy(update={"pilot_share": 0.0})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Interrupted):
            run("base", Budget(steps=5), quick)
    with pytest.raises(UserError, match=f"was begun with another configuration: {told}; resume it as it was"):
        run("base", budget, quick.model_copy(update=changes), seed=seed, resume=True)
    assert run("base", Budget(steps=5), quick, resume=True).steps == 5


@pytest.mark.parametrize(
    ("damage", "told"), [("{}", "it lacks asked, candidates"), (None, "is missing beside its resume")]
)
def test_a_plan_that_is_damaged_or_gone_costs_no_states(run, monkeypatch, tmp_path, damage, told):
    quick = SMALL.model_copy(update={"pilot_share": 0.0})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3)
        with pytest.raises(Interrupted):
            run("stopped", Budget(steps=8), quick)
    plan = tmp_path / "stopped" / "training" / "plan.json"
    plan.unlink()
    if damage is not None:
        plan.write_text(damage)
    with pytest.raises(UserError, match=told):
        run("stopped", Budget(steps=8), quick, resume=True)
    assert list(plan.parent.glob("step-*/state.json"))


# --- until a loss, tokens, samples, averages, events ----------------------------------------------------------------


def test_training_until_a_loss_is_reached(run, splits, capsys):
    quick = SMALL.model_copy(update={"pilot_share": 0.0, "validations": 0})
    result = run("base", Budget(steps=300, until_loss=4.2), quick)
    assert result.target["reached"]
    assert result.steps < 300
    # The loss over all of the split, each target once, counted apart from the run's own code.
    tokens = torch.from_numpy(splits[1].tokens[: len(splits[1].tokens)].astype("int64"))
    total = 0.0
    for start in range(0, len(tokens) - 1, 32):
        window = tokens[start : start + 33]
        logits, _ = result.model.forward(window[:-1].unsqueeze(0))
        total += float(torch.nn.functional.cross_entropy(logits[0], window[1:], reduction="sum").detach())
    whole = total / (len(tokens) - 1)
    assert result.target == {"loss": 4.2, "reached": True, "whole_validation_loss": pytest.approx(whole, rel=1e-5)}
    assert whole <= 4.2
    assert f"training reached the loss 4.2: {whole:.4f} nats per token over the whole" in capsys.readouterr().err
    short = run("short", Budget(steps=3, until_loss=0.5), quick)
    assert (short.target["reached"], short.steps) == (False, 3)


def test_a_budget_in_tokens_is_that_many_steps(run):
    config = SMALL.model_copy(update={"pilot_share": 0.4})
    by_tokens, by_steps = run("tokens", Budget(tokens=20 * 64), config), run("steps", Budget(steps=20), config)
    assert by_tokens.steps == 20
    assert by_tokens.prediction["planned_x"] == by_steps.prediction["planned_x"] == by_tokens.tokens
    torch.testing.assert_close(by_tokens.model.state_dict(), by_steps.model.state_dict(), atol=0, rtol=0)


def test_samples_are_written_at_each_validation_and_not_twice(run, tmp_path, monkeypatch):
    quick = SMALL.model_copy(update={"pilot_share": 0.0, "sample_tokens": 7})
    lengths = []

    def sample(model, tokens):
        lengths.append(tokens)
        return f"{float(model.lm_head.weight.detach().sum()):.6f}"

    run("whole", Budget(steps=10), quick, sample=sample)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Interrupted):
            run("stopped", Budget(steps=10), quick, sample=sample)
    run("stopped", Budget(steps=10), quick, sample=sample, resume=True)
    whole, stopped = ((tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "stopped"))
    assert stopped == whole
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [2, 4, 6, 8]
    assert set(lengths) == {7}
    run("none", Budget(steps=10), quick.model_copy(update={"sample_tokens": 0}), sample=sample)
    assert not (tmp_path / "none" / "samples.jsonl").exists()


def test_figures_of_the_log(run, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "WORTH_SECONDS", 0.0)
    quick = SMALL.model_copy(update={"pilot_share": 0.0, "tensorboard": True})
    run("base", Budget(steps=10), quick)
    rows = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["tokens"] == row["step"] * 64
        assert row["tokens_per_second"] > 0
        assert 0 < row["mfu"] < 1
        for dataset, prefix in zip(splits, ("", "validation_"), strict=True):
            nats = row[f"{prefix}loss"] * len(dataset.tokens) / dataset.text_bytes if f"{prefix}loss" in row else None
            assert row.get(f"{prefix}bits_per_byte") == (nats and pytest.approx(nats / math.log(2)))
    assert len(list((tmp_path / "base" / "tensorboard").iterdir())) == 1


def test_mfu_counts_by_one_definition(run, monkeypatch):
    """6 N + 12 L H E T of the windows that are trained on, over the peak."""
    counted = []
    monkeypatch.setattr(
        sized_run, "Speed", lambda flops, *rest: counted.append(flops) or throughput.Speed(flops, *rest)
    )
    quick = SMALL.model_copy(update={"pilot_share": 0.0, "training_length": 8})
    model = run("base", Budget(steps=1), quick).model
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    assert counted == [6 * sum(p.numel() for p in matrices) + 12 * 1 * 64 * 8]


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_a_loss_over_masks_is_no_bits_per_byte(run, tmp_path, kind):
    values = {"rates": ARCHITECTURES[kind].rates, "architecture": kind, "pilot_share": 0.0}
    result = run("base", Budget(steps=2, until_loss=1e-3), SMALL.model_copy(update=values | {"batch_size": 50}))
    rows = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    assert "validation_loss" in rows[-1] or "loss" in rows[-1]
    assert not [name for row in rows for name in row if "bits" in name]
    # The split is less than one batch of 50, and yet all of it is measured.
    assert 1e-3 < result.target["whole_validation_loss"] < 10


def test_the_average_is_what_is_validated_and_kept(run, splits):
    config = SMALL.model_copy(update={"training": TrainingConfig(average=0.9), "pilot_share": 0.3})
    result, plain = run("average", Budget(steps=20), config), run("plain", Budget(steps=20))
    checks = task_of(SMALL).validation(splits[1], SMALL.validation_tokens, CPU)
    assert mean_loss(result.model, checks) == pytest.approx(result.prediction["reached_loss"])
    assert not torch.equal(result.model.lm_head.weight, plain.model.lm_head.weight)


def test_fp16_is_refused_without_cuda(run):
    with pytest.raises(UserError, match="precision fp16 is for CUDA devices"):
        run("base", Budget(steps=1), SMALL.model_copy(update={"training": TrainingConfig(precision="fp16")}))


def test_tokens_of_another_tokenizer_are_refused(run, splits, monkeypatch):
    with pytest.raises(UserError, match="were made with a vocabulary of 260, and the tokenizer has 300"):
        run("base", Budget(steps=1), vocab_size=300)
    monkeypatch.setitem(splits[0].info, "vocab_size", 50)
    monkeypatch.setitem(splits[1].info, "vocab_size", 50)
    with pytest.raises(UserError, match=r"the train tokens in .* hold the token 256, outside the vocabulary of 50"):
        run("base", Budget(steps=1), vocab_size=50)


def test_a_checkpoint_of_another_tokenizer_is_not_continued(run, tiny_transformer, tmp_path):
    save_model(tmp_path / "first", tiny_transformer(vocab_size=100, context_length=32), end_of_text=0, pad=0)
    with pytest.raises(UserError, match=r"first has 100 tokens and the tokenizer 260: take the tokenizer that the"):
        run("base", Budget(steps=1), initial=tmp_path / "first")


def test_a_run_that_diverges_ends_with_its_good_states_and_the_batch_that_did_it(run, tmp_path, monkeypatch, capsys):
    original, calls = NextTokenObjective.__call__, []

    def broken(self, model, batch):
        terms = original(self, model, batch)
        if torch.is_grad_enabled():
            calls.append(batch)
        return terms if len(calls) <= 5 else LossTerms(terms.loss_sum * math.nan, terms.count)

    monkeypatch.setattr(NextTokenObjective, "__call__", broken)
    quick = SMALL.model_copy(update={"pilot_share": 0.0, "validations": 0})
    with pytest.raises(UserError, match=r"20 steps in a row were skipped, the last \(step 25\) because its loss"):
        run("base", Budget(steps=100), quick, checkpoint_seconds=0.0, decode=lambda tokens: f"{len(tokens)} tokens")
    assert TrainingStates(tmp_path / "base" / "training").latest()[0] in (4, 5)
    (file,) = (tmp_path / "base" / "anomalies").iterdir()
    saved = json.loads(file.read_text())
    assert (saved["step"], saved["text"]) == (6, ["32 tokens"] * 2)
    assert saved["tokens"] == calls[5].inputs.tolist()
    assert str(file) in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["skipped"], row["loss"]) for row in rows if "skipped" in row] == [(n, None) for n in range(1, 20)]


def test_a_batch_that_does_not_fit_is_halved_and_the_run_goes_on(run, monkeypatch, capsys):
    """The allocator refuses every batch of two rows: in training, in pilots and in validation."""
    original = NextTokenObjective.__call__

    def refuse(self, model, batch):
        if len(batch) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(self, model, batch)

    whole = run("whole", Budget(steps=12), SMALL)
    capsys.readouterr()
    monkeypatch.setattr(NextTokenObjective, "__call__", refuse)
    halved = run("halved", Budget(steps=12), SMALL)
    assert capsys.readouterr().err.count("each micro-batch of 2 rows is divided into 2") == 1
    assert halved.tokens == whole.tokens
    assert halved.prediction["reached_loss"] == pytest.approx(whole.prediction["reached_loss"], rel=1e-3)


# --- size ------------------------------------------------------------------------------------------------------------


def setting_of(splits, config: PretrainingConfig, folder: Path) -> Setting:
    """What a run of one process is given."""
    return Setting(*splits, folder, config, 260, 0, CPU, torch.float32, None, ALONE, math.inf, None, None)


def sized(splits, config: PretrainingConfig, seconds: float) -> tuple[Any, str]:
    """The configuration that the speeds alone choose, and why."""
    found, middle, reason = measured_candidates(setting_of(splits, config, Path("none")), seconds)
    assert len(found) <= 3
    return shape_of(found[middle], config), reason


def shape_of(candidate: Candidate, config: PretrainingConfig) -> Any:
    """A candidate's configuration."""
    return ARCHITECTURES[config.architecture].configuration.model_validate(candidate.model)


def test_larger_budgets_get_larger_models(splits, monkeypatch):
    """With a speed that falls with the size as a nanosecond a parameter, the right rung is known by hand."""
    monkeypatch.setattr(dial, "seconds_per_token", lambda model, *_: model.matrix_parameters() * 1e-9)
    monkeypatch.setattr(Setting, "fresh", lambda _self, config: config)
    chosen = []
    for seconds in (1e-3, 1.0, 100.0, 1e4, 1e9):
        half = PretrainingConfig(context_length=32, batch_size=2, tokens_per_parameter=0.5)
        config, reason = sized(splits, half, seconds)
        rung = (config.layers, config.width)
        # tokens / N = seconds / (N^2 * 1e-9) must be at least 0.5.
        fitting = [
            (layers, width)
            for layers, width in LADDER
            if seconds / (shape(layers, width, 260, SMALL).matrix_parameters() ** 2 * 1e-9) >= 0.5
        ]
        assert rung == (fitting[-1] if fitting else LADDER[0])
        assert f"{config.layers} layers of width {config.width}" in reason
        chosen.append(LADDER.index(rung))
    assert chosen == sorted(chosen)
    assert len(set(chosen)) >= 4
    assert chosen[0] == 0
    assert chosen[-1] == len(LADDER) - 1


def test_measuring_stops_at_the_first_size_that_is_too_slow(splits, monkeypatch):
    measured = []

    def slow(model, _objective, _batch) -> float:
        measured.append(model.config.layers)
        return 1.0

    monkeypatch.setattr(dial, "seconds_per_token", slow)
    config, _ = sized(splits, PretrainingConfig(context_length=32), 10.0)
    assert (config.layers, measured) == (1, [1, 2])


def test_speed_is_positive_and_leaves_no_gradient(tiny_transformer, splits):
    model, batch = tiny_transformer(), task_of(SMALL).validation(splits[1], SMALL.validation_tokens, CPU)[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 0 < dial.seconds_per_token(model, NextTokenObjective(), batch) < 1
    assert all(value.grad is None for value in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)


def test_a_shape_has_heads_of_64():
    llama = PretrainingConfig(model={"qk_norm": False, "tie_embeddings": True}, context_length=100)
    config = shape(3, 192, 4096, llama)
    assert (config.layers, config.width, config.heads, config.head_width) == (3, 192, 3, 64)
    assert (config.vocab_size, config.context_length) == (4096, 100)
    assert (config.qk_norm, config.tie_embeddings) == (False, True)


# --- validation, continuing ------------------------------------------------------------------------------------------


def test_validation_reads_the_split_in_order_and_each_target_once(splits):
    _, validation = splits
    batches = task_of(SMALL).validation(validation, SMALL.validation_tokens, CPU)
    count = (200 // 32) // 2 * 2
    inputs = torch.cat([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert {tuple(batch.inputs.shape) for batch in batches} == {(2, 32)}
    assert inputs.flatten().tolist() == validation.tokens[: count * 32].tolist()
    assert targets.flatten().tolist() == validation.tokens[1 : count * 32 + 1].tolist()
    # A split of one window, and one batch larger than the split.
    few = SMALL.model_copy(update={"validation_tokens": 40, "batch_size": 8})
    (batch,) = task_of(few).validation(validation, few.validation_tokens, CPU)
    assert tuple(batch.inputs.shape) == (1, 32)


def test_a_checkpoint_is_continued(run, tmp_path):
    quick = SMALL.model_copy(update={"pilot_share": 0.0})
    first = run("first", Budget(steps=20), quick)
    save_model(tmp_path / "saved", first.model, end_of_text=256, pad=257)
    second = run(
        "second", Budget(steps=1), quick.model_copy(update={"layers": None, "width": None}), initial=tmp_path / "saved"
    )
    assert second.model.config.width == 64
    assert "which this run continues" in second.choices[0]
    start = json.loads((tmp_path / "second" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert start < 0.8 * math.log(260)


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        ({"context_length": 100_000}, Budget(steps=1), "the training split has .* less than one context of 100000"),
        ({"context_length": 1000}, Budget(steps=1), "the validation split has 305 tokens, less than one context"),
        ({"layers": None}, Budget(steps=1), "set both layers and width, or neither"),
        (
            {"layers": None, "width": None},
            Budget(steps=1),
            "with a budget in steps or tokens, set the model's layers and width",
        ),
        ({"width": 100}, Budget(steps=1), "width 100 is not a multiple of 64"),
        ({}, Budget(), "give a budget above zero, in steps, in seconds or in tokens"),
    ],
)
def test_what_cannot_be_done_is_a_user_error(run, changes, budget, message):
    with pytest.raises(UserError, match=message):
        run("base", budget, SMALL.model_copy(update={"pilot_share": 0.0, **changes}))


def test_packed_documents_train_and_resume_exactly(run, monkeypatch):
    config = SMALL.model_copy(update={"packing": "best-fit", "pilot_share": 0.0})
    whole = run("whole", Budget(steps=6), config)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3)
        with pytest.raises(Interrupted):
            run("stopped", Budget(steps=6), config)
    resumed = run("stopped", Budget(steps=6), config, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    stream = run("stream", Budget(steps=6), SMALL.model_copy(update={"pilot_share": 0.0}))
    assert not torch.equal(stream.model.embed_tokens.weight, whole.model.embed_tokens.weight)


def test_packed_documents_do_not_see_each_other(splits, tiny_transformer):
    model = tiny_transformer(context_length=64)
    rows, _ = next(splits[0].packed_batches(2, 64, seed=0))
    assert len(np.unique(rows.documents[0])) > 1
    together = NextTokenObjective()(model, packed_batch(rows, CPU))
    alone = 0.0
    for row in range(2):
        for document in np.unique(rows.documents[row]):
            here = rows.documents[row] == document
            batch = TokenBatch(
                torch.from_numpy(rows.inputs[row, here][None]), torch.from_numpy(rows.targets[row, here][None])
            )
            alone += NextTokenObjective()(model, batch).loss_sum.item()
    assert together.loss_sum.item() == pytest.approx(alone, rel=1e-5)


# --- other kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "recurrent-attention"])
def test_noise_is_resumed_exactly(run, splits, tmp_path, monkeypatch, kind):
    values = {"rates": ARCHITECTURES[kind].rates, "architecture": kind, "pilot_share": 0.0}
    config = SMALL.model_copy(update=values)
    whole = run("whole", Budget(steps=9), config)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        with pytest.raises(Interrupted):
            run("stopped", Budget(steps=9), config)
    resumed = run("stopped", Budget(steps=9), config, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    task = make_task(config, whole.model.config, 260)
    loss = mean_loss(whole.model, task.validation(splits[1], 200, CPU), task.objective)
    assert 4.0 < loss < math.log(260)  # it has begun to learn


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "recurrent-attention"])
def test_every_kind_is_sized_by_a_time_budget(splits, monkeypatch, kind):
    monkeypatch.setattr(dial, "seconds_per_token", lambda *_arguments: 1e-6)
    config = SMALL.model_copy(update={"architecture": kind, "layers": None, "width": None})
    for seconds, rung in ((1e-6, 0), (1e9, -1)):
        if rung == -1:
            # The largest are only compared, never made.
            monkeypatch.setattr(Setting, "fresh", lambda *_arguments: Featherweight())
        chosen, reason = sized(splits, config, seconds)
        layers, width = ARCHITECTURES[kind].ladder[rung]
        assert chosen == shape(layers, width, 260, config)
        assert reason.startswith(f"{layers} layers of width {width}: this machine trains it at 1,000,000 tokens/s")


class Featherweight:
    """A model of one parameter."""

    def matrix_parameters(self) -> int:
        return 1


def test_noise_needs_a_stream_and_rows_of_its_own():
    for kind in ("encoder", "encoder-decoder"):
        config = SMALL.model_copy(update={"architecture": kind, "packing": "best-fit"})
        with pytest.raises(UserError, match=f"a model of the kind {kind} reads windows of a stream: set packing=stre"):
            task_of(config)
    encoder = SMALL.model_copy(update={"architecture": "encoder"})
    with pytest.raises(UserError, match="the encoder has 261 tokens and the tokenizer 300: there is none for the mask"):
        make_task(encoder, shape(1, 64, 260, encoder), 300)
    with pytest.raises(UserError, match="only a Transformer without dilated attention reads packed documents"):
        check(encoder.model_copy(update={"packing": "best-fit"}))


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        ({"layers": None}, Budget(steps=1), "set both layers and width, or neither"),
        ({"layers": None, "width": None}, Budget(tokens=1), "with a budget in steps or tokens, set the model's layers"),
        ({"training": TrainingConfig(precision="fp16")}, Budget(steps=1), "precision fp16 is for CUDA devices"),
        ({"architecture": "encoder", "training_length": 8}, Budget(steps=1), "leave out training_length"),
        ({}, Budget(steps=0), "give a budget above zero"),
    ],
)
def test_what_cannot_be_is_refused_before_the_text_is_read(changes, budget, message):
    check_start(SMALL, Budget(steps=1), CPU)
    with pytest.raises(UserError, match=message):
        check_start(SMALL.model_copy(update=changes), budget, CPU)
