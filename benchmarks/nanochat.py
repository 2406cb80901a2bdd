"""The default recipe against nanochat's model and optimizer: bits per byte at equal time, in turns, over several seeds.

    parlance corpus prepare --out corpus                          # this Python's standard library
    python benchmarks/nanochat.py corpus --nanochat PATH --seconds 120 --seeds 3 --out benchmarks/results/nanochat.json

PATH is a checkout of github.com/karpathy/nanochat. Both read the same tokens (`--tokenizer`), have the same context,
and are measured by the same function over the whole validation split. Every run is a process of its own. Its clock
starts when the tokens are open and torch is imported, and covers all that follows until the last step: for Parlance
choosing a size, compiling and the pilots; for nanochat compiling and measuring its speed, from which follows the
number of steps that its schedule needs to know. nanochat's rates, momentum, weight decay, warm-up and warm-down are
those of its `scripts/base_train.py` with its own rules for batch size and width; its script for CPUs asks for heads
of 64 and full attention. It computes in bfloat16 where the machine is fast at that (its own default on CPUs is
float32), compiled where that wins. What is best for it is searched first (seed 1000, the same seconds a try):
compiled or not, depth, rows a step, and a factor on all its rates (they were tuned at steps of half a million
tokens), one after the other. Parlance uses what its default recipe chooses.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONTEXT = 256
SEARCHED: dict[str, tuple[Any, ...]] = {
    "compiled": (True, False),
    "depth": (2, 3, 4, 6),
    "rows": (8, 16, 32, 64),
    "rate": (1.0, 2.0, 4.0, 8.0),
}
FIRST: dict[str, Any] = {"compiled": True, "depth": 3, "rows": 16, "rate": 2.0}
"""What nanochat is asked to be; the search begins here."""
REFERENCE_BATCH = 2**19
REFERENCE_DEPTH = 12
"""nanochat's own: tokens of a step, and depth, that its rates were tuned at."""


def bits_per_byte(loss: float, dataset: Any) -> float:
    """Nats per token as bits per byte of the split's text."""
    return loss * len(dataset.tokens) / dataset.text_bytes / math.log(2)


def whole_split(dataset: Any) -> Any:
    """Inputs and targets (N, T) of every window of a split."""
    from parlance.training.tasks import window_rows

    rows = window_rows(dataset, len(dataset.tokens) - 1, CONTEXT)
    return rows[:, :-1], rows[:, 1:]


def open_splits(tokens: Path) -> tuple[Any, Any]:
    """Training and validation split."""
    from parlance.text.token_dataset import TokenDataset

    return TokenDataset.open(tokens, "train"), TokenDataset.open(tokens, "validation")


def run_parlance(arguments: argparse.Namespace) -> dict[str, Any]:
    """The default recipe of `parlance pretrain`."""
    import torch

    from parlance.core.devices import usable_cores
    from parlance.core.metrics import MetricsLog
    from parlance.training.loop import Budget
    from parlance.training.objectives import mean_loss, token_batch
    from parlance.training.pretraining import pretrain
    from parlance.training.pretraining_config import PretrainingConfig

    torch.set_num_threads(usable_cores())
    train, validation = open_splits(arguments.tokens)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = pretrain(
            train,
            validation,
            Path(folder),
            PretrainingConfig(context_length=CONTEXT),
            Budget(seconds=arguments.seconds),
            vocab_size=train.info["vocab_size"],
            metrics=MetricsLog(Path(folder) / "metrics.jsonl"),
            seed=arguments.seed,
            device=torch.device("cpu"),
        )
    seconds = time.perf_counter() - start
    inputs, targets = whole_split(validation)
    rows = torch.cat([inputs, targets[:, -1:]], dim=1)
    loss = mean_loss(result.model, [token_batch(part) for part in rows.split(16)])
    return {"loss": loss, "seconds": seconds, "tokens": result.tokens, "parameters": result.model.parameter_count()}


