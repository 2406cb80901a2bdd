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
    out: Annotated[Path, typer.Argument(metavar="DST", help="The new folder (or file, for gguf, llama2c and arpa).")],
    to: Annotated[
        Literal["huggingface", "gguf", "llama2c", "arpa"],
        typer.Option(
            "--to", help="A checkpoint folder, a file for llama.cpp or llama2.c, or (of an n-gram model) ARPA text."
        ),
    ] = "huggingface",
    type: Annotated[
        Literal["f16", "q8_0", "q4_0"],
        typer.Option("--type", help="Type of the matrices of a gguf file: 16-bit numbers, or 8- or 4-bit integers."),
    ] = "f16",
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
    """Write a checkpoint in another form: another family, another type of number, several files, a GGUF file for
    llama.cpp with tokenizer and chat template, or from and to llama2.c and ARPA files.

    What is written computes what the source computes. Nothing is overwritten.

    Example: parlance convert stories260K.bin stories --tokenizer tok512.bin

    Example: parlance convert my-model half --dtype bfloat16

    Example: parlance convert my-model my-model.gguf --to gguf --type q8_0
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
    if to != "huggingface" and (family is not None or dtype is not None or tokenizer is not None):
        raise UserError("--family, --dtype and --tokenizer belong to --to huggingface")
    if to != "gguf" and type != "f16":
        raise UserError("--type belongs to --to gguf")
    if to == "gguf":
        from parlance.core.progress import say
        from parlance.inference.model import tokenizer_of
        from parlance.models.checkpoints import read_values
        from parlance.models.gguf import convert_to_gguf

        if is_foreign(source):
            raise UserError(f"{source} is no checkpoint folder: make one with parlance convert {source} DIR first")
        opened = tokenizer_of(source, str(read_values(source).get("model_type")))
        facts = convert_to_gguf(source, opened, out, type)
        if not facts["same_tokens"]:
            say(
                "llama.cpp has no rule for where this tokenizer cuts and will divide some texts into other tokens; a "
                "tokenizer of `parlance tokenizer train --pattern gpt4` has one"
            )
    elif to != "huggingface":
        from parlance.models.conversion import convert_to_arpa, convert_to_llama2c

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
