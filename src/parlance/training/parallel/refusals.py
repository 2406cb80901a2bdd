"""What the axes of a mesh cannot divide, said before anything is divided: no process group is needed, nor any weight.

    with torch.device("meta"):
        model = build(config)
    check_division(model, parallel.sizes(8), pieces=1)
    check_lengths([256], parallel.sizes(8))
    check_rows(8, rows_needed(model, parallel.sizes(8)))

Each axis knows what it cannot divide (`check_tensors` in `tensor.py`, and so on); here they are asked together.
"""

import math
from collections.abc import Iterable, Mapping

from parlance.core.errors import UserError
from parlance.models.mixture_of_experts import MixtureOfExperts
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer
from parlance.training.parallel.context import check_context
from parlance.training.parallel.context import pieces as context_pieces
from parlance.training.parallel.experts import check_experts
from parlance.training.parallel.mesh import BATCH_AXES, Axis
from parlance.training.parallel.sharding import check_shard
from parlance.training.parallel.stages import check_stages
from parlance.training.parallel.tensor import check_tensors


def check_division(model: NeuralLanguageModel, sizes: Mapping[Axis, int], pieces: int) -> None:
    """Raises UserError where axes of these sizes cannot divide a whole model; `pieces` a stage of the pipeline."""
    divided = [axis for axis, size in sizes.items() if size > 1 and axis != "data"]
    if divided and not isinstance(model, Transformer):
        raise UserError(f"parallel.{divided[0]} divides Transformers that are one stack of blocks: leave it at 1 here")
    if not isinstance(model, Transformer):
        return
    if sizes["expert"] > 1:
        check_experts(model, sizes["expert"])
    if sizes["tensor"] > 1:
        check_tensors(model, sizes["tensor"])
    if sizes["context"] > 1:
        check_context(model)
    if sizes["pipeline"] > 1:
        check_stages(model, sizes["pipeline"] * pieces)
    if sizes["shard"] > 1:
        check_shard(model)


def check_lengths(lengths: Iterable[int], sizes: Mapping[Axis, int]) -> None:
    """Raises UserError where axes of these sizes cannot divide rows of any of these lengths."""
    if sizes["context"] > 1:
        for length in lengths:
            context_pieces(length, 0, sizes["context"])


def rows_needed(model: NeuralLanguageModel, sizes: Mapping[Axis, int]) -> int:
    """Rows that every batch of a whole model must have."""
    if not any(isinstance(module, MixtureOfExperts) for module in model.modules()):
        return 1
    # A process without any would add scores of its router that no text asked for.
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def check_rows(rows: int, needed: int) -> None:
    """Raises UserError where a batch has fewer rows than `rows_needed`."""
    if rows < needed:
        raise UserError(
            f"a batch of {rows} rows is too small for {needed} processes that divide it: with experts every process "
            "needs a row; set a larger batch_size"
        )
