"""`parlance pretrain`: a base model from a prepared corpus."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

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
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="N", help="Train on so many tokens: 500k, 20m, 1.5b.")
    ] = None,
    until_loss: Annotated[
        float | None,
        typer.Option(
            "--until-loss",
            metavar="X",
            min=0.0,
            help="End as soon as the loss over the whole validation split (nats per token) is X or less. Give a "
            "budget, steps or tokens too: the learning rate falls over them, and the run ends there; else an hour.",
        ),
    ] = None,
    preset: Annotated[
        Literal["standard", "speedrun"],
        typer.Option(
            "--preset",
            help="standard: a Transformer that other programs open. speedrun: the lowest loss in a short run.",
        ),
    ] = "standard",
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

    Several processes train one model when torchrun starts them; --set parallel.shard=2 and the like divide it.

    Example: parlance pretrain my-corpus --model recurrent --set model.cell=gru --budget 3m --out my-gru

    Example: torchrun --nproc-per-node 2 -m parlance pretrain my-corpus --budget 3m --out my-base
    """
    from parlance.cli import inputs, invocation, output
    from parlance.cli.stage_folder import StageFolder
    from parlance.core.errors import UserError
    from parlance.text.token_dataset import tokenize_corpus
    from parlance.training.parallel import ParallelConfig, started
    from parlance.training.pretraining_config import PretrainingConfig, check_start, check_text, divisible_sizes

    with invocation.first_tells():
        inputs.corpus_folder(corpus)
        config = inputs.training_for(model, order, assignments or [], preset)
        if not isinstance(config, PretrainingConfig):
            if any(value is not None for value in (budget, steps, tokens, until_loss)):
                raise UserError(f"--model {model} takes no --budget and no --steps: it is counted once")
            limit = None
        elif order is not None:
            raise UserError("--order belongs to --model ngram")
        else:
            limit = inputs.stage_budget(budget, steps, tokens, until_loss)
        decided = {"corpus": str(corpus), "model": model, "tokenizer": tokenizer, "order": order, "seed": seed}
        settings = {
            "budget": None if limit is None else limit.model_dump(),
            # A run may go on with another number of processes, divided in another way.
            "config": None if config is None else config.model_dump(mode="json", exclude={"parallel"}),
        }
        place = inputs.torch_device(device)
        if isinstance(config, PretrainingConfig) and limit is not None:
            check_start(config, limit, place)
            check_text(corpus, config.context_length)
    parallel = config.parallel if isinstance(config, PretrainingConfig) else ParallelConfig()
    with invocation.resumable(), started(parallel.timeout_minutes, place) as world, ExitStack() as opened:
        if isinstance(config, PretrainingConfig):
            divisible_sizes(config, world.size)
        elif world.size > 1:
            raise UserError(f"--model {model} is counted by one process: start it without torchrun")
        folder = StageFolder(out, "pretrain", decided | settings, resume=resume)

        def prepare() -> None:
            opened.enter_context(folder)
            if folder.finished is None:
                encoder = inputs.tokenizer_for(tokenizer, corpus, out / "tokenizer")
                if not (out / "tokens" / "dataset.json").exists():
                    tokenize_corpus(corpus, encoder, out / "tokens")

        world.first_does("prepare", prepare)
        if not world.share(folder.finished is not None):
            encoder = inputs.tokenizer_for(tokenizer, corpus, out / "tokenizer")
            if config is None:
                from parlance.pipeline.stages.corpus import make_exact

                facts = make_exact(out / "tokens", encoder, out / "exact")
            elif not isinstance(config, PretrainingConfig):
                from parlance.pipeline.stages.corpus import make_ngram

                facts = make_ngram(out / "tokens", encoder, out / "ngram", config)
            else:
                from parlance.pipeline.base_model import make_base  # and not stages: a short run must not wait

                assert limit is not None
                facts = make_base(
                    out / "tokens",
                    encoder,
                    out,
                    config,
                    limit,
                    metrics=world.log(out / "metrics.jsonl"),
                    seed=seed,
                    device=place,
                    resume=resume,
                    world=world,
                )
            if world.first:
                folder.finish(facts)
        if world.first:
            output.print_stage(out, json=json)
