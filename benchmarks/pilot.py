"""How well do pilots predict the loss of a run, and what do other texts teach them?

    python benchmarks/pilot.py predict CORPUS... --budget 3m [--out F.json]
    python benchmarks/pilot.py prior OTHER_CORPUS... [--out F.json]

Corpora are prepared ones. `predict` runs `parlance pretrain CORPUS --tokenizer bpe:4096 --budget B` and compares the
loss that it states before it trains with the one that it reaches; the goal is 3 % on five corpora. `prior` trains
models of two sizes for several lengths, each to the end of its schedule, divides every loss by that of n-grams counted
on as many tokens, and fits t0 to t3 to each corpus by least squares: their means and spreads over the corpora are the
prior of scaling/pilot_law.py.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = ((2, 128), (4, 256))
LENGTHS = (50_000, 150_000, 500_000, 1_500_000)
CHECKED = 32_768
"""Validation tokens of `prior`."""


def predict(corpus: Path, budget: str, seed: int, options: list[str]) -> dict[str, Any]:
    """What a run on a corpus states before and reaches after."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "base"
        command = [sys.executable, "-m", "parlance", "pretrain", str(corpus), "--tokenizer", "bpe:4096"]
        command += ["--budget", budget, "--seed", str(seed), "--out", str(out), *options]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        found = json.loads((out / "prediction.json").read_text())
        facts = json.loads((out / "stage.json").read_text())["facts"]
    predicted, reached = found["predicted_loss"], found["reached_loss"]
    return {
        "corpus": corpus.name,
        "seconds": time.monotonic() - start,
        "choices": facts["choices"],
        "predicted": predicted,
        "low": found["low"],
        "high": found["high"],
        "reached": reached,
        "error": predicted / reached - 1,
        "inside": found["low"] <= reached <= found["high"],
        "planned_tokens": found["planned_x"],
        "reached_tokens": found["reached_x"],
        "pilots": [*found["pilot"], *found["others"]],
    }


def train(corpus: Path, tokens: Path, layers: int, width: int, length: int) -> dict[str, Any]:
    """The final loss of one run, and that of counting."""
    import torch

    from parlance.core.metrics import MetricsLog
    from parlance.text.token_dataset import TokenDataset
    from parlance.training.counted_loss import CountedLoss
    from parlance.training.loop import Budget
    from parlance.training.parallel import ALONE
    from parlance.training.precision import training_dtype
    from parlance.training.pretraining_config import PretrainingConfig, shape
    from parlance.training.sized_run import Setting, SizedRun

    train_split, validation = (TokenDataset.open(tokens, split) for split in ("train", "validation"))
    device = torch.device("cpu")
    config = PretrainingConfig(layers=layers, width=width, validation_tokens=CHECKED)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        setting = Setting(
            train=train_split,
            validation=validation,
            folder=out,
            config=config,
            vocab_size=train_split.info["vocab_size"],
            seed=0,
            device=device,
            dtype=training_dtype("auto", device),
            initial=None,
            world=ALONE,
            checkpoint_seconds=math.inf,
            sample=None,
            decode=None,
        )
        run = SizedRun(setting, shape(layers, width, setting.vocab_size, config), compiling=width > SIZES[0][1])
        states, log = run.here.states(out / "states", 1), MetricsLog(out / "metrics.jsonl")
        trainer, _ = run.run("pilot", Budget(tokens=length), states, log, resume=False, pilot=True)
        loss = run.validate(trainer)["validation_loss"]
    counted = CountedLoss(train_split, validation, tokens=CHECKED, window=config.context_length, seed=0)
    return {
        "corpus": corpus.name,
        "parameters": run.matrix_parameters,
        "tokens": trainer.items,
        "loss": loss,
        "counted": counted(trainer.items).loss,
        "memory": counted(trainer.items).memory,
        "copying": counted.copying(),
    }


def prior(corpora: list[Path]) -> dict[str, Any]:
    """Coefficients of each corpus, and their means and spreads."""
    from parlance.cli.inputs import tokenizer_for
    from parlance.scaling.pilot_law import COUNTED, features
    from parlance.text.token_dataset import tokenize_corpus

    rows, coefficients = [], {}
    for corpus in corpora:
        with tempfile.TemporaryDirectory() as folder:
            tokens = Path(folder) / "tokens"
            tokenize_corpus(corpus, tokenizer_for("bpe:4096", corpus, Path(folder) / "tokenizer"), tokens)
            mine = []
            for layers, width in SIZES:
                for length in LENGTHS:
                    mine.append(train(corpus, tokens, layers, width, length))
                    print(json.dumps(mine[-1]), flush=True)
        names = ("parameters", "tokens", "copying", "memory")
        whole = np.array([features(*(row[name] for name in names)) for row in mine])
        # What copying and fixed phrases give is taken as the prior has it: one text does not tell it from the rest.
        matrix, given = whole[:, :4], whole[:, 4:] @ np.array(COUNTED.mean[4:])
        target = np.log([row["loss"] / row["counted"] for row in mine]) - given
        found, *_ = np.linalg.lstsq(matrix, target, rcond=None)
        residual = float(np.sqrt(np.mean((matrix @ found - target) ** 2)))
        coefficients[corpus.name] = {"t": found.tolist(), "residual": residual}
        print(corpus.name, [round(value, 4) for value in found.tolist()], f"residual {residual:.4f}", flush=True)
        rows += mine
    table = np.array([entry["t"] for entry in coefficients.values()])
    return {"runs": rows, "coefficients": coefficients, "mean": table.mean(0).tolist(), "spread": table.std(0).tolist()}


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predict", "prior"))
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE, passed on by `predict`")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any]
    if arguments.what == "prior":
        result = prior(arguments.corpora)
        print("mean", result["mean"], "spread", result["spread"])
    else:
        options = [word for value in arguments.settings for word in ("--set", value)]
        rows = []
        for corpus in arguments.corpora:
            rows.append(row := predict(corpus, arguments.budget, arguments.seed, options))
            print(
                f"{row['corpus']:12} predicted {row['predicted']:.3f} ({row['low']:.3f} to {row['high']:.3f}), reached "
                f"{row['reached']:.3f}: {row['error']:+.1%}; tokens planned {row['planned_tokens']:,.0f}, reached "
                f"{row['reached_tokens']:,.0f}; {row['choices'][-1]}",
                flush=True,
            )
        errors = [abs(row["error"]) for row in rows]
        result = {"budget": arguments.budget, "runs": rows, "largest": max(errors), "median": statistics.median(errors)}
        print(f"largest error {max(errors):.1%}, median {result['median']:.1%}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
