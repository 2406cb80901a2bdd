"""The stage that pre-trains the base model: from token shards to a checkpoint folder.

It needs nothing of the other stages (`stages/`), nor does `parlance pretrain`: a short run must not wait for imports.

    facts = make_base(Path("tokens"), tokenizer, Path("base"), PretrainingConfig(), Budget(seconds=60), ...)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from parlance.core.artifacts import write_json
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.models.checkpoints import family_for, save_model
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer
from parlance.text.token_dataset import TokenDataset
from parlance.text.tokenizers import Tokenizer
from parlance.training.loop import CHECKPOINT_SECONDS, Budget
from parlance.training.parallel import ALONE, World
from parlance.training.pretraining import pretrain
from parlance.training.pretraining_config import PretrainingConfig

PROMPT_TOKENS = 8
"""Tokens of the validation split that samples during training go on from."""


def make_base(
    tokens: Path,
    tokenizer: Tokenizer,
    out: Path,
    config: PretrainingConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    world: World = ALONE,
) -> dict[str, Any]:
    """Pre-train the base model. Raises UserError where the tokens were not made with this tokenizer.

    All processes of `world` call it alike; the first writes the checkpoint and knows the facts.
    """
    # Between two processes files can change; what is resumed must be what was begun.
    train, validation = (TokenDataset.open(tokens, split, verify=resume) for split in ("train", "validation"))
    if train.info["tokenizer_sha256"] != tokenizer.sha256:
        raise UserError(f"{tokens} was made with another tokenizer: encode the corpus with the one that is to be used")
    result = pretrain(
        train,
        validation,
        out,
        config,
        budget,
        vocab_size=tokenizer.vocab_size,
        metrics=metrics,
        seed=seed,
        device=device,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        sample=_sampler(tokenizer, validation),
        # Masks and sentinels lie behind the tokenizer's vocabulary.
        decode=lambda ids: tokenizer.decode([token for token in ids if token < tokenizer.vocab_size]),
        world=world,
    )
    if not world.first:
        return {}
    if result.prediction is not None:
        write_json(out / "prediction.json", result.prediction)
    save_checkpoint(out, result.model, tokenizer)
    shape = result.model.config.model_dump()
    return {
        "parameters": result.model.parameter_count(),
        **{name: shape[name] for name in ("layers", "width", "heads") if name in shape},
        "context_length": result.model.context_length,
        "vocab_size": result.model.vocab_size,
        "precision": str(result.model.compute_dtype).removeprefix("torch."),
        "architecture": family_for(result.model.config).architectures[0],
        "steps": result.steps,
        "skipped_steps": result.skipped,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "compiled": result.compiled,
        "choices": result.choices,
        **({} if result.target is None else {"target": result.target}),
    }


def _sampler(tokenizer: Tokenizer, validation: TokenDataset) -> Callable[[NeuralLanguageModel, int], str | None]:
    """What the model being trained goes on with after the first tokens of the validation split; None: no such model."""
    prompt = validation.tokens[:PROMPT_TOKENS].astype("int64").tolist()

    def sample(model: NeuralLanguageModel, tokens: int) -> str | None:
        from parlance.inference.generation import stream
        from parlance.inference.sampling import SamplingConfig

        room = tokens if model.context_length is None else min(tokens, model.context_length - PROMPT_TOKENS)
        if room < 1 or (isinstance(model, Transformer) and not model.config.causal):
            return None
        drawn = stream(
            model.inference_copy(),
            prompt,
            SamplingConfig(max_tokens=room),
            {tokenizer.end_of_text},
            tokenizer.vocab_size,
        )
        return tokenizer.decode([*prompt, *drawn])

    return sample


def save_checkpoint(out: Path, model: NeuralLanguageModel, tokenizer: Tokenizer, *, chats: bool = False) -> None:
    """The checkpoint's files. The resume states stay until the caller has marked the stage as done."""
    tokenizer.save(out)
    # Other programs stop where these files say: a model that chats ends its turn, it does not end the text.
    end_of_turn = tokenizer.end_of_turn if chats else None
    # An encoder's mask is the row behind the tokenizer's vocabulary.
    mask = tokenizer.vocab_size if isinstance(model, Transformer) and not model.config.causal else None
    save_model(out, model, end_of_text=tokenizer.end_of_text, pad=tokenizer.pad, end_of_turn=end_of_turn, mask=mask)
