"""How long does a checkpoint of one gigabyte take to open, and how much memory that is not the file's own?

    python benchmarks/opening.py [--gigabytes 1] [--out FILE.json]

A LLaMA-shaped model of random weights is written once as bfloat16 and once as float32, and opened in a fresh process
each time: in the type of the file (mapped), and in the other type (converted tensor by tensor). transformers opens the
same folder. Seconds are those of opening alone, imports excluded; memory is the growth of the process's anonymous pages
(`RssAnon`), which a mapped file does not count to. Files are in the system's cache. Linux only; needs transformers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from parlance.core.devices import environment
from parlance.models.checkpoints import checkpoint_tensors, checkpoint_values, family_for, write_checkpoint
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig

CHILD = """
import sys, time, torch
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
way, folder, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
if way == "parlance":
    from pathlib import Path
    from parlance.models.checkpoints import load_model
else:
    from transformers import AutoModelForCausalLM
before, start = anonymous(), time.perf_counter()
if way == "parlance":
    model = load_model(Path(folder), dtype)
else:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
seconds = time.perf_counter() - start
print(seconds, anonymous() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for stored in (torch.bfloat16, torch.float32):
        layers = max(1, round(arguments.gigabytes * 1e9 / stored.itemsize / 52.4e6))
        config = TransformerConfig(
            vocab_size=8192, context_length=2048, width=2048, layers=layers, heads=32, mlp_width=5632, qk_norm=False
        )
        model = Transformer(config)
        model.initialise(torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder:
            family = family_for(config)
            tensors = checkpoint_tensors(family.table(config), dict(model.named_parameters()), stored)
            values = checkpoint_values(config, end_of_text=1, pad=2, family=family, dtype=stored)
            write_checkpoint(Path(folder), values, tensors)
            size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
            del model, tensors
            for wanted in ("bfloat16", "float32"):
                found: dict[str, list[tuple[float, int]]] = {"parlance": [], "transformers": []}
                for _ in range(arguments.rounds):
                    for way, results in found.items():
                        command = [sys.executable, "-c", CHILD, way, folder, wanted]
                        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                        results.append((float(words[-2]), int(words[-1])))
                for way, results in found.items():
                    seconds = sorted(second for second, _ in results)
                    anonymous = sorted(memory for _, memory in results)[len(results) // 2]
                    row = {
                        "stored": str(stored).removeprefix("torch."),
                        "opened_as": wanted,
                        "way": way,
                        "file_bytes": size,
                        "seconds": [seconds[0], seconds[len(seconds) // 2], seconds[-1]],
                        "anonymous_bytes": anonymous,
                    }
                    rows.append(row)
                    print(
                        f"{row['stored']:9} as {wanted:9} {way:13} {size / 1e9:.2f} GB: {row['seconds'][1]:.2f} s "
                        f"({seconds[0]:.2f} to {seconds[-1]:.2f}), {anonymous / 1e6:.0f} MB beside the file"
                    )
    if arguments.out:
        arguments.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
