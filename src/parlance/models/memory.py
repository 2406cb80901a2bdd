"""How much memory a network takes, counted without running it: weights, states, and what training keeps.

    model.weight_bytes(); state_bytes(model, batch=1, capacity=1024); activation_bytes(model, batch=8, length=256)

Activations are counted on fake tensors, which have shapes and no data, by asking autograd what it would keep for the
backward pass: so the count follows the very kernels that would run on the model's device.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from parlance.core.errors import UserError
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer


def state_bytes(model: NeuralLanguageModel, batch: int, capacity: int) -> int:
    """Bytes of the state of `batch` sequences of `capacity` tokens: KV cache, hidden state, last inputs."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return sum(tensor.nbytes for tensor in _tensors(model.new_state(batch, capacity)))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def activation_bytes(model: Transformer, batch: int, length: int) -> int:
    """Bytes that stay between the forward and the backward pass over tokens (batch, length), the logits included.

    Raises UserError for a model with experts: what each of them keeps depends on the data. (Of recurrent models nothing
    is said here: the library kernels that run them keep what autograd does not see.)
    """
    if not isinstance(model, Transformer):
        raise UserError("activations are counted of Transformers alone: what other kernels keep, autograd does not see")
    if model.config.experts is not None:
        raise UserError("what a mixture of experts keeps for the backward pass depends on its data; run it to measure")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        twin = copy.deepcopy(model)
        tokens = torch.zeros(batch, length, dtype=torch.int64, device=model.device)
        weights = {parameter.untyped_storage()._cdata for parameter in twin.parameters()}
        with _kept() as kept:
            logits = twin.logits(twin.hidden(tokens))
        kept[logits.untyped_storage()._cdata] = logits.untyped_storage().nbytes()
        return sum(size for storage, size in kept.items() if storage not in weights)


@contextmanager
def _kept() -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps in the block, by its identity."""
    sizes: dict[int, int] = {}
    alive: list[Any] = []  # an identity may be used again once its storage is gone

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def training_bytes(model: Transformer, batch: int, length: int, moments: float = 1.5) -> int:
    """Weights, gradients, `moments` numbers a weight of the optimizer (Muon 1, AdamW 2), and activations."""
    weights = model.weight_bytes()
    return round(weights * (2 + moments)) + activation_bytes(model, batch, length)
