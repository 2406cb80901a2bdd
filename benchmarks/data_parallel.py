"""Two processes of half the threads against one process with all of them, on the same training steps.

    python benchmarks/data_parallel.py --out benchmarks/results/data-parallel.json

The peer is Parlance itself in one process. Both train one Transformer of the same shape on the same random batches in
turns, one after the other: the processes live as long as the benchmark and wait while it is not their turn. Printed are
tokens a second, their ratio per round, and where the time of the divided step goes: gradients added up, Muon's matrices
exchanged. The ratio of processor times says what the division itself costs where the machine is not idle. --shard
divides the weights too (FSDP2). The goal is a ratio of 0.9.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "small": {"vocab_size": 4096, "context_length": 256, "width": 256, "layers": 4, "heads": 4, "rows": 16},
    "medium": {"vocab_size": 8192, "context_length": 256, "width": 512, "layers": 8, "heads": 8, "rows": 16},
    "gpt2": {"vocab_size": 50304, "context_length": 512, "width": 768, "layers": 12, "heads": 12, "rows": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="all threads: of one process, or of all together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if "RANK" in os.environ:
        serve(options)
        return
    one = Side(1, options.threads)
    many = Side(options.processes, max(1, options.threads // options.processes))
    for side in (one, many):
        side.turn()  # the first steps are slower: memory, kernels
    speeds: dict[str, list[float]] = {"one": [], "many": []}
    busy: dict[str, list[float]] = {"one": [], "many": []}
    parts: list[dict[str, float]] = []
    for _ in range(options.rounds):
        for name, side in (("one", one), ("many", many)):
            figures = side.turn()
            speeds[name].append(figures.pop("tokens_per_second"))
            busy[name].append(figures.pop("busy"))
        parts.append(figures)
    one.end(), many.end()
    ratios = [b / a for a, b in zip(speeds["one"], speeds["many"], strict=True)]
    shares = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    print(f"one process, {options.threads} threads:  {spread(speeds['one'], 'tokens/s')}")
    print(f"{options.processes} processes, together:     {spread(speeds['many'], 'tokens/s')}")
    print(f"ratio: {spread(ratios, '')}")
    work = [a / b for a, b in zip(busy["one"], busy["many"], strict=True)]
    print(f"processor time, one over many: {spread(work, '')}")
    print("share of the divided step: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    if options.out is not None:
        told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        result = {"options": told, "tokens_per_second": speeds, "ratios": ratios, "busy": busy, "shares": shares}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def spread(numbers: list[float], unit: str) -> str:
    """Median, minimum and maximum."""
    shown = [f"{number:,.0f}" if number >= 100 else f"{number:.3f}" for number in sorted(numbers)]
    return f"{shown[len(shown) // 2]} {unit} (min {shown[0]}, max {shown[-1]})".replace("  ", " ")


class Side:
    """Processes that make steps when it is their turn."""

    def __init__(self, size: int, threads: int) -> None:
        port = str(29000 + os.getpid() % 1000 + size)
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "LOCAL_WORLD_SIZE": str(size)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]

    def turn(self) -> dict[str, float]:
        """A round: the figures of the first process; `busy`: seconds of processor time of all together."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        figures = [json.loads(answer) for answer in answers]
        return figures[0] | {"busy": sum(figure["busy"] for figure in figures)}

    def end(self) -> None:
        """Let the processes end."""
        for process in self._processes:
            process.communicate()


def serve(options: argparse.Namespace) -> None:
    """One process: train `steps` steps for every line that arrives."""
    import torch

    from parlance.models.transformer import Transformer
    from parlance.models.transformer_config import TransformerConfig
    from parlance.training.compilation import compile_training
    from parlance.training.memory_fit import MemoryFit
    from parlance.training.objectives import NextTokenObjective, token_batch
    from parlance.training.parallel import ParallelConfig, arrange, started
    from parlance.training.parallel.division import divide_batch
    from parlance.training.rates import LearningRates, parameter_groups
    from parlance.training.trainer import Trainer, TrainingConfig

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    shape = dict(SHAPES[options.shape])
    rows = shape.pop("rows")
    answer = sys.stdout
    with started(10.0, torch.device("cpu")) as world:
        model = Transformer(TransformerConfig(**shape))
        model.initialise(torch.Generator().manual_seed(0))
        model.compute_dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(shape["vocab_size"], (4, rows, shape["context_length"] + 1), generator=generator)

        def batches(state: int | None) -> Any:
            number = state or 0
            while True:
                number += 1
                yield token_batch(drawn[number % len(drawn)]), number

        parallel = ParallelConfig(shard=world.size if options.shard else 1)
        objective = NextTokenObjective()
        if options.compile:
            compile_training(model, objective, divide_batch(next(batches(None))[0], parallel.rows(world.size)))
        here = arrange(model, parallel, world, MemoryFit())
        watch = Watch()
        if world.size > 1:
            watch.look()
        groups = parameter_groups(here.model, LearningRates(optimizer=options.optimizer))
        optimizer = here.optimizer(groups, model.compute_dtype)
        trainer = Trainer(here.model, objective, batches, optimizer, TrainingConfig(), here.gradients)
        for _ in sys.stdin:
            watch.seconds = dict.fromkeys(watch.seconds, 0.0)
            begin, busy = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                trainer.step(0.5)
            seconds, busy = time.perf_counter() - begin, time.process_time() - busy
            figures = {name: spent / seconds for name, spent in watch.seconds.items()}
            rate = options.steps * rows * shape["context_length"] / seconds
            answer.write(json.dumps({"tokens_per_second": rate, "busy": busy, **figures}) + "\n")
            answer.flush()


class Watch:
    """Seconds spent in the exchanges of a divided step, waiting for the others included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def look(self) -> None:
        """Time the functions that exchange, from now on."""
        from parlance.training.parallel import distributed, matrices

        self._timed(distributed, "reduce_gradients", "gradients")
        self._timed(matrices, "_exchange", "matrices")

    def _timed(self, module: Any, function: str, name: str) -> None:
        inner = getattr(module, function)
        self.seconds[name] = 0.0

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*arguments)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        setattr(module, function, timed)


if __name__ == "__main__":
    main()
