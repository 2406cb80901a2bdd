"""The counted loss: that of the n-gram model itself, and a power law beyond what is counted."""

import math

import numpy as np
import pytest

from parlance.models.ngram import NGramModel
from parlance.text.token_dataset import TokenDataset, write_token_dataset
from parlance.training import counted_loss
from parlance.training.counted_loss import CountedLoss


@pytest.fixture(scope="module")
def splits(tiny_tokenizer, tmp_path_factory) -> tuple[TokenDataset, TokenDataset]:
    """Documents that count upwards from a random number, at times with a slip."""
    generator = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        return [
            [int(x) for x in (start + np.arange(80) + (generator.random(80) < 0.1).cumsum()) % 200]
            for start in generator.integers(0, 200, count)
        ]

    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    write_token_dataset(folder, {"train": documents(400), "validation": documents(20)}, tiny_tokenizer)
    return TokenDataset.open(folder, "train"), TokenDataset.open(folder, "validation")


def test_it_is_the_loss_of_an_ngram_model_on_the_windows_of_a_run(splits):
    train, validation = splits
    batches = train.batches(1, 256, seed=5, state=None)
    rows = [next(batches)[0][0] for _ in range(8)]
    model = NGramModel.train(rows, 260, 9)
    checks = validation.tokens[:501].astype("int64")
    expected = -model.log_probs(checks)[1:].mean()
    bigrams = NGramModel.train(rows, 260, 2)
    measured = CountedLoss(train, validation, tokens=500, window=64, seed=5)(sum(map(len, rows)))
    assert measured.loss == pytest.approx(expected)
    assert measured.loss < math.log(200)
    assert measured.memory == pytest.approx(math.log(-bigrams.log_probs(checks)[1:].mean() / expected))


def test_more_tokens_tell_more_and_beyond_the_text_it_is_a_power_law(splits, monkeypatch):
    counted = CountedLoss(*splits, tokens=500, window=64, seed=0)
    losses = [counted(tokens).loss for tokens in (1_000, 4_000, 16_000)]
    assert losses == sorted(losses, reverse=True)
    monkeypatch.setattr(counted_loss, "MOST_TOKENS", 12_000)
    counted = CountedLoss(*splits, tokens=500, window=64, seed=0)
    exponent = math.log(counted(12_000).loss / counted(4_000).loss) / math.log(3)
    assert counted(48_000).loss == pytest.approx(counted(12_000).loss * 4**exponent)


def test_copying_is_worth_what_repeats_itself(tiny_tokenizer, tmp_path):
    """Half of every window stands there twice; or nothing does."""
    generator = np.random.default_rng(0)
    gains = {}
    for name in ("twice", "never"):

        def document(name: str = name) -> list[int]:
            half = generator.integers(0, 200, 32)
            return [*half, *(half if name == "twice" else generator.integers(0, 200, 32))]

        texts = {split: [[int(x) for x in document()] for _ in range(60)] for split in ("train", "validation")}
        folder = tmp_path / name
        write_token_dataset(folder, texts, tiny_tokenizer)
        splits = TokenDataset.open(folder, "train"), TokenDataset.open(folder, "validation")
        gains[name] = CountedLoss(*splits, tokens=2_000, window=65, seed=0).copying()
    # A copy of 32 of 65 tokens, of which all but the first few can be told: the loss nearly halves.
    assert 0.35 < gains["twice"] < math.log(2) + 0.05
    assert -1e-6 < gains["never"] < 0.05
