"""How fast do GPT-2's 124 M shape train and a 134 M Llama read a prompt, against transformers?

    python benchmarks/transformer_speed.py [--rounds 5] [--parts training prefill] [--compile] [--out FILE.json]

Training: forward, loss and backward of 4 x 512 random tokens, 12 layers of width 768 with 12 heads, learned positions,
LayerNorm, biases, tanh-GELU, 50 257 tokens, tied head, no dropout. Parlance takes its own training path
(`NextTokenObjective`, fp32 weights; with `--compile` also `compile_training`, which pre-training uses for runs of more
than a minute). transformers runs with each of its attentions; bfloat16 under autocast (fp32 weights, as Parlance has
them) and with a model that is bfloat16 throughout (less work: no casts, but no fp32 weights to train either). The
gradients are dropped in the measured time. No optimizer step on either side.

Prefill: 1 x 512 random tokens, 12 layers of width 768, 12 heads, SwiGLU 2 048, 32 000 tokens, untied head, bfloat16,
with a cache that is filled; logits of the last position, and of all.

Both sides have the same weights: the peer's random model, written to a temporary folder and opened by Parlance. The
relative difference of losses and the largest of logits are printed. All ways run in turns; the peer is its fastest way,
by median. Seconds of the processor (all threads) are given beside those of the clock: they tell whether other work
disturbed a run. Needs transformers.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from parlance.core.devices import environment
from parlance.models.checkpoints import load_transformer
from parlance.models.transformer import Transformer
from parlance.training.compilation import compile_training
from parlance.training.objectives import NextTokenObjective, TokenBatch

BATCH, LENGTH = 4, 512
ATTENTIONS = ("sdpa", "eager")
Way = Callable[[], float]
"""One unit of work; returns a figure by which the ways are compared (loss, a logit)."""


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(ways: dict[str, Way], tokens: int, rounds: int) -> dict[str, Any]:
    """Figures of each way, called once before the clock starts and then in turns; and the ratio to the best peer."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    figures = {name: way() for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            start, start_processor = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - start_processor)
    peers = [name for name in ways if name.startswith("transformers")]
    best = min(peers, key=lambda name: statistics.median(seconds[name]))
    return {
        "ways": {
            name: {
                "tokens_per_second": spread([tokens / s for s in seconds[name]]),
                "processor_seconds": spread(processor[name]),
                "figure": figures[name],
            }
            for name in ways
        },
        "best_peer": best,
        "ratio": {
            name: spread([peer / own for peer, own in zip(seconds[best], seconds[name], strict=True)])
            for name in ways
            if name not in peers
        },
        "processor_ratio": {
            name: spread([peer / own for peer, own in zip(processor[best], processor[name], strict=True)])
            for name in ways
            if name not in peers
        },
    }


# Training


def own_step(model: Transformer, objective: NextTokenObjective, batch: TokenBatch) -> Way:
    """Mean loss of a forward and backward pass of Parlance."""

    def step() -> float:
        terms = objective(model, batch)
        terms.loss_sum.backward()
        model.zero_grad(set_to_none=True)
        return float(terms.loss_sum.detach()) / terms.count

    return step


def peer_step(model: GPT2LMHeadModel, tokens: torch.Tensor, autocast: bool) -> Way:
    """Mean loss of a forward and backward pass of transformers; `tokens` (B, T + 1)."""
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            # Its own shift is left out: the targets are given, one for each input.
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def training(rounds: int, layers: int, compiled: bool) -> dict[str, Any]:
    """Both precisions."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH + 1))
    batch = TokenBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    original = GPT2LMHeadModel(config)

    def peer(attention: str, dtype: torch.dtype) -> GPT2LMHeadModel:
        model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
        model.load_state_dict(original.state_dict())
        return model.to(dtype).train()

    def own(folder: Path, dtype: torch.dtype, compiled: bool) -> Way:
        model, objective = load_transformer(folder), NextTokenObjective()
        model.requires_grad_(True)
        model.compute_dtype = dtype
        if compiled and not compile_training(model, objective, batch):
            raise SystemExit("compiling failed")
        return own_step(model, objective, batch)

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        original.save_pretrained(folder)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            ways = {"parlance": own(Path(folder), dtype, False)}
            if compiled:
                ways["parlance, compiled"] = own(Path(folder), dtype, True)
            for attention in ATTENTIONS:
                same = peer(attention, torch.float32)
                ways[f"transformers {attention}"] = peer_step(same, tokens, dtype == torch.bfloat16)
                if dtype == torch.bfloat16:
                    pure = peer(attention, torch.bfloat16)
                    ways[f"transformers {attention}, bfloat16 throughout"] = peer_step(pure, tokens, False)
            results[name] = measure(ways, BATCH * LENGTH, rounds)
            report(f"forward + backward, GPT-2 124M shape, {name}", results[name])
    return results


# Reading a prompt


def prefill(rounds: int, layers: int) -> dict[str, Any]:
    """Logits of the last position, and of all."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    tokens = torch.randint(0, config.vocab_size, (1, LENGTH))
    original = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        original.save_pretrained(folder)
        trained = load_transformer(Path(folder))
        trained.compute_dtype = torch.bfloat16
        model = trained.inference_copy()

    def own(last: bool) -> Way:
        def read() -> float:
            with torch.inference_mode():
                hidden = model.hidden(tokens, model.new_state(1, LENGTH))
                return float(model.logits(hidden[:, -1:] if last else hidden)[0, -1].float().logsumexp(0))

        return read

    def peer(attention: str, last: bool) -> Way:
        theirs = LlamaForCausalLM._from_config(config, attn_implementation=attention)
        theirs.load_state_dict(original.state_dict())
        theirs = theirs.to(torch.bfloat16).eval()

        def read() -> float:
            with torch.inference_mode():
                logits = theirs(input_ids=tokens, use_cache=True, logits_to_keep=1 if last else 0).logits
                return float(logits[0, -1].float().logsumexp(0))

        return read

    results = {}
    for name, last in (("last", True), ("all", False)):
        ways = {"parlance": own(last)}
        for attention in ATTENTIONS:
            ways[f"transformers {attention}"] = peer(attention, last)
        results[name] = measure(ways, LENGTH, rounds)
        report(f"prefill 512, Llama shape 134 M, bf16, logits: {name}", results[name])
    return results


def report(title: str, result: dict[str, Any]) -> None:
    """Print one table."""
    print(title, flush=True)
    for name, way in result["ways"].items():
        rate, processor = way["tokens_per_second"], way["processor_seconds"]
        print(
            f"  {name:45} {rate['median']:7.1f} tokens/s ({rate['min']:.1f} to {rate['max']:.1f}), "
            f"{processor['median']:.2f} processor seconds, figure {way['figure']:.6f}",
            flush=True,
        )
    for name, ratio in result["ratio"].items():
        other = result["processor_ratio"][name]
        print(
            f"  {name} / {result['best_peer']}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); "
            f"by processor seconds {other['median']:.2f} ({other['min']:.2f} to {other['max']:.2f})",
            flush=True,
        )


def main() -> None:
    """Read the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("training", "prefill"), default=["training", "prefill"])
    parser.add_argument("--layers", type=int, default=12, help="fewer, to try the script")
    parser.add_argument("--compile", action="store_true", help="also measure Parlance compiled")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "environment": environment() | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "layers": arguments.layers,
    }
    if "training" in arguments.parts:
        result["training"] = training(arguments.rounds, arguments.layers, arguments.compile)
    if "prefill" in arguments.parts:
        result["prefill"] = prefill(4 * arguments.rounds, arguments.layers)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
