"""How long a training step takes on a layout: arithmetic, pipeline bubble, communication that nothing hides.

    time = time_of(shape, layout, accelerator, "mixed", reached=0.5)
    time.total, time.bubble

A model to choose layouts with, not to believe to the percent. Arithmetic is what kernels do, causal attention (half of
what MFU counts), at `reached` of the peak whatever the sizes of matrices: it does not know that thin slices are slow.
Transfers are those of `collectives.py`:

- tensor: 4 all-reduces of the activations a block and micro-batch, 6 where blocks are computed again; not hidden;
- context: keys and values gathered twice and their gradients scattered once a block; not hidden;
- expert: 4 all-to-alls of the routed tokens a block with experts, 6 with recomputation; not hidden;
- pipeline: the bubble (p - 1) / m of the arithmetic (Narayanan et al. 2021), and activations between stages;
- gradients: once a step, behind the backward pass of the last micro-batch, over `data`, `context`, `expert` (what the
  experts' devices share) and `shard` of ZeRO-1; ZeRO-2 and 3 keep only their share and so scatter them after every
  micro-batch;
- weights: ZeRO-1 and 2 gather them once, behind the first forward pass; ZeRO-3 twice a micro-batch, behind everything.

Of gradients and weights 15 % is not hidden in any case, the rest as far as there is arithmetic to hide behind. That
share is chosen, not derived: with it LLaMA 65B on 2 048 A100 comes within 10 % of its published 380 tokens a second and
device.
"""

import math
from dataclasses import dataclass

from parlance.scaling.accelerators import Accelerator, Precision
from parlance.scaling.collectives import all_gather, all_reduce, all_to_all, send
from parlance.scaling.device_memory import WEIGHT_BYTES
from parlance.scaling.layouts import Layout
from parlance.scaling.model_shape import ModelShape

EXPOSED = 0.15
"""Share of the traffic between replicas that is never hidden (see the module)."""
FORWARD, BACKWARD = 1.0 / 3.0, 2.0 / 3.0
"""Their shares of the arithmetic."""
RECOMPUTED = {"none": 0.0, "selective": 0.02, "full": 1.0 / 3.0}
"""Arithmetic done again, as a share of forward and backward; a whole forward pass is a third. Elementwise work that
"selective" repeats is almost no arithmetic, and is put at 2 %."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they go to."""

    arithmetic: float
    """Matrix products of forward and backward pass, layers divided unevenly included."""
    recomputation: float
    """The same again, of what was not kept."""
    bubble: float
    """Stages of the pipeline that wait."""
    communication: float
    """Transfers that nothing hides."""
    hidden: float
    """Transfers of gradients and weights that arithmetic hides, if all goes well; not in the total."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.arithmetic + self.recomputation + self.bubble + self.communication


def time_of(
    shape: ModelShape, layout: Layout, accelerator: Accelerator, precision: Precision, reached: float
) -> StepTime:
    """One step of `layout` at `reached` (0..1) of the peak."""
    sequences = layout.replicas * layout.micro_batch * layout.accumulation
    flops = sequences * shape.context * shape.training_flops_per_token(causal=True)
    stage_layers = math.ceil(shape.layers / layout.pipeline)
    uneven = stage_layers * layout.pipeline / shape.layers
    arithmetic = flops * uneven / (layout.devices * accelerator.peak_for(precision) * reached)
    recomputation = arithmetic * RECOMPUTED[layout.recompute]
    busy = arithmetic + recomputation
    bubble = busy * (layout.pipeline - 1) / layout.accumulation
    inside = _inside_blocks(shape, layout, accelerator, precision, stage_layers)
    exposed, hidden = _between_replicas(shape, layout, accelerator, precision, stage_layers, busy)
    return StepTime(arithmetic, recomputation, bubble, inside + exposed, hidden)


def _inside_blocks(
    shape: ModelShape, layout: Layout, accelerator: Accelerator, precision: Precision, stage_layers: int
) -> float:
    """Seconds a step of what tensor, context, expert and pipeline axes send."""
    number = 4.0 if precision == "fp32" else 2.0  # bytes
    tokens = layout.micro_batch * shape.context / layout.context
    stream = tokens * shape.width * number
    passes = 6.0 if layout.recompute == "full" else 4.0
    block = all_reduce(layout, "tensor", accelerator, bytes_=passes * stream, calls=passes)
    heads = shape.kv_heads / min(layout.tensor, shape.kv_heads)
    keys_and_values = tokens * layout.context * 2.0 * heads * shape.head_width * number
    block += all_gather(layout, "context", accelerator, bytes_=3.0 * keys_and_values, calls=3.0)
    share = passes * shape.expert_layers / shape.layers
    routed = share * shape.experts_per_token * stream
    block += all_to_all(layout, "expert", accelerator, bytes_=routed, calls=share)
    between_stages = send(layout, "pipeline", accelerator, bytes_=2.0 * stream / layout.tensor, calls=2.0)
    return layout.accumulation * (stage_layers * block + between_stages)


def _between_replicas(
    shape: ModelShape,
    layout: Layout,
    accelerator: Accelerator,
    precision: Precision,
    stage_layers: int,
    busy: float,
) -> tuple[float, float]:
    """Seconds a step of gradients and weights that travel between replicas: (not hidden, hidden)."""
    weight, _, gradient = WEIGHT_BYTES[precision]
    split = layout.tensor * layout.pipeline
    tables = 1 if shape.tie_embeddings else 2
    shared = (shape.shared_parameters() + tables * shape.head_parameters()) / split
    parameters = shared + shape.expert_parameters() / (split * layout.expert)
    calls = stage_layers + 1.0  # one a block, one for the tables

    def reduced(axis: str, weights: float) -> float:
        """Seconds to sum gradients over an axis, after `shard` has kept its part of them."""
        return all_reduce(layout, axis, accelerator, bytes_=gradient * weights / layout.shard, calls=calls)

    last = reduced("data", parameters) + reduced("context", parameters) + reduced("expert", shared)
    scattered = all_gather(layout, "shard", accelerator, bytes_=gradient * parameters, calls=calls)
    gathered = all_gather(layout, "shard", accelerator, bytes_=weight * parameters, calls=calls)
    rounds = layout.accumulation
    one = busy / rounds  # arithmetic of a micro-batch
    first, every, room = 0.0, 0.0, 0.0
    if layout.zero == 3:
        every, room = rounds * (scattered + 2.0 * gathered), busy
    elif layout.zero == 2:
        first, every, room = gathered, rounds * scattered, BACKWARD * busy
    else:
        first, last = gathered, last + scattered
    # What a micro-batch's own traffic leaves free of the last backward pass hides the rest.
    used = (1.0 - EXPOSED) * every / rounds
    room_of_last = max(0.0, min(BACKWARD * one, one - used))
    exposed = _exposed(every, room) + _exposed(first, FORWARD * one) + _exposed(last, room_of_last)
    return exposed, every + first + last - exposed


def _exposed(seconds: float, room: float) -> float:
    """What is left of traffic that `room` seconds of arithmetic may hide."""
    return EXPOSED * seconds + max(0.0, (1.0 - EXPOSED) * seconds - room)
