"""The kernels' backend against the Transformer itself: every part of every family, in all cuts, batches and forms."""

import gc
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.inference.backend import Piece
from parlance.inference.kernels import KernelBackend, kernel_backend, unsupported
from parlance.inference.kernels.kernel_backend import ROWS, special_instructions
from parlance.inference.quantisation.rounding import nearest
from parlance.models.quantised_tensors import QuantisedTensor
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import RotaryScaling, TransformerConfig

SIZES = {"vocab_size": 67, "context_length": 128, "width": 40, "layers": 2, "heads": 4, "head_width": 12}
PLAIN = {"qk_norm": False, "mlp_width": 72}
BIASED = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
CLASSIC = {**PLAIN, **BIASED, "norm": "layer", "gated_mlp": False, "tie_embeddings": True}
SCALINGS = {
    "linear": RotaryScaling(kind="linear", factor=2.0, original_context_length=64),
    "yarn": RotaryScaling(kind="yarn", factor=4.0, original_context_length=32),
    "llama3": RotaryScaling(kind="llama3", factor=8.0, original_context_length=64),
}
FAMILIES = {
    "llama": {**PLAIN, "kv_heads": 2},
    "qwen3": {"kv_heads": 1, "mlp_width": 72},
    "mistral": {**PLAIN, "sliding_window": 7, "full_attention_layers": (1,)},
    "gpt2": {**CLASSIC, "positions": "learned", "activation": "gelu-tanh"},
    "gptj": {**CLASSIC, "rotary_width": 8, "block": "parallel", "parallel_norms": 1, "head_bias": True,
             "tie_embeddings": False},
    "neox": {**CLASSIC, "rotary_width": 4, "block": "parallel", "activation": "gelu"},
    "opt": {**CLASSIC, "positions": "learned", "position_offset": 2, "activation": "relu", "embedding_width": 24},
    "opt, post-norm": {**CLASSIC, "positions": "learned", "norm_placement": "post", "final_norm": False},
    "bloom": {**CLASSIC, "positions": "alibi", "embedding_norm": True},
    "mpt": {**PLAIN, "positions": "alibi", "norm": "layer", "norm_bias": False, "clip_qkv": 0.8, "gated_mlp": False,
            "heads": 6, "head_width": 8},
    "falcon": {**CLASSIC, "kv_heads": 1, "positions": "alibi", "alibi_before_scaling": True, "block": "parallel",
               "parallel_norms": 1, "attention_bias": False, "heads": 14, "head_width": 4},
    "sinusoidal": {**PLAIN, "positions": "sinusoidal", "logit_scale": 0.5, "tie_embeddings": True},
    "no positions": {**PLAIN, "positions": "none", "attention_scale": 0.2},
    "own": {"activation": "relu2", "gated_mlp": False, "norm_weight": False, "head_offsets": 0.7,
            "ngram_tables": ((2, 67 * 70), (3, 500)), "rope_theta": 1000.0},
    **{name: {**PLAIN, "rope_scaling": scaling} for name, scaling in SCALINGS.items()},
}  # fmt: skip


def random_model(seed: int = 0, **choices: object) -> Transformer:
    """No weight at zero or one, so that no part is hidden."""
    model = Transformer(TransformerConfig(**{**SIZES, **choices}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.3, generator=generator)
            else:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return model


def some_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SIZES["vocab_size"], (count,), generator=generator).tolist()


