"""The torch and the state backend against the models themselves, whatever is read together and wherever it lies."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.inference.backend import UNDIVIDED, Backend, Piece
from parlance.inference.backends import choose_backend
from parlance.inference.state_backend import StateBackend
from parlance.inference.static_step import StaticStep, is_static
from parlance.inference.torch_backend import TorchBackend
from parlance.models.contract import LanguageModel
from parlance.models.convolutional import Convolutional, ConvolutionalConfig
from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parlance.models.exact import ConditionalFrequencies
from parlance.models.feedforward import FeedForwardConfig, FeedForwardModel
from parlance.models.masked import MaskedLanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.recurrent import Recurrent, RecurrentConfig
from parlance.models.recurrent_attention import RecurrentAttention, RecurrentAttentionConfig
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import RotaryScaling, TransformerConfig

KINDS: dict[str, dict[str, Any]] = {
    "rotary, grouped": {"heads": 4, "kv_heads": 2, "head_width": 8},
    "rotary, part of a head": {"rotary_width": 8, "norm": "layer", "block": "parallel", "parallel_norms": 1},
    "rotary, stretched": {"rope_scaling": RotaryScaling(kind="linear", factor=4.0, original_context_length=16)},
    "rotary, stretched by length": {
        "rope_scaling": RotaryScaling(kind="dynamic", factor=4.0, original_context_length=64)
    },
    "learned": {"positions": "learned", "position_offset": 2, "norm_placement": "post", "final_norm": False},
    "sinusoidal": {"positions": "sinusoidal", "head_bias": True, "logit_scale": 0.5},
    "alibi": {"positions": "alibi", "embedding_norm": True},
    "alibi as in Falcon": {"positions": "alibi", "alibi_before_scaling": True, "kv_heads": 1},
    "relative": {"positions": "relative", "attention_scale": 1.0, "relative_buckets": 8, "relative_max_distance": 20},
    "no positions": {"positions": "none", "clip_qkv": 1.0},
    "window": {"sliding_window": 5, "full_attention_layers": (1,)},
    "window and alibi": {"positions": "alibi", "sliding_window": 7},
    "dilated": {"dilated_segments": ((8, 1), (16, 2))},
    "offsets": {"head_offsets": 0.3},
    "looking back": {"ngram_tables": ((2, 64), (3, 64))},
    "experts": {"experts": 4, "experts_per_token": 2, "expert_every": 2},
    "projected": {"embedding_width": 16, "tie_embeddings": True, "activation": "relu2", "gated_mlp": False},
}

TINY_SIZES = {"vocab_size": 260, "context_length": 64, "width": 32, "layers": 2, "heads": 2, "head_width": 16}
TEXTS = [[5, 3, 200, 7, 7, 9, 30, 31], [7, 250, 8], list(range(40, 83)), [9, 9], [250, *range(20), 5, 6]]


@torch.inference_mode()
def expected(model: LanguageModel, text: list[int]) -> NDArray[np.float32]:
    return model.forward(torch.tensor([text]))[0][0].numpy()


def through(backend: Backend, texts: list[list[int]], sizes: list[int], pages: list[list[int]]) -> list[Any]:
    """Logits of every token of some texts, each read in pieces of its size, one piece of each a step."""
    read = [0] * len(texts)
    found: list[list[NDArray[np.float32]]] = [[] for _ in texts]
    while any(done < len(text) for done, text in zip(read, texts, strict=True)):
        going = [place for place, text in enumerate(texts) if read[place] < len(text)]
        pieces = []
        for place in going:
            tokens = texts[place][read[place] : read[place] + sizes[place]]
            pieces.append(Piece(tokens, read[place], pages[place], len(tokens)))
        logits = backend.step(pieces)
        assert logits.dtype == np.float32
        assert logits.shape == (sum(piece.wanted for piece in pieces), backend.vocab_size)
        for place, piece, rows in zip(
            going, pieces, np.split(logits, np.cumsum([piece.wanted for piece in pieces])[:-1]), strict=True
        ):
            found[place].append(rows)
            read[place] += len(piece.tokens)
    return [np.concatenate(parts) for parts in found]


def scattered(texts: list[list[int]], size: int) -> tuple[list[list[int]], int]:
    """Pages for each text, out of order and between each other's."""
    counts = [-(-len(text) // size) for text in texts]
    order = np.random.default_rng(0).permutation(sum(counts)).tolist()
    return [[order.pop() for _ in range(count)] for count in counts], sum(counts)


# --- the torch backend -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_of_every_kind(kind, tiny_transformer):
    model = tiny_transformer(**KINDS[kind])
    pages, count = scattered(TEXTS, 4)
    backend = TorchBackend(model, pages=count, page_size=4)
    for sizes in ([1] * 5, [3, 2, 13, 1, 20], [100] * 5):
        for text, logits in zip(TEXTS, through(backend, TEXTS, sizes, pages), strict=True):
            np.testing.assert_allclose(logits, expected(model, text), atol=2e-5)


def test_padding_never_reaches_beyond_the_context(tiny_transformer):
    model = tiny_transformer(positions="learned", context_length=16)
    texts = [list(range(16)), list(range(10))]
    backend = TorchBackend(model, pages=4, page_size=8)
    for text, logits in zip(texts, through(backend, texts, [8, 9], [[0, 1], [2, 3]]), strict=True):
        np.testing.assert_allclose(logits, expected(model, text), atol=2e-5)


def test_a_shared_beginning_and_a_text_taken_back(tiny_transformer):
    model = tiny_transformer()
    backend = TorchBackend(model, pages=4, page_size=4)
    first, second = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 8]
    backend.step([Piece(first, 0, [2, 0], 1)])
    kept = [keys[2].clone() for keys in backend._keys]
    logits = backend.step([Piece(second[4:], 4, [2, 3], 2), Piece([7], 6, [2, 0], 1)])
    np.testing.assert_allclose(logits[:2], expected(model, second)[4:], atol=2e-5)
    np.testing.assert_allclose(logits[2], expected(model, [*first, 7])[-1], atol=2e-5)
    assert all(torch.equal(old, keys[2]) for old, keys in zip(kept, backend._keys, strict=True))
    logits = backend.step([Piece([50, 51], 5, [2, 0], 1)])
    np.testing.assert_allclose(logits[0], expected(model, [*first[:5], 50, 51])[-1], atol=2e-5)


def test_only_wanted_logits_are_given_in_the_order_of_the_pieces(tiny_transformer):
    model = tiny_transformer()
    backend = TorchBackend(model, pages=6, page_size=32)
    pieces = [Piece(text, 0, pages, wanted) for text, pages, wanted in zip(
        TEXTS, ([0], [1], [2, 3], [4], [5]), (0, 2, 1, 0, 3), strict=True
    )]  # fmt: skip
    logits = backend.step(pieces)
    assert logits.shape == (6, model.vocab_size)
    rows = [expected(model, text)[len(text) - piece.wanted :] for text, piece in zip(TEXTS, pieces, strict=True)]
    np.testing.assert_allclose(logits, np.concatenate(rows), atol=2e-5)
    assert backend.step(pieces[:1]).shape == (0, model.vocab_size)


def test_few_groups_are_read(tiny_transformer, monkeypatch):
    """Streams go through the model at once, and so do prompts of like lengths; a long one goes alone."""
    backend = TorchBackend(tiny_transformer(), pages=40, page_size=32)
    calls: list[int] = []
    read = backend._read
    monkeypatch.setattr(backend, "_read", lambda pieces: calls.append(len(pieces)) or read(pieces))
    backend.step([Piece([1] * (20 + n), 0, [n], 1) for n in range(5)] + [Piece([1] * 60, 0, [10, 11], 1)])
    assert calls == [1, 5]
    backend.step([Piece([1], 20 + n, [n], 1) for n in range(5)])
    assert calls == [1, 5, 5]


def test_weights_are_converted_once(tiny_transformer):
    model = tiny_transformer()
    model.compute_dtype = torch.bfloat16
    backend = TorchBackend(model, pages=2)
    assert backend.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.embed_tokens.weight.dtype == torch.float32
    logits = backend.step([Piece([1, 2, 3], 0, [0], 3)])
    np.testing.assert_allclose(logits, expected(model, [1, 2, 3]), atol=0.1)


def test_an_encoder_is_refused(tiny_transformer):
    with pytest.raises(UserError, match="causal"):
        TorchBackend(tiny_transformer(causal=False), pages=2)


# --- the state backend -----------------------------------------------------------------------------------------------


def drawn(model: Any) -> Any:
    """With every weight random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


SIZES: dict[str, Any] = {"vocab_size": 260, "width": 16, "layers": 2}
STACK: dict[str, Any] = {"vocab_size": 262, "context_length": 64, "width": 16, "layers": 1, "heads": 2, "head_width": 8}
MODELS: dict[str, Any] = {
    "n-gram": lambda: NGramModel.train([np.arange(50) % 13, np.arange(40) ** 2 % 11], vocab_size=260, order=3),
    "exact": lambda: ConditionalFrequencies.from_documents(TEXTS, [str(n) for n in range(260)], 259),
    "lstm": lambda: drawn(Recurrent(RecurrentConfig(**SIZES))),
    "gru": lambda: drawn(Recurrent(RecurrentConfig(**SIZES, cell="gru"))),
    "feed-forward": lambda: drawn(FeedForwardModel(FeedForwardConfig(**SIZES, context=5))),
    "convolutional": lambda: drawn(Convolutional(ConvolutionalConfig(**SIZES))),
    "masked": lambda: MaskedLanguageModel(
        drawn(Transformer(TransformerConfig(**STACK, causal=False))), vocab_size=260, mask_token=261, before=[1]
    ),
    "encoder-decoder": lambda: drawn(
        EncoderDecoder(
            EncoderDecoderConfig(
                vocab_size=260,
                sentinels=2,
                start_token=1,
                empty_source=(2,),
                encoder=TransformerConfig(**STACK, causal=False),
                decoder=TransformerConfig(**STACK, cross_attention=True),
            )
        )
    ),
    "recurrent encoder-decoder": lambda: drawn(
        RecurrentAttention(RecurrentAttentionConfig(**SIZES, start_token=1, empty_source=(2,)))
    ),
}


@pytest.mark.parametrize("kind", ["n-gram", "exact", "lstm", "gru", "feed-forward", "convolutional", "masked"])
def test_a_model_of_every_kind(kind):
    model = MODELS[kind]()
    backend = StateBackend(model, texts=5)
    assert backend.page_size == UNDIVIDED
    for sizes in ([1] * 5, [3, 2, 13, 1, 3]):
        pages = [[page] for page in (3, 1, 0, 4, 2)]
        for text, logits in zip(TEXTS, through(backend, TEXTS, sizes, pages), strict=True):
            np.testing.assert_allclose(logits, expected(model, text), atol=2e-5)


@pytest.mark.parametrize("kind", ["n-gram", "exact", "lstm", "feed-forward", "masked"])
def test_a_prompt_of_which_only_the_end_is_wanted(kind):
    model = MODELS[kind]()
    backend = StateBackend(model, texts=2)
    text = TEXTS[2]
    for cuts in ([0, 40, 43], [0, 1, 2, 30, 43], [0, 43]):
        for begin, end in itertools.pairwise(cuts):
            wanted = 2 if end == 43 else 0
            logits = backend.step([Piece(text[begin:end], begin, [1], wanted)])
        np.testing.assert_allclose(logits, expected(model, text)[-2:], atol=2e-5)


@pytest.mark.parametrize("kind", ["encoder-decoder", "recurrent encoder-decoder"])
def test_the_prompt_of_an_encoder_decoder_is_its_source(kind):
    model = MODELS[kind]()
    backend = StateBackend(model, texts=2)
    for _ in range(2):  # a page can be begun again
        assert backend.step([Piece([5, 6], 0, [1], 0), Piece([9, 9, 9], 0, [0], 0)]).shape == (0, 260)
        logits = [backend.step([Piece([7], 2, [1], 1), Piece([8], 3, [0], 1)])]
        logits += [backend.step([Piece([40], 3, [1], 1), Piece([41, 42], 4, [0], 1)])]
        for row, (source, target) in enumerate((([5, 6, 7], [40]), ([9, 9, 9, 8], [41, 42]))):
            with torch.inference_mode():
                whole, _ = model.forward(
                    torch.tensor([[model.start_token, *target]]), model.begin(torch.tensor([source]), 8)
                )
            np.testing.assert_allclose(logits[0][row], whole[0, 0], atol=2e-5)
            np.testing.assert_allclose(logits[1][row], whole[0, -1], atol=2e-5)


def test_states_are_read_together_where_they_can_be(monkeypatch):
    model = MODELS["lstm"]()
    calls = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, state: calls.append(tuple(tokens.shape)) or hidden(tokens, state)
    )
    backend = StateBackend(model, texts=4)
    backend.step([Piece([1, 2], 0, [n], 1) for n in range(3)])
    backend.step([Piece([3], 2, [n], 1) for n in range(3)])
    assert calls == [(1, 2), (1, 2), (1, 2), (3, 1)]


# --- which is chosen -------------------------------------------------------------------------------------------------


def test_the_backend_of_each_model(tiny_transformer):
    experts = choose_backend(tiny_transformer(experts=2), most_running=4)
    assert isinstance(experts.backend, TorchBackend)
    assert "torch on cpu, float32" in experts.description
    assert experts.backend.pages == 4 * 64 // 32  # four texts as long as the context
    plain = choose_backend(tiny_transformer(), most_running=4, kernels=False)
    assert isinstance(plain.backend, TorchBackend)
    recurrent = choose_backend(MODELS["lstm"](), most_running=3)
    assert isinstance(recurrent.backend, StateBackend)
    assert recurrent.backend.pages == 3
    source = choose_backend(MODELS["encoder-decoder"](), most_running=3)
    assert source.reads_source
    assert source.source_length == 64


def test_kernels_are_chosen_where_they_compute_the_model(tiny_transformer):
    model = tiny_transformer()
    chosen = choose_backend(model, most_running=2)
    assert chosen.description.startswith("kernels on")
    logits = chosen.backend.step([Piece([1, 2, 3], 0, [0], 3)])
    np.testing.assert_allclose(logits, expected(model, [1, 2, 3]), atol=1e-4)


def test_memory_is_what_was_asked_for_or_refused(tiny_transformer):
    model = tiny_transformer()  # 2 layers, keys and values, 2 heads of 16, float32: 512 bytes a token
    chosen = choose_backend(model, most_running=4, cache_bytes=512 * 32 * 3 + 1, kernels=False)
    assert chosen.backend.pages == 3
    assert "room for 96 tokens in 3 pages of 32 (49.2 kB)" in chosen.description
    with pytest.raises(UserError, match=r"a page of 32 tokens takes 16.4 kB"):
        choose_backend(model, most_running=4, cache_bytes=100, kernels=False)


def test_few_bits_are_refused_where_nothing_computes_them(tiny_transformer):
    with pytest.raises(UserError, match="int8 weights are for the CPU's kernels, which do not compute experts"):
        choose_backend(tiny_transformer(experts=2), most_running=1, weights="int8")
    with pytest.raises(UserError, match="Recurrent"):
        choose_backend(MODELS["lstm"](), most_running=1, weights="int4")


# --- steps of one shape ----------------------------------------------------------------------------------------------

STATIC = [kind for kind, sizes in KINDS.items() if is_static(TransformerConfig(**(TINY_SIZES | sizes)))]


def test_which_models_have_steps_of_one_shape():
    assert set(KINDS) - set(STATIC) == {
        "rotary, stretched by length",
        "sinusoidal",
        "alibi",
        "alibi as in Falcon",
        "relative",
        "window and alibi",
        "dilated",
        "offsets",
        "looking back",
        "experts",
    }


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", STATIC)
def test_a_step_of_one_shape(kind, device, tiny_transformer):
    model = tiny_transformer(**KINDS[kind]).to(device)
    backend = TorchBackend(model, pages=30, page_size=4)
    backend._static = StaticStep(model, backend._keys, backend._values)
    texts, pages = [text[:8] for text in TEXTS[::2]], [[9, 2, 5], [1, 7, 0], [4, 3, 8]]
    backend.step([Piece(text, 0, held, 0) for text, held in zip(texts, pages, strict=True)])
    for step in range(4):
        logits = backend.step([Piece([30 + step], 8 + step, held, 1) for held in pages])
        for row, text in zip(logits, texts, strict=True):
            whole = torch.tensor([[*text, *range(30, 31 + step)]], device=device)
            with torch.inference_mode():
                np.testing.assert_allclose(row, model.forward(whole)[0][0, -1].cpu(), atol=2e-5)
    assert all(block.self_attn.across is None for block in model.layers)
