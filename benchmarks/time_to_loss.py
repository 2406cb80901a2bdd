"""How long until a small model of Tiny Shakespeare's characters reaches a loss, whole process, start to exit?

    python benchmarks/time_to_loss.py INPUT.txt --goal plain any --nanogpt NANOGPT [--out FILE.json]

INPUT.txt is the text (1 115 394 characters): the first 90 % train, the last 10 % validate. Each run is one process,
`parlance pretrain` from the corpus folder (its documents as JSON lines) to the saved checkpoint: imports, tokenizer,
encoding, training, saving. Its wall time is taken from outside. The loss is taken afterwards, from the checkpoint, by
this one: the mean nats per character over the whole validation part in windows of the model's own context,
every character but the first a target once.

Goals: `plain`, a Transformer without n-gram inputs, to 1.8857; `any`, any neural model, to 1.8857; `best`, the lowest
loss within 155 s (and `best-plain`); `published`, 1.4697, which nanoGPT publishes for a GPU. The peer is nanoGPT's own
recipe for CPUs (readme: 4 layers of width 128, block 64, batch 12, 2 000 steps), run in turns, from
a checkout that `--nanogpt` names; its loss is what it prints last. All seeds of a goal are reported, and how many of
them reached it.
"""

import argparse
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parlance.core.devices import environment

SPEEDRUN = ["--preset", "speedrun", "--tokenizer", "char:80"]
PLAIN = {"model.ngram_tables": "[]", "model.ngram_dropout": "0"}
NEAR = {"model.head_offsets": "0.3", "model.head_width": "32", "rates.matrices": "0.045", "rates.head": "0.016"}
"""Each head prefers one of the last tokens, as n-grams would."""
SHORT = {
    **NEAR,
    "model.head_offsets": "2",
    "model.sliding_window": "8",
    "model.dropout": "0",
    "training_length": "64",
    "rates.weight_decay": "0",
}
"""For seconds: near tokens alone."""
GOALS: dict[str, tuple[float | None, list[str], dict[str, str]]] = {
    "plain": (1.8857, ["--steps", "132"], PLAIN | SHORT | {"layers": "2", "width": "96", "model.mlp_width": "192"}),
    "any": (1.8857, ["--model", "feedforward", "--steps", "30"], {"layers": "1", "width": "128"}),
    "best": (1.49, ["--budget", "149s"], {"layers": "4", "width": "192"}),
    "best-plain": (None, ["--budget", "149s"], PLAIN | NEAR | {"layers": "4", "width": "192"}),
    "published": (1.4697, ["--steps", "1300"], {"layers": "4", "width": "192"}),
}
"""The loss to reach (none: as low as possible), the options of the run, and what it sets."""
LIMITS = {"plain": 12.0, "any": 2.5, "best": 155.0, "best-plain": 155.0, "published": 360.0}
"""Seconds within which a run counts."""
NANOGPT = {
    "device": "cpu",
    "compile": "False",
    "eval_iters": "20",
    "log_interval": "1",
    "block_size": "64",
    "batch_size": "12",
    "n_layer": "4",
    "n_head": "4",
    "n_embd": "128",
    "max_iters": "2000",
    "lr_decay_iters": "2000",
    "dropout": "0.0",
}
"""Its recipe for CPUs, word for word; the loss that it prints is that of 20 batches."""


def make_corpus(text: str, folder: Path) -> None:
    """The folder that `parlance pretrain` reads. It wants a test split, which training never opens: a copy."""
    cut = int(len(text) * 0.9)
    folder.mkdir()
    for split, part in (("train", text[:cut]), ("validation", text[cut:]), ("test", text[cut:])):
        record = {"id": split, "text": part, "source": "tiny shakespeare", "metadata": {}}
        (folder / f"{split}.jsonl").write_text(json.dumps(record) + "\n")


def whole_loss(folder: Path, text: str) -> float:
    """Mean nats per character over the last 10 % of the text; see the top of this file."""
    import torch
    import torch.nn.functional as F

    from parlance.models.checkpoints import load_model
    from parlance.text.tokenizers import Tokenizer

    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    part = text[int(len(text) * 0.9) :]
    ids = torch.tensor(tokenizer.encode(part))
    assert len(ids) == len(part)
    length, total, count = model.context_length or 1024, 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + length + 1]
            logits, _ = model.forward(window[None, :-1])
            total += F.cross_entropy(logits[0], window[1:], reduction="sum").item()
            count += len(window) - 1
    assert count == len(part) - 1
    return total / count


