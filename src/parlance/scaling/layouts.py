"""How a model is divided over devices: the axes of a layout, and all layouts of a number of devices.

    for layout in layouts(shape, devices=64, per_node=8, sequences=512): ...

Axes, from the innermost (neighbouring devices, fast links) to the outermost: `tensor` splits matrices (Shoeybi et al.
2019), `context` splits sequences, `expert` splits the experts among replicas, `shard` splits optimizer states (ZeRO
stage 1), gradients too (2) and weights too (3; Rajbhandari et al. 2020), `data` repeats the model, `pipeline` splits
the layers (one forward, one backward in turns: 1F1B). `shard`, `data` and `expert` divide the batch. Parts of a
sequence hold the same states: `context` does not divide them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from parlance.core.errors import UserError
from parlance.scaling.model_shape import ModelShape

Recompute = Literal["none", "selective", "full"]

AXES = ("tensor", "context", "expert", "shard", "data", "pipeline")
"""Innermost first."""
TOKENS_PER_RANK = 2048
"""A sequence is not divided into less than this."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
"""Sequences of a micro-batch that are tried."""
CHOICES: dict[str, tuple[str, ...]] = {"zero": ("0", "1", "2", "3"), "recompute": ("none", "selective", "full")}


@dataclass(frozen=True)
class Layout:
    """Ways of each axis, and how memory is traded for time."""

    data: int = 1
    """Replicas that hold the same states."""
    shard: int = 1
    """Replicas that divide their states."""
    expert: int = 1
    """Replicas that divide the experts."""
    context: int = 1
    """Parts of a sequence."""
    tensor: int = 1
    """Parts of a matrix."""
    pipeline: int = 1
    """Groups of layers."""
    zero: int = 0
    """What `shard` divides: 1 optimizer states, 2 gradients too, 3 weights too; 0 with shard 1."""
    recompute: Recompute = "none"
    """What the backward pass computes again: nothing; what lies between matrix products; whole blocks."""
    micro_batch: int = 1
    """Sequences that a replica works on at a time."""
    accumulation: int = 1
    """Micro-batches of a step."""

    @property
    def devices(self) -> int:
        """Their number."""
        return self.replicas * self.context * self.tensor * self.pipeline

    @property
    def replicas(self) -> int:
        """Ways in which the batch is divided."""
        return self.data * self.shard * self.expert

    def stride(self, axis: str) -> int:
        """How far apart neighbours on an axis are, in devices."""
        product = 1
        for inner in AXES[: AXES.index(axis)]:
            product *= int(getattr(self, inner))
        return product

    def words(self) -> str:
        """The axes that divide something, in a few words."""
        axes = [f"{axis} {getattr(self, axis)}" for axis in reversed(AXES) if getattr(self, axis) > 1]
        zero = f" (ZeRO-{self.zero})" if self.zero else ""
        joined = " x ".join(axes).replace(f"shard {self.shard}", f"shard {self.shard}{zero}")
        parts = [joined or "one device", f"micro-batch {self.micro_batch}"]
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} accumulated")
        if self.recompute != "none":
            parts.append(f"{self.recompute} recomputation")
        return ", ".join(parts)


def parse_layout(text: str) -> dict[str, str]:
    """ "tensor=8,pipeline=4,zero=1" as what is fixed. Raises UserError for other names and values."""
    fixed: dict[str, str] = {}
    names = (*AXES, "micro-batch", *CHOICES)
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in names or name in fixed:
            raise UserError(f"--layout {text}: write it like tensor=8,zero=1, each of {', '.join(names)} once at most")
        number = value.isascii() and value.isdigit() and 0 < int(value) < 2**31
        if (value not in CHOICES[name]) if name in CHOICES else not number:
            expected = " or ".join(CHOICES[name]) if name in CHOICES else "a whole number above zero"
            raise UserError(f"--layout {part.strip()}: {name} is {expected}")
        fixed[name] = value
    return fixed


