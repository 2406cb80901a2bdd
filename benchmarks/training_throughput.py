"""How many tokens a second does a whole training step of GPT-2's 124 M shape take in, and how near is that to the peak?

    python benchmarks/training_throughput.py [--rounds 5] [--peers transformers nanogpt litgpt] [--out FILE.json]
    python benchmarks/training_throughput.py --profile            # where the time of Parlance's step goes

A step is forward, loss, backward, clipping to norm 1, AdamW, gradients dropped, on 4 x 512 random tokens: 12 layers of
width 768 with 12 heads, learned positions, LayerNorm, biases, tanh-GELU, 50 257 tokens, tied head, no dropout. Every
way is a process of its own that waits for its turn; in each round each makes one step, and one process multiplies
matrices, so that the machine's own rate is of the same minute. Parlance trains through `Trainer`, compiled as in
pre-training.

Peers, each with torch's fused AdamW, eager and compiled, under autocast with fp32 weights (what Parlance has) and
bfloat16 throughout (less work, and no fp32 weights to train):
- transformers' GPT2LMHeadModel with scaled_dot_product_attention;
- nanoGPT's `model.py`, in the folder `--nanogpt` (its CPU recipe computes in fp32; here it gets autocast);
- litgpt's GPT with these sizes and a head tied by hand (it has rotary positions), run by `--litgpt-python`.

FLOP/s are given by two counts: 6 N + 12 L D T a token (no causal saving; N without positions), which is the same for
all, and the matrix products that Parlance executes (torch's own counter), of which the share of the matrix rate is
told.
Seconds of the processor tell whether other work disturbed a run. A way takes 3 to 5 GB of memory all the time: choose
few of them by --peers, --modes and --compiled-peers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

BATCH, LENGTH, WIDTH, HEADS, VOCABULARY, CONTEXT = 4, 512, 768, 12, 50_257, 1024
PRODUCTS = ((2048, 768, 2304), (2048, 768, 3072), (2048, 3072, 768), (2048, 2048, 2048), (4096, 4096, 4096))
"""Matrix products (rows, inner, columns) of which the fastest is the machine's rate."""
Step = Callable[[], float]
"""One training step; returns the mean loss."""


def autocast(mode: str) -> AbstractContextManager[Any]:
    """What the forward pass of a peer runs in."""
    return torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else nullcontext()


def peer_step(model: torch.nn.Module, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], mode: str) -> Step:
    """A step of a peer: clipping and the fused AdamW of torch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    inputs, targets = batch()

    def step() -> float:
        with autocast(mode):
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T)."""
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def transformers_way(layers: int, mode: str, compiled: bool) -> Step:
    """transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").train()
    if mode == "pure":
        model = model.to(torch.bfloat16)
    forward = torch.compile(model) if compiled else model
    return peer_step(model, lambda x, y: forward(input_ids=x, labels=y, shift_labels=y).loss, mode)


def nanogpt_way(layers: int, mode: str, compiled: bool, folder: Path) -> Step:
    """nanoGPT's GPT."""
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(CONTEXT, VOCABULARY, layers, HEADS, WIDTH, dropout=0.0, bias=True)).train()
    if mode == "pure":
        model = model.to(torch.bfloat16)
    forward = torch.compile(model) if compiled else model
    return peer_step(model, lambda x, y: forward(x, y)[1], mode)


