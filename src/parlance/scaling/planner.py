"""Planning a training run: every layout of the devices with its memory and time, and which of them to take.

    plan = make_plan(derive_shape(65e9), tokens=1.4e12, accelerator=find("a100-80gb"), devices=2048)
    plan.best.layout.words(), plan.days, plan.reason

The recommendation is the layout with the shortest step among those that fit, to 3 %; ties go to what does not count on
hiding much traffic (`STRAINED`), then to what divides less, shards less, computes less again and takes fewer
micro-batches. What follows from it is `plan.py`'s.
"""

import math
from collections.abc import Callable, Iterable
from typing import NoReturn

from parlance.core.errors import UserError
from parlance.scaling.accelerators import Accelerator, Precision
from parlance.scaling.device_memory import RESERVE, Optimizer, memory_of
from parlance.scaling.laws import CORRECTED, ParametricLaw
from parlance.scaling.layouts import AXES, MICRO_BATCHES, Layout, layouts
from parlance.scaling.model_shape import ModelShape
from parlance.scaling.plan import GIVEN, Candidate, Plan
from parlance.scaling.step_time import time_of

CLOSE = 1.03
"""Steps this much longer than the shortest count as equal: the model of time is no more exact than that."""
STRAINED = 0.5
"""Hidden traffic over arithmetic beyond which a layout loses ties: so much is hidden only where nothing jitters."""
WAITING = 0.4
"""Share of a step that goes to bubble and communication from which on fewer devices are looked at."""
TRIED = 8
"""Halvings that are looked at."""
PUE = 1.1
"""Electricity of the whole computing centre over that of the devices: what LLaMA's and OPT's tables assume."""
CARBON_INTENSITY = 0.475
"""kg CO2 a kWh: the world's mean, as codecarbon has it. France is near 0.05, coal 1.0: give your own."""


def make_plan(
    shape: ModelShape,
    *,
    tokens: float,
    accelerator: Accelerator,
    devices: int | None = None,
    batch: float | None = None,
    precision: Precision = "mixed",
    optimizer: Optimizer = "adamw",
    mfu: float | None = None,
    price: float | None = None,
    watts: float | None = None,
    pue: float = PUE,
    carbon_intensity: float = CARBON_INTENSITY,
    fixed: dict[str, str] | None = None,
    law: ParametricLaw = CORRECTED,
) -> Plan:
    """Plan the training of `shape` on `tokens` (a count above zero).

    `devices`: their number; None: the least power of two (times what is fixed) that holds it. `batch`: tokens a step;
    None: `usual_batch`.
    `mfu`: 0..1, as published or measured; None: estimated from the device's best published one and the layout. `fixed`:
    parts of the layout (`layouts.parse_layout`). `law`: predicts the loss. Raises UserError where the numbers make no
    sense.
    """
    _check(tokens=tokens, batch=batch, price=price, watts=watts, carbon_intensity=carbon_intensity, pue=pue, mfu=mfu)
    if batch is not None and batch > tokens:
        raise UserError(f"--batch {batch:g}: a step is larger than the {tokens:g} tokens of the whole run")
    sequences = max(1, round(min(tokens, batch if batch is not None else usual_batch(tokens)) / shape.context))
    if batch is None:
        sequences = 2 ** round(math.log2(sequences))

    def candidates_of(number: int) -> list[Candidate]:
        divided = divisible(sequences, number)
        found = layouts(shape, devices=number, per_node=accelerator.per_node, sequences=divided, fixed=fixed)
        return _ordered(_candidates(found, shape, accelerator, precision, optimizer))

    candidates: list[Candidate] = []
    least = math.prod(int(value) for name, value in (fixed or {}).items() if name in AXES)
    for number in [devices] if devices is not None else [least * 2**power for power in range(17)]:
        candidates = candidates_of(number)
        if candidates and candidates[0].fits:
            break
    if not candidates:
        _refuse(shape, number, accelerator.per_node, sequences, fixed or {})
    best = candidates[0]
    layout = best.layout
    step_tokens = layout.replicas * layout.micro_batch * layout.accumulation * shape.context
    peak = accelerator.peak_for(precision)
    source = GIVEN
    if mfu is None:
        mfu = step_tokens * shape.training_flops_per_token() / (best.time.total * number * peak)
        reached = accelerator.reached_for(precision)
        source = f"estimated: {reached:.1%} of the peak ({accelerator.reached_source}), less what the layout loses"
    note = ""
    if batch is not None and step_tokens != batch:
        note = f"--batch {batch:g} rounded to {step_tokens // shape.context} whole sequences that the devices divide"
    elif batch is None and step_tokens > 1.3 * sequences * shape.context:
        note = f"usual are {sequences * shape.context}, which {number} devices do not divide"
    waits = best.fits and devices is not None and best.time.bubble + best.time.communication > WAITING * best.time.total
    return Plan(
        shape=shape, tokens=tokens, batch=step_tokens, accelerator=accelerator, devices=number, precision=precision,
        mfu=mfu, mfu_source=source, candidates=tuple(candidates),
        price=price if price is not None else accelerator.price,
        watts=watts if watts is not None else accelerator.watts,
        pue=pue, carbon_intensity=carbon_intensity, law=law, optimizer=optimizer, batch_note=note,
        fewer=_fewer(best, number, candidates_of) if waits and not fixed else "",
    )  # fmt: skip