def run_nanochat(arguments: argparse.Namespace) -> dict[str, Any]:
    """nanochat's network and optimizer by the rules of its training script."""
    import torch
    import torch.nn.functional as F

    from parlance.core.devices import fast_bfloat16, usable_cores

    torch.set_num_threads(usable_cores())
    if fast_bfloat16(torch.device("cpu")):
        os.environ["NANOCHAT_DTYPE"] = "bfloat16"
    sys.path.insert(0, str(arguments.nanochat))
    from nanochat.gpt import GPT, GPTConfig

    train, validation = open_splits(arguments.tokens)
    start = time.perf_counter()
    torch.manual_seed(arguments.seed)
    width = 64 * arguments.depth
    config = GPTConfig(
        sequence_len=CONTEXT,
        vocab_size=train.info["vocab_size"],
        n_layer=arguments.depth,
        n_head=width // 64,
        n_kv_head=width // 64,
        n_embd=width,
        window_pattern="L",
    )
    model = GPT(config)
    model.init_weights()
    runner = torch.compile(model, dynamic=False) if arguments.compiled else model
    batch_tokens = arguments.rows * CONTEXT
    share = math.sqrt(batch_tokens / REFERENCE_BATCH)
    counts = model.num_scaling_params()

    # Its horizon is a fixed ratio of tokens to parameters, however long it trains.
    reference = 12 * REFERENCE_DEPTH * (64 * REFERENCE_DEPTH) ** 2 + train.info["vocab_size"] * 64 * REFERENCE_DEPTH
    decay = 0.28 * share * reference / (counts["transformer_matrices"] + counts["lm_head"])

    def new_optimizer() -> Any:
        factor = share * arguments.rate
        return model.setup_optimizer(
            unembedding_lr=0.008 * factor,
            embedding_lr=0.3 * factor,
            scalar_lr=0.5 * factor,
            matrix_lr=0.02 * factor,
            weight_decay=decay,
        )

    source = train.batches(arguments.rows, CONTEXT, seed=arguments.seed)

    def gradient() -> None:
        rows, _ = next(source)
        ids = torch.from_numpy(rows)
        runner(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).backward()

    # 1. Compile, then measure; the weights of these steps are thrown away.
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = new_optimizer()
    for _ in range(2):
        gradient()
        optimizer.step()
        model.zero_grad(set_to_none=True)
    before = time.perf_counter()
    for _ in range(3):
        gradient()
        optimizer.step()
        model.zero_grad(set_to_none=True)
    a_step = (time.perf_counter() - before) / 3
    model.load_state_dict(state)
    steps = max(1, int((arguments.seconds - (time.perf_counter() - start)) / a_step))
    optimizer = new_optimizer()
    # 2. Train by its schedules; the clock ends what takes longer than it was measured to.
    warm_down = round(0.65 * steps)
    done = 0
    while done < steps and time.perf_counter() - start < 1.02 * arguments.seconds:
        gradient()
        if done < 40:
            rate = (done + 1) / 40
        elif done <= steps - warm_down:
            rate = 1.0
        else:
            left = (steps - done) / warm_down
            rate = left + (1 - left) * 0.05
        if done < 400 and done < steps - warm_down:
            momentum = 0.85 + (0.97 - 0.85) * done / 400
        elif done >= steps - warm_down:
            momentum = 0.97 + (0.90 - 0.97) * (done - (steps - warm_down)) / warm_down
        else:
            momentum = 0.97
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * done / steps))
        optimizer.step()
        model.zero_grad(set_to_none=True)
        done += 1
    seconds = time.perf_counter() - start
    inputs, targets = whole_split(validation)
    total = 0.0
    with torch.no_grad():
        for some, wanted in zip(inputs.split(16), targets.split(16), strict=True):
            logits = model(some.contiguous())
            total += float(F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="sum"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "loss": total / targets.numel(),
        "seconds": seconds,
        "tokens": done * batch_tokens,
        "parameters": parameters,
    }