def litgpt_way(layers: int, mode: str, compiled: bool) -> Step:
    """litgpt's GPT."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        name="gpt2-124m",
        block_size=CONTEXT,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        n_layer=layers,
        n_head=HEADS,
        n_embd=WIDTH,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
    )
    model = GPT(config).train()
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight
    if mode == "pure":
        model = model.to(torch.bfloat16)
    forward = torch.compile(model) if compiled else model
    return peer_step(model, lambda x, y: chunked_cross_entropy(forward(x), y, chunk_size=0), mode)


def parlance_way(layers: int, compiled: bool, optimizer: str) -> tuple[Step, dict[str, Any]]:
    """Parlance's trainer, and what is known of its step."""
    from torch.utils.flop_counter import FlopCounterMode

    from parlance.models.transformer import Transformer
    from parlance.models.transformer_config import TransformerConfig
    from parlance.training.compilation import compile_training
    from parlance.training.objectives import NextTokenObjective, TokenBatch
    from parlance.training.optimizers import Optimizer
    from parlance.training.rates import LearningRates, parameter_groups
    from parlance.training.trainer import Trainer, TrainingConfig

    config = TransformerConfig(
        vocab_size=VOCABULARY,
        context_length=CONTEXT,
        width=WIDTH,
        layers=layers,
        heads=HEADS,
        head_width=WIDTH // HEADS,
        positions="learned",
        qk_norm=False,
        norm="layer",
        norm_epsilon=1e-5,
        activation="gelu-tanh",
        gated_mlp=False,
        mlp_width=4 * WIDTH,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    )
    model, objective, tokens = Transformer(config), NextTokenObjective(), TokenBatch(*batch())
    model.initialise(torch.Generator().manual_seed(0))
    model.compute_dtype = torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        objective(model, tokens).loss_sum.backward()
    model.zero_grad(set_to_none=True)
    parameters = model.parameter_count() - CONTEXT * WIDTH
    facts = {
        "parameters": model.parameter_count(),
        "executed_flops": counter.get_total_flops(),
        "formula_flops": BATCH * LENGTH * (6 * parameters + 12 * layers * WIDTH * LENGTH),
    }
    if compiled and not compile_training(model, objective, tokens):
        raise SystemExit("compiling failed")
    groups = parameter_groups(model, LearningRates(optimizer=optimizer))

    def batches(state: Any) -> Any:
        while True:
            yield tokens, state

    trainer = Trainer(model, objective, batches, Optimizer(groups, torch.bfloat16), TrainingConfig(warmup=0.0))
    return lambda: trainer.step(0.5)["loss"], facts


def matrix_way() -> Step:
    """The fastest product's operations a second, bfloat16."""
    pairs = [(torch.ones(m, k).bfloat16(), torch.ones(k, n).bfloat16(), 2.0 * m * k * n) for m, k, n in PRODUCTS]

    def step() -> float:
        rates = []
        for left, right, operations in pairs:
            times = []
            for _ in range(4):
                start = time.perf_counter()
                left @ right
                times.append(time.perf_counter() - start)
            rates.append(operations / min(times))
        return max(rates)

    return step


# --- one way, in its own process -------------------------------------------------------------------------------------


def make(name: str, arguments: argparse.Namespace) -> tuple[Step, dict[str, Any]]:
    """The step of a way, by words such as `nanogpt autocast compiled`."""
    torch.manual_seed(0)
    who, *words = name.split()
    mode, compiled, layers = "pure" if "pure" in words else "autocast", "compiled" in words, arguments.layers
    if who == "matrices":
        return matrix_way(), {}
    if who == "parlance":
        return parlance_way(layers, compiled, "muon" if "muon" in words else "adamw")
    if who == "transformers":
        return transformers_way(layers, mode, compiled), {}
    if who == "nanogpt":
        return nanogpt_way(layers, mode, compiled, arguments.nanogpt), {}
    return litgpt_way(layers, mode, compiled), {}


