"""Processors that models are trained on: peak, memory, links, power and a price, from data sheets and published runs.

    find("a100-80gb").peak

Peaks are dense 16-bit matrix products with 32-bit sums. Memory is in GiB, as the devices report it ("80 GB" is 80 GiB).
Links are per device and direction: `link` inside a machine of `per_node` devices, `network` between machines. Networks
are those that such machines usually have, not a property of the device.

`reached` is the share of the peak that a named published run got out of the device while little waited, the operations
of causal attention counted as done; a plan takes it where no utilisation is given. Prices are per device and hour, of a
named run or estimate and its year; they move, so a plan's price is the user's to give. Vendors' figures were not
measured here. A device that is not in the table is described: "peak=312,memory=80,bandwidth=2039,watts=400".
"""

import math
from dataclasses import dataclass
from typing import Literal

from parlance.core.errors import UserError

GIB = 2**30
FP8_GAIN = 1.22
"""Speed of training in 8 bits over 16, of devices whose peak doubles: torchtitan's Llama 3.1 8B on 8 H100 gained 1.28
(8 532 over 6 667 tokens/s/GPU), nanochat 1.17 (740 000 over 630 000 tokens/s)."""
Precision = Literal["mixed", "bf16", "fp32", "fp8"]


@dataclass(frozen=True)
class Accelerator:
    """One kind of device."""

    name: str
    """As in --gpu."""
    peak: float
    """FLOP/s of 16-bit matrix products, dense."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second to that memory."""
    link: float
    """Bytes a second to a device of the same machine, one direction."""
    network: float
    """Bytes a second and device to other machines, one direction."""
    watts: float
    """Rated board power; for TPUs a measured mean with its share of the host."""
    per_node: int = 8
    """Devices of one machine."""
    peak_fp8: float | None = None
    """FLOP/s of 8-bit matrix products; None: none."""
    peak_fp32: float | None = None
    """FLOP/s of 32-bit matrix products (TF32 where there is it); None: not known."""
    price: float | None = None
    """Dollars an hour; None: not known."""
    price_source: str = ""
    """Where the price is from."""
    reached: float = 0.4
    """Share of the peak that well-tuned training reaches in 16 bits, causal attention and recomputation counted."""
    reached_source: str = "assumed: no published run is known here"
    """Where that is from."""

    def peak_for(self, precision: Precision) -> float:
        """FLOP/s in a precision. Raises UserError where the device does not have it."""
        if precision == "fp8":
            if self.peak_fp8 is None:
                raise UserError(f"--precision fp8: {self.name} has no 8-bit matrix products; choose mixed or bf16")
            return self.peak_fp8
        if precision == "fp32":
            if self.peak_fp32 is None:
                raise UserError(f"--precision fp32: the 32-bit peak of {self.name} is not in the table; choose mixed")
            return self.peak_fp32
        return self.peak

    def reached_for(self, precision: Precision) -> float:
        """Share of the peak of a precision that training reaches: 8 bits gain `FP8_GAIN`, not what their peak does."""
        if precision == "fp8":
            return self.reached * FP8_GAIN * self.peak / self.peak_for(precision)
        return self.reached


