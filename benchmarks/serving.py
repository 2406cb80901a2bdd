"""How long do 64 clients at once wait for the first token and between tokens, and does the server keep its memory?

    python benchmarks/serving.py [--llama-server BINARY] [--clients 64] [--minutes 5] [--rounds 5] [--out FILE.json]

One model, random weights, Llama's shape (12 layers of width 768, 12 heads, SwiGLU 2 048, a vocabulary of 8 192 trained
on this Python's library: 98 M), in bfloat16; llama.cpp's server has the same as f16, with as many slots as clients and
as many threads. Each client asks again as soon as it has its answer: a text of 8 to 32 words of its own, 64 tokens
more, streamed, at temperature 0.8. Nothing of a prompt is there twice.

Both servers run all the time, each is a process of its own, and they are loaded in turns, `--rounds` times, for
`--minutes` each in all; the client, which shares their processor cores, is the same for both. A request that is not
answered to its end counts as dropped. Memory is the server's resident set after the first round and after the last.
Ratios (llama.cpp's time over ours: above 1 is faster) are of the same round: minimum, median, maximum.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from parlance.core.devices import environment

SHAPE = {"vocab_size": 8192, "width": 768, "layers": 12, "heads": 12, "head_width": 64, "mlp_width": 2048}
WRITTEN = 64
"""Tokens of an answer."""


@dataclass
class Tally:
    """What the clients saw in one round."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    dropped: int = 0
    seconds: float = 0.0


def make_model(folder: Path) -> list[str]:
    """A random model in a checkpoint folder and as `model.gguf` beside it; returns words for prompts."""
    from parlance.models.checkpoints import save_model
    from parlance.models.gguf import convert_to_gguf
    from parlance.models.transformer import Transformer
    from parlance.models.transformer_config import TransformerConfig
    from parlance.text.standard_library import StandardLibraryCorpus
    from parlance.text.tokenizers import train_tokenizer

    texts = [document.text for document, _ in zip(StandardLibraryCorpus(), range(200), strict=False)]
    tokenizer = train_tokenizer(texts, "bpe", vocab_size=SHAPE["vocab_size"])
    model = Transformer(TransformerConfig(context_length=2048, **SHAPE))
    model.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "model", model, end_of_text=tokenizer.end_of_text, pad=tokenizer.pad)
    tokenizer.save(folder / "model")
    convert_to_gguf(folder / "model", tokenizer, folder / "model.gguf", "f16")
    return [word for text in texts for word in text.split() if word.isalpha()][:50_000]


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def started(command: list[str], port: int, threads: int) -> subprocess.Popen[bytes]:
    """A server that answers /health."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{command[0]} ended with {process.returncode}; run it by hand: {' '.join(command)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return process
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"{command[0]} does not answer")


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def client(port: int, words: list[str], generator: random.Random, end: float, tally: Tally) -> None:
    """Ask and read until the time is over; what is being read then is read to its end."""
    while time.perf_counter() < end:
        prompt = " ".join(generator.choices(words, k=generator.randint(8, 32)))
        body = {
            "model": "model",
            "prompt": prompt,
            "max_tokens": WRITTEN,
            "temperature": 0.8,
            "stream": True,
            "seed": generator.randrange(2**31),
        }
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        last = time.perf_counter()
        seen, done = 0, False
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + data)
            async for line in reader:
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: {") and b'"finish_reason":null' in line:
                    now = time.perf_counter()
                    (tally.gaps if seen else tally.first).append(now - last)
                    last, seen = now, seen + 1
            writer.close()
        except OSError:
            done = False
        tally.tokens += seen
        tally.answers += done
        tally.dropped += not done


async def load(port: int, words: list[str], clients: int, seconds: float, seed: int) -> Tally:
    """All clients for a while."""
    tally = Tally()
    begun = time.perf_counter()
    await asyncio.gather(
        *(client(port, words, random.Random(seed * 1000 + n), begun + seconds, tally) for n in range(clients))
    )
    tally.seconds = time.perf_counter() - begun
    return tally


def quantile(values: list[float], share: float) -> float:
    """Of a list that is not empty."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(tally: Tally) -> dict[str, float]:
    """A round in numbers; times in milliseconds."""
    return {
        "first_p50": quantile(tally.first, 0.5) * 1000,
        "first_p99": quantile(tally.first, 0.99) * 1000,
        "gap_p50": quantile(tally.gaps, 0.5) * 1000,
        "gap_p99": quantile(tally.gaps, 0.99) * 1000,
        "tokens_per_second": tally.tokens / tally.seconds,
        "answers": tally.answers,
        "dropped": tally.dropped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", metavar="BINARY", help="llama.cpp's server; none: only ours")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60 / arguments.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = make_model(folder)
        ports = {"parlance": free_port(), "llama.cpp": free_port()}
        commands = {
            "parlance": [
                *(sys.executable, "-m", "parlance", "serve", str(folder / "model"), "--device", "cpu"),
                *("--precision", "bfloat16", "--port", str(ports["parlance"])),
                *("--parallel", str(arguments.clients), "--cache", "1"),
            ]
        }
        if arguments.llama_server:
            commands["llama.cpp"] = [
                *(arguments.llama_server, "-m", str(folder / "model.gguf"), "--port", str(ports["llama.cpp"])),
                *("-np", str(arguments.clients), "-c", str(512 * arguments.clients)),
                *("-t", str(arguments.threads), "-tb", str(arguments.threads)),
            ]
        servers = {way: started(command, ports[way], arguments.threads) for way, command in commands.items()}
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in servers}
        memory: dict[str, list[int]] = {way: [] for way in servers}
        try:
            for way in servers:  # compiles, allocates
                asyncio.run(load(ports[way], words, 2, 1.0, seed=99))
            for number in range(arguments.rounds):
                for way, process in servers.items():
                    found = figures(asyncio.run(load(ports[way], words, arguments.clients, seconds, seed=number)))
                    rounds[way].append(found)
                    memory[way].append(resident(process))
                    print(way, {key: round(value, 1) for key, value in found.items()}, flush=True)
        finally:
            for process in servers.values():
                process.terminate()
            for process in servers.values():
                process.wait()
    report(arguments, rounds, memory)


def report(
    arguments: argparse.Namespace, rounds: dict[str, list[dict[str, float]]], memory: dict[str, list[int]]
) -> None:
    """Print ratios and write the file."""
    result: dict[str, Any] = {"environment": environment(), "settings": {"clients": arguments.clients}}
    result["settings"] |= {"minutes": arguments.minutes, "rounds": arguments.rounds, "threads": arguments.threads}
    result |= {"rounds": rounds, "memory": memory, "ratios": {}}
    for way, sizes in memory.items():
        print(f"{way}: memory {sizes[0] / 1e6:.0f} MB after the first round, {sizes[-1] / 1e6:.0f} MB after the last")
    if "llama.cpp" in rounds:
        for name in ("first_p50", "first_p99", "gap_p50", "gap_p99", "tokens_per_second"):
            pairs = zip(rounds["llama.cpp"], rounds["parlance"], strict=True)
            ratios = [peer[name] / own[name] for peer, own in pairs]
            ratios = [1 / ratio for ratio in ratios] if name == "tokens_per_second" else ratios
            spread = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
            result["ratios"][name] = spread
            print(f"{name}: {spread['min']:.2f} {spread['median']:.2f} {spread['max']:.2f} x llama.cpp's server")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