def check_fixed(shape: ModelShape, devices: int, fixed: dict[str, str]) -> None:
    """Raise UserError where a fixed axis cannot divide this model or these devices."""
    ways = {axis: int(fixed.get(axis, 1)) for axis in AXES}
    limits = {
        "tensor": (shape.heads, f"the {shape.heads} heads"),
        "expert": (shape.experts, f"the {shape.experts} experts" if shape.experts > 1 else "a model without experts"),
        "context": (shape.context, f"a context of {shape.context} tokens"),
    }
    for axis, (whole, words) in limits.items():
        if whole % ways[axis]:
            raise UserError(f"--layout {axis}={ways[axis]}: {words} cannot be divided into {ways[axis]}")
    if not _heads_fit(shape, ways["tensor"]):
        raise UserError(
            f"--layout tensor={ways['tensor']}: neither of this and {shape.kv_heads} key/value heads divides the other"
        )
    zero = int(fixed.get("zero", 1 if ways["shard"] > 1 else 0))
    if zero == 0 and ways["shard"] > 1:
        raise UserError(
            f"--layout shard={ways['shard']},zero=0: what is sharded has a ZeRO stage, 1 to 3; leave zero out"
        )
    if zero > 0 and fixed.get("shard") == "1":
        raise UserError(f"--layout shard=1,zero={zero}: ZeRO needs devices to shard over; leave one of the two out")
    if ways["pipeline"] > shape.layers:
        raise UserError(f"--layout pipeline={ways['pipeline']}: there are {shape.layers} layers to divide")
    product = 1
    for number in ways.values():
        product *= number
    if devices % product:
        raise UserError(f"--layout: {product} devices for one copy do not divide {devices} devices")


def layouts(
    shape: ModelShape, *, devices: int, per_node: int, sequences: int, fixed: dict[str, str] | None = None
) -> Iterator[Layout]:
    """All layouts of `devices` for a step of `sequences`, with what is `fixed`.

    Tensor ways stay inside a machine unless fixed; sharding covers all replicas, or those of one machine.
    """
    fixed = fixed or {}
    check_fixed(shape, devices, fixed)

    def ways(axis: str, choices: Iterable[int]) -> list[int]:
        return [int(fixed[axis])] if axis in fixed else list(choices)

    for tensor in ways("tensor", (t for t in _divisors(devices) if per_node % t == 0 and _heads_fit(shape, t))):
        pieces = max(1, shape.context // TOKENS_PER_RANK)
        fits_context = (c for c in _divisors(devices // tensor) if c <= pieces and shape.context % c == 0)
        for context in ways("context", fits_context):
            most = min(shape.layers, 64)
            for pipeline in ways("pipeline", (p for p in _divisors(devices // (tensor * context)) if p <= most)):
                if devices % (tensor * context * pipeline):
                    continue
                replicas = devices // (tensor * context * pipeline)
                experts = (e for e in _divisors(replicas) if shape.experts % e == 0 and (e == 1 or shape.experts > 1))
                for expert in ways("expert", experts):
                    if replicas % expert == 0 and sequences % replicas == 0:
                        inner = {"tensor": tensor, "context": context, "pipeline": pipeline, "expert": expert}
                        yield from _sharded(inner, replicas // expert, sequences // replicas, per_node, fixed)


def _sharded(
    inner: dict[str, int], replicas: int, sequences: int, per_node: int, fixed: dict[str, str]
) -> Iterator[Layout]:
    """The ways of sharding and of batching among `replicas` that each have `sequences` of a step."""
    near = max(1, per_node // (inner["tensor"] * inner["context"] * inner["expert"]))
    choices = sorted({1, replicas, *({near} if replicas % near == 0 else ())})
    if "shard" in fixed:
        choices = [int(fixed["shard"])]
    elif "data" in fixed:
        choices = [max(1, replicas // int(fixed["data"]))]
    for shard in choices:
        if replicas % shard or replicas // shard != int(fixed.get("data", replicas // shard)):
            continue
        stages = (1, 2, 3) if shard > 1 else (0,)
        for zero in stages if "zero" not in fixed else [z for z in stages if z == int(fixed["zero"])]:
            for recompute in ("none", "selective", "full"):
                if recompute != fixed.get("recompute", recompute):
                    continue
                for micro_batch in MICRO_BATCHES if "micro-batch" not in fixed else (int(fixed["micro-batch"]),):
                    if sequences % micro_batch == 0:
                        yield Layout(
                            **inner, data=replicas // shard, shard=shard, zero=zero, recompute=recompute,
                            micro_batch=micro_batch, accumulation=sequences // micro_batch,
                        )  # fmt: skip


def _heads_fit(shape: ModelShape, tensor: int) -> bool:
    """Whether heads can be divided, those of keys and values too or copied as a whole."""
    return shape.heads % tensor == 0 and (shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0)


def _divisors(number: int) -> list[int]:
    """All of them, growing."""
    low = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*low, *(number // divisor for divisor in low)})
