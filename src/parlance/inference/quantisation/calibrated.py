"""Integers that keep what matrices compute on a text, not the matrices themselves: GPTQ (Frantar et al. 2022).

    matrices = calibrated_matrices(model, windows, bits_of, progress)    # (N, T) token ids; {"layers.0....weight": 4}

For a matrix W and the inputs X that a text brings to it, what is lost is |X W^T - X Q^T|^2 = tr(E H E^T), with
E = W - Q and H = X^T X. Column by column, in the order of falling H_jj, W is rounded and the error is made good by the
columns that are not rounded yet, as the inverse of H says. H is damped with 1 % of its mean diagonal. Two things go
beyond the paper:

- What is to be kept is what the *exact* model computes. Where the matrices before have been rounded, a matrix reads
  other inputs Y than X, so that W is replaced first by the least-squares fit W X^T Y (Y^T Y)^-1, as in GPTAQ (Li et
  al. 2025).
- The scales, chosen at first as for the nearest integers (`rounding.py`), are fitted by least squares to the integers
  found, and the integers are found again, twice.

What each is worth is in docs/lab-notebook.md. Matrices are done in the order in which a text passes through them.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parlance.core.progress import Progress
from parlance.inference.quantisation.rounding import group_scales, nearest
from parlance.models.quantised_tensors import GROUP, QuantisedTensor
from parlance.models.transformer import Transformer

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it."""
BATCH_TOKENS = 4096
"""Tokens read at once."""
_COLUMNS = 128
"""Columns after which the error is carried to all others at once."""
_ROWS = 128
"""Rows whose scales are fitted at once."""
_FITS = 2
"""How often the scales are fitted."""
_READING = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.up_proj", "mlp.gate_proj"),
    ("mlp.down_proj",),
)
"""Matrices of a block that read the same, in the order in which they are reached."""


def calibrated(weight: Tensor, hessian: Tensor, bits: int) -> QuantisedTensor:
    """The integers for `weight` (outputs, inputs), where `hessian` (inputs, inputs) is X^T X of its inputs X."""
    weight = weight.detach().float()
    if not hessian.diagonal().any():  # a text that never reaches this matrix says nothing about it
        return nearest(weight, bits)
    hessian = _damped(hessian)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    # The upper factor U of the inverse, U^T U = H^-1: row j has what column j's error does to the later ones.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    scales = group_scales(weight, bits)
    codes = _codes(weight, scales, bits, order, upper)
    for _ in range(_FITS if bits == 4 else 0):
        scales = _fitted_scales(weight, codes, hessian, scales)
        codes = _codes(weight, scales, bits, order, upper)
    return QuantisedTensor(codes.to(torch.int8), scales, bits)


def _damped(hessian: Tensor) -> Tensor:
    """H with 1 % of its mean diagonal added to it, in float64."""
    hessian = hessian.double()
    share = DAMPING * hessian.diagonal().mean()
    return hessian + torch.eye(len(hessian), dtype=torch.float64) * share


def _codes(weight: Tensor, scales: Tensor, bits: int, order: Tensor, upper: Tensor) -> Tensor:
    """The integers (outputs, inputs), as float32: columns in `order`, errors carried on as `upper` says."""
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    unit = scales.float().repeat_interleave(GROUP, dim=1)[:, order]
    unit = torch.where(unit == 0, 1.0, unit)
    left = weight[:, order].clone()  # what is still to be rounded, with the errors before it made good
    found = torch.empty_like(left)
    for start in range(0, left.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, left.shape[1])
        errors = torch.empty(left.shape[0], stop - start)
        for column in range(start, stop):
            found[:, column] = (left[:, column] / unit[:, column]).round().clamp(low, high)
            error = (left[:, column] - found[:, column] * unit[:, column]) / upper[column, column]
            left[:, column + 1 : stop] -= error[:, None] * upper[column, column + 1 : stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    codes = torch.empty_like(found)
    codes[:, order] = found
    return codes


def _fitted_scales(weight: Tensor, codes: Tensor, hessian: Tensor, scales: Tensor) -> Tensor:
    """The scales (outputs, groups) with which `codes` come nearest to `weight` under `hessian`; row by row.

    With Q = sum over groups g of s_g C_g, the s that minimise (W - Q) H (W - Q)^T solve A s = b, A_gh = C_g H C_h^T and
    b_g = W H C_g^T. A scale that would not be above zero, or is of a group of zeros, stays.
    """
    groups = scales.shape[1]
    blocks = hessian.view(groups, GROUP, groups, GROUP)
    out = []
    for rows in range(0, len(weight), _ROWS):
        part = codes[rows : rows + _ROWS].double().view(-1, groups, GROUP)
        matrix = torch.einsum("oga,gahb,ohb->ogh", part, blocks, part)
        wanted = (weight[rows : rows + _ROWS].double() @ hessian).view(-1, groups, GROUP)
        small = 1e-6 * matrix.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-12)
        matrix = matrix + torch.eye(groups, dtype=torch.float64) * small[:, None, None]
        out.append(torch.linalg.solve(matrix, (wanted * part).sum(-1).unsqueeze(-1)).squeeze(-1))
    fitted = torch.cat(out).half()
    return torch.where((fitted > 0) & fitted.isfinite(), fitted, scales)


