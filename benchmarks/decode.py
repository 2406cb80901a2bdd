"""How fast do the processor's kernels decode, against llama.cpp and transformers?

    python benchmarks/decode.py [--peers llama.cpp transformers --llama-python PYTHON] [--rounds 5] [--threads 2]
                                [--work decode prefill streams small] [--out FILE.json]

One model, random weights, in the shape of Llama: 12 layers of width 768, 12 heads, SwiGLU 2 048, 32 000 tokens, untied
head (134 M). `decode`: one text from position 32 to 96, a token a step. `prefill`: 512 tokens of one text in one step,
logits of the last. `streams`: 16 texts at once from position 32 to 64, a token of each a step. `small`: a model of
3.4 M (4 layers of width 256, bytes) decodes one text, against transformers alone. Nothing is sampled on any side.

llama.cpp (f16, Q8_0, and Q4_0 with embedding and head in Q8_0) is called through its C interface by a process of its
own (`--llama-python`: an environment with llama-cpp-python and gguf); transformers runs its forward pass with a cache,
in bfloat16 and fp32. All ways take turns, with as many threads each. Ratios are of rates within a round. The largest
difference of logits to transformers in fp32 is printed for each way. Bandwidth is the bytes of weights that a step
reads times the rate, beside what two streams that do nothing but read reach here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from parlance.core.devices import environment
from parlance.inference.backend import Piece
from parlance.inference.kernels.kernel_backend import KernelBackend
from parlance.models.checkpoints import load_transformer
from parlance.models.transformer import Transformer

LARGE = {"vocab_size": 32_000, "width": 768, "layers": 12, "heads": 12, "mlp_width": 2048, "context_length": 1024}
SMALL = {"vocab_size": 256, "width": 256, "layers": 4, "heads": 4, "mlp_width": 704, "context_length": 1024}
WORKS = {
    "decode": {"streams": 1, "begin": 32, "end": 96},
    "prefill": {"streams": 1, "begin": 0, "end": 512},
    "streams": {"streams": 16, "begin": 32, "end": 64},
    "small": {"streams": 1, "begin": 32, "end": 96},
}
KINDS = ("float32", "bfloat16", "int8", "int4")
COUNTERPARTS = {"bfloat16": "llama.cpp f16", "int8": "llama.cpp q8_0", "int4": "llama.cpp q4_0"}
Way = Callable[[], float]
"""Seconds of one unit of work."""


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def peer_model(shape: dict[str, int]) -> LlamaForCausalLM:
    """A random Llama of transformers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["mlp_width"],
        max_position_embeddings=shape["context_length"],
        tie_word_embeddings=False,
        rms_norm_eps=1e-6,
    )
    return LlamaForCausalLM(config).eval()


def own_model(peer: LlamaForCausalLM) -> Transformer:
    """The same weights in Parlance."""
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return load_transformer(Path(folder))


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order in which llama.cpp turns them: neighbours in pairs."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def export(peer: LlamaForCausalLM, shape: dict[str, int], folder: Path) -> None:
    """Weights by llama.cpp's names as .npy files, for `decode_llama.py`."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in peer.state_dict().items():
        data = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            data = turned(data, shape["heads"])
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, number, part = stem.split(".", 3)
            stem = f"blk.{number}.{names[part]}"
        else:
            stem = names[stem]
        np.save(folder / f"{stem}.weight.npy", data)
    (folder / "shape.json").write_text(json.dumps(shape))


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, folder: Path, threads: int) -> None:
        self.threads = threads
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("decode_llama.py")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Its threads wait for each other as OpenMP does unless told otherwise.
            env={name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        )
        self.version = self._answer()["version"]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("llama.cpp's process ended; run decode_llama.py by hand to see why")
        return json.loads(line)

    def ask(self, kind: str, work: str, sizes: dict[str, int]) -> Any:
        """Seconds of one unit of work, or the logits."""
        assert self.process.stdin is not None
        request = {"type": kind, "work": work, "threads": self.threads, **sizes}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def way(self, kind: str, work: str) -> Way:
        """One unit of work of a model of some type."""
        return lambda: float(self.ask(kind, work, WORKS[work]))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def own_way(backend: KernelBackend, ids: list[int], streams: int, begin: int, end: int) -> Way:
    """One unit of work of Parlance."""
    each = -(-end // backend.page_size)
    pages = [range(each * stream, each * (stream + 1)) for stream in range(streams)]

    def run() -> float:
        if begin:
            for stream in range(streams):
                backend.step([Piece(ids[:begin], 0, pages[stream], 1)])
            start = time.perf_counter()
            for i in range(begin, end):
                backend.step([Piece([ids[i]], i, pages[stream], 1) for stream in range(streams)])
            return time.perf_counter() - start
        start = time.perf_counter()
        backend.step([Piece(ids[:end], 0, pages[0], 1)])
        return time.perf_counter() - start

    return run


def peer_way(model: LlamaForCausalLM, ids: list[int], streams: int, begin: int, end: int) -> Way:
    """One unit of work of transformers."""

    def run() -> float:
        cache = DynamicCache(config=model.config)
        tokens = torch.tensor([ids] * streams)
        with torch.inference_mode():
            if begin:
                model(tokens[:, :begin], past_key_values=cache, logits_to_keep=1)
                start = time.perf_counter()
                for i in range(begin, end):
                    float(model(tokens[:, i : i + 1], past_key_values=cache).logits[-1, -1, 0])
                return time.perf_counter() - start
            start = time.perf_counter()
            float(model(tokens[:, :end], past_key_values=cache, logits_to_keep=1).logits[0, -1, 0])
            return time.perf_counter() - start

    return run


def measure(ways: dict[str, Way], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each way in each round, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if number:
                rates[name].append(tokens / seconds)
    return rates


def best(rates: dict[str, list[float]], prefix: str) -> str | None:
    """The way whose name begins so, with the highest median."""
    names = [name for name in rates if name.startswith(prefix)]
    return max(names, key=lambda name: statistics.median(rates[name]), default=None)


def ratios(rates: dict[str, list[float]], work: str) -> dict[str, dict[str, float]]:
    """Of each of our ways to its counterpart, to the best of transformers, and where the goal says so, to the best."""
    pairs: list[tuple[str, str]] = []
    for name in [name for name in rates if name.startswith("parlance")]:
        kind = name.split()[1]
        others = [COUNTERPARTS.get(kind), best(rates, "transformers")]
        if work in ("prefill", "streams"):
            others += [best(rates, "llama.cpp")]
        pairs += [(name, other) for other in dict.fromkeys(others) if other in rates]
    return {
        f"{one} / {other}": spread([a / b for a, b in zip(rates[one], rates[other], strict=True)])
        for one, other in pairs
    }


def roofline(threads: int) -> float:
    """GB/s that threads reach which do nothing but read their share of 256 MB: numpy's maximum of whole numbers."""
    data = np.ones(256 * 2**20 // 8, np.int64)
    shares = np.array_split(data, threads)
    fastest = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=share.max) for share in shares]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        fastest = max(fastest, data.nbytes / (time.perf_counter() - start) / 1e9)
    return fastest