def parlance_run(goal: str, seed: int, corpus: Path, text: str, steps: int | None) -> dict[str, Any]:
    """Seconds and loss of one run, with other than its own number of steps where `steps` says so."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "parlance", "pretrain", str(corpus), "--out", str(out), "--seed", str(seed)]
        _, options, fields = GOALS[goal]
        if steps is not None:
            options = [
                *(option for option in options if option != "--steps" and not option.isdigit()),
                "--steps",
                str(steps),
            ]
        settings = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
        seconds = timed([*command, *SPEEDRUN, *options, *settings], Path(folder))
        stage = json.loads((out / "stage.json").read_text())["facts"]
        return {
            "way": goal if steps is None else f"{goal} {steps}",
            "seed": seed,
            "seconds": seconds,
            "loss": whole_loss(out, text),
            "parameters": stage["parameters"],
            "tokens": stage["tokens"],
        }


def nanogpt_run(checkout: Path, seed: int, text: Path) -> dict[str, Any]:
    """Seconds and printed loss of nanoGPT's recipe."""
    data = checkout / "data" / "shakespeare_char"
    if not (data / "val.bin").exists():
        (data / "input.txt").write_text(text.read_text())
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
    # It seeds with 1337; another seed is another value of that constant.
    source = (checkout / "train.py").read_text().replace("manual_seed(1337", f"manual_seed({1337 + seed}")
    with tempfile.TemporaryDirectory() as folder:
        script = checkout / f"train_seed_{seed}.py"
        script.write_text(source)
        try:
            options = [f"--{name}={value}" for name, value in (NANOGPT | {"out_dir": folder}).items()]
            command = [sys.executable, str(script), "config/train_shakespeare_char.py", *options]
            start = time.perf_counter()
            done = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - start
        finally:
            script.unlink()
    losses = re.findall(r"val loss ([\d.]+)", done.stdout)
    return {"way": "nanoGPT", "seed": seed, "seconds": seconds, "loss": float(losses[-1])}


def timed(command: list[str], folder: Path) -> float:
    """Seconds from start to exit."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return seconds


def summary(rows: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """Spread of seconds and losses of one way, and how many runs reached its goal."""
    mine = [row for row in rows if row["way"] == way]
    goal = way.partition(" ")[0]
    target, limit = (GOALS[goal][0], LIMITS[goal]) if goal in GOALS else (1.8857, math.inf)

    def spread(name: str) -> dict[str, float]:
        values = [row[name] for row in mine]
        return {"min": min(values), "median": statistics.median(values), "max": max(values)}

    in_time = [row for row in mine if row["seconds"] <= limit]
    reached = None if target is None else sum(row["loss"] <= target for row in mine)
    both = None if target is None else sum(row["loss"] <= target for row in in_time)
    counts = {"runs": len(mine), "reached": reached, "in_time": len(in_time), "reached_in_time": both}
    return counts | {"seconds": spread("seconds"), "loss": spread("loss")}


def main() -> None:
    """Run the goals, and the peer, in turns, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="Tiny Shakespeare's input.txt")
    parser.add_argument("--goal", nargs="+", choices=GOALS, default=["plain", "any"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dev", action="store_true", help="train on the first 81 %% and measure on the 9 %% behind it")
    parser.add_argument("--steps", nargs="+", type=int, help="numbers of steps to try, with --dev")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; none: no peer")
    parser.add_argument("--nanogpt-runs", type=int, default=1, help="how many seeds of the peer")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = arguments.text.read_text()
    if arguments.dev:
        text = text[: int(len(text) * 0.9)]
    elif arguments.steps:
        parser.error("choose the steps by a part of the training text: add --dev")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        make_corpus(text, corpus)
        for seed in range(arguments.seeds):
            for goal, steps in itertools.product(arguments.goal, arguments.steps or [None]):
                rows.append(parlance_run(goal, seed, corpus, text, steps))
                print(json.dumps(rows[-1]), flush=True)
            if arguments.nanogpt is not None and seed < arguments.nanogpt_runs:
                rows.append(nanogpt_run(arguments.nanogpt.resolve(), seed, arguments.text))
                print(json.dumps(rows[-1]), flush=True)
    ways = {way: summary(rows, way) for way in dict.fromkeys(row["way"] for row in rows)}
    for way, found in ways.items():
        seconds, loss = found["seconds"], found["loss"]
        line = (
            f"{way:10} {found['runs']} runs, {found['in_time']} in time, {found['reached']} reached the loss; "
            f"{seconds['median']:.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f}), "
            f"loss {loss['median']:.4f} ({loss['min']:.4f} to {loss['max']:.4f})"
        )
        if "nanoGPT" in ways and way in ("plain", "any"):
            line += f"; nanoGPT takes {ways['nanoGPT']['seconds']['median'] / seconds['median']:.1f} times as long"
        print(line)
    if arguments.out is not None:
        result = {"environment": environment(), "load": os.getloadavg(), "options": GOALS, "runs": rows, "ways": ways}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