def _refuse(shape: ModelShape, devices: int, per_node: int, sequences: int, fixed: dict[str, str]) -> NoReturn:
    """Say which is at fault that there is no layout: what is fixed, or the batch."""
    ample = devices * int(fixed.get("micro-batch", 1)) * MICRO_BATCHES[-1]
    if not any(True for _ in layouts(shape, devices=devices, per_node=per_node, sequences=ample, fixed=fixed)):
        words = ",".join(f"{name}={value}" for name, value in fixed.items())
        raise UserError(f"--layout {words}: no layout of {devices} devices has all of this; leave a part of it out")
    raise UserError(
        f"{sequences} sequences a step cannot be divided among {devices} devices like this: "
        "give a --batch that is a multiple of the context times the number of replicas"
    )


def _fewer(best: Candidate, devices: int, candidates_of: Callable[[int], list[Candidate]]) -> str:
    """In words, the fewest devices (a power of two) that take about as long, or at most twice as long in half the
    device hours; empty without any."""

    def pace(candidate: Candidate) -> float:
        layout = candidate.layout
        return candidate.time.total / (layout.replicas * layout.micro_batch * layout.accumulation)

    power = (devices - 1).bit_length() - 1
    for number in (2**exponent for exponent in range(max(0, power - TRIED), power + 1)):
        found = candidates_of(number)
        if not found or not found[0].fits:
            continue
        times = pace(found[0]) / pace(best)
        if times <= 1.1 or (times <= 2.0 and times * number <= 0.5 * devices):
            longer = times - 1.0
            change = f"{abs(longer):.0%} {'longer' if longer > 0 else 'less'}" if abs(longer) >= 0.005 else "as long"
            return f"; the batch is small for so many devices: {number} take {change}"
    return ""


def usual_batch(tokens: float) -> float:
    """Tokens of a step: 2^19 (D / 2.6e9)^0.383, no less than 2^13.

    The growth is that of Bergsma et al. 2025 (arXiv 2505.13738); the anchor is nanochat's measurement at its depth 12
    (110 M matrix and head weights, 10.5 tokens each, is 1.2e9) taken a little larger, so that GPT-3's 300 B tokens get
    3.2 M and LLaMA's 1.4 T get 5.8 M (published: 3.2 M and 4 M).
    """
    return max(2.0**13, 2.0**19 * float((tokens / 2.6e9) ** 0.383))


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name.replace('_', '-')} must be a number above zero, not {value:g}")
    if (mfu := values["mfu"]) is not None and mfu > 1:
        raise UserError(f"--mfu is a share between 0 and 1, like 0.45, not {mfu:g}")
    if (pue := values["pue"]) is not None and pue < 1:
        raise UserError(f"--pue is the centre's electricity over the devices', at least 1, not {pue:g}")


def divisible(sequences: int, devices: int) -> int:
    """A number of sequences near `sequences` (8 % at most, where possible) that many numbers of replicas divide."""
    if sequences % devices == 0 or devices % sequences == 0:
        return sequences
    odd = devices
    while odd % 2 == 0:
        odd //= 2
    rounded = max(odd, round(sequences / odd) * odd)
    step = 2 * odd
    while step <= 1.08 * sequences:
        nearest = round(sequences / step) * step
        if abs(nearest - sequences) <= 0.08 * sequences:
            rounded = nearest
        step *= 2
    return rounded


def _candidates(
    found: Iterable[Layout],
    shape: ModelShape,
    accelerator: Accelerator,
    precision: Precision,
    optimizer: Optimizer,
) -> list[Candidate]:
    usable = accelerator.memory * (1.0 - RESERVE)
    reached = accelerator.reached_for(precision)
    candidates = []
    for layout in found:
        memory = memory_of(shape, layout, precision, optimizer)
        time = time_of(shape, layout, accelerator, precision, reached)
        candidates.append(Candidate(layout, memory, time, memory.total <= usable))
    return candidates


def _ordered(candidates: list[Candidate]) -> list[Candidate]:
    """The recommended first, then what fits by time, then the others, the leanest first.

    Of what is within `CLOSE` of the shortest step, that is recommended which is not strained, divides the model least,
    then shards least, computes least again, and takes the fewest micro-batches.
    """
    fitting = sorted((c for c in candidates if c.fits), key=lambda c: c.time.total)
    others = sorted((c for c in candidates if not c.fits), key=lambda c: c.memory.total)
    if not fitting:
        return others

    def effort(candidate: Candidate) -> tuple[float, ...]:
        layout = candidate.layout
        divided = layout.tensor * layout.pipeline * layout.context * layout.expert
        time = candidate.time
        strained = time.hidden > STRAINED * (time.arithmetic + time.recomputation)
        return (strained, divided, layout.zero, time.recomputation, layout.accumulation, candidate.memory.total)

    best = min((c for c in fitting if c.time.total <= CLOSE * fitting[0].time.total), key=effort)
    return [best, *(candidate for candidate in fitting if candidate is not best), *others]
