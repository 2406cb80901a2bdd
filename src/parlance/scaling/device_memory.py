"""What one device holds in training: weights, gradients, optimizer states, activations, logits, buffers.

    memory_of(shape, layout, "mixed", "adamw").total      # bytes on the fullest device

Per weight ("mixed": 16-bit copies of 32-bit weights, as in most large runs): 2 + 4 bytes of weights, 4 of gradient, 8
of AdamW's moments (Muon: 4 for matrices). "fp32": 4, 4, 8. "bf16" (everything in 16 bits): 2, 2, 4. "fp8" computes in 8
bits and stores like "mixed". ZeRO divides by `shard`, not by all devices; experts are divided by `expert` first.

Activations, per token and block, in numbers of one activation: without recomputation 4 D + 2 H E + 2 K E for attention
(residual stream before each branch, its norm, queries, keys, values, output) and, per feed-forward that a token passes,
4 F with a gate and 2 F without; where experts are chosen, the copies that are sent to k of them and what they give
back, 2 k D. For 16 bits, four times the width and no gate that is 32 s b d bytes, the 34 of Korthikanti et al. 2022
(arXiv 2205.05198) less the dropout masks. No scores are kept: attention kernels compute them again (Dao et al. 2022).
"selective" keeps only the operands of matrix products that are not cheap to compute again: not the norms' outputs, nor
what follows the activation function. "full" keeps each block's input, and one block at a time.
`tensor` divides all of it, the residual stream too (sequence parallelism, Korthikanti et al. 2022: the same traffic as
all-reduces); but keys and values are held whole where there are fewer of their heads than `tensor`. Logits: 8 bytes
each: themselves, their softmax in 32 bits, their gradient (or themselves and their gradient in 32 bits).

Tables of n-grams are whole on the devices that hold the first blocks, with one number of Adagrad a weight; of their
gradient there are a few rows.

Not counted: fragmentation, kernels' workspaces, the communication library. Leave a reserve (`RESERVE`).
"""

import math
from dataclasses import dataclass
from typing import Literal

from parlance.scaling.accelerators import Precision
from parlance.scaling.layouts import Layout
from parlance.scaling.model_shape import ModelShape

Optimizer = Literal["adamw", "muon", "sgd"]

RESERVE = 0.08
"""Share of a device's memory that a plan leaves free."""

