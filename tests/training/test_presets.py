"""Presets: what they say is a model that trains, is saved in the form that can say it, and is refused by others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.models.building import build
from parlance.models.checkpoints import family_for, load_model, save_model
from parlance.text.token_dataset import TokenDataset, write_token_dataset
from parlance.training.architectures import ARCHITECTURES
from parlance.training.optimizers import Optimizer
from parlance.training.presets import SPEEDRUN, preset
from parlance.training.pretraining_config import PretrainingConfig, check, make_task, pretraining_config, shape
from parlance.training.rates import parameter_groups
from parlance.training.tasks import NextTokenTask
from parlance.training.trainer import Trainer


def test_standard_is_what_an_architecture_suggests():
    for kind in ARCHITECTURES:
        assert preset("standard", kind) == pretraining_config(kind)


@pytest.mark.parametrize("kind", SPEEDRUN)
def test_a_speedrun_model_is_its_own_family_and_comes_back_from_disk(kind, tmp_path: Path):
    config = preset("speedrun", kind)
    check(config)
    model = build(shape(2, 64, 70, config))
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_model(tmp_path, model, end_of_text=66, pad=67)
    again = load_model(tmp_path)
    assert again.config == model.config
    tokens = torch.randint(0, 65, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(again.forward(tokens)[0], model.forward(tokens)[0])
    assert family_for(model.config).name == f"parlance-{kind}"


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2"])
def test_export_of_a_speedrun_transformer_is_refused_with_the_reason(name):
    config = shape(2, 64, 70, preset("speedrun", "transformer"))
    with pytest.raises(UserError, match=f"cannot be written as {name}: it has parts that {name} has not"):
        family_for(config, name)


def test_what_is_not_there_is_a_user_error():
    with pytest.raises(UserError, match="there is no preset fast; choose standard or speedrun"):
        preset("fast", "transformer")
    with pytest.raises(UserError, match="the preset speedrun is there for transformer"):
        preset("speedrun", "recurrent")


@pytest.mark.parametrize("kind", SPEEDRUN)
def test_a_run_goes_on_to_the_same_bits_after_a_stop(kind, tiny_tokenizer, tmp_path: Path):
    """Sparse updates of tables, dropout and windows shorter than the context included."""
    generator = np.random.default_rng(0)
    documents = {split: generator.integers(0, 250, (3, 700)).tolist() for split in ("train", "validation")}
    write_token_dataset(tmp_path / "tokens", documents, tiny_tokenizer)
    data = TokenDataset.open(tmp_path / "tokens", "train")
    settings = preset("speedrun", kind)
    tables = {"ngram_tables": ((2, 300), (3, 500))}
    config = settings.model_copy(update={"batch_size": 2, "model": settings.model | tables})

    def trainer() -> Trainer:
        model = build(shape(2, 64, 260, config))
        model.initialise(torch.Generator().manual_seed(0))
        task = make_task(config, model.config, 260)
        optimizer = Optimizer(parameter_groups(model, config.rates))
        return Trainer(
            model,
            task.objective,
            lambda state: task.batches(data, 1, state, torch.device("cpu")),
            optimizer,
            config.training,
        )

    whole, begun, resumed = trainer(), trainer(), trainer()
    for number in range(6):
        whole.step(number / 6)
    for number in range(3):
        begun.step(number / 6)
    tensors, info = begun.capture()
    resumed.restore({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(info)))
    for number in range(3, 6):
        resumed.step(number / 6)
    for (name, ours), theirs in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_training_windows_may_be_shorter_than_those_of_validation(tiny_tokenizer, tmp_path: Path):
    documents = {split: [list(range(200))] for split in ("train", "validation")}
    write_token_dataset(tmp_path / "tokens", documents, tiny_tokenizer)
    data = TokenDataset.open(tmp_path / "tokens", "train")
    task = NextTokenTask(6, 48, "stream", training_length=16)
    batch, _ = next(task.batches(data, 0, None, torch.device("cpu")))
    assert batch.inputs.shape == (6, 16)
    assert batch.noise is not None
    shapes = {rows.inputs.shape for rows in task.validation(data, 150, torch.device("cpu"))}
    assert shapes == {(2, 48)}
    # Over the whole split every target is there once.
    targets = torch.cat([make().targets.flatten() for make in task.whole(data, torch.device("cpu"))])
    assert sorted(targets[targets >= 0].tolist()) == sorted([*range(1, 200), tiny_tokenizer.end_of_text])


def test_training_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="training_length 64 is more than context_length 32"):
        PretrainingConfig(context_length=32, training_length=64)
    config = PretrainingConfig(architecture="encoder", training_length=64)
    with pytest.raises(UserError, match="trains on whole contexts: leave out training_length"):
        make_task(config, shape(1, 64, 100, config), 100)