def exact_logits(model: Transformer, tokens: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model.forward(torch.tensor([tokens]))[0][0].numpy()


def exact_backend(model: Transformer, **choices: object) -> KernelBackend:
    return KernelBackend(model, "float32", **{"pages": 12, "page_size": 16, "cache": "float32", **choices})


def in_cuts(backend: KernelBackend, tokens: list[int], cuts: list[int], pages: list[int]) -> NDArray[np.float32]:
    """Logits of every token of a text that is read in pieces of the given sizes, then of one token."""
    out, start = [], 0
    for size in cuts + [1] * len(tokens):
        part = tokens[start : start + size]
        if part:
            out.append(backend.step([Piece(part, start, pages, len(part))]))
        start += len(part)
    return np.concatenate(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_whole_and_in_cuts(family: str) -> None:
    model = random_model(**FAMILIES[family])
    tokens = some_tokens(60)
    backend = exact_backend(model)
    whole = backend.step([Piece(tokens, 0, [3, 0, 7, 5], len(tokens))])
    expected = exact_logits(model, tokens)
    assert expected.std() > 0.05
    assert np.abs(whole - expected).max() < 1e-4
    assert (in_cuts(backend, tokens, [13, 1, 18], [9, 2, 11, 6]) == whole).all()


@pytest.mark.parametrize("family", ["llama", "falcon", "own"])
def test_threads_and_plain_instructions_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_backend, "SMALL", 0)  # all threads work, however small the step
    model = random_model(**FAMILIES[family])
    tokens = some_tokens(40)
    pieces = [Piece(tokens, 0, [3, 0, 7], len(tokens))]
    for weights in ("float32", "bfloat16", "int8", "int4"):
        reference = exact_backend(model, special=False)
        if weights != "float32":
            reference = KernelBackend(model, weights, pages=8, page_size=16, special=False)
        expected = reference.step(pieces)
        for special in [False, True] if special_instructions() else [False]:
            cache = "float32" if weights == "float32" else "bfloat16"
            other = KernelBackend(model, weights, pages=8, page_size=16, cache=cache, threads=3, special=special)
            found = np.concatenate([other.step(pieces)[:-1], other.step([Piece(tokens[-1:], 39, [3, 0, 7], 1)])])
            if special:
                assert np.abs(found - expected).max() < 0.02 * expected.std()
            else:
                assert (found == expected).all()
            other.close()


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_texts_side_by_side_are_each_as_alone(data: st.DataObject) -> None:
    """Unequal texts in pages in any order, read in steps of any cut together: the bits of each text alone."""
    backend = _shared_backend()
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5), label="lengths")
    free = data.draw(st.permutations(range(20)), label="pages")
    texts, pages = [], []
    for number, length in enumerate(lengths):
        texts.append(some_tokens(length, seed=number + 1))
        need = -(-length // 16)
        pages.append(free[:need])
        free = free[need:]
    alone = []
    for text, own in zip(texts, pages, strict=True):
        alone.append(backend.step([Piece(text, 0, own, len(text))]))
    done = [0] * len(texts)
    found: list[list[NDArray[np.float32]]] = [[] for _ in texts]
    while any(at < len(text) for at, text in zip(done, texts, strict=True)):
        pieces, members = [], []
        for number, text in enumerate(texts):
            left = len(text) - done[number]
            size = data.draw(st.integers(0, left)) or (1 if left and not pieces else 0)
            if size:
                wanted = data.draw(st.integers(0, size))
                pieces.append(Piece(text[done[number] : done[number] + size], done[number], pages[number], wanted))
                members.append(number)
        logits = backend.step(pieces)
        for number, piece in zip(members, pieces, strict=True):
            done[number] += len(piece.tokens)
            rows, logits = logits[: piece.wanted], logits[piece.wanted :]
            found[number].append(rows == alone[number][done[number] - piece.wanted : done[number]])
        assert not len(logits)
    assert all(part.all() for parts in found for part in parts)


_backends: list[KernelBackend] = []


def _shared_backend() -> KernelBackend:
    if not _backends:
        model = random_model(**FAMILIES["llama"])
        _backends.append(KernelBackend(model, "bfloat16", pages=20, page_size=16))
    return _backends[0]


def test_a_common_beginning_is_shared_and_a_text_can_be_taken_back() -> None:
    model = random_model(**FAMILIES["llama"])
    backend = exact_backend(model)
    common, first, second = some_tokens(32), some_tokens(9, seed=1), some_tokens(15, seed=2)
    backend.step([Piece(common, 0, [4, 2], 0)])
    logits = backend.step([Piece(first, 32, [4, 2, 0], 1), Piece(second, 32, [4, 2, 1], 1)])
    assert np.abs(logits[0] - exact_logits(model, common + first)[-1]).max() < 1e-4
    assert np.abs(logits[1] - exact_logits(model, common + second)[-1]).max() < 1e-4
    # Taken back to 35 tokens (three of `first`), and on with others.
    other = some_tokens(4, seed=3)
    found = backend.step([Piece(other, 35, [4, 2, 0], 4)])
    assert np.abs(found - exact_logits(model, common + first[:3] + other)[35:]).max() < 1e-4


def test_what_stood_in_a_page_before_does_not_reach_a_text() -> None:
    """Not even where it is not a number. (Heads of 16: components that pad a head are never written.)"""
    model = random_model(**{**FAMILIES["llama"], "head_width": 16})
    for cache in ("float32", "bfloat16", "int8"):
        backend = KernelBackend(model, "float32", pages=4, page_size=16, cache=cache)
        tokens = some_tokens(21)
        expected = backend.step([Piece(tokens, 0, [0, 1], 21)])
        kept = backend._program.cache
        kept[: kept.size // 4 * 4].view(np.uint32)[:] = 0x7FC07FC0  # not numbers, in either form
        assert (in_cuts(backend, tokens, [4], [2, 3]) == expected).all()


@pytest.mark.parametrize("cache", ["bfloat16", "int8"])
def test_a_smaller_memory_is_close(cache: str) -> None:
    model = random_model(**FAMILIES["llama"])
    tokens = some_tokens(60)
    backend = KernelBackend(model, "float32", pages=8, page_size=32, cache=cache)
    whole = backend.step([Piece(tokens, 0, [5, 2], 60)])
    expected = exact_logits(model, tokens)
    assert 0 < np.abs(whole - expected).max() < 0.05 * expected.std() * (1 if cache == "bfloat16" else 2)
    assert (in_cuts(backend, tokens, [13], [6, 1]) == whole).all()


def test_bfloat16_weights_are_the_rounded_model() -> None:
    model = random_model(**FAMILIES["qwen3"])
    tokens = some_tokens(30)
    backend = KernelBackend(model, "bfloat16", pages=4, cache="float32")
    found = backend.step([Piece(tokens, 0, [1], 30)])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.bfloat16())
    expected = exact_logits(model, tokens)
    assert np.abs(found - expected).max() < 0.05 * expected.std()  # activations are rounded too


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_whole_numbers_are_the_dequantised_model(family: str, weights: str) -> None:
    model = random_model(**FAMILIES[family])
    tokens = some_tokens(30)
    backend = KernelBackend(model, weights, pages=4, cache="float32")
    found = backend.step([Piece(tokens, 0, [1], 30)])
    given = dict_of_codes(model, weights)
    again = KernelBackend(model, "float32", pages=4, cache="float32", quantised=given)
    assert (again.step([Piece(tokens, 0, [1], 30)]) == found).all()
    with torch.no_grad():
        for name, matrix in given.items():
            weight = model.get_parameter(name)
            weight.copy_(matrix.weight()[:, : weight.shape[1]])
    expected = exact_logits(model, tokens)
    # What is left is that activations have 8 bits.
    assert np.abs(found - expected).max() < 0.2 * expected.std()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9985


def dict_of_codes(model: Transformer, weights: str) -> dict[str, QuantisedTensor]:
    """What a backend rounds for itself, given from outside."""
    codes: dict[str, QuantisedTensor] = {}
    for name, weight in model.named_parameters():
        if weight.ndim != 2 or name == "embed_positions.weight":
            continue
        bits = 8 if weights == "int8" or name in ("embed_tokens.weight", "lm_head.weight") else 4
        codes[name] = nearest(torch.nn.functional.pad(weight.detach(), (0, -weight.shape[1] % 32)), bits)
    return codes


def test_steps_of_more_rows_than_one_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_backend, "SMALL", 0)
    model = random_model(**FAMILIES["gpt2"], context_length=600)
    tokens = some_tokens(2 * ROWS + 30)
    backend = exact_backend(model, pages=80, threads=2)
    pages = list(range(60, 20, -1))
    found = backend.step([Piece(tokens, 0, pages, ROWS + 40), Piece(tokens[:3], 0, [1], 2), Piece([5], 0, [2], 0)])
    expected = exact_logits(model, tokens)
    assert found.shape == (ROWS + 42, SIZES["vocab_size"])
    assert np.abs(found[: ROWS + 40] - expected[-ROWS - 40 :]).max() < 1e-4
    assert np.abs(found[ROWS + 40 :] - expected[1:3]).max() < 1e-4
    backend.close()


