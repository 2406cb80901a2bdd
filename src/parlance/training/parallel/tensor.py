"""Tensor parallelism: each weight matrix of a Transformer divided over processes that read the same tokens.

Which tensor is divided how is data: the table `TRANSFORMER`, in which Megatron's split is the lines of attention and of
the feed-forward. A matrix that is divided by its outputs ("column") is followed by one that is divided by its inputs
("row"), so that a block communicates twice forward and twice backward: the sum of the partial results of each branch,
and the sum of the gradients where the stream enters it. Each process has its part of the query heads, of the key/value
heads (a copy of one, where processes are more than those) and of the feed-forward's or each expert's width. The
vocabulary is divided too: each process looks up and scores its own tokens, and the loss exchanges a maximum, a sum of
exponentials and the target's score per position, never logits.

    split = shard_tensors(model, group)                     # in place; what the rest needs to know of it
    objective(model, batch).loss_sum.backward()             # the whole loss on every process

All processes of the group start from the same whole weights and read the same batches. It divides no encoder-decoders
and no dilated attention. A divided model has only the part of its logits that `Transformer.logits` gives, and does not
decode: gather it first. Blocks can be compiled, experts apart: exchanges are part of the graph.

Shapes: N positions, V vocabulary, D width, R processes. Source: Shoeybi et al. 2019 (Megatron-LM, section 3).
"""

from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from parlance.core.errors import UserError
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Attention, FeedForward, Linear, linear
from parlance.text.packing import IGNORE
from parlance.training.parallel.collectives import enter, span, total
from parlance.training.parallel.experts import parallel_experts
from parlance.training.parallel.splits import SplitParameters, keep_part

Kind = Literal["column", "row", "vocabulary", "partial", "whole"]
"""`column`: outputs are divided; `row`: inputs (of a table: its columns); `vocabulary`: rows of tokens; `partial`:
nothing, but the gradient comes from the part of the computation that is here; `whole`: nothing."""
Table = tuple[tuple[str, Kind], ...]
"""Patterns of parameter names, of which the first that fits counts."""

TRANSFORMER: Table = (
    ("layers.*.self_attn.[qkv]_proj.*", "column"),
    ("layers.*.self_attn.o_proj.weight", "row"),
    ("layers.*.self_attn.[qk]_norm.weight", "partial"),
    ("layers.*.mlp.gate_proj*", "column"),
    ("layers.*.mlp.up_proj*", "column"),
    ("layers.*.mlp.down_proj", "row"),  # of experts
    ("layers.*.mlp.down_proj.weight", "row"),
    ("relative_bias.weight", "row"),  # a column a head
    ("embed_tokens.weight", "vocabulary"),
    ("lm_head.weight", "vocabulary"),
    ("head_bias", "vocabulary"),
    ("head_dense.*", "partial"),
    ("head_norm.*", "partial"),
    ("project_out.weight", "partial"),
    ("layers.*.self_attn.o_proj.bias", "whole"),
    ("layers.*.mlp.down_proj.bias", "whole"),
    ("layers.*.mlp.router.weight", "whole"),
    ("layers.*_layernorm.*", "whole"),
    ("norm.*", "whole"),
    ("embed_*", "whole"),
    ("project_in.weight", "whole"),
    ("pooler.*", "whole"),
    ("next_sentence.*", "whole"),
)
"""How a `Transformer` is divided."""