@torch.no_grad()
def calibrated_matrices(
    model: Transformer, windows: Tensor, bits_of: Mapping[str, int], progress: Progress
) -> dict[str, QuantisedTensor]:
    """The matrices named in `bits_of` as integers; those outside the blocks are the nearest ones.

    `windows` (N, T) are pieces of the text. The model's blocks are left with the numbers that the integers stand for.
    """
    out = {name: nearest(model.get_parameter(name), bits) for name, bits in bits_of.items() if "layers." not in name}
    streams = _block_inputs(model, windows, max(1, BATCH_TOKENS // windows.shape[1]))
    exact_streams = list(streams)
    calls = _block_arguments(model, windows[:1])
    for number, block in enumerate(model.layers):
        exact, arguments = copy.deepcopy(block), calls[number]
        for modules in _READING:
            names = {module: f"layers.{number}.{module}.weight" for module in modules}
            names = {module: name for module, name in names.items() if name in bits_of}
            width = block.get_submodule(modules[0]).get_parameter("weight").shape[1]
            product, drift = torch.zeros(width, width), torch.zeros(width, width)  # Y^T Y; (X - Y)^T Y
            for x, y in zip(exact_streams, streams, strict=True):
                read = _input_of(block, modules[0], y, arguments)
                product += read.T @ read
                drift += (_input_of(exact, modules[0], x, arguments) - read).T @ read
            for name in names.values():
                parameter = model.get_parameter(name)
                target = parameter.float()
                if product.diagonal().any():
                    moved = torch.linalg.solve(_damped(product), (target @ drift).double(), left=False)
                    target = target + moved.float()
                out[name] = calibrated(target, product, bits_of[name])
                parameter.copy_(out[name].weight())
                progress.update()
        exact_streams = [exact(x, *arguments) for x in exact_streams]
        streams = [block(y, *arguments) for y in streams]
    return out


class _ReachedError(Exception):
    """What was waited for has been read."""


def _input_of(block: nn.Module, module: str, x: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """What a module of `block` reads where the block reads x: (rows, inputs)."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].flatten(0, -2).float())
        raise _ReachedError

    handle = block.get_submodule(module).register_forward_pre_hook(keep)
    try:
        block(x, *arguments)
    except _ReachedError:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError(f"{module} reads nothing")


def _block_inputs(model: Transformer, windows: Tensor, rows: int) -> list[Tensor]:
    """What the first block reads, for every batch of `rows` windows."""
    streams: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        streams.append(inputs[0])
        raise _ReachedError

    handle = model.layers[0].register_forward_pre_hook(keep)
    try:
        for batch in torch.split(windows, rows):
            try:
                model.hidden(batch)
            except _ReachedError:
                continue
    finally:
        handle.remove()
    return streams


def _block_arguments(model: Transformer, window: Tensor) -> list[tuple[Any, ...]]:
    """What each block is called with besides its input: positions and masks, the same for every batch."""
    calls: list[tuple[Any, ...]] = []
    handles = [
        block.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[1:]))) for block in model.layers
    ]
    try:
        model.hidden(window)
    finally:
        for handle in handles:
            handle.remove()
    return calls