_NANOCHAT = "nanochat's speed run, 2026: about $3 an hour"
_A100_PRICE = "MPT-7B, 2023: 440 A100 for 9.5 days, about $200 000"
ACCELERATORS = (
    Accelerator(
        "v100-32gb", 125e12, 32 * GIB, 900e9, 150e9, 12.5e9, 300, peak_fp32=15.7e12,
        price=1.5, price_source="the estimate of GPT-3's cost, 2020: $1.50 an hour",
        reached=0.224, reached_source="the estimate of GPT-3's cost: 28 TFLOP/s",
    ),
    Accelerator(
        "a100-40gb", 312e12, 40 * GIB, 1555e9, 300e9, 25e9, 400, peak_fp32=156e12,
        price=2.0, price_source=_A100_PRICE,
        reached=0.52, reached_source="TinyLlama: 56 %, 52 % with causal attention",
    ),
    Accelerator(
        "a100-80gb", 312e12, 80 * GIB, 2039e9, 300e9, 25e9, 400, peak_fp32=156e12,
        price=2.0, price_source=_A100_PRICE,
        reached=0.52, reached_source="TinyLlama on a100-40gb: 56 %, 52 % with causal attention",
    ),
    Accelerator(
        "h100-80gb", 989e12, 80 * GIB, 3350e9, 450e9, 50e9, 700, peak_fp8=1979e12, peak_fp32=495e12,
        price=3.0, price_source=_NANOCHAT,
        reached=0.45, reached_source="llm-foundry 7B: 46 %; nanochat 50 %, torchtitan 35 % with causal attention",
    ),
    Accelerator("h100-pcie", 756e12, 80 * GIB, 2000e9, 64e9, 25e9, 350, peak_fp8=1513e12, peak_fp32=378e12),
    Accelerator(
        "h200", 989e12, 140 * GIB, 4800e9, 450e9, 50e9, 700, peak_fp8=1979e12, peak_fp32=495e12,
        reached=0.45, reached_source="as h100-80gb, the same processor",
    ),
    Accelerator("b200", 2250e12, 180 * GIB, 8000e9, 900e9, 50e9, 1000, peak_fp8=4500e12, peak_fp32=1125e12),
    Accelerator("t4", 65e12, 16 * GIB, 320e9, 16e9, 3.1e9, 70, per_node=4, peak_fp32=8.1e12),
    Accelerator("a10g", 70e12, 24 * GIB, 600e9, 32e9, 6.2e9, 300, peak_fp32=35e12),
    Accelerator("rtx-a6000", 155e12, 48 * GIB, 768e9, 32e9, 1.25e9, 300, peak_fp32=77e12),
    Accelerator("l4", 121e12, 24 * GIB, 300e9, 32e9, 12.5e9, 72, peak_fp8=242e12, peak_fp32=60e12),
    Accelerator("l40s", 362e12, 48 * GIB, 864e9, 32e9, 25e9, 350, peak_fp8=733e12, peak_fp32=183e12),
    Accelerator("rtx-3090", 71e12, 24 * GIB, 936e9, 32e9, 1.25e9, 350, peak_fp32=35.6e12),
    Accelerator("rtx-4090", 165e12, 24 * GIB, 1008e9, 32e9, 1.25e9, 450, peak_fp8=330e12, peak_fp32=82.6e12),
    Accelerator("rtx-5090", 210e12, 32 * GIB, 1792e9, 64e9, 1.25e9, 575, peak_fp8=419e12, peak_fp32=105e12),
    Accelerator("mi250x", 383e12, 128 * GIB, 3277e9, 100e9, 25e9, 560),
    Accelerator("mi300x", 1307e12, 192 * GIB, 5300e9, 448e9, 50e9, 750, peak_fp8=2615e12),
    Accelerator(
        "tpu-v4", 275e12, 32 * GIB, 1228e9, 100e9, 50e9, 326, per_node=64,
        reached=0.578, reached_source="PaLM 540B: 57.8 % with recomputation counted, 46.2 % without",
    ),
)  # fmt: skip
"""Known devices. Sources: the vendors' data sheets; TPU v4's power as GLaM's authors measured it (326 W a chip), its
"machine" a cube of 64 chips."""


UNITS = {"peak": 1e12, "memory": GIB, "bandwidth": 1e9, "watts": 1.0, "link": 1e9, "network": 1e9, "per-node": 1.0}
"""What a described device is given in: TFLOP/s, GiB, GB/s, watts, devices. The first four are needed; else the link is
that of PCIe 4 (32 GB/s), the network 1.25 GB/s, and a machine has eight."""
NEEDED = 4


def find(name: str) -> Accelerator:
    """The device called `name`, in any case, or described by `name`: "peak=312,memory=80,bandwidth=2039,watts=400".

    Raises UserError that lists the known ones, or says what a description needs.
    """
    if "=" in name:
        return _described(name)
    for accelerator in ACCELERATORS:
        if accelerator.name == name.strip().lower():
            return accelerator
    raise UserError(
        f"--gpu {name} is not known here; known: {', '.join(known.name for known in ACCELERATORS)}; "
        "or describe it: --gpu peak=312,memory=80,bandwidth=2039,watts=400 (TFLOP/s, GiB, GB/s, watts)"
    )


def _described(text: str) -> Accelerator:
    """A device from NAME=NUMBER,..., the names of `UNITS`."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, word = (piece.strip().lower() for piece in part.partition("="))
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if name not in UNITS or name in values or not (math.isfinite(value) and value > 0):
            raise UserError(
                f"--gpu {part.strip()}: write NAME=NUMBER, NAME one of {', '.join(UNITS)}, each once at most"
            )
        values[name] = value * UNITS[name]
    if missing := [name for name in list(UNITS)[:NEEDED] if name not in values]:
        raise UserError(f"--gpu {text}: a described device needs {', '.join(missing)} too")
    values = {"link": 32e9, "network": 1.25e9, "per-node": 8.0} | values
    return Accelerator(
        "described", values["peak"], values["memory"], values["bandwidth"], values["link"], values["network"],
        values["watts"], per_node=max(1, round(values["per-node"])),
    )  # fmt: skip
