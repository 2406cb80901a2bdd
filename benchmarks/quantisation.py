"""What integers for weights cost in bits per byte, beside ggml's own, and whether llama.cpp continues texts as we do.

    python benchmarks/quantisation.py runs/demo/base my-corpus --llama-python llama/bin/python --out quantisation.json

The model is quantised to the nearest 8- and 4-bit integers, to calibrated 4-bit ones, and to the peer's Q8_0 and Q4_0
(the library gguf makes the same bytes as llama.cpp); every form is computed in float32 and scored on the same held-out
text in `--parts` parts, in turns. Printed are the losses in percent (minimum, median, maximum over the parts) and the
ratio of ours to the peer's of as many bits. With `--llama-python`, the model's GGUF file in float16 is opened by
llama-cpp-python, and its greedy continuations of the first lines of the text are compared with ours token by token.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from parlance.core.devices import usable_cores
from parlance.core.progress import Progress
from parlance.inference.model import Model, load, resolve_model_folder, tokenizer_of
from parlance.inference.quantisation.calibrated import calibrated_matrices
from parlance.inference.quantisation.quantise import (
    QuantisationConfig,
    bits_per_byte,
    calibration_windows,
    read_texts,
)
from parlance.inference.quantisation.rounding import nearest
from parlance.models.checkpoints import read_values
from parlance.models.gguf import convert_to_gguf
from parlance.models.quantised_checkpoint import quantised_names

PAIRS = {"nearest int8": "Q8_0", "nearest int4": "Q4_0", "calibrated int4": "Q4_0"}
"""Ours, and the peer's of as many bits."""
PEER = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=0, n_threads=2, verbose=False)
for line in sys.stdin:
    prompt, count = json.loads(line)
    model.reset()
    tokens = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
    print(json.dumps([token for token, _ in zip(tokens, range(count))]), flush=True)
"""


def forms_of(opened: Model, windows: Tensor) -> dict[str, dict[str, Tensor]]:
    """The matrices of every form, as the numbers that it stands for."""
    import gguf

    model = opened.language_model
    exact = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def ggml(kind: str) -> dict[str, Tensor]:
        types = gguf.GGMLQuantizationType
        out = {}
        for name, bits in quantised_names(model, 4).items():
            type = types.Q4_0 if kind == "Q4_0" and bits == 4 else types.Q8_0
            blocks = gguf.quants.quantize(exact[name].numpy(), type)
            out[name] = torch.from_numpy(gguf.quants.dequantize(blocks, type))
        return out

    forms = {"Q8_0": ggml("Q8_0"), "Q4_0": ggml("Q4_0")}
    for bits in (8, 4):
        names = quantised_names(model, bits)
        forms[f"nearest int{bits}"] = {name: nearest(exact[name], each).weight() for name, each in names.items()}
    names = quantised_names(model, 4)
    with Progress("quantise", total=len(names), unit="matrices") as progress:
        found = calibrated_matrices(model, windows, names, progress)
    forms["calibrated int4"] = {name: matrix.weight() for name, matrix in found.items()}
    return {"exact": exact, **forms}


@torch.inference_mode()
def continued(opened: Model, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt, one by one."""
    out: list[int] = []
    state, tokens = None, torch.tensor([prompt])
    for _ in range(count):
        logits, state = opened.language_model.forward(tokens, state)
        tokens = logits[:, -1:].argmax(-1)
        out.append(int(tokens))
    return out


def same_greedily(opened: Model, folder: Path, texts: list[str], python: str, count: int) -> list[float]:
    """For each text, the share of `count` greedy tokens before the first in which llama.cpp differs."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.gguf"
        convert_to_gguf(folder, tokenizer_of(folder, str(read_values(folder).get("model_type"))), file, "f16")
        peer = subprocess.Popen(
            [python, "-c", PEER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert peer.stdin is not None
        assert peer.stdout is not None
        shares = []
        for text in texts:
            prompt = [*opened.tokenizer.surrounding[0], *opened.tokenizer.encode(text)[:32]]
            peer.stdin.write(json.dumps([prompt, count]) + "\n")
            peer.stdin.flush()
            theirs, ours = json.loads(peer.stdout.readline()), continued(opened, prompt, count)
            equal = [a == b for a, b in zip(ours, theirs, strict=True)]
            shares.append((equal.index(False) if False in equal else count) / count)
        peer.stdin.close()
        peer.wait()
    return shares


def losses(
    opened: Model, forms: dict[str, dict[str, Tensor]], parts: list[list[str]], say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Percent of bits per byte that each form loses on each part."""
    model = opened.language_model
    out: dict[str, list[float]] = {name: [] for name in forms if name != "exact"}
    for part in parts:
        whole = 0.0
        for name, weights in forms.items():
            with torch.no_grad():
                for key, weight in weights.items():
                    model.get_parameter(key).copy_(weight)
            bits = bits_per_byte(opened, part)
            if name == "exact":
                whole = bits
            else:
                out[name].append(100 * (bits / whole - 1))
            say(f"{name}: {bits:.4f} bits per byte")
    with torch.no_grad():
        for key, weight in forms["exact"].items():
            model.get_parameter(key).copy_(weight)
    return out


def main() -> None:
    """Print losses and ratios; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="a corpus folder, or a file")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=60_000, help="held-out text in all")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens to calibrate on")
    parser.add_argument("--llama-python", help="a Python that has llama_cpp")
    parser.add_argument("--greedy", type=int, default=64, help="tokens of a greedy continuation")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    folder = resolve_model_folder(arguments.model)
    config = QuantisationConfig(calibration_tokens=arguments.tokens, held_out_bytes=arguments.bytes)
    texts = read_texts(arguments.text, config)
    opened = load(folder, "cpu", "float32")
    joined = "\n".join(texts.held_out)
    size = len(joined) // arguments.parts
    parts = [[joined[size * number : size * (number + 1)]] for number in range(arguments.parts)]
    found = losses(opened, forms_of(opened, calibration_windows(opened, texts.calibration, config)), parts, print)
    result: dict[str, object] = {"loss_percent": found, "ratio_to_peer": {}}
    for name, values in found.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:16} loses {middle:.3f} % ({low:.3f} to {high:.3f})")
    ratios: dict[str, list[float]] = {}
    for ours, theirs in PAIRS.items():
        ratios[f"{ours} / {theirs}"] = [a / b for a, b in zip(found[ours], found[theirs], strict=True)]
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    result["ratio_to_peer"] = ratios
    if arguments.llama_python:
        lines = [line for line in joined.splitlines() if len(line) > 20][:: max(1, len(joined) // 5000)][:8]
        shares = same_greedily(opened, folder, lines, arguments.llama_python, arguments.greedy)
        print(f"greedy tokens as llama.cpp's: {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")
        result["greedy_share"] = shares
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
