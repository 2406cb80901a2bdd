"""`parlance pretrain`: a base model from a prepared corpus."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options


def pretrain(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A prepared corpus: see parlance corpus prepare.")],
    out: options.Out,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="KIND|FILE.yaml",
            help="transformer, recurrent, convolutional, feedforward, encoder, encoder-decoder, recurrent-attention; "
            "ngram, exact (counted: no budget); or a YAML file with kind and fields. --set model.FIELD=VALUE changes "
            "what a network is made of.",
        ),
    ] = "transformer",
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", metavar="byte|bpe:N|char:N|word:N|DIR", help="Train one of N tokens here, or take DIR's."
        ),
    ] = "bpe:4096",
    order: Annotated[
        int | None, typer.Option("--order", min=1, max=9, help="Longest n-gram (--model ngram). Default: 5.")
    ] = None,
    budget: options.Budget = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    assignments: options.Set = None,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train a base model on a corpus; the result is a checkpoint folder that transformers opens.

    With a time budget the model's size is chosen from the measured speed of this machine; with --steps set it:
    --set layers=4 --set width=256. The encoded text is kept in OUT/tokens.

    Example: parlance pretrain my-corpus --budget 3m --out my-base

    Example: parlance pretrain my-corpus --steps 500 --set layers=4 --set width=256 --out my-base

    Example: parlance pretrain my-corpus --model recurrent --set model.cell=gru --budget 3m --out my-gru
    """
    from parlance.cli import inputs, invocation, output
    from parlance.cli.stage_folder import StageFolder
    from parlance.core.errors import UserError
    from parlance.core.metrics import MetricsLog
    from parlance.models.ngram_smoothing import NGramTraining
    from parlance.pipeline.stages import make_base, make_exact, make_ngram
    from parlance.text.token_dataset import tokenize_corpus
    from parlance.training.pretraining import PretrainingConfig

    inputs.corpus_folder(corpus)
    config = inputs.training_for(model, order, assignments or [])
    if not isinstance(config, PretrainingConfig):
        if budget is not None or steps is not None:
            raise UserError(f"--model {model} takes no --budget and no --steps: it is counted once")
        limit = None
    elif order is not None:
        raise UserError("--order belongs to --model ngram")
    else:
        limit = inputs.stage_budget(budget, steps)
    decided = {"corpus": str(corpus), "model": model, "tokenizer": tokenizer, "order": order, "seed": seed}
    settings = {
        "budget": None if limit is None else limit.model_dump(),
        "config": None if config is None else config.model_dump(mode="json"),
    }
    place = inputs.torch_device(device)
    with invocation.resumable(), StageFolder(out, "pretrain", decided | settings, resume=resume) as folder:
        if folder.finished is None:
            encoder = inputs.tokenizer_for(tokenizer, corpus, out / "tokenizer")
            if not (out / "tokens" / "dataset.json").exists():
                tokenize_corpus(corpus, encoder, out / "tokens")
            if isinstance(config, NGramTraining):
                facts = make_ngram(out / "tokens", encoder, out / "ngram", config)
            elif config is None:
                facts = make_exact(out / "tokens", encoder, out / "exact")
            else:
                assert limit is not None
                log = MetricsLog(out / "metrics.jsonl")
                facts = make_base(
                    out / "tokens", encoder, out, config, limit, metrics=log, seed=seed, device=place, resume=resume
                )
            folder.finish(facts)
    output.print_stage(out, json=json)
