"""Encoders and encoder-decoders from tokens to a checkpoint that generates, scores, and opens elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import parlance
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.inference.sampling import SamplingConfig
from parlance.models.checkpoints import load_model, save_model
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.masked import MaskedLanguageModel
from parlance.pipeline.base_model import make_base
from parlance.text.token_dataset import write_token_dataset
from parlance.training.loop import Budget
from parlance.training.pretraining_config import pretraining_config

CPU = torch.device("cpu")
SIZES = {"context_length": 32, "layers": 1, "width": 64, "batch_size": 2, "validation_tokens": 100, "pilot_share": 0.0}
TEXT = "one two three four"


@pytest.fixture(scope="module", params=["encoder", "encoder-decoder", "recurrent-attention"])
def base(request, tiny_tokenizer, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    documents = [np.random.default_rng(seed).integers(100, size=50).tolist() for seed in range(8)]
    write_token_dataset(folder / "tokens", {"train": documents, "validation": documents[:4]}, tiny_tokenizer)
    facts = make_base(
        folder / "tokens",
        tiny_tokenizer,
        folder / "base",
        pretraining_config(request.param).model_copy(update=SIZES),
        Budget(steps=3),
        metrics=MetricsLog(folder / "metrics.jsonl"),
        seed=0,
        device=CPU,
        resume=False,
    )
    assert facts["tokens"] > 0
    return request.param, folder / "base"


def test_it_generates_and_scores(base):
    kind, folder = base
    model = parlance.load(folder, device="cpu")
    inner = model.language_model
    if kind == "encoder":
        assert isinstance(inner, MaskedLanguageModel)
        assert (inner.mask_token, inner.vocab_size) == (260, 260)
    else:
        assert isinstance(inner, ConditionalLanguageModel)
        assert (inner.vocab_size, inner.config.first_sentinel) == (260, 260)
        assert inner.start_token == inner.empty_source[0] == 260 + inner.config.sentinels - 1
    sampling = SamplingConfig(max_tokens=5, seed=1)
    first, second = (model.generate(TEXT, sampling) for _ in range(2))
    assert first == second
    score = model.score(TEXT)
    assert score.tokens == len(TEXT)
    assert score.nats == pytest.approx(-sum(score.log_probs))
    # Untrained but for three steps: near a guess among 260.
    assert 4.0 < score.nats / score.tokens < 7.0


@torch.inference_mode()
def test_transformers_opens_it_with_the_same_logits(base):
    kind, folder = base
    ours = load_model(folder)
    tokens = torch.randint(0, 260, (2, 9), generator=torch.Generator().manual_seed(0))
    if kind == "encoder":
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder)
        expected, actual = theirs(tokens).logits, ours.logits(ours.hidden(tokens))
    elif kind == "encoder-decoder":
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
        expected = theirs(input_ids=tokens, decoder_input_ids=tokens).logits
        actual = ours.logits(ours.hidden(tokens, memory=ours.encode(tokens)))
    else:
        pytest.skip("no other program has this model")
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_an_encoder_whose_mask_is_not_known_is_refused(tiny_transformer, tiny_tokenizer, tmp_path):
    encoder = tiny_transformer(causal=False)
    tiny_tokenizer.save(tmp_path)
    save_model(tmp_path, encoder, end_of_text=256, pad=257)
    with pytest.raises(UserError, match=r"is an encoder, and nothing says which token hides another"):
        parlance.load(tmp_path)
    save_model(tmp_path, encoder, end_of_text=256, pad=257, mask=258)
    assert parlance.load(tmp_path).language_model.mask_token == 258
    save_model(tmp_path, encoder, end_of_text=256, pad=257, mask=900)
    with pytest.raises(UserError, match="token 900 is not one of the 260"):
        parlance.load(tmp_path)
