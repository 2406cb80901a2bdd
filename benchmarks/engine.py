"""How fast is the batching engine with 16 texts at once, and what does a shared beginning save?

    python benchmarks/engine.py [--peers llama.cpp transformers --llama-python PYTHON] [--rounds 3] [--threads 2]
                                [--work streams shared] [--backends kernels torch] [--out FILE.json]

The model of `decode.py`: 134 M in Llama's shape, random weights, bfloat16. Everything goes through `Engine.submit` and
is read from its streams, so that scheduling, sampling, log-probabilities and threads are part of the time.

`streams`: 16 prompts of 32 tokens, 64 more written of each, greedy. transformers writes the same as one batch by
`generate`; the ratio is of whole times, prompts included. llama.cpp (f16, through its C interface as in `decode.py`)
makes the 64 steps of 16 texts alone: without prompts, and without sampling. Its ratio is to our rate from the moment
when all 16 texts have their first token.

`shared`: 32 requests that begin with the same 1 000 tokens and go on with 8 of their own, 8 written of each; against 32
that have nothing in common. New tokens in each round. The ratio is of whole times.

All ways take turns. Ratios are of the same round: minimum, median, maximum.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from decode import LARGE, Llama, export, own_model, peer_model, spread
from parlance.core.devices import environment
from parlance.inference.backends import choose_backend
from parlance.inference.engine import Engine, Request
from parlance.inference.sampling import SamplingConfig

STREAMS, PROMPT, WRITTEN = 16, 32, 64
SHARING, COMMON, OWN, SHORT = 32, 1000, 8, 8
MOST = 2_000
"""Pages of either backend: 64 000 tokens."""


def drawn(count: int, generator: random.Random) -> list[int]:
    """Random tokens."""
    return [generator.randrange(LARGE["vocab_size"]) for _ in range(count)]


def ask(engine: Engine, prompts: list[list[int]], count: int) -> tuple[float, float, float]:
    """Seconds until all prompts are answered with `count` tokens each; from then on when all have a token; and the
    mean first token's."""
    sampling = SamplingConfig(max_tokens=count, temperature=0.0)
    start = time.perf_counter()
    streams = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    for stream in streams:
        assert len(list(stream)) == count
    whole = time.perf_counter() - start
    firsts = [stream.first_token_seconds or 0.0 for stream in streams]
    return whole, whole - max(firsts), sum(firsts) / len(firsts)


def generate(model: LlamaForCausalLM, prompts: list[list[int]]) -> float:
    """Seconds of transformers for one batch."""
    tokens = torch.tensor(prompts)
    start = time.perf_counter()
    out = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN,
        pad_token_id=0,
    )  # fmt: skip
    assert out.shape[1] == PROMPT + WRITTEN
    return time.perf_counter() - start


def alike(one: str, other: str) -> bool:
    """Whether two rates are of the same part of the work."""
    return one.split(", ")[1] == other.split(", ")[1]


def streams(
    engines: dict[str, Engine], peer: LlamaForCausalLM | None, llama: Llama | None, rounds: int, seed: int
) -> dict[str, Any]:
    """16 texts at once."""
    generator = random.Random(seed)
    tokens = STREAMS * WRITTEN
    rates: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        found: dict[str, float] = {}
        for name, engine in engines.items():
            whole, writing, _ = ask(engine, [drawn(PROMPT, generator) for _ in range(STREAMS)], WRITTEN)
            found[f"parlance {name}, whole"] = tokens / whole
            found[f"parlance {name}, writing"] = STREAMS * (WRITTEN - 1) / writing
        if peer is not None:
            prompts = [drawn(PROMPT, generator) for _ in range(STREAMS)]
            found["transformers, whole"] = tokens / generate(peer, prompts)
        if llama is not None:
            work = {"streams": STREAMS, "begin": PROMPT, "end": PROMPT + WRITTEN}
            found["llama.cpp f16, writing"] = tokens / float(llama.ask("f16", "streams", work))
        for name, rate in found.items() if number else ():
            rates.setdefault(name, []).append(rate)
    own = [name for name in rates if name.startswith("parlance")]
    pairs = [(one, other) for one in own for other in rates if other not in own and alike(one, other)]
    return {
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": {
            f"{one} / {other}": spread([a / b for a, b in zip(rates[one], rates[other], strict=True)])
            for one, other in pairs
        },
    }


