"""A planned training run: its layouts with their memory and time, and what follows for time, money, energy, CO2, loss.

    plan = make_plan(derive_shape(65e9), tokens=1.4e12, accelerator=find("a100-80gb"), devices=2048)      # planner.py
    plan.days, plan.days_range, plan.cost, plan.reason, plan.summary()

Time with `mfu` (model FLOPs utilisation, as a published or measured run states it) is the arithmetic at that rate; else
that of `step_time.py` on the recommended layout, with a range (`RANGE`). Nothing is added for failures, evaluation or
loading.

Energy is devices x hours x watts x PUE, CO2 that times the grid's intensity: the arithmetic of LLaMA's and OPT's tables
(400 W, 1.1, 0.385 kg/kWh). A device's rated power is an upper estimate of what it draws.

The loss is, unless another law is given, that of the corrected Chinchilla law, in nats per token of Chinchilla's text:
its shape carries over to other text better than its level. None is stated below what a law was fitted to, nor where it
exceeds that of guessing. Experts count by what a token meets, which is a crude guess.
"""

import math
from dataclasses import dataclass
from typing import Any

from parlance.core.formatting import magnitude
from parlance.scaling.accelerators import GIB, Accelerator, Precision
from parlance.scaling.device_memory import RESERVE, DeviceMemory, Optimizer, memory_of
from parlance.scaling.laws import ParametricLaw
from parlance.scaling.layouts import Layout
from parlance.scaling.model_shape import ModelShape
from parlance.scaling.step_time import StepTime

GIVEN = "given"
"""Where a utilisation is from that a plan did not estimate."""
RANGE = (0.75, 2.0)
"""Published hours over estimated ones: 16 published runs lie between 0.80 and 1.90 (docs/scaling.md)."""
DAY = 86400.0


@dataclass(frozen=True)
class Candidate:
    """One layout with what it takes."""

    layout: Layout
    """The division."""
    memory: DeviceMemory
    """Of the fullest device."""
    time: StepTime
    """Of one step."""
    fits: bool
    """Whether the memory leaves the reserve free."""