def in_process(arguments: argparse.Namespace, who: str, seed: int, *further: str) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--worker", who, "--tokens", str(arguments.tokens), "--seed", str(seed)]
    command += ["--seconds", str(arguments.seconds), "--nanochat", str(arguments.nanochat), *further]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    _, validation = open_splits(arguments.tokens)
    return {"who": who, "seed": seed, **row, "bits_per_byte": round(bits_per_byte(row["loss"], validation), 4)}


def nanochat_options(shape: dict[str, Any]) -> list[str]:
    """Command-line options that ask for a shape."""
    options = [word for name in ("depth", "rows", "rate") for word in (f"--{name}", str(shape[name]))]
    return [*options, *(["--compiled"] if shape["compiled"] else [])]


def search(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best shape for nanochat, one choice after the other, and all runs made for it."""
    best, runs = dict(FIRST), []
    losses: dict[str, float] = {}
    for name, values in SEARCHED.items():
        for value in values:
            shape = best | {name: value}
            if str(shape) not in losses:
                runs.append(in_process(arguments, "nanochat", 1000, *nanochat_options(shape)) | {"shape": shape})
                losses[str(shape)] = runs[-1]["loss"]
                print(json.dumps(runs[-1]), flush=True)
        best = min((best | {name: value} for value in values), key=lambda shape: losses[str(shape)])
    return best, runs


def main() -> None:
    """Search nanochat's best shape, then run both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", help="a prepared corpus")
    parser.add_argument("--nanochat", type=Path, required=True)
    parser.add_argument("--tokenizer", default="bpe:4096")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=("parlance", "nanochat"), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--depth", type=int, default=3, help="of nanochat, without --search")
    parser.add_argument("--rows", type=int, default=16, help="of nanochat, without --search")
    parser.add_argument("--rate", type=float, default=2.0, help="factor on nanochat's rates, without --search")
    parser.add_argument("--compiled", action="store_true", help="of nanochat, without --search")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps((run_parlance if arguments.worker == "parlance" else run_nanochat)(arguments)))
        return
    if arguments.corpus is None:
        parser.error("name a prepared corpus")
    with tempfile.TemporaryDirectory() as folder:
        arguments.tokens = Path(folder) / "tokens"
        prepare_tokens(arguments.corpus, arguments.tokenizer, Path(folder))
        rows = []
        shape, searched = (
            search(arguments) if arguments.search else ({name: vars(arguments)[name] for name in FIRST}, [])
        )
        for seed in range(arguments.seeds):
            for who in ("parlance", "nanochat"):
                further = nanochat_options(shape) if who == "nanochat" else []
                rows.append(in_process(arguments, who, seed, *further))
                print(json.dumps(rows[-1]), flush=True)
    by = {who: [row["bits_per_byte"] for row in rows if row["who"] == who] for who in ("parlance", "nanochat")}
    differences = [ours - theirs for ours, theirs in zip(by["parlance"], by["nanochat"], strict=True)]
    summary = {
        "seconds": arguments.seconds,
        "tokenizer": arguments.tokenizer,
        "nanochat_shape": shape,
        "median": {who: statistics.median(values) for who, values in by.items()},
        "difference": {"mean": statistics.mean(differences), "lowest": min(differences), "highest": max(differences)},
    }
    if len(differences) > 1:
        summary["difference"]["standard_error"] = statistics.stdev(differences) / math.sqrt(len(differences))
    print(json.dumps(summary))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"summary": summary, "runs": rows, "search": searched}, indent=1) + "\n")


def prepare_tokens(corpus: Path, tokenizer: str, folder: Path) -> None:
    """Train the tokenizer and encode the corpus in `folder`."""
    from parlance.cli.inputs import tokenizer_for
    from parlance.text.token_dataset import tokenize_corpus

    tokenize_corpus(corpus, tokenizer_for(tokenizer, corpus, folder / "tokenizer"), folder / "tokens")


if __name__ == "__main__":
    main()