def run_work(
    work: str, backends: dict[str, KernelBackend], peers: dict[str, LlamaForCausalLM], llama: Llama | None,
    ids: list[int], rounds: int, memory: float,
) -> dict[str, Any]:  # fmt: skip
    """Measure and print one kind of work."""
    sizes = WORKS[work]
    tokens = (sizes["end"] - sizes["begin"]) * sizes["streams"]
    ways = {f"parlance {kind}": own_way(backend, ids, **sizes) for kind, backend in backends.items()}
    if llama is not None:
        ways |= {name: llama.way(name.split()[1], work) for name in COUNTERPARTS.values()}
    ways |= {f"transformers {name}": peer_way(peer, ids, **sizes) for name, peer in peers.items()}
    rates = measure(ways, tokens, rounds)
    print(f"{work} ({sizes['streams']} at once, positions {sizes['begin']}-{sizes['end']})", flush=True)
    bandwidth = {}
    for name, values in rates.items():
        line = f"  {name:22} {statistics.median(values):8.1f} tokens/s ({min(values):.1f} to {max(values):.1f})"
        if name.startswith("parlance") and work in ("decode", "small"):
            bandwidth[name] = statistics.median(values) * backends[name.split()[1]].weight_bytes / 1e9
            line += f", {bandwidth[name]:.1f} GB/s"
        print(line, flush=True)
    compared = ratios(rates, work)
    for name, ratio in compared.items():
        print(f"  {name:45} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})", flush=True)
    return {
        "rates": {name: spread(values) for name, values in rates.items()},
        "ratio": compared,
        "bandwidth": bandwidth,
        "read_bandwidth": memory,
    }


def agreement(backends: dict[str, KernelBackend], peer: LlamaForCausalLM, llama: Llama | None, ids: list[int]) -> None:
    """Print how far each way's logits are from those of transformers in fp32."""
    with torch.inference_mode():
        exact = peer(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].double().numpy()
    found = {}
    for kind, backend in backends.items():
        pages = range(-(-len(ids) // backend.page_size))
        found[f"parlance {kind}"] = backend.step([Piece(ids, 0, pages, 1)])[0].astype(np.float64)
    if llama is not None:
        for name in COUNTERPARTS.values():
            found[name] = np.array(llama.ask(name.split()[1], "logits", WORKS["decode"]))
    for name, logits in found.items():
        print(
            f"  {name:22} logits: largest difference {np.abs(logits - exact).max():.5f} at a deviation of "
            f"{exact.std():.3f}, correlation {np.corrcoef(logits, exact)[0, 1]:.6f}",
            flush=True,
        )


def main() -> None:
    """Read the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=("llama.cpp", "transformers"), default=["transformers"])
    parser.add_argument("--llama-python", default=sys.executable, help="Python with llama-cpp-python and gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", nargs="+", choices=tuple(WORKS), default=list(WORKS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ids = torch.randint(0, 256, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    result: dict[str, Any] = {"environment": environment(), "threads": arguments.threads, "load": os.getloadavg()}
    for shape, works in ((LARGE, ("decode", "prefill", "streams")), (SMALL, ("small",))):
        chosen = [work for work in works if work in arguments.work]
        if not chosen:
            continue
        peer = peer_model(shape)
        model = own_model(peer)
        threads = arguments.threads if shape is LARGE else 1
        backends = {kind: KernelBackend(model, kind, pages=512, threads=threads) for kind in arguments.kinds}
        with tempfile.TemporaryDirectory() as name:
            llama = None
            if "llama.cpp" in arguments.peers and shape is LARGE:
                export(peer, shape, Path(name))
                (Path(name) / "ids.json").write_text(json.dumps(ids))
                llama = Llama(arguments.llama_python, Path(name), arguments.threads)
                result["llama-cpp-python"] = llama.version
            agreement(backends, peer, llama, ids)
            peers = {}
            if "transformers" in arguments.peers:
                peers = {"fp32": peer, "bf16": LlamaForCausalLM(peer.config).to(torch.bfloat16).eval()}
                peers["bf16"].load_state_dict(peer.state_dict())
            memory = roofline(arguments.threads)
            print(f"reading memory: {memory:.1f} GB/s", flush=True)
            for work in chosen:
                result[work] = run_work(work, backends, peers, llama, ids, arguments.rounds, memory)
            if llama is not None:
                llama.close()
        for backend in backends.values():
            backend.close()
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
