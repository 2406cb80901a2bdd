"""Mixture of experts: what does choosing 2 of 8 experts cost beside a dense feed-forward that does the same work?

    python benchmarks/mixture_of_experts.py --rounds 9 --out benchmarks/results/mixture_of_experts.json

Everything is timed in turns in one process on the same inputs; a ratio is the mixture's time over the peer's, so that
below 1 the mixture is faster. `--processor` counts processor seconds instead (on a machine with other work, with
OMP_NUM_THREADS=1). What --out has of questions not asked stays. Four questions, any of which may be named:

1. `speed`: 8 experts top-2 of width F/2 against a dense SwiGLU of width F (the same active parameters, fp32 weights
   cast at use in both), forward, and forward and backward, fp32 and bfloat16; and, where `transformers` is installed,
   against its Mixtral block (grouped products) with weights already in the dtype. Several inputs take turns, so that
   rows per expert differ from call to call.
2. `decode`: one token, weights already in the compute dtype.
3. `padding`: 300 training steps of different row counts, with each expert's rows padded and not, in processes of their
   own: time, and how much the process grew. Always by the clock.
4. `glam`: a network whose every second block has 64 experts, top-2, as in GLaM: share of its parameters that a token
   uses, and time per token beside a dense network with the same number of parameters.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.core.devices import usable_cores
from parlance.models import mixture_of_experts
from parlance.models.mixture_of_experts import MixtureOfExperts, plan_routes
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import FeedForward
from parlance.models.transformer_config import TransformerConfig
from turns import in_turns

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
EXPERTS, CHOSEN = 8, 2
INPUTS = 2
Clock = Callable[[], float]


def drawn(module: nn.Module, seed: int) -> nn.Module:
    """The module with every matrix drawn, so that no result is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return module


def mixture(width: int, expert_width: int, experts: int = EXPERTS) -> MixtureOfExperts:
    """A SwiGLU mixture, top-2, routed as Mixtral's."""
    return MixtureOfExperts(width, expert_width, experts, CHOSEN, gated=True, activation=F.silu, normalise=True)


def feed_forward(width: int, inner: int) -> FeedForward:
    """The dense peer."""
    return FeedForward(
        TransformerConfig(vocab_size=1, context_length=1, width=width, layers=1, heads=1, mlp_width=inner)
    )


def mixtral(module: MixtureOfExperts, dtype: torch.dtype) -> nn.Module | None:
    """The block of `transformers` with the same weights in `dtype`; None where it is not installed."""
    try:
        from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock
    except ImportError:
        return None
    E, inner, width = module.up_proj.shape
    config = MixtralConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_local_experts=E,
        num_experts_per_tok=CHOSEN,
        experts_implementation="grouped_mm",
    )
    block = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        block.gate.weight.copy_(module.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat((module.gate_proj, module.up_proj), dim=1))
        block.experts.down_proj.copy_(module.down_proj)
    return block.to(dtype)


def passes(module: nn.Module, inputs: list[Tensor], backward: bool) -> Callable[[], None]:
    """A function that runs the module over every input once."""

    def run() -> None:
        for x in inputs:
            if not backward:
                with torch.no_grad():
                    module(x)
                continue
            module.zero_grad(set_to_none=True)
            x.grad = None
            module(x.requires_grad_()).backward(torch.ones_like(x))

    return run