@dataclass(frozen=True)
class Plan:
    """A training run, planned."""

    shape: ModelShape
    """The model."""
    tokens: float
    """Training tokens."""
    batch: int
    """Tokens of a step."""
    accelerator: Accelerator
    """The device."""
    devices: int
    """Their number."""
    precision: Precision
    """Of the arithmetic."""
    mfu: float
    """Model FLOPs utilisation that times assume, 0..1."""
    mfu_source: str
    """Where it is from."""
    candidates: tuple[Candidate, ...]
    """All layouts, the recommended first: those that fit by time, then the others by memory."""
    price: float | None
    """Dollars a device and hour."""
    watts: float
    """Of one device."""
    pue: float
    """See `PUE`."""
    carbon_intensity: float
    """kg CO2 a kWh."""
    law: ParametricLaw
    """What predicts the loss."""
    optimizer: Optimizer
    """Decides the states kept."""
    batch_note: str
    """Why the batch is not the one that was asked for; empty where it is."""
    fewer: str
    """What fewer devices would do, where many of these wait; else empty."""

    @property
    def best(self) -> Candidate:
        """The recommended layout; where none fits, the one that needs least memory."""
        return self.candidates[0]

    @property
    def flops(self) -> float:
        """Model FLOPs: matrix products and attention, forward and backward, of all tokens."""
        return self.tokens * self.shape.training_flops_per_token()

    @property
    def flops_6nd(self) -> float:
        """The usual estimate 6 N D, N the weights that a token meets."""
        return 6.0 * self.shape.active_parameters() * self.tokens

    @property
    def days(self) -> float:
        """Without interruptions."""
        return self.flops / (self.devices * self.accelerator.peak_for(self.precision) * self.mfu) / DAY

    @property
    def days_range(self) -> tuple[float, float] | None:
        """What published runs make of such an estimate; None where the utilisation was given."""
        return None if self.mfu_source == GIVEN else (RANGE[0] * self.days, RANGE[1] * self.days)

    @property
    def device_hours(self) -> float:
        """Devices times hours."""
        return self.days * 24.0 * self.devices

    @property
    def tokens_per_second_and_device(self) -> float:
        """Throughput."""
        return self.tokens / (self.days * DAY * self.devices)

    @property
    def cost(self) -> float | None:
        """Dollars; None without a price."""
        return None if self.price is None else self.device_hours * self.price

    @property
    def kilowatt_hours(self) -> float:
        """Of devices and computing centre."""
        return self.device_hours * self.watts / 1000.0 * self.pue

    @property
    def carbon_kilograms(self) -> float:
        """Of that electricity."""
        return self.kilowatt_hours * self.carbon_intensity

    @property
    def decoding_bound(self) -> float:
        """Tokens a second of one sequence at most, on the memory of the devices that hold the weights: each token reads
        all 16-bit weights it meets, and of an input table of its own one row."""
        shape = self.shape
        read = shape.active_parameters() - (0 if shape.tie_embeddings else shape.embedding_parameters())
        return self.serving_devices * self.accelerator.bandwidth / (2.0 * read)

    @property
    def serving_devices(self) -> int:
        """The fewest devices whose memory holds the 16-bit weights."""
        return math.ceil(2.0 * self.shape.parameters() / (self.accelerator.memory * (1.0 - RESERVE)))

    @property
    def loss(self) -> float | None:
        """By the law; None where `loss_note` says why not."""
        return None if self.loss_note else self._lawful_loss

    @property
    def loss_note(self) -> str:
        """Why there is no loss; empty where there is one."""
        law, size = self.law, self.shape.active_parameters()
        if not law.covers(size, self.tokens):
            return (
                f"none: the law was fitted to {magnitude(law.least_parameters)} parameters or more on "
                f"{magnitude(law.least_tokens)} tokens or more"
            )
        guessing = math.log(self.shape.vocab_size)
        if self._lawful_loss >= guessing:
            return (
                f"none: the law says {self._lawful_loss:.3g} nats a token, guessing among "
                f"{self.shape.vocab_size} tokens has {guessing:.3g}"
            )
        return ""

    @property
    def _lawful_loss(self) -> float:
        return self.law.predict(self.shape.active_parameters(), self.tokens)

    @property
    def reason(self) -> str:
        """One sentence: why this layout, or why none."""
        usable, best = self.accelerator.memory * (1.0 - RESERVE), self.best
        need = f"{best.memory.total / GIB:.1f} of {self.accelerator.memory / GIB:.0f} GiB"
        if not best.fits:
            return (
                f"no layout fits: the leanest needs {need} a device ({RESERVE:.0%} stay free); {self._remedy(usable)}"
            )
        time = best.time
        losses = {
            "recomputation": time.recomputation,
            "pipeline bubble": time.bubble,
            "communication": time.communication,
        }
        lost = ", ".join(
            f"{name} {share / time.total:.0%}" for name, share in losses.items() if share > 0.005 * time.total
        )
        fitting = sum(candidate.fits for candidate in self.candidates)
        simpler = _simplest(self.candidates) if self.devices > 1 else None
        wanting = ""
        if simpler is not None and not simpler.fits:
            wanting = f"; plain data parallel would need {simpler.memory.total / GIB:.0f} GiB a device"
        elif simpler is not None and (longer := simpler.time.total / time.total - 1.0) >= 0.005:
            wanting = f"; plain data parallel would take {longer:.0%} longer"
        return (
            f"shortest step of the {fitting} layouts (of {len(self.candidates)}) that fit {usable / GIB:.0f} GiB: "
            f"{need}, {f'lost to {lost}' if lost else 'next to nothing lost'}{wanting}{self.fewer}"
        )

    def _remedy(self, usable: float) -> str:
        """What makes a model fit that does not."""
        if self.best.memory.states <= usable:
            return "take more devices or larger ones, a shorter context or fewer tokens a step"
        words = "weights, gradients and optimizer alone are more than it holds"
        lean = memory_of(self.shape, self.best.layout, "bf16", "muon").total
        if lean <= usable:
            words += f"; --precision bf16 --optimizer muon needs {lean / GIB:.1f} GiB and fits"
        elif lean < 0.9 * self.best.memory.total:
            words += f", --precision bf16 --optimizer muon still needs {lean / GIB:.1f} GiB"
        return f"{words}; take more devices or larger ones"

    def summary(self) -> dict[str, Any]:
        """All figures by name, JSON values."""
        shape, best = self.shape, self.best
        return {
            "parameters": shape.parameters(),
            "active_parameters": shape.active_parameters(),
            "shape": shape.model_dump(),
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens / shape.active_parameters(),
            "batch_tokens": self.batch,
            "steps": math.ceil(self.tokens / self.batch),
            "batch_note": self.batch_note,
            "predicted_loss": self.loss,
            "predicted_loss_note": self.loss_note,
            "flops": self.flops,
            "flops_6nd": self.flops_6nd,
            "gpu": self.accelerator.name,
            "gpus": self.devices,
            "precision": self.precision,
            "mfu": self.mfu,
            "mfu_source": self.mfu_source,
            "tokens_per_second": self.tokens_per_second_and_device * self.devices,
            "tokens_per_second_and_gpu": self.tokens_per_second_and_device,
            "days": self.days,
            "days_range": self.days_range,
            "gpu_hours": self.device_hours,
            "price_per_gpu_hour": self.price,
            "dollars": self.cost,
            "watts": self.watts,
            "pue": self.pue,
            "kilowatt_hours": self.kilowatt_hours,
            "carbon_intensity": self.carbon_intensity,
            "carbon_kilograms": self.carbon_kilograms,
            "key_value_bytes_per_token": shape.key_value_bytes_per_token(),
            "key_value_bytes_per_sequence": shape.key_value_bytes_per_sequence(),
            "inference_flops_per_token": shape.forward_flops_per_token(causal=True),
            "inference_weight_bytes": 2 * shape.parameters(),
            "inference_devices": self.serving_devices,
            "decoding_tokens_per_second_bound": self.decoding_bound,
            "fits": best.fits,
            "reason": self.reason,
            "layout": _row(best),
        }

    def rows(self, number: int | None = None) -> list[dict[str, Any]]:
        """The best layout of each way to divide the model (tensor, context, expert, pipeline) and of each ZeRO stage;
        with `number`, the best of each way to divide the model alone, at most so many."""
        seen = set()
        rows: list[dict[str, Any]] = []
        for candidate in self.candidates:
            layout = candidate.layout
            kind = (layout.expert, layout.context, layout.tensor, layout.pipeline, -1 if number else layout.zero)
            if kind not in seen and len(rows) < (number or len(self.candidates)):
                seen.add(kind)
                rows.append(_row(candidate))
        return rows


