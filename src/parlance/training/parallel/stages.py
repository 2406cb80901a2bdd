"""Pipeline stages: which blocks of a Transformer go where, and a Transformer that has but some of them.

    spans = divide_layers(model.config, stages=4)
    stage = Stage(model, set(spans[1]), first=False, last=False)
    stage.received = x                                              # (B, T, D), from the stage before
    y = stage.activations(batch)                                    # (B, T, D), for the stage behind

How micro-batches flow through stages is in `pipeline.py`.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parlance.core.errors import UserError
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.text.packing import IGNORE
from parlance.training.objectives import TokenBatch

FIRST = ("embed_tokens", "embed_positions", "embed_types", "embed_ngrams", "embed_norm", "project_in")
"""Parts of a Transformer that the first stage holds."""
LAST = ("norm", "project_out", "head_dense", "head_norm", "lm_head", "head_bias", "pooler", "next_sentence")
"""Those of the last stage; with tied embeddings also `embed_tokens`."""
EVERYWHERE = ("relative_bias",)
"""Those of every stage that has blocks."""


# --- dividing the layers ---------------------------------------------------------------------------------------------


def stage_costs(config: TransformerConfig) -> tuple[list[float], float]:
    """Operations per token of each block's forward pass over a whole context, and of the head."""
    totals = [
        config.model_copy(update={"layers": layers}).forward_flops_per_token(config.context_length)
        for layers in range(config.layers + 1)
    ]
    return [after - before for before, after in pairwise(totals)], totals[0]


def divide_layers(config: TransformerConfig, stages: int) -> list[range]:
    """The blocks of each stage, consecutive, such that the dearest stage is as cheap as can be.

    The last stage also has the head, and may have nothing else where that is the dearest part. Of equally good
    divisions the one whose early stages have most. Raises UserError where there are too few blocks.
    """
    costs, head = stage_costs(config)
    if stages > config.layers:
        raise UserError(
            f"{config.layers} layers cannot be divided over {stages} pipeline stages: use at most as many stages as "
            "layers"
        )
    # least[s][n]: cost of the dearest stage when s stages share the last blocks from n on; the last has the head.
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    L = config.layers
    least = [[sums[L] - sums[n] + head for n in range(L + 1)]]
    for _ in range(stages - 1):
        after = least[-1]
        least.append(
            [
                min((max(sums[end] - sums[n], after[end]) for end in range(n + 1, L + 1)), default=float("inf"))
                for n in range(L + 1)
            ]
        )
    spans, start, bound = [], 0, least[stages - 1][0] * (1 + 1e-12)
    for remaining in range(stages - 1, 0, -1):
        after = least[remaining - 1]
        end = max(e for e in range(start + 1, L + 1) if max(sums[e] - sums[start], after[e]) <= bound)
        spans.append(range(start, end))
        start = end
    return [*spans, range(start, L)]


# --- a stage ---------------------------------------------------------------------------------------------------------


class _Elsewhere(nn.Module):
    """In the place of a block that another stage holds."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class Stage(Transformer):
    """Some blocks of a Transformer, under the names they have in the whole; the modules are shared with it.

    `hidden` begins with `received` (B, T, D), where the stage is not the first, and ends with the last of its blocks,
    where it is not the last. Only the last has logits.
    """

    def __init__(self, whole: Transformer, blocks: set[int], *, first: bool, last: bool) -> None:
        nn.Module.__init__(self)
        modules, parameters = dict(whole._modules), dict(whole._parameters)
        kept = {"layers"} | (set(FIRST) if first else set()) | (set(LAST) if last else set())
        kept |= set(EVERYWHERE) if blocks else set()
        kept |= {"embed_tokens"} if last and whole.tied else set()
        modules = {name: module if name in kept else None for name, module in modules.items()}
        parameters = {name: parameter if name in kept else None for name, parameter in parameters.items()}
        modules["layers"] = nn.ModuleList(
            block if number in blocks else _Elsewhere() for number, block in enumerate(whole.layers)
        )
        self.__dict__ = {**whole.__dict__, "_modules": modules, "_parameters": parameters}
        self.first, self.last = first, last
        self.received: Tensor | None = None
        mixtures = [number for number in range(self.config.layers) if self.config.has_experts(number)]
        self._balance_share = len(blocks.intersection(mixtures)) / max(1, len(mixtures))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding matrix, wherever those are."""
        return self.config.tie_embeddings

    def _embed(
        self,
        tokens: Tensor,
        positions: Tensor,
        token_types: Tensor | None,
        window: Tensor | None,
        draws: list[torch.Generator] | None,
    ) -> Tensor:
        if self.first:
            return super()._embed(tokens, positions, token_types, window, draws)
        if self.received is None:
            raise RuntimeError("a stage reads what the stage before it sends: it is no model by itself")
        if self.config.ngram_tables:
            # Drawn by the first stage, and here too, so that what follows is what the whole model draws.
            self._kept((tokens.shape[1], 1), self.config.ngram_dropout, draws, 0)
        return self.received

    def auxiliary_loss(self) -> Tensor | None:
        """This stage's part of the whole model's, which is a mean over layers."""
        loss = super().auxiliary_loss()
        return None if loss is None else loss * self._balance_share

    def activations(self, batch: TokenBatch) -> Tensor:
        """(B, T, D) for the next stage; its backward pass also minimises this stage's auxiliary loss."""
        hidden = self.hidden(batch.inputs, layout=batch.layout, noise=batch.noise)
        loss = self.auxiliary_loss()
        if loss is None:
            return hidden
        return _AlsoMinimise.apply(hidden, loss * int((batch.targets != IGNORE).sum()))  # type: ignore[no-any-return, no-untyped-call]


class _AlsoMinimise(torch.autograd.Function):
    """x as it is; in the backward pass `loss`, a scalar, is minimised besides what x leads to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss.new_ones(()))
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return upstream, ctx.saved_tensors[0]


def check_stages(model: Transformer, stages: int) -> None:
    """Raises UserError where a model has too few blocks, or where a stage would not compute what the whole does."""
    if model.config.cross_attention:
        raise UserError("an encoder-decoder cannot be divided into pipeline stages: set parallel.pipeline=1")
    known = {"layers", *FIRST, *LAST, *EVERYWHERE}
    held = {name for name, module in model.named_children()} | {
        name for name, _ in model.named_parameters(recurse=False)
    }
    if unknown := sorted(set(held) - known):
        raise UserError(
            f"a model with {', '.join(unknown)} cannot be divided into pipeline stages: set parallel.pipeline=1"
        )
    divide_layers(model.config, stages)
