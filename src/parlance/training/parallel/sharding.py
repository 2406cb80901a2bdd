"""FSDP2: weights, gradients and moments divided over the "shard" axis, block by block.

Between uses a process holds its rows of every parameter; each block gathers its own just before it computes and drops
them again, and the gradient of a parameter is summed straight into the rows that belong to it. Embedding, head and the
last norm are one more group, gathered from the beginning of a step to the end of its backward pass.

    shard(model, mesh.devices["shard"])                  # parameters become DTensors
    rows = local_parameters(model)                       # what the optimizer updates: plain tensors that share memory

torch does the work (`torch.distributed.fsdp.fully_shard`, on gloo and NCCL). Gradients are sums, never means.

Sources: Rajbhandari et al. 2020 (ZeRO, stage 3); Zhao et al. 2023 (FSDP).
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from parlance.core.errors import UserError
from parlance.models.transformer import Transformer


def shard(model: Transformer, mesh: DeviceMesh, *, interleaved: bool = False) -> None:
    """Divide every parameter of `model` over the one axis of `mesh`, by its first dimension.

    `interleaved`: further forward passes come before the backward pass of one (a pipeline); then weights stay gathered
    until `drop_gathered`. Raises UserError where a model cannot be divided so.
    """
    check_shard(model)
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    for block in model.layers:
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # A Transformer is entered here; its head is used after, while the outermost group is still whole.
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if interleaved:
                module.set_reshard_after_forward(False)
                module.set_reshard_after_backward(False)


def check_shard(model: Transformer) -> None:
    """Raises UserError for weights whose gradient FSDP2 does not sum."""
    if model.embed_ngrams is not None:
        raise UserError("parallel.shard does not divide tables of n-grams: leave it at 1 for this model")


def drop_gathered(model: nn.Module) -> None:
    """Forget weights gathered by a forward pass that no backward pass followed."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a divided tensor, in the same memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(rows: Tensor, divided: Tensor) -> Tensor:
    """`rows` in the form of `divided`: a DTensor where that is one."""
    if not isinstance(divided, DTensor):
        return rows
    return DTensor.from_local(
        rows.to(divided.device),
        divided.device_mesh,
        divided.placements,
        run_check=False,
        shape=divided.shape,
        stride=divided.stride(),
    )


def local_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter as a plain one: itself, or of a divided one this process's rows, in the same memory."""
    return {
        name: nn.Parameter(local(parameter.detach())) if isinstance(parameter, DTensor) else parameter
        for name, parameter in model.named_parameters()
    }


def rows_of(parameter: Tensor) -> tuple[int, int] | None:
    """First row and number of rows that this process holds of a divided parameter; None: it is not divided."""
    if not isinstance(parameter, DTensor):
        return None
    mesh = parameter.device_mesh
    chunk = -(-parameter.shape[0] // mesh.size())  # as `torch.chunk` divides: the last may have fewer, or none
    start = min(parameter.shape[0], chunk * mesh.get_local_rank())
    return start, min(chunk, parameter.shape[0] - start)


def take_gradients(model: nn.Module, rows: dict[str, nn.Parameter]) -> None:
    """Move the gradients of divided parameters to the plain ones of `local_parameters`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if isinstance(parameter, DTensor) and parameter.grad is not None:
                gradient = local(parameter.grad)
                own = rows[name]
                own.grad = gradient if own.grad is None else own.grad.add_(gradient)
                parameter.grad = None
