"""Long context: what does a token cost, as the sequence grows, in full, sliding-window and dilated attention?

    python benchmarks/long_context.py --out benchmarks/results/long_context.json

One layer's attention (12 heads of width 64, no projections) on one sequence, in bfloat16 and float32, forward up to
65 536 positions and forward with backward up to 16 384; on all cores. Full attention is torch's
`scaled_dot_product_attention`, the peer; from 32 768 positions on it is measured on `--full-heads` of the 12 heads and
scaled up, for heads are independent (the file says where). A length is measured in turns, `--rounds` times or until
`--seconds` have passed, but once at least. Prints microseconds a token, by the clock and of processor time (all cores
together; other programs disturb it less), writes the JSON file and beside it the plot, as SVG. The goal is flat curves
for the last two: `growth` is the cost of a token at the longest length over that at 4 096, `settled` over that at half
the longest length. Dilated attention must grow until the longest segment is full: counting keys, by a factor of 1.23.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from parlance.core.devices import usable_cores
from parlance.models.attention import sliding_window_attention
from parlance.models.dilated_attention import dilated_attention

HEADS, WIDTH, WINDOW = 12, 64, 1024
SCALE = WIDTH**-0.5
SEGMENTS = ((2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12))
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
BACKWARD_LENGTHS = LENGTHS[:5]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
KINDS: dict[str, Attention] = {
    "full": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE),
    "sliding window": lambda q, k, v: sliding_window_attention(q, k, v, WINDOW, SCALE),
    "dilated": lambda q, k, v: dilated_attention(q, k, v, SEGMENTS, SCALE),
}


def main() -> None:
    """Measure, print, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="stop repeating a length after so long")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--full-heads", type=int, default=2, help="heads of full attention from 32 768 positions on")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for dtype in (torch.bfloat16, torch.float32):
        for backward, lengths in ((False, LENGTHS), (True, BACKWARD_LENGTHS)):
            for length in lengths:
                if length <= arguments.longest:
                    lines += measure(length, dtype, backward, arguments)
    result = {
        "machine": {"threads": arguments.threads, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")},
        "attention": {"heads": HEADS, "head_width": WIDTH, "window": WINDOW, "segments": SEGMENTS},
        "lines": lines,
        "growth": growth(lines),
    }
    for line in result["growth"]:
        print(json.dumps(line))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        plot(lines, arguments.out.with_suffix(".svg"))


def measure(length: int, dtype: torch.dtype, backward: bool, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a kind of attention: microseconds per token, and the ratio of full attention's time to its own."""
    work, heads = {}, {}
    for kind, attention in KINDS.items():
        heads[kind] = arguments.full_heads if kind == "full" and length >= 32768 else HEADS
        work[kind] = job(attention, heads[kind], length, dtype, backward)
    if length <= 8192:  # longer ones are not disturbed by what happens on first use
        for function in work.values():
            function()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    processor: dict[str, list[float]] = {kind: [] for kind in KINDS}
    begin = time.perf_counter()
    for number in range(arguments.rounds):
        if number and time.perf_counter() - begin > arguments.seconds:
            break
        for kind, function in work.items():
            start, start_processor = time.perf_counter(), time.process_time()
            function()
            seconds[kind].append((time.perf_counter() - start) * HEADS / heads[kind])
            processor[kind].append((time.process_time() - start_processor) * HEADS / heads[kind])
    lines = []
    for kind, times in seconds.items():
        line = {
            "kind": kind,
            "dtype": str(dtype).removeprefix("torch."),
            "pass": "forward and backward" if backward else "forward",
            "length": length,
            "rounds": len(times),
            "heads_measured": heads[kind],
            "microseconds_per_token": spread(times, 1e6 / length),
            "processor_microseconds_per_token": spread(processor[kind], 1e6 / length),
            "times_faster_than_full": spread(
                [full / own for full, own in zip(seconds["full"], times, strict=True)], 1.0
            ),
        }
        print(
            f"{line['dtype']:9} {line['pass']:21} T {length:6} {kind:15}"
            f" {line['microseconds_per_token']['median']:9.2f} us a token"
            f" ({line['processor_microseconds_per_token']['median']:.2f} of processor time),"
            f" {line['times_faster_than_full']['median']:6.2f} times faster than full",
            flush=True,
        )
        lines.append(line)
    return lines


def job(attention: Attention, heads: int, length: int, dtype: torch.dtype, backward: bool) -> Callable[[], None]:
    """One pass over a sequence, laid out as projections leave it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, length, heads, WIDTH, generator=generator).to(dtype).transpose(1, 2).requires_grad_(backward)
        for _ in range(3)
    )

    def run() -> None:
        if backward:
            y = attention(q, k, v)
            torch.autograd.grad(y, (q, k, v), torch.ones_like(y))
        else:
            with torch.inference_mode():
                attention(q, k, v)

    return run


def spread(values: list[float], factor: float) -> dict[str, float]:
    """Smallest, middle and largest, times a factor."""
    functions = {"min": min, "median": statistics.median, "max": max}
    return {name: round(factor * function(values), 2) for name, function in functions.items()}


def growth(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each curve: its cost per token at its longest length over that at 4 096, and over that at half of it."""
    result = []
    for clock in ("microseconds_per_token", "processor_microseconds_per_token"):
        curves: dict[tuple[str, str, str], dict[int, float]] = {}
        for line in lines:
            curve = curves.setdefault((line["kind"], line["dtype"], line["pass"]), {})
            curve[line["length"]] = line[clock]["median"]
        for (kind, dtype, which), curve in curves.items():
            longest = max(curve)
            if longest > 4096:
                result.append(
                    {
                        "kind": kind, "dtype": dtype, "pass": which, "clock": clock, "longest": longest,
                        "growth": round(curve[longest] / curve[4096], 2),
                        "settled": round(curve[longest] / curve[longest // 2], 2),
                    }
                )  # fmt: skip
    return result


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Microseconds a token against the length; one panel a dtype, dashed with the backward pass."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "long_context"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, dtype in zip(axes, ("bfloat16", "float32"), strict=True):
        for colour, kind in zip(("tab:red", "tab:blue", "tab:green"), KINDS, strict=True):
            for style, which in (("-", "forward"), ("--", "forward and backward")):
                curve = [line for line in lines if (line["kind"], line["dtype"], line["pass"]) == (kind, dtype, which)]
                costs = [line["microseconds_per_token"]["median"] for line in curve]
                axis.plot(
                    [line["length"] for line in curve], costs, style, color=colour, marker="o", markersize=3,
                    label=kind + (" with backward" if style == "--" else ""),
                )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(LENGTHS, [f"{length // 1024}k" for length in LENGTHS])
        axis.set_xlabel("length of the sequence (tokens)")
        axis.set_title(dtype)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("microseconds a token, one layer")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