def work(name: str, arguments: argparse.Namespace) -> None:
    """Make steps when asked to, one a line of standard input; answers are JSON lines."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    step, facts = make(name, arguments)
    for _ in range(2):
        step()
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        figure = step()
        seconds, used = time.perf_counter() - start, time.process_time() - processor
        print(json.dumps({"seconds": seconds, "processor": used, "figure": figure}), file=answers, flush=True)


def profile(arguments: argparse.Namespace) -> None:
    """Print which operations the time of one step of Parlance goes to."""
    step, facts = make("parlance" if arguments.eager else "parlance compiled", arguments)
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if is_product(event.key))
    print(f"{total / 1e6:.2f} s, of which matrix products {products / total:.1%}; {facts}")
    for event in events[:40]:
        print(f"{event.self_cpu_time_total / total:6.1%} {event.count:6d} {event.key[:100]}")


def is_product(name: str) -> bool:
    """Whether an operation of the profiler is a matrix product."""
    return name.startswith(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear", "mkl::_mkl"))


# --- all ways, in turns ----------------------------------------------------------------------------------------------


class Way:
    """A process that makes steps when asked to."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        python = arguments.litgpt_python if name.startswith("litgpt") else sys.executable
        command = [python, __file__, "--worker", name, "--layers", str(arguments.layers)]
        command += ["--nanogpt", str(arguments.nanogpt)]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()
        self.steps: list[dict[str, float]] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed")
        return dict(json.loads(line))

    def step(self) -> None:
        """One step, and its figures."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.steps.append(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def compare(names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Every way's figures and the ratios of Parlance to each peer."""
    ways: list[Way] = []
    try:
        for name in names:
            ways.append(Way(name, arguments))
            print(f"{name} is ready", flush=True)
        for _ in range(arguments.rounds):
            for way in ways:
                way.step()
    finally:
        for way in ways:
            way.close()
    tokens = BATCH * LENGTH
    found = {way.name: way for way in ways}
    rate = statistics.median(step["figure"] for step in found["matrices"].steps)
    facts = next(way.facts for way in ways if way.name.startswith("parlance"))
    result: dict[str, Any] = {"matrix_flops": rate, "facts": facts, "ways": {}, "ratio": {}, "processor_ratio": {}}
    trained = {name: way.steps for name, way in found.items() if name != "matrices"}
    for name, steps in trained.items():
        seconds = [step["seconds"] for step in steps]
        entry: dict[str, Any] = {
            "tokens_per_second": spread([tokens / s for s in seconds]),
            "processor_seconds": spread([step["processor"] for step in steps]),
            "formula_flops_per_second": facts["formula_flops"] / statistics.median(seconds),
            "loss": [step["figure"] for step in steps],
        }
        if name.startswith("parlance"):
            entry["executed_flops_per_second"] = facts["executed_flops"] / statistics.median(seconds)
            entry["share_of_matrix_rate"] = entry["executed_flops_per_second"] / rate
        result["ways"][name] = entry
    for own in (name for name in trained if name.startswith("parlance")):
        for peer in (name for name in trained if not name.startswith("parlance")):
            pairs = list(zip(trained[peer], trained[own], strict=True))
            result["ratio"][f"{own} / {peer}"] = spread([a["seconds"] / b["seconds"] for a, b in pairs])
            result["processor_ratio"][f"{own} / {peer}"] = spread([a["processor"] / b["processor"] for a, b in pairs])
    return result


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"matrix products: {result['matrix_flops'] / 1e9:.0f} GFLOP/s; {result['facts']}")
    for name, way in result["ways"].items():
        speed, share = way["tokens_per_second"], way.get("share_of_matrix_rate")
        print(
            f"  {name:34} {speed['median']:7.1f} tokens/s ({speed['min']:.1f} to {speed['max']:.1f}), "
            f"{way['processor_seconds']['median']:.2f} processor seconds, "
            f"{way['formula_flops_per_second'] / 1e9:.0f} GFLOP/s by the formula"
            + ("" if share is None else f", {way['executed_flops_per_second'] / 1e9:.0f} executed: {share:.0%}")
        )
    for name, ratio in result["ratio"].items():
        other = result["processor_ratio"][name]
        print(
            f"  {name:60} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); "
            f"by processor seconds {other['median']:.2f} ({other['min']:.2f} to {other['max']:.2f})"
        )


def main() -> None:
    """Read the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=("transformers", "nanogpt", "litgpt"), default=["transformers"])
    parser.add_argument("--nanogpt", type=Path, default=Path(os.environ.get("NANOGPT", "nanoGPT")), help="its folder")
    parser.add_argument("--litgpt-python", default=sys.executable, help="an interpreter that has litgpt")
    parser.add_argument("--modes", nargs="+", choices=("autocast", "pure"), default=["autocast", "pure"])
    parser.add_argument("--compiled-peers", choices=("both", "only", "no"), default="both")
    parser.add_argument("--eager", action="store_true", help="Parlance eager too; with --profile, instead")
    parser.add_argument("--layers", type=int, default=12, help="fewer, to try the script")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.worker, arguments)
        return
    if arguments.profile:
        profile(arguments)
        return
    from parlance.core.devices import environment

    names = ["matrices", "parlance compiled", *(["parlance"] if arguments.eager else [])]
    compiled = {"both": ("", " compiled"), "only": (" compiled",), "no": ("",)}[arguments.compiled_peers]
    names += [f"{peer} {mode}{word}" for peer in arguments.peers for mode in arguments.modes for word in compiled]
    result = {"environment": environment(), "load": os.getloadavg(), "layers": arguments.layers}
    result |= compare(names, arguments)
    report(result)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