def shared(engines: dict[str, Engine], rounds: int, seed: int) -> dict[str, Any]:
    """32 prompts with and without a common beginning."""
    generator = random.Random(seed)
    seconds: dict[str, list[float]] = {}
    firsts: dict[str, list[float]] = {}
    for name, engine in engines.items():
        ask(engine, [drawn(COMMON, generator)], SHORT)  # warm
        for _ in range(rounds):
            common = drawn(COMMON, generator)
            prompts = {
                "shared": [common + drawn(OWN, generator) for _ in range(SHARING)],
                "apart": [drawn(COMMON + OWN, generator) for _ in range(SHARING)],
            }
            for kind, texts in prompts.items():
                whole, _, first = ask(engine, texts, SHORT)
                seconds.setdefault(f"{name}, {kind}", []).append(whole)
                firsts.setdefault(f"{name}, {kind}", []).append(first)
    ratio = {
        name: spread(
            [a / b for a, b in zip(seconds[f"{name}, apart"], seconds[f"{name}, shared"], strict=True)]
        )
        for name in engines
    }  # fmt: skip
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "mean_first_token_seconds": {name: spread(values) for name, values in firsts.items()},
        "ratio": ratio,
    }


def show(title: str, result: dict[str, Any]) -> None:
    """Print figures."""
    print(title, flush=True)
    for kind, rows in result.items():
        for name, values in rows.items():
            low, middle, high = values["min"], values["median"], values["max"]
            print(f"  {kind:24} {name:60} {middle:9.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    """Read the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=("llama.cpp", "transformers"), default=["transformers"])
    parser.add_argument("--llama-python", default=sys.executable, help="Python with llama-cpp-python and gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs="+", choices=("streams", "shared"), default=["streams", "shared"])
    parser.add_argument("--backends", nargs="+", choices=("kernels", "torch"), default=["kernels", "torch"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peer = peer_model(LARGE)
    model = own_model(peer)
    model.compute_dtype = torch.bfloat16
    model = model.to(torch.bfloat16)
    result: dict[str, Any] = {"environment": environment(), "threads": arguments.threads, "load": os.getloadavg()}
    bytes_a_page = 2 * 2 * LARGE["width"] * LARGE["layers"] * 32
    makers: dict[str, Callable[[], Any]] = {
        name: lambda name=name: choose_backend(  # type: ignore[misc]
            model, most_running=SHARING, cache_bytes=MOST * bytes_a_page, kernels=name == "kernels"
        )
        for name in arguments.backends
    }
    engines = {}
    for name, make in makers.items():
        chosen = make()
        print(chosen.description, flush=True)
        engines[name] = Engine(chosen.backend, most_running=SHARING)
    if "streams" in arguments.work:
        with tempfile.TemporaryDirectory() as folder:
            llama = None
            if "llama.cpp" in arguments.peers:
                export(peer, LARGE, Path(folder))
                (Path(folder) / "ids.json").write_text(json.dumps(drawn(512, random.Random(0))))
                llama = Llama(arguments.llama_python, Path(folder), arguments.threads)
                result["llama-cpp-python"] = llama.version
            other = peer.to(torch.bfloat16) if "transformers" in arguments.peers else None
            result["streams"] = streams(engines, other, llama, arguments.rounds, arguments.seed)
            if llama is not None:
                llama.close()
        show("16 texts at once (tokens/s)", result["streams"])
    if "shared" in arguments.work:
        result["shared"] = shared(engines, arguments.rounds, arguments.seed)
        show("32 prompts of 1 008 tokens", result["shared"])
    for engine in engines.values():
        engine.close()
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