def shard_tensors(model: Transformer, group: ProcessGroup) -> SplitParameters:
    """Leave of every matrix of `model` this process's part, in place, with the communications that this needs.

    Raises UserError where the model cannot be divided over the group's processes.
    """
    check_tensors(model, group.size())
    index, ways = group.rank(), group.size()
    shared_heads = model.config.key_value_heads % ways != 0
    dimensions, sizes, partial = dict[str, int](), dict[str, int](), list[str]()
    for name, parameter in model.named_parameters():
        kind = _kind(name)
        if kind == "partial" or (shared_heads and fnmatchcase(name, "*.[kv]_proj.*")):
            partial.append(name)
        elif kind is not None and kind != "whole":
            dimensions[name] = _dimension(kind, parameter)
            sizes[name] = keep_part(parameter, dimensions[name], group)
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _divide_attention(module, index, ways, group)
        elif isinstance(module, FeedForward):
            module.down_proj = RowLinear(module.down_proj, group)
            _enter_first(module, group)
    for mixture in parallel_experts(model).values():
        mixture.width_group = group
    model.embed_tokens = VocabularyPart(model.embed_tokens, group)
    first, _ = span(model.vocab_size, index, ways)

    def loss(part: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
        return divided_cross_entropy(part.logits(enter(hidden, group)), targets, first, group)

    model.vocabulary_loss = loss
    return SplitParameters(dimensions, sizes, tuple(partial))


def check_tensors(model: Transformer, ways: int) -> None:
    """Raises UserError where the matrices of a whole model cannot be divided so many ways."""
    config = model.config
    if config.cross_attention:
        raise UserError("tensor parallelism does not divide encoder-decoders: set tensor to 1")
    if config.dilated_segments:
        raise UserError("tensor parallelism does not divide dilated attention: set tensor to 1")
    unknown = next((name for name, _ in model.named_parameters() if _kind(name) is None), None)
    if unknown is not None:
        raise UserError(f"tensor parallelism does not know how to divide {unknown}: set tensor to 1")
    if config.heads % ways:
        raise UserError(f"{config.heads} heads cannot be divided over {ways} processes: choose a divisor for tensor")
    K = config.key_value_heads
    if K % ways and ways % K:
        raise UserError(f"{K} key/value heads cannot be divided over {ways} processes: choose a divisor or a multiple")
    for what, size in (("tokens", config.vocab_size), ("units of the feed-forward", config.feed_forward_width)):
        if size < ways:
            raise UserError(f"{size} {what} are fewer than {ways} processes: choose a smaller tensor")


def _kind(name: str) -> Kind | None:
    return next((kind for pattern, kind in TRANSFORMER if fnmatchcase(name, pattern)), None)


def _dimension(kind: Kind, parameter: Tensor) -> int:
    """Which dimension of (outputs, inputs), of experts' (E, outputs, inputs) or of a bias (outputs,) is divided."""
    if kind == "vocabulary":
        return 0
    return parameter.ndim - 1 if kind == "row" else max(0, parameter.ndim - 2)


def _divide_attention(attention: Attention, index: int, ways: int, group: ProcessGroup) -> None:
    attention.first_head, _ = span(attention.heads, index, ways)
    E, K = attention.head_width, attention.kv_heads
    attention.heads //= ways
    if K % ways:  # fewer than processes: each has the one that its query heads read
        head = index * K // ways
        rows = slice(head * E, (head + 1) * E)
        attention.k_proj, attention.v_proj = SomeRows(attention.k_proj, rows), SomeRows(attention.v_proj, rows)
    attention.kv_heads = max(1, K // ways)
    attention.o_proj = RowLinear(attention.o_proj, group)
    _enter_first(attention, group)

    def own_heads(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # Biases by a rule come for all heads, learned ones for those that are here, and others for none.
        x, rotary, mask, *rest = inputs
        if mask is not None and mask.shape[1] == attention.all_heads != attention.heads:
            mask = mask[:, attention.first_head : attention.first_head + attention.heads]
        return (x, rotary, mask, *rest)

    attention.register_forward_pre_hook(own_heads)


def _enter_first(module: nn.Module, group: ProcessGroup) -> None:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (enter(inputs[0], group), *inputs[1:])

    module.register_forward_pre_hook(hook)


class RowLinear(Linear):
    """A linear map whose inputs are divided: the sum of the processes' products, and then the bias."""

    def __init__(self, whole: Linear, group: ProcessGroup) -> None:
        """Takes over the parameters of `whole`, of which the weight is a part already."""
        nn.Module.__init__(self)
        self.weight, self.bias, self.group = whole.weight, whole.bias, group

    def forward(self, x: Tensor) -> Tensor:
        y = total(linear(x, self.weight, None), self.group)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class SomeRows(Linear):
    """Some of the outputs of a linear map that every process has."""

    def __init__(self, whole: Linear, rows: slice) -> None:
        """Takes over the parameters of `whole`."""
        nn.Module.__init__(self)
        self.weight, self.bias, self.rows = whole.weight, whole.bias, rows

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight[self.rows], None if self.bias is None else self.bias[self.rows])


class VocabularyPart(nn.Embedding):
    """An embedding whose rows are divided; gives the whole embedding of every token."""

    def __init__(self, whole: nn.Embedding, group: ProcessGroup) -> None:
        """Takes over the weight of `whole`, which is a part already; `num_embeddings` stays that of all processes."""
        super().__init__(whole.num_embeddings, whole.embedding_dim, device="meta")
        self.weight, self.group = whole.weight, group
        self.first, _ = span(whole.num_embeddings, group.rank(), group.size())

    def forward(self, tokens: Tensor) -> Tensor:
        rows = tokens - self.first
        elsewhere = (rows < 0) | (rows >= len(self.weight))
        found = F.embedding(rows.masked_fill(elsewhere, 0), self.weight)
        return total(found.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.group)


def divided_cross_entropy(logits: Tensor, targets: Tensor, first: int, group: ProcessGroup) -> Tensor:
    """Sum over n of -log p(targets[n]) in nats, where each process has some columns of the logits.

    logits (N, V / R): of the tokens from `first` on; targets (N,) int64, `IGNORE` where nothing counts. The fp32 loss
    is the whole one on every process; the gradient is that of these logits.
    """
    return cast(Tensor, _DividedCrossEntropy.apply(logits, targets, first, group))  # type: ignore[no-untyped-call]


class _DividedCrossEntropy(torch.autograd.Function):
    """Three numbers a position are exchanged; what is kept is the probabilities of this process's tokens."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, first: int, group: ProcessGroup) -> Tensor:
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        largest = scores.amax(1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        powers = (scores - largest.unsqueeze(1)).exp_()
        columns = targets - first
        here = (columns >= 0) & (columns < logits.shape[1])
        columns = columns.masked_fill(~here, 0).unsqueeze(1)
        at_target = (scores.gather(1, columns).squeeze(1) - largest) * here
        sums = torch.stack((powers.sum(1), at_target))
        dist.all_reduce(sums, group=group)
        kept = targets != IGNORE
        probabilities = powers.mul_((kept / sums[0]).unsqueeze(1))
        ctx.save_for_backward(probabilities, columns, here & kept)
        ctx.dtype = logits.dtype
        return torch.where(kept, sums[0].log() - sums[1], 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        probabilities, columns, here = ctx.saved_tensors
        gradient = probabilities.scatter_add(1, columns, -here.to(probabilities.dtype).unsqueeze(1))
        return (gradient * upstream).to(ctx.dtype), None, None, None
