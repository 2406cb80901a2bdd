"""Every language model of the ladder, trained for the same time on the same text: the field's story in one picture.

Each network gets the same budget, chooses its size for it by the rule of `pretrain`, and is measured on the way in
windows of the validation split, at its end in bits per byte of the same held-out documents; n-gram models are counted
at each order, which takes as long as it takes. What is compared is what a budget on this machine buys, not what an
architecture can do in the end.

    results = run_ladder(Path("my-corpus"), tokenizer, Path("ladder"), LadderConfig(seconds=60), device=cpu)
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator

from parlance.core.artifacts import read_json, read_jsonl, write_json, write_text
from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.core.progress import say
from parlance.inference.scoring import document_log_probs
from parlance.models.contract import LanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.ngram_smoothing import MAX_ORDER
from parlance.pipeline.ladder_chart import ladder_chart
from parlance.pipeline.stages.corpus import documents
from parlance.text.token_dataset import TokenDataset, tokenize_corpus
from parlance.text.tokenizers import Tokenizer
from parlance.training.architectures import Kind
from parlance.training.loop import Budget
from parlance.training.pretraining import pretrain
from parlance.training.pretraining_config import PretrainingConfig, pretraining_config


class Rung(Config):
    """One network of the ladder."""

    name: str
    """What the picture calls it."""
    architecture: Kind
    """What is trained."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of its configuration."""


NETWORKS = (
    Rung(name="feed-forward", architecture="feedforward"),
    Rung(name="convolutional", architecture="convolutional"),
    Rung(name="Elman", architecture="recurrent", model={"cell": "elman"}),
    Rung(name="GRU", architecture="recurrent", model={"cell": "gru"}),
    Rung(name="LSTM", architecture="recurrent", model={"cell": "lstm"}),
    Rung(name="multiplicative LSTM", architecture="recurrent", model={"cell": "mlstm"}),
    Rung(name="Transformer", architecture="transformer"),
    Rung(name="mixture of experts", architecture="transformer", model={"experts": 8, "experts_per_token": 2}),
)
"""The networks, in the order in which the field found them."""


class LadderConfig(Config):
    """What is compared."""

    seconds: float = Field(default=60.0, gt=0)
    """Training time of each network: choosing its size, validation and compiling included."""
    context_length: int = Field(default=256, ge=2)
    """Tokens a training window."""
    orders: tuple[Annotated[int, Field(ge=1, le=MAX_ORDER)], ...] = (1, 2, 3, 4, 5, 6)
    """N-gram models."""
    networks: tuple[str, ...] = tuple(rung.name for rung in NETWORKS)
    """Names of the networks to train."""
    held_out_bytes: int = Field(default=65_536, ge=1)
    """Bytes of validation documents that every model is measured on."""
    points: int = Field(default=8, ge=1)
    """Measurements of each network on the way."""

    @model_validator(mode="after")
    def _something_once(self) -> Self:
        names = [*self.orders, *self.networks]
        if not names:
            raise ValueError("orders and networks are both empty: there is nothing to compare")
        if len(set(names)) < len(names):
            raise ValueError("orders and networks name each model once")
        return self


