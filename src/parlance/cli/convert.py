"""`parlance convert`: a checkpoint in another form."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="A checkpoint folder, .bin of llama2.c, .arpa, or a CharRNN folder."),
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="The new folder (or file, for llama2c and arpa).")],
    to: Annotated[
        Literal["huggingface", "llama2c", "arpa"],
        typer.Option("--to", help="A checkpoint folder, a llama2.c file, or (of an n-gram model) ARPA text."),
    ] = "huggingface",
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Write as this family; none: as the source is.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Type of the tensors; none: as they are."),
    ] = None,
    shard_size: Annotated[
        float, typer.Option("--shard-size", min=0.000001, metavar="GB", help="Largest file, in gigabytes.")
    ] = 5.0,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="Tokenizer to put beside the model.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a checkpoint in another form: another family, another type of number, several files, or from and to
    llama2.c and ARPA files.

    What is written computes what the source computes. Nothing is overwritten.

    Example: parlance convert stories260K.bin stories --tokenizer tok512.bin

    Example: parlance convert my-model half --dtype bfloat16
    """
    from parlance.cli import output
    from parlance.core.errors import UserError

    if out.exists() and (to != "huggingface" or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists; nothing is overwritten: choose another DST")
    if not source.exists():
        raise UserError(f"there is no {source}; name a checkpoint folder or a model file")
    from parlance.inference.model import resolve_model_folder
    from parlance.models.conversion import is_foreign

    if not is_foreign(source):
        source = resolve_model_folder(source)
    if to != "huggingface":
        from parlance.models.conversion import convert_to_arpa, convert_to_llama2c

        if family is not None or dtype is not None or tokenizer is not None:
            raise UserError("--family, --dtype and --tokenizer belong to --to huggingface")
        facts = (convert_to_llama2c if to == "llama2c" else convert_to_arpa)(source, out)
    else:
        import torch

        from parlance.models.conversion import convert as convert_checkpoint

        types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        facts = convert_checkpoint(
            source,
            out,
            family=family,
            dtype=None if dtype is None else types[dtype],
            shard_bytes=max(1, int(shard_size * 1e9)),
            tokenizer=tokenizer,
        )
    output.print_facts({"out": str(out), **facts}, json=json)
