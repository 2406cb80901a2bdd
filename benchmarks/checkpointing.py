"""What share of the training time do resume states cost?

    python benchmarks/checkpointing.py [--layers 6] [--width 384] [--seconds 12] [--every 1] [--rounds 3] [--out F.json]
    python benchmarks/checkpointing.py --seconds 95 --every 30 --rounds 2           # as training does it

Trains a Transformer of this size on random tokens for some seconds without states, with states written between two
steps, and with states written in a thread, in turns. The share is what is missing of the steps made without; with a
state more often than every 30 s it is also told scaled down to that. Beside it: how long training stood still, the size
of a state, and how many were written.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from parlance.core.artifacts import ensure_directory, write_json
from parlance.core.devices import fast_bfloat16, usable_cores
from parlance.core.metrics import MetricsLog
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop
from parlance.training.objectives import NextTokenObjective, token_batch
from parlance.training.optimizers import Optimizer
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig

VOCABULARY, LENGTH, BATCH = 4096, 256, 8
WAYS = {"none": (False, False), "between steps": (True, False), "in a thread": (True, True)}
"""Of each way: are there states, and are they written in a thread?"""


def trainer_of(arguments: argparse.Namespace) -> Trainer[Any, Any]:
    """A fresh model and its trainer."""
    config = TransformerConfig(
        vocab_size=VOCABULARY,
        context_length=LENGTH,
        width=arguments.width,
        layers=arguments.layers,
        heads=arguments.width // 64,
        head_width=64,
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    model.compute_dtype = torch.bfloat16 if fast_bfloat16(torch.device("cpu")) else torch.float32
    generator = torch.Generator().manual_seed(0)
    batch = token_batch(torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=generator))

    def batches(state: Any) -> Any:
        while True:
            state = (state or 0) + 1
            yield batch, state

    optimizer = Optimizer(parameter_groups(model, LearningRates()), model.compute_dtype)
    return Trainer(model, NextTokenObjective(), batches, optimizer, TrainingConfig(skip_sigma=0.0))


class CountedStates(TrainingStates):
    """States that count how many were written and how large the newest is."""

    written = 0
    size = 0

    def save(self, step: int, tensors: dict[str, Any], info: dict[str, Any]) -> None:
        """See `TrainingStates`."""
        super().save(step, tensors, info)
        self.written += 1
        self.size = sum(tensor.nbytes for tensor in tensors.values())


def run(trainer: Trainer[Any, Any], way: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train for `--seconds` in one way."""
    saves, background = WAYS[way]
    states = CountedStates(folder / "training")
    loop = Loop(
        "train",
        Budget(seconds=arguments.seconds),
        states,
        MetricsLog(folder / "metrics.jsonl"),
        checkpoint_seconds=arguments.every if saves else math.inf,
        background=background,
    )
    result = loop.run(trainer)
    figures = {"steps": result.steps, "seconds": result.seconds, "stood_still": result.saving_seconds}
    return figures | {"states": states.written, "bytes": states.size}


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two states")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where states are written; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    trainer = trainer_of(arguments)
    for _ in range(3):
        trainer.step(0.5)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=arguments.folder and ensure_directory(arguments.folder)) as place:
        for number in range(arguments.rounds):
            for way in WAYS:
                runs[way].append(run(trainer, way, arguments, Path(place) / f"{way} {number}"))
    report: dict[str, Any] = {"parameters": trainer.model.parameter_count(), "every": arguments.every, "ways": {}}
    for way in list(WAYS)[1:]:
        shares, still = [], []
        for plain, saved in zip(runs["none"], runs[way], strict=True):
            shares.append(1 - (saved["steps"] / saved["seconds"]) / (plain["steps"] / plain["seconds"]))
            still.append(saved["stood_still"] / saved["seconds"])
        scale = min(1.0, arguments.every / CHECKPOINT_SECONDS)
        report["ways"][way] = {
            "share_of_steps_lost": shares,
            "share_stood_still": still,
            "median_share": statistics.median(shares),
            "median_share_every_30_s": statistics.median(shares) * scale,
            "median_still_every_30_s": statistics.median(still) * scale,
            "states": [saved["states"] for saved in runs[way]],
            "bytes": runs[way][0]["bytes"],
        }
        print(
            f"{way:>14}: {statistics.median(shares):7.2%} of the steps lost ({min(shares):.2%} to {max(shares):.2%}), "
            f"{statistics.median(still):.2%} stood still, {runs[way][0]['states']:.0f} states of "
            f"{runs[way][0]['bytes'] / 1e6:.0f} MB; with one every 30 s {statistics.median(shares) * scale:.2%} and "
            f"{statistics.median(still) * scale:.2%}"
        )
    report["runs"] = runs
    if arguments.out is not None:
        write_json(arguments.out, report)
    else:
        print(json.dumps({name: value for name, value in report.items() if name != "runs"}))


if __name__ == "__main__":
    main()