WEIGHT_BYTES: dict[Precision, tuple[float, float, float]] = {
    "mixed": (2.0, 4.0, 4.0),
    "fp8": (2.0, 4.0, 4.0),
    "bf16": (2.0, 0.0, 2.0),
    "fp32": (4.0, 0.0, 4.0),
}
"""Bytes of a weight that computes, of its 32-bit original (an optimizer state for ZeRO), of its gradient."""
LOGIT_BYTES = 8.0
"""See the module."""
MOMENTS: dict[Optimizer, float] = {"adamw": 2.0, "muon": 1.0, "sgd": 0.0}
"""Numbers that an optimizer keeps for a matrix weight; Muon runs AdamW on embeddings and head."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device that holds most."""

    weights: float
    """Weights that compute, gathered blocks of ZeRO-3 included."""
    gradients: float
    """Gradients."""
    optimizer: float
    """Moments, and the 32-bit originals of 16-bit weights."""
    activations: float
    """What the forward pass keeps for the backward pass, all micro-batches in flight."""
    logits: float
    """Logits of a micro-batch and their gradient."""

    @property
    def states(self) -> float:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All of it."""
        return self.states + self.activations + self.logits


def memory_of(shape: ModelShape, layout: Layout, precision: Precision, optimizer: Optimizer) -> DeviceMemory:
    """Memory of the fullest device of a layout."""
    compute, original, gradient = WEIGHT_BYTES[precision]
    moment = 2.0 if precision == "bf16" else 4.0
    matrices, tables = _weights(shape, layout)
    held = matrices + tables
    states = moment * (MOMENTS[optimizer] * matrices + (2.0 if optimizer == "muon" else MOMENTS[optimizer]) * tables)
    divide = [layout.shard if layout.zero >= stage else 1 for stage in (3, 2, 1)]
    block, ngrams = _block_weights(shape, layout), shape.ngram_parameters()
    # ZeRO-3 gathers a block while the one before it computes, and keeps its whole gradient until it is divided.
    gathered = 2.0 * compute * block if layout.zero == 3 else 0.0
    whole = gradient * block if layout.zero >= 2 else 0.0
    activations, logits = activations_of(shape, layout, 4 if precision == "fp32" else 2)
    return DeviceMemory(
        weights=compute * (held / divide[0] + ngrams) + gathered,
        gradients=gradient * held / divide[1] + whole,
        optimizer=(original * held + states) / divide[2] + (original + moment) * ngrams,
        activations=activations,
        logits=logits,
    )


def activations_of(shape: ModelShape, layout: Layout, bytes_each: int) -> tuple[float, float]:
    """Bytes kept between forward and backward on the fullest device: (blocks, logits)."""
    tokens = layout.micro_batch * shape.context / layout.context
    stage = math.ceil(shape.layers / layout.pipeline)
    in_flight = min(layout.pipeline, layout.accumulation)
    share = shape.expert_layers / shape.layers * (shape.experts_per_token - 1.0)
    feed_forwards = 1.0 + share  # of a block, on average
    whole = _kept(shape, layout, feed_forwards, "none")
    if layout.recompute == "full":
        # Inputs of all blocks in flight, and one block whose inside is computed again.
        blocks = in_flight * stage * shape.width / layout.tensor + whole
    else:
        blocks = in_flight * stage * _kept(shape, layout, feed_forwards, layout.recompute)
    logits = LOGIT_BYTES * tokens * shape.vocab_size / layout.tensor
    return bytes_each * tokens * blocks, logits


def _kept(shape: ModelShape, layout: Layout, feed_forwards: float, recompute: str) -> float:
    """Numbers that one block keeps of one token on one device."""
    queries = 2.0 * shape.heads * shape.head_width / layout.tensor
    keys_and_values = 2.0 * shape.kv_heads * shape.head_width / min(layout.tensor, shape.kv_heads)
    routed = 2.0 * shape.expert_layers / shape.layers * shape.experts_per_token * shape.width
    if recompute == "selective":
        stream, hidden = 2.0 * shape.width, (2.0 if shape.gated_mlp else 1.0)
    else:
        stream, hidden = 4.0 * shape.width, (4.0 if shape.gated_mlp else 2.0)
    return (stream + routed + hidden * shape.mlp_width * feed_forwards) / layout.tensor + queries + keys_and_values


def _weights(shape: ModelShape, layout: Layout) -> tuple[float, float]:
    """Weights of one device's part, before ZeRO: of the blocks, and of embedding and head."""
    stage = math.ceil(shape.layers / layout.pipeline) / shape.layers
    blocks = stage * (shape.shared_parameters() + shape.expert_parameters() / layout.expert) / layout.tensor
    # Keys and values of fewer heads than parts are on several of them.
    copies = max(1.0, layout.tensor / shape.kv_heads) - 1.0
    pairs = 2.0 * shape.layers * shape.width * shape.kv_heads * shape.head_width
    blocks += stage * copies * pairs / layout.tensor
    embedding, head = shape.embedding_parameters(), shape.head_parameters()
    if layout.pipeline > 1:
        tables = max(embedding, head)  # the first and the last stage hold one each
    else:
        tables = embedding if shape.tie_embeddings else embedding + head
    return blocks, tables / layout.tensor


def _block_weights(shape: ModelShape, layout: Layout) -> float:
    """Weights of the largest block, or table, that ZeRO gathers at once."""
    mlp = shape.mlp_parameters() * max(1.0, shape.experts / layout.expert if shape.expert_layers else 1.0)
    return max(shape.attention_parameters() + mlp, shape.head_parameters()) / layout.tensor
