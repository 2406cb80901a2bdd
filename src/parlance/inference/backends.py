"""Which backend a model gets, and how much memory for texts: `engine.open_engine` in parts that can be asked alone.

    chosen = choose_backend(model.language_model, most_running=16)
    print(chosen.description)       # kernels on 2 threads, bfloat16; room for 65536 tokens in 2048 pages of 32 (1.2 GB)

The compiled kernels where they compute the model, on a CPU; PyTorch for other causal Transformers and on other devices;
and for what is no such Transformer its own state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from parlance.core.devices import free_memory_bytes
from parlance.core.errors import UserError
from parlance.core.formatting import size
from parlance.inference.backend import Backend
from parlance.inference.state_backend import StateBackend
from parlance.inference.torch_backend import PAGE, TorchBackend, page_bytes
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.quantised_tensors import QuantisedTensor
from parlance.models.transformer import Transformer

Weights = Literal["auto", "float32", "bfloat16", "int8", "int4"]
"""How matrices are kept; auto: as the checkpoint has them."""

SHARES = {"cpu": 0.25, "cuda": 0.85, "mps": 0.5}
"""How much of the free memory the texts get: on a CPU, other programs need some too."""
TEXT_TOKENS = 4096
"""Where memory allows, every running text has room for this many tokens, or the model's context where that is less."""


@dataclass(frozen=True)
class Chosen:
    """A backend and what to say of it."""

    backend: Backend
    description: str
    source_length: int | None = None
    reads_source: bool = False
    """Whether a prompt is an encoder-decoder's source."""


def choose_backend(
    model: LanguageModel,
    *,
    most_running: int,
    cache_bytes: int | None = None,
    weights: Weights = "auto",
    kernels: bool = True,
    quantised: Mapping[str, QuantisedTensor] | None = None,
) -> Chosen:
    """The fastest backend that this model has here, with memory for its texts.

    cache_bytes: of keys and values; None: what `most_running` texts may need, as far as free memory allows. weights:
    what only the kernels can do (int8, int4) is refused elsewhere. kernels: whether to use them where they can be.
    quantised: matrices that the checkpoint has as integers, which the kernels take as they are.
    Raises UserError where there is not even room for one page.
    """
    if isinstance(model, Transformer) and model.config.causal and not model.config.cross_attention:
        if kernels and model.device.type == "cpu":
            # Compiled code takes a moment to load, and is not there on every device.
            from parlance.inference.kernels.support import unsupported

            reason = unsupported(model.config)
            if reason is None:
                return _on_kernels(model, most_running, cache_bytes, weights, quantised or {})
        else:
            reason = f"a model on {model.device.type}"
        _refuse(weights, reason)
        return _on_torch(model, most_running, cache_bytes)
    _refuse(weights, type(model).__name__)
    description = f"{type(model).__name__}, state by state; room for {most_running} texts"
    if isinstance(model, ConditionalLanguageModel):
        return Chosen(StateBackend(model, texts=most_running), description, model.source_length, reads_source=True)
    return Chosen(StateBackend(model, texts=most_running), description)


def _refuse(weights: Weights, reason: str) -> None:
    if weights in ("int8", "int4"):
        raise UserError(f"{weights} weights are for the CPU's kernels, which do not compute {reason}: leave them out")


def _on_kernels(
    model: Transformer,
    most_running: int,
    cache_bytes: int | None,
    weights: Weights,
    quantised: Mapping[str, QuantisedTensor],
) -> Chosen:
    from parlance.inference.kernels.kernel_backend import KernelBackend

    own: Literal["float32", "bfloat16", "int8", "int4"]
    own = "float32" if model.compute_dtype == torch.float32 else "bfloat16"
    if quantised:
        own = "int4" if min(matrix.bits for matrix in quantised.values()) == 4 else "int8"
    kept = own if weights == "auto" else weights
    if kept in ("float32", "bfloat16"):
        quantised = {}
    cache: Literal["float32", "bfloat16"] = "float32" if kept == "float32" else "bfloat16"
    each = page_bytes(model.config, PAGE, torch.float32 if cache == "float32" else torch.bfloat16)
    pages = _pages(model.context_length, most_running, each, cache_bytes, model.device)
    threads = torch.get_num_threads()
    backend = KernelBackend(model, kept, pages=pages, page_size=PAGE, cache=cache, threads=threads, quantised=quantised)
    on = f"kernels on {threads} thread{'s' if threads > 1 else ''}"
    return Chosen(backend, f"{on}, {kept}; {_room(pages, each)}")


def _on_torch(model: Transformer, most_running: int, cache_bytes: int | None) -> Chosen:
    each = page_bytes(model.config, PAGE, model.compute_dtype)
    pages = _pages(model.context_length, most_running, each, cache_bytes, model.device)
    dtype = str(model.compute_dtype).removeprefix("torch.")
    return Chosen(TorchBackend(model, pages=pages), f"torch on {model.device.type}, {dtype}; {_room(pages, each)}")


def _room(pages: int, each: int) -> str:
    return f"room for {pages * PAGE} tokens in {pages} pages of {PAGE} ({size(pages * each)})"


def _pages(context: int | None, most_running: int, each: int, cache_bytes: int | None, device: torch.device) -> int:
    """How many pages of `each` bytes there are. Raises UserError."""
    # What every running text may need, and one as long as the context, where memory allows it.
    wanted = max(most_running * -(-min(context or TEXT_TOKENS, TEXT_TOKENS) // PAGE), -(-(context or 0) // PAGE))
    if cache_bytes is not None:
        wanted = cache_bytes // each
    else:
        free = free_memory_bytes(device)
        cache_bytes = wanted * each if free is None else int(SHARES[device.type] * free)
    pages = min(wanted, cache_bytes // each)
    if pages < 1:
        raise UserError(
            f"there is no memory for texts: a page of {PAGE} tokens takes {size(each)} of this model, and "
            f"{size(cache_bytes)} are free for it; close other programs or use a smaller model"
        )
    return pages