def compare(seconds: dict[str, list[float]], peer: str, calls: int) -> dict[str, float]:
    """Time of `mixture` over that of `peer`, round by round."""
    ratios = [ours / theirs for ours, theirs in zip(seconds["mixture"], seconds[peer], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "mixture_ms": round(1000 * statistics.median(seconds["mixture"]) / calls, 3),
        "peer_ms": round(1000 * statistics.median(seconds[peer]) / calls, 3),
    }


def show(row: dict[str, Any]) -> dict[str, Any]:
    """Print a result as it comes."""
    print(json.dumps(row), flush=True)
    return row


def speed(rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """Against the dense feed-forward and Mixtral's block."""
    rows = []
    for width, inner in ((512, 1408), (768, 2048)):
        ours, dense = drawn(mixture(width, inner // CHOSEN), 0), drawn(feed_forward(width, inner), 1)
        for tokens in (2048, 4096):
            for name, dtype in DTYPES.items():
                generator = torch.Generator().manual_seed(2)
                inputs = [torch.randn(4, tokens // 4, width, generator=generator).to(dtype) for _ in range(INPUTS)]
                modules = {"mixture": ours, "dense": dense}
                if tokens == 2048:
                    modules["transformers"] = mixtral(ours, dtype)
                present = {peer: module for peer, module in modules.items() if module is not None}
                for backward in (False, True):
                    runs = {peer: passes(module, inputs, backward) for peer, module in present.items()}
                    seconds = in_turns(rounds, runs, clock)
                    for peer in list(present)[1:]:
                        setting = {"width": width, "inner": inner, "tokens": tokens, "dtype": name}
                        what = "forward and backward" if backward else "forward"
                        rows.append(show(setting | {"pass": what, "peer": peer} | compare(seconds, peer, INPUTS)))
    return rows


def decode(rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """One token at a time, another at each call."""
    rows = []
    for width, inner in ((512, 1408), (768, 2048)):
        for name, dtype in DTYPES.items():
            ours = drawn(mixture(width, inner // CHOSEN), 0).to(dtype).eval()
            dense = drawn(feed_forward(width, inner), 1).to(dtype).eval()
            generator = torch.Generator().manual_seed(2)
            inputs = [torch.randn(1, 1, width, generator=generator).to(dtype) for _ in range(200)]
            runs = {"mixture": passes(ours, inputs, False), "dense": passes(dense, inputs, False)}
            seconds = in_turns(rounds, runs, clock)
            rows.append(show({"width": width, "inner": inner, "dtype": name} | compare(seconds, "dense", len(inputs))))
    return rows


def resident_mb() -> float:
    """Memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def padding_steps(padded: bool, dtype: torch.dtype, steps: int = 300) -> dict[str, float]:
    """Train on inputs of one shape whose routes differ from step to step; how long, and how the process grew."""
    if not padded:
        mixture_of_experts.padded_rows = lambda count: count
    width, inner, tokens = 256, 704, 1024
    layer = drawn(mixture(width, inner // CHOSEN), 0)
    generator = torch.Generator().manual_seed(2)
    shapes, rows, start, memory = set(), 0, 0.0, 0.0
    for step in range(steps + 5):
        if step == 5:
            start, memory = time.perf_counter(), resident_mb()
        # A direction that all tokens share moves from step to step, and with it the preferred experts.
        x = torch.randn(1, tokens, width, generator=generator) + torch.randn(width, generator=generator)
        x = x.to(dtype)
        with torch.no_grad():
            chosen = layer.route(layer.router(x[0]))[1]
        counts = [end - begin for _, begin, _, end in plan_routes(chosen, EXPERTS).spans]
        shapes |= set(counts)
        rows += sum(counts)
        layer.zero_grad(set_to_none=True)
        layer(x.requires_grad_()).sum().backward()
    return {
        "ms_a_step": round(1000 * (time.perf_counter() - start) / steps, 2),
        "grown_mb": round(resident_mb() - memory, 1),
        "row_counts": len(shapes),
        "rows_over_pairs": round(rows / ((steps + 5) * tokens * CHOSEN), 4),
    }


def padding() -> list[dict[str, Any]]:
    """With and without, each in a process of its own."""
    rows = []
    for name in DTYPES:
        for padded in (True, False):
            command = [sys.executable, __file__, "padding-steps", name, str(int(padded))]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(show({"dtype": name, "padded": padded} | json.loads(output.splitlines()[-1])))
    return rows


def glam(rounds: int, clock: Clock) -> dict[str, Any]:
    """64 experts in every second block, beside a dense network of as many parameters."""
    width, layers, experts, vocabulary, tokens = 192, 4, 64, 4096, 2048
    sizes = {
        "vocab_size": vocabulary,
        "context_length": 512,
        "width": width,
        "layers": layers,
        "heads": width // 64,
    }
    sparse = Transformer(TransformerConfig(**sizes, mlp_width=4 * width))
    for number in range(1, layers, 2):
        sparse.layers[number].mlp = mixture(width, 4 * width, experts)
    total = sparse.parameter_count()
    idle = sum(
        layer.mlp.total_parameters() - layer.mlp.active_parameters()
        for layer in sparse.layers
        if isinstance(layer.mlp, MixtureOfExperts)
    )
    rest = total - sum(parameter.numel() for layer in sparse.layers for parameter in layer.mlp.parameters())
    dense_width = round((total - rest) / (3 * width * layers))
    dense = Transformer(TransformerConfig(**sizes, mlp_width=dense_width))
    active = total - idle
    result: dict[str, Any] = {
        "total_parameters": total,
        "dense_parameters": dense.parameter_count(),
        "active_parameters": active,
        "active_share": round(active / total, 4),
    }
    ids = torch.randint(0, vocabulary, (tokens // 512, 512), generator=torch.Generator().manual_seed(0))
    for model in (sparse, dense):
        drawn(model, 0)
        model.compute_dtype = torch.bfloat16

    def run(model: Transformer, backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            logits = model.logits(model.hidden(ids))
        if backward:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float().view(-1, vocabulary), ids.view(-1)).backward()

    for backward in (False, True):
        runs = {
            "mixture": lambda backward=backward: run(sparse, backward),
            "dense": lambda backward=backward: run(dense, backward),
        }
        row = compare(in_turns(rounds, runs, clock), "dense", 1)
        row["mixture_us_a_token"] = round(1000 * row["mixture_ms"] / tokens, 2)
        row["dense_us_a_token"] = round(1000 * row["peer_ms"] / tokens, 2)
        result["forward and backward" if backward else "forward"] = row
    return show(result)


def main() -> None:
    """Answer the questions named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=["speed", "decode", "padding", "glam"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processor", action="store_true", help="processor seconds instead of the clock's")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    if arguments.questions[0] == "padding-steps":  # a process that `padding` started
        _, dtype, padded = arguments.questions
        print(json.dumps(padding_steps(padded == "1", DTYPES[dtype])))
        return
    clock: Clock = time.process_time if arguments.processor else time.perf_counter
    setting = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": "processor" if arguments.processor else "wall",
        "rounds": arguments.rounds,
    }
    answer: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed(arguments.rounds, clock),
        "decode": lambda: decode(arguments.rounds, clock),
        "padding": padding,
        "glam": lambda: glam(max(1, arguments.rounds // 3), clock),
    }
    for question in arguments.questions:
        if question not in answer:
            parser.error(f"{question}: choose among {', '.join(answer)}")
        result = {"setting": setting, "results": answer[question]()}
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            arguments.out.write_text(json.dumps(known | {question: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
