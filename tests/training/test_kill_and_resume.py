"""Whatever is trained: killed with SIGKILL at random moments and resumed, it ends with the bits of the undisturbed run.

Processes are forked, so that none of them has to import anything; a kill comes at any moment of a process's life, also
while a state is being written.
"""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from parlance.alignment.preferences import Ranking
from parlance.alignment.reward_model import RewardModelConfig, train_reward_model
from parlance.core.artifacts import read_jsonl
from parlance.core.metrics import MetricsLog
from parlance.finetuning.demonstrations import Demonstration
from parlance.finetuning.supervised import FinetuningConfig, finetune
from parlance.text.token_dataset import TokenDataset, write_token_dataset
from parlance.training.loop import Budget
from parlance.training.pretraining import pretrain
from parlance.training.pretraining_config import PretrainingConfig
from parlance.training.trainer import TrainingConfig

STEPS = 90
"""More than the window of anomalies needs before it judges; without it, a half will do."""
CHECKPOINT_SECONDS = 0.03
GUARDED = {"skip_sigma": 0.01, "average": 0.9}
"""Steps are left out all the time, and the weights are averaged: all of that has a state of its own."""

Job = Callable[[Path, bool], torch.nn.Module]


@pytest.fixture(scope="module")
def splits(tiny_tokenizer, tmp_path_factory):
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 100, size=int(generator.integers(10, 60))).tolist() for _ in range(60)]
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    write_token_dataset(folder, {"train": documents[:50], "validation": documents[50:]}, tiny_tokenizer)
    return TokenDataset.open(folder, "train"), TokenDataset.open(folder, "validation")


def pretraining(splits, training: dict, folder: Path, resume: bool, **changes) -> torch.nn.Module:
    config = PretrainingConfig(
        context_length=32,
        layers=1,
        width=64,
        batch_size=2,
        validation_tokens=100,
        pilot_share=0.0,
        compile=False,
        kept_states=3,
        training=TrainingConfig(warmup=0.1, decay=0.5, **training),
        **changes,
    )
    log = MetricsLog(folder / "metrics.jsonl")
    return pretrain(
        *splits,
        folder,
        config,
        Budget(steps=STEPS if training.get("average") else STEPS // 2),
        vocab_size=260,
        metrics=log,
        seed=1,
        device=torch.device("cpu"),
        resume=resume,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    ).model


def tuning(make, tokenizer, folder: Path, resume: bool) -> torch.nn.Module:
    model = make()
    rows = [Demonstration.of(f"{number}?", "x" * number) for number in range(1, 9)]
    config = FinetuningConfig(tokens_per_batch=64, training=TrainingConfig(**GUARDED))
    budget, log = Budget(steps=STEPS), MetricsLog(folder / "metrics.jsonl")
    options = {"metrics": log, "seed": 1, "resume": resume, "checkpoint_seconds": CHECKPOINT_SECONDS}
    finetune(model, tokenizer, rows, rows[:2], folder, config, budget, **options)
    return model


def rewarding(make, tokenizer, folder: Path, resume: bool) -> torch.nn.Module:
    rankings = [Ranking(f"{number}?", ["y" * number, "n", "m"], [1, 2, 2]) for number in range(2, 9)]
    config = RewardModelConfig(tokens_per_batch=128, training=TrainingConfig(**GUARDED))
    budget, log = Budget(steps=STEPS), MetricsLog(folder / "metrics.jsonl")
    options = {"metrics": log, "seed": 1, "resume": resume, "checkpoint_seconds": CHECKPOINT_SECONDS}
    return train_reward_model(
        make(), tokenizer, rankings, folder, config, budget, validation=rankings[:2], **options
    ).model


@pytest.fixture(
    params=["stream", "packed in bf16", "masked", "spans", "demonstrations", "rankings"],
)
def job(request, splits, tiny_tokenizer, tiny_transformer) -> Job:
    plain = partial(pretraining, splits, {"precision": "fp32"})
    jobs: dict[str, Job] = {
        "stream": partial(pretraining, splits, {"precision": "fp32", **GUARDED}),
        "packed in bf16": partial(pretraining, splits, {"precision": "bf16", **GUARDED}, packing="best-fit"),
        "masked": partial(plain, architecture="encoder"),
        "spans": partial(plain, architecture="encoder-decoder"),
        "demonstrations": partial(tuning, tiny_transformer, tiny_tokenizer),
        "rankings": partial(rewarding, tiny_transformer, tiny_tokenizer),
    }
    return jobs[request.param]


def work(job: Job, folder: Path, resume: bool) -> None:
    """What a process does: train, and leave the weights."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    model = job(folder, resume)
    save_file({name: value.detach().clone() for name, value in model.named_parameters()}, folder / "end.partial")
    (folder / "end.partial").rename(folder / "end")


def start(job: Job, folder: Path, resume: bool) -> multiprocessing.Process:
    folder.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=work, args=(job, folder, resume))
    process.start()
    return process


def rows(folder: Path) -> list[dict]:
    """The log without what the clock decides: rows of validations and of steps left out."""
    clock = {"seconds", "tokens_per_second", "mfu"}
    found, skipped = [], 0
    for _, row in read_jsonl(folder / "metrics.jsonl"):
        if "validation_loss" in row or row.get("skipped", 0) > skipped:
            found.append({name: value for name, value in row.items() if name not in clock})
            skipped = row.get("skipped", 0)
    return found


def newest(folder: Path) -> int:
    """The step of the newest state."""
    return max((int(path.name[5:]) for path in (folder / "training").glob("step-????????")), default=0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_killed_run_ends_as_the_undisturbed_one(job, tmp_path, request):
    process = start(job, tmp_path / "whole", False)
    process.join(60)
    assert process.exitcode == 0

    generator = random.Random(str(tmp_path))
    kills, last = 0, 0
    for attempt in range(3):
        process = start(job, tmp_path / "killed", attempt > 0)
        if attempt == 2:
            process.join(60)
            break
        # Up to two kills, each a random time behind a random step.
        last = generator.randrange(last + 1, last + STEPS // 4)
        while process.is_alive() and newest(tmp_path / "killed") < last:
            time.sleep(0.002)
        process.join(generator.uniform(0.0, 0.1))
        if not process.is_alive():
            break
        process.kill()
        process.join(10)
        kills, last = kills + 1, newest(tmp_path / "killed")
    assert process.exitcode == 0
    assert kills
    assert (tmp_path / "killed" / "end").read_bytes() == (tmp_path / "whole" / "end").read_bytes()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    if request.node.callspec.params["job"] in ("stream", "packed in bf16"):
        assert rows(tmp_path / "whole")[-1]["skipped"] > 3
