"""Fine-tuning: which tokens are in the loss, what fits, exact resuming, and that a tiny model learns an answer."""

import json
import os
import signal

import pytest
import torch

from parlance.core.errors import Interrupted, UserError
from parlance.core.metrics import MetricsLog
from parlance.finetuning.demonstrations import Demonstration
from parlance.finetuning.supervised import (
    Example,
    ExampleBatches,
    FinetuningConfig,
    encode_demonstrations,
    example_batch,
    finetune,
)
from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.text.chat_template import encode_chat
from parlance.training.loop import Budget
from parlance.training.objectives import IGNORE, NextTokenObjective
from parlance.training.trainer import Trainer

QUESTIONS = [
    Demonstration.of(question, answer)
    for question, answer in (("a?", "one"), ("b?", "two"), ("c?", "three"), ("d?", "four"), ("ee ee ee?", "five"))
]


def turns(*contents: str) -> Demonstration:
    roles = ("user", "assistant")
    return Demonstration([{"role": roles[place % 2], "content": text} for place, text in enumerate(contents)])


# --- encoding --------------------------------------------------------------------------------------------------------


def test_targets_are_the_assistants_words_and_their_end(tiny_tokenizer):
    examples, too_long = encode_demonstrations(tiny_tokenizer, [turns("Hi", "Yo", "Bye", "Ok")], 200)
    assert too_long == 0
    batch = example_batch(examples, tiny_tokenizer.pad)
    targets, inputs = batch.targets[0].tolist(), batch.inputs[0].tolist()
    end = tiny_tokenizer.end_of_turn
    assert [token for token in targets if token != IGNORE] == [*b"Yo", end, *b"Ok", end]
    # Each target is the next token of the conversation, and the row ends with the last answer's end.
    tokens, _ = encode_chat(tiny_tokenizer, turns("Hi", "Yo", "Bye", "Ok").messages)
    length = len(tokens) - 2  # the newline behind the last turn teaches nothing
    assert inputs[:length] == tokens[:length]
    for place, target in enumerate(targets[:length]):
        assert target in (IGNORE, tokens[place + 1])
    assert targets[length:] == [IGNORE] * (len(targets) - length)
    assert inputs[length:] == [tiny_tokenizer.pad] * (len(inputs) - length)


def test_a_conversation_fits_where_its_inputs_fit(tiny_tokenizer):
    demonstration = turns("Hi", "Yo")
    tokens, mask = encode_chat(tiny_tokenizer, demonstration.messages)
    inputs = max(place for place, flag in enumerate(mask) if flag)
    assert encode_demonstrations(tiny_tokenizer, [demonstration], inputs) == ([Example(tokens[:-1], mask[:-1])], 0)
    assert encode_demonstrations(tiny_tokenizer, [demonstration], inputs - 1) == ([], 1)


def test_padding_does_not_change_the_loss(tiny_tokenizer, tiny_transformer):
    examples, _ = encode_demonstrations(tiny_tokenizer, QUESTIONS, 64)
    model, objective = tiny_transformer(), NextTokenObjective()
    together = objective(model, example_batch(examples, tiny_tokenizer.pad))
    alone = [objective(model, example_batch([example], tiny_tokenizer.pad)) for example in examples]
    assert together.count == sum(terms.count for terms in alone)
    assert float(together.loss_sum.detach()) == pytest.approx(
        sum(float(terms.loss_sum.detach()) for terms in alone), rel=1e-5
    )


def test_batches_go_on_where_they_were(tiny_tokenizer):
    examples, _ = encode_demonstrations(tiny_tokenizer, QUESTIONS, 64)
    batches = ExampleBatches(examples, 60, tiny_tokenizer.pad, seed=1)
    source = batches(None)
    drawn = [next(source) for _ in range(7)]
    batch, after = next(batches(drawn[3][1]))
    assert after == drawn[4][1]
    assert torch.equal(batch.inputs, drawn[4][0].inputs)
    rows = [row for batch in batches.once() for row in batch.inputs.tolist()]
    assert len(rows) == len(QUESTIONS)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_transformer, tiny_tokenizer, tmp_path):
    """A function (name, budget, ...) -> (model, result) that fine-tunes a fresh tiny model."""

    def start(name: str, budget: Budget, *, train=QUESTIONS, validation=QUESTIONS[:2], resume=False, **changes):
        model = tiny_transformer(context_length=128, width=64, heads=1, head_width=64)
        model.initialise(torch.Generator().manual_seed(0))
        folder = tmp_path / name
        config = FinetuningConfig(**({"tokens_per_batch": 150, "rate_scale": 1.0} | changes))
        log = MetricsLog(folder / "metrics.jsonl")
        result = finetune(
            model, tiny_tokenizer, train, validation, folder, config, budget, metrics=log, seed=5, resume=resume
        )
        return model, result

    return start


def test_a_tiny_model_learns_its_answers_and_to_stop(run, tiny_tokenizer, tmp_path):
    model, result = run("sft", Budget(steps=80))
    assert (result.steps, result.examples, result.too_long) == (80, 5, 0)
    assert result.validation_loss < 0.05
    for demonstration in QUESTIONS:
        prompt, _ = encode_chat(tiny_tokenizer, demonstration.messages[:1], add_generation_prompt=True)
        greedy = SamplingConfig(max_tokens=20, temperature=0.0)
        answer = list(stream(model, prompt, greedy, stop={tiny_tokenizer.end_of_turn}))
        assert tiny_tokenizer.decode(answer) == demonstration.messages[1]["content"]
    rows = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"sft"}
    assert sum("validation_loss" in row for row in rows) == 4


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(run, monkeypatch, stop):
    expected, whole = run("whole", Budget(steps=7))
    original, count = Trainer.step, 0

    def step(self, progress):
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Interrupted, match=f"sft stopped at step {stop}"):
            run("stopped", Budget(steps=7))
    model, resumed = run("stopped", Budget(steps=7), resume=True)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), atol=0, rtol=0)
    assert (resumed.steps, resumed.validation_loss) == (7, whole.validation_loss)


def test_what_does_not_fit_is_left_out_and_counted(run):
    _, result = run("sft", Budget(steps=1), train=[*QUESTIONS, turns("x" * 200, "y")], validation=[])
    assert (result.examples, result.too_long, result.validation_loss) == (5, 1, None)
    with pytest.raises(UserError, match="none of the 1 demonstrations fits the model's context of 128 tokens"):
        run("none", Budget(steps=1), train=[turns("x" * 200, "y")])


def test_held_out_conversations_that_do_not_fit_are_no_reason_to_fail(run):
    _, result = run("sft", Budget(steps=1), validation=[turns("x" * 200, "y")])
    assert result.validation_loss is None


def test_only_so_many_held_out_conversations_are_measured(run):
    _, two = run("two", Budget(steps=1), validation=QUESTIONS[:2])
    _, limited = run("limited", Budget(steps=1), validation=QUESTIONS, validation_examples=2)
    assert limited.validation_loss == two.validation_loss


@pytest.mark.gpu
def test_a_batch_reaches_a_model_on_the_gpu(tiny_tokenizer, tiny_transformer):
    examples, _ = encode_demonstrations(tiny_tokenizer, QUESTIONS, 64)
    model = tiny_transformer().to("cuda")
    NextTokenObjective()(model, example_batch(examples, tiny_tokenizer.pad)).loss_sum.backward()
    assert model.norm.weight.grad.device.type == "cuda"
