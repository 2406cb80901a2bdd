"""Counted memory is what the allocator hands out."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from parlance.core.errors import UserError
from parlance.models.memory import activation_bytes, state_bytes, training_bytes
from parlance.models.recurrent import Recurrent, RecurrentConfig

GPT2_LIKE = {
    "norm": "layer",
    "positions": "learned",
    "activation": "gelu-tanh",
    "gated_mlp": False,
    "qk_norm": False,
    "attention_bias": True,
    "tie_embeddings": True,
}
SIZES = {"vocab_size": 2000, "context_length": 256, "width": 256, "layers": 3, "heads": 4, "head_width": 64}


def allocated(run) -> tuple[int, object]:
    """Bytes that `run` leaves allocated, and its result, which keeps them alive."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages()), result


@pytest.mark.parametrize("parts", [{}, GPT2_LIKE], ids=["qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_the_allocator_keeps(tiny_transformer, parts, dtype):
    model = tiny_transformer(**SIZES, **parts)
    model.compute_dtype = dtype
    tokens = torch.randint(0, 2000, (8, 256), generator=torch.Generator().manual_seed(0))
    model.logits(model.hidden(tokens)).sum().backward()  # tables that are kept for good are made here
    model.zero_grad(set_to_none=True)
    real, result = allocated(lambda: model.logits(model.hidden(tokens)))
    assert activation_bytes(model, 8, 256) == pytest.approx(real, rel=0.01)
    assert training_bytes(model, 8, 256, moments=2) == model.weight_bytes() * 4 + activation_bytes(model, 8, 256)
    del result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_and_weights_are_what_the_allocator_gives(tiny_transformer, dtype):
    for model in (
        tiny_transformer(heads=4, kv_heads=2, head_width=8),
        Recurrent(RecurrentConfig(vocab_size=50, layers=2, width=48)),
    ):
        model.compute_dtype = dtype
        real, state = allocated(lambda model=model: model.new_state(3, 50))
        assert state_bytes(model, 3, 50) == real
        copied, twin = allocated(lambda model=model: model.inference_copy())
        assert twin.weight_bytes() == model.weight_bytes() * dtype.itemsize // 4
        if dtype == torch.float32:
            assert copied == model.weight_bytes()
        del state, twin


def test_experts_cannot_be_counted_beforehand(tiny_transformer):
    with pytest.raises(UserError, match="depends on its data"):
        activation_bytes(tiny_transformer(experts=4), 2, 8)
    with pytest.raises(UserError, match="of Transformers alone"):
        activation_bytes(Recurrent(RecurrentConfig(vocab_size=50, layers=1, width=8)), 2, 8)
