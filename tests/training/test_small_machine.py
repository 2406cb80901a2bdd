"""Limits that the system itself sets: memory that is refused, files that may not grow. Each in a process of its own."""

import multiprocessing
import resource
import sys
from pathlib import Path

import pytest
import torch

from parlance.core.artifacts import read_json, write_json
from parlance.core.metrics import MetricsLog
from parlance.training.checkpointing import TrainingStates
from parlance.training.gradients import SingleProcess
from parlance.training.loop import Budget, Loop
from parlance.training.objectives import NextTokenObjective, TokenBatch
from parlance.training.optimizers import Optimizer
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


def apart(function, *arguments) -> None:
    """Run a function in a forked process; its failure is the test's."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def trainer_of(model, rows: int, length: int, fit: SingleProcess) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocab_size, (rows, length + 1), generator=generator)
    batch = TokenBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def batches(state):
        while True:
            state = (state or 0) + 1
            yield batch, state

    return Trainer(
        model,
        NextTokenObjective(),
        batches,
        Optimizer(parameter_groups(model, LearningRates())),
        TrainingConfig(warmup=0.0, decay=0.0),
        fit,
    )


def test_memory_that_the_system_refuses(tiny_transformer, tmp_path):
    """64 rows of 64 tokens need 160 MB for their logits, several times over; 100 MB are left."""
    model = tiny_transformer(vocab_size=10_000, layers=1)

    def limited(folder: Path) -> None:
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 100 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        gradients = SingleProcess()
        trainer = trainer_of(model, 64, 64, gradients)
        losses = [trainer.step(0.5)["loss"] for _ in range(2)]
        write_json(folder / "found.json", {"losses": losses, "parts": gradients.fit.parts})

    def unlimited(folder: Path) -> None:
        torch.set_num_threads(1)
        gradients = SingleProcess()
        gradients.fit.parts = 8
        trainer = trainer_of(model, 64, 64, gradients)
        write_json(folder / "expected.json", {"losses": [trainer.step(0.5)["loss"] for _ in range(2)]})

    apart(limited, tmp_path)
    apart(unlimited, tmp_path)
    found = read_json(tmp_path / "found.json")
    assert 2 <= found["parts"] <= 64
    assert found["losses"] == pytest.approx(read_json(tmp_path / "expected.json")["losses"], rel=1e-4)


@pytest.mark.parametrize("background", [True, False])
def test_states_that_the_system_does_not_let_be_written(tiny_transformer, tmp_path, background):
    """From the third state on, files may not exceed 50 kB: the older ones stay, training ends, its log is whole."""
    states = TrainingStates(tmp_path / "training")

    class Filling(TrainingStates):
        def save(self, step, tensors, info):
            if step >= 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
            super().save(step, tensors, info)

    def limited() -> None:
        sys.stderr = (tmp_path / "errors").open("w")
        torch.set_num_threads(1)
        log = MetricsLog(tmp_path / "metrics.jsonl")
        loop = Loop("train", Budget(steps=8), Filling(tmp_path / "training"), log, background=background)
        loop.checkpoint_seconds = loop.log_seconds = 0.0
        model = tiny_transformer()
        assert loop.run(trainer_of(model, 2, 16, SingleProcess())).steps == 8

    apart(limited)
    assert states.latest()[0] == 2 if not background else states.latest()[0] in (1, 2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8
    told = (tmp_path / "errors").read_text()
    assert "no resume state was written: cannot write" in told
    assert "file too large; training goes on, the older states stay" in told
    assert not list((tmp_path / "training").glob("*.partial"))