def run_ladder(
    corpus: Path, tokenizer: Tokenizer, out: Path, config: LadderConfig, *, seed: int, device: torch.device
) -> dict[str, Any]:
    """Train every model; write `ladder.json` and `ladder.svg` into `out`; returns what the first holds.

    A model whose figures are in `out` already is not trained again, so that a stopped comparison goes on. Raises
    UserError for a network that is not known, or a corpus without a validation split that can be measured.
    """
    unknown = sorted(set(config.networks) - {rung.name for rung in NETWORKS})
    if unknown:
        raise UserError(f"there is no network {unknown[0]!r} in the ladder: {', '.join(r.name for r in NETWORKS)}")
    tokens = out / "tokens"
    if not (tokens / "dataset.json").exists():
        tokenize_corpus(corpus, tokenizer, tokens)
    train, validation = TokenDataset.open(tokens, "train"), TokenDataset.open(tokens, "validation")
    held_out = _held_out(validation, tokenizer, config.held_out_bytes)
    size = sum(int(tokenizer.token_byte_lengths[text].sum()) for text in held_out)
    if not size:
        raise UserError(f"{corpus}: the validation split holds no text to measure on; bring more documents")

    def bits_per_byte(model: LanguageModel) -> float:
        scored = document_log_probs(model, held_out, tokenizer.end_of_text)
        return -float(sum(part.sum() for part in scored)) / math.log(2) / size

    rows = [
        _once(out, f"{order}-gram", partial(_ngram, order, train, tokenizer, bits_per_byte)) for order in config.orders
    ]
    for rung in NETWORKS:
        if rung.name in config.networks:
            folder = out / "models" / rung.name.replace(" ", "-")
            make = partial(_network, rung, folder, train, validation, tokenizer, config, bits_per_byte, seed, device)
            rows.append(_once(out, rung.name, make))
    result = {
        "seconds": config.seconds,
        "train_bytes": train.text_bytes,
        "held_out_bytes": size,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "device": str(device),
        "models": rows,
    }
    write_json(out / "ladder.json", result)
    write_text(out / "ladder.svg", ladder_chart(result))
    return result


def _held_out(validation: TokenDataset, tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """The first documents of the split, up to `most` bytes; at least one."""
    out: list[list[int]] = []
    size = 0
    for text in documents(validation):
        size += int(tokenizer.token_byte_lengths[text].sum())
        if out and size > most:
            break
        out.append(text.tolist())
    return out


def _once(out: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of one model: those of an earlier call, or new ones."""
    path = out / "rows" / f"{name.replace(' ', '-')}.json"
    if not path.exists():
        say(f"ladder: {name}")
        write_json(path, {"name": name, **make()})
    row: dict[str, Any] = read_json(path)
    return row


def _ngram(
    order: int, train: TokenDataset, tokenizer: Tokenizer, bits_per_byte: Callable[[LanguageModel], float]
) -> dict[str, Any]:
    # The first call compiles; counting is measured on the second.
    NGramModel.train([next(documents(train))], tokenizer.vocab_size, order, tokenizer.end_of_text)
    start = time.monotonic()
    model = NGramModel.train(documents(train), tokenizer.vocab_size, order, tokenizer.end_of_text)
    seconds = time.monotonic() - start
    return {"parameters": model.parameter_count(), "curve": [[seconds, bits_per_byte(model)]]}


def _network(
    rung: Rung,
    folder: Path,
    train: TokenDataset,
    validation: TokenDataset,
    tokenizer: Tokenizer,
    config: LadderConfig,
    bits_per_byte: Callable[[LanguageModel], float],
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    settings = pretraining_config(rung.architecture)
    values = {
        "context_length": config.context_length,
        "model": rung.model,
        "pilot_share": 0.0,
        "validations": config.points - 1,
    }
    log = MetricsLog(folder / "metrics.jsonl")
    start = time.monotonic()
    result = pretrain(
        train,
        validation,
        folder,
        PretrainingConfig.model_validate(settings.model_dump() | values),
        Budget(seconds=config.seconds),
        vocab_size=tokenizer.vocab_size,
        metrics=log,
        seed=seed,
        device=device,
    )
    seconds = time.monotonic() - start
    # Choosing the size and compiling came before the first step. The way is measured on windows, which costs all
    # networks little; the end like n-grams, on whole documents.
    before = seconds - result.seconds
    bits = validation.info["splits"]["validation"]["tokens"] / validation.text_bytes / math.log(2)
    rows = [row for _, row in read_jsonl(log.path)]
    curve = [[before + row["seconds"], row["validation_loss"] * bits] for row in rows if "validation_loss" in row]
    curve = [point for point in curve if point[0] < seconds]
    return {
        "parameters": result.model.parameter_count(),
        "size": result.choices[0],
        "tokens": result.tokens,
        "curve": [*curve, [seconds, bits_per_byte(result.model.inference_copy())]],
    }
