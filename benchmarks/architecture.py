"""Qwen3-like or LLaMA-like? Validation loss at equal training time, in turns, over several seeds.

    parlance run --out runs/demo ...          # makes runs/demo/tokens and runs/demo/tokenizer
    python benchmarks/architecture.py runs/demo --seconds 60 --seeds 3

Both have the same layers and width; query/key norms are all that differs. Each run pays for its own compilation before
its clock starts. Prints loss and steps of every run; writes `benchmarks/results/architecture.json`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from parlance.core.devices import select_device, usable_cores
from parlance.core.metrics import MetricsLog
from parlance.text.token_dataset import TokenDataset
from parlance.training.loop import Budget
from parlance.training.objectives import mean_loss
from parlance.training.pretraining import pretrain
from parlance.training.pretraining_config import PretrainingConfig
from parlance.training.tasks import NextTokenTask

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Train both in turns, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory with tokens")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=320)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    device = select_device("cpu")
    train = TokenDataset.open(arguments.run / "tokens", "train")
    validation = TokenDataset.open(arguments.run / "tokens", "validation")
    rows = []
    for seed in range(arguments.seeds):
        for name, qk_norm in (("Qwen3-like", True), ("LLaMA-like", False)):
            config = PretrainingConfig(
                layers=arguments.layers,
                width=arguments.width,
                model={"qk_norm": qk_norm},
                pilot_share=0.0,
                compile=True,
            )
            with tempfile.TemporaryDirectory() as folder:
                result = pretrain(
                    train,
                    validation,
                    Path(folder),
                    config,
                    Budget(seconds=arguments.seconds),
                    vocab_size=train.info["vocab_size"],
                    metrics=MetricsLog(Path(folder) / "metrics.jsonl"),
                    seed=seed,
                    device=device,
                )
            whole = NextTokenTask(config.batch_size, config.context_length, "stream").validation(
                validation, len(validation.tokens) - 1, device
            )
            loss = mean_loss(result.model, whole)
            rows.append({"model": name, "seed": seed, "loss": loss, "tokens": result.tokens, "seconds": result.seconds})
            print(json.dumps(rows[-1]), flush=True)
    output = ROOT / "benchmarks" / "results" / "architecture.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