def test_threads_end_with_the_backend() -> None:
    before = threading.active_count()
    backend = exact_backend(random_model(**FAMILIES["llama"]), threads=2)
    assert threading.active_count() == before + 1
    del backend
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"causal": False}, "encoder"),
        ({"experts": 4}, "experts"),
        ({"positions": "relative"}, "relative"),
        ({"dilated_segments": ((16, 1),)}, "dilated"),
        ({"rope_scaling": RotaryScaling(kind="dynamic", factor=2, original_context_length=64)}, "depends"),
        ({"cross_attention": True}, "cross-attention"),
    ],
)
def test_what_is_not_served_is_named(choices: dict[str, object], reason: str) -> None:
    assert reason in (unsupported(TransformerConfig(**{**SIZES, **choices})) or "")


def test_every_tested_family_is_served() -> None:
    for name, choices in FAMILIES.items():
        assert unsupported(TransformerConfig(**{**SIZES, **choices})) is None, name


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece([], 0, [0], 0), "at least one token"),
        (Piece([1], 0, [0], 2), "at most all"),
        (Piece([67], 0, [0], 1), "outside the vocabulary"),
        (Piece([-1], 0, [0], 1), "outside the vocabulary"),
        (Piece([1] * 17, 0, [0], 1), "too few"),
        (Piece([1], 0, [12], 1), "a page is not"),
        (Piece([1] * 129, 0, list(range(9)), 1), "more than the 128"),
    ],
)
def test_wrong_pieces_are_refused(piece: Piece, message: str) -> None:
    with pytest.raises(UserError, match=message):
        exact_backend(random_model(**FAMILIES["llama"])).step([piece])


def test_what_is_not_served_is_refused() -> None:
    model = random_model(**PLAIN, causal=False)
    with pytest.raises(UserError, match="do not compute an encoder"):
        exact_backend(model)


def test_wrong_sizes_are_refused() -> None:
    model = random_model(**FAMILIES["llama"])
    with pytest.raises(UserError, match="multiple of 16"):
        KernelBackend(model, "float32", pages=4, page_size=24)
    with pytest.raises(UserError, match="at least one page"):
        KernelBackend(model, "float32", pages=0)
    matrix = nearest(torch.ones(48, 64), 8)
    with pytest.raises(UserError, match="computed as one matrix"):
        KernelBackend(model, "float32", pages=4, quantised={"layers.0.self_attn.q_proj.weight": matrix})