def _simplest(candidates: tuple[Candidate, ...]) -> Candidate | None:
    """Plain data parallel, nothing computed again, with the smallest micro-batch."""
    for candidate in candidates:
        layout = candidate.layout
        if layout.replicas == layout.data == layout.devices and layout.recompute == "none" and layout.micro_batch == 1:
            return candidate
    return None


def _row(candidate: Candidate) -> dict[str, Any]:
    """A layout with its figures, JSON values."""
    layout, memory, time = candidate.layout, candidate.memory, candidate.time
    return {
        "words": layout.words(),
        "data": layout.data,
        "shard": layout.shard,
        "zero": layout.zero,
        "expert": layout.expert,
        "context": layout.context,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "recompute": layout.recompute,
        "micro_batch": layout.micro_batch,
        "accumulation": layout.accumulation,
        "fits": candidate.fits,
        "bytes": {
            "weights": round(memory.weights),
            "gradients": round(memory.gradients),
            "optimizer": round(memory.optimizer),
            "activations": round(memory.activations),
            "logits": round(memory.logits),
            "total": round(memory.total),
        },
        "step_seconds": {
            "arithmetic": time.arithmetic,
            "recomputation": time.recomputation,
            "bubble": time.bubble,
            "communication": time.communication,
            "total": time.total,
        },
    }
