"""From one form of a checkpoint to another: other families, other types of number, several files, and foreign files.

    convert(Path("stories260K.bin"), Path("stories"), tokenizer=Path("tok512.bin"))
    convert(Path("my-model"), Path("half"), dtype=torch.bfloat16, shard_bytes=10**9)

Foreign files are llama2.c's `.bin`, ARPA n-gram models and ml5.js's CharRNN folders. What is converted computes the
same; a family that cannot say a part of the model is refused.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from parlance.core.artifacts import atomic_directory, os_errors, write_json
from parlance.core.errors import UserError
from parlance.models.character_rnn import read_character_rnn
from parlance.models.checkpoints import (
    EXACT,
    NGRAM,
    checkpoint_tensors,
    family_for,
    load_model,
    read_config,
    read_values,
)
from parlance.models.contract import LanguageModel
from parlance.models.llama2c import read_llama2c, write_llama2c
from parlance.models.neural import NeuralLanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.ngram_arpa import read_arpa, write_arpa
from parlance.models.tensor_files import PICKLE_WARNING, SHARD_BYTES, stored_type, write_tensors
from parlance.models.transformer import Transformer
from parlance.text.documents import replace_surrogates
from parlance.text.tokenizers import Tokenizer, import_tokenizer
from parlance.text.tokenizers.assembly import spaced_words, surrounded
from parlance.text.tokenizers.special_tokens import SPACE

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""What a checkpoint folder may hold of its tokenizer; copied as it is."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "mask_token_id")


def is_foreign(path: Path) -> bool:
    """Whether a path is a model that is no checkpoint folder of ours or of `transformers`."""
    return path.suffix in (".bin", ".arpa") or (path / "manifest.json").exists()


def open_foreign(path: Path, tokenizer: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """Model and tokenizer of a llama2.c file, an ARPA file or a CharRNN folder.

    `tokenizer`: the file of a llama2.c model's tokenizer; None: the only other `tok*.bin` beside it. Of an ARPA file,
    the tokenizer whose tokens its words are; None: words are what stands between spaces. Raises UserError.
    """
    if path.suffix == ".arpa":
        return _open_arpa(path, tokenizer)
    if path.suffix != ".bin" and tokenizer is not None:
        raise UserError(f"{path} has its own alphabet: leave out --tokenizer")
    if path.suffix != ".bin":
        return read_character_rnn(path)
    if zipfile.is_zipfile(path):
        raise UserError(f"{path} is a pickle, {PICKLE_WARNING}")
    model = read_llama2c(path)
    if tokenizer is None:
        found = sorted(file for file in path.parent.glob("tok*.bin") if file != path)
        if len(found) != 1:
            raise UserError(
                f"{path} has its tokenizer in another file, and there are {len(found)} tok*.bin beside it; "
                f"name it: parlance convert {path} DIR --tokenizer FILE"
            )
        tokenizer = found[0]
    opened = surrounded(import_tokenizer(tokenizer), begins=True, ends=False)
    if opened.vocab_size > model.vocab_size:
        raise UserError(
            f"{tokenizer} has {opened.vocab_size} tokens and the model {model.vocab_size}: not its tokenizer"
        )
    return model, opened


def _open_arpa(path: Path, tokenizer: Path | None) -> tuple[NGramModel, Tokenizer]:
    model, words = read_arpa(path)
    if "</s>" not in words:
        raise UserError(f"{path} has no </s> among its words, so that no text would end")
    foreign = next((word for word in words if not word.isascii() and replace_surrogates(word)[1]), None)
    if foreign is not None:
        raise UserError(
            f"{path}: the word {replace_surrogates(foreign)[0]!r} is not in UTF-8; convert the file (iconv)"
        )
    if tokenizer is None:
        # An unknown word gets an id that the model has not, which is said where it is met.
        return model, spaced_words(words if "<unk>" in words else [*words, "<unk>"], "</s>")
    opened = import_tokenizer(tokenizer)
    spelled = arpa_words(opened)[: model.vocab_size]
    spelled[opened.end_of_text] = "</s>"
    if spelled != words:
        raise UserError(f"{path} was not made with the tokenizer {tokenizer}: their words differ")
    return model, opened


def arpa_words(tokenizer: Tokenizer) -> list[str]:
    """How an ARPA file spells each token: without white space, which is written <0x20> and the like."""
    entries = tokenizer.entries()
    plain = [entry.removeprefix(SPACE) or SPACE for entry in entries]
    if len(set(plain)) == len(plain):
        entries = plain
    return ["".join(f"<0x{ord(c):02X}>" if c in " \t\n\r\0" else c for c in entry) for entry in entries]


def convert(
    source: Path,
    out: Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Write the model of `source` as a checkpoint folder `out`; returns family, parameters, type and files.

    `family`: a published family's name; None: that of the source, else the first that can say it. `dtype`: of the
    tensors; None: as they are. Raises UserError; `out` appears whole or not at all.
    """
    copied: list[Path] = []
    opened: Tokenizer | None = None
    if is_foreign(source):
        foreign, opened = open_foreign(source, tokenizer)
        if isinstance(foreign, NGramModel):
            if family is not None or dtype is not None:
                raise UserError(f"{source} is an n-gram model: it has no family and no type of number to choose")
            return _save_ngram(foreign, opened, out)
        assert isinstance(foreign, NeuralLanguageModel)
        model = foreign
        before, _ = opened.surrounding
        ids: dict[str, Any] = {"bos_token_id": before[0] if before else opened.end_of_text}
        # What begins a text ends the one before it, in a stream of texts.
        ids["eos_token_id"] = [opened.end_of_text, *before] if before else opened.end_of_text
        ids["pad_token_id"] = opened.pad
        own, dtype = None, dtype or torch.float32
    else:
        values = read_values(source)
        if values.get("model_type") == NGRAM:
            if family is not None or dtype is not None or tokenizer is not None:
                raise UserError(f"{source} is an n-gram model: it is copied with its tokenizer, as it is")
            return _save_ngram(NGramModel.load(source), Tokenizer.load(source), out)
        if values.get("model_type") == EXACT:
            raise UserError(f"{source} is an exact model, which has one form alone: copy the folder")
        if "SequenceClassification" in str(values.get("architectures")):
            raise UserError(f"{source} is a reward model; only language models are converted")
        own, _ = read_config(source)
        dtype = dtype or stored_type(source)
        model = load_model(source, dtype)
        ids = {name: values[name] for name in _IDS if values.get(name) is not None}
        if tokenizer is not None:
            opened = import_tokenizer(tokenizer)
        else:
            copied = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    chosen = family_for(model.config, family) if family is not None or own is None else own
    written = {
        "architectures": [chosen.architectures[0]],
        "model_type": chosen.name,
        **chosen.write(model.config),
        "dtype": str(dtype).removeprefix("torch."),
        **ids,
    }
    with atomic_directory(out) as folder:
        tensors = checkpoint_tensors(chosen.table(model.config), dict(model.named_parameters()), dtype)
        write_tensors(folder, tensors, shard_bytes)
        for file in copied:
            with os_errors("copy", file):
                shutil.copyfile(file, folder / file.name)
        if opened is not None:
            opened.save(folder)
        generation = source / "generation_config.json"
        if source.is_dir() and generation.exists():
            shutil.copyfile(generation, folder / generation.name)
        elif ids:
            write_json(folder / generation.name, {name: value for name, value in ids.items() if name in _IDS[:4]})
        write_json(folder / "config.json", written)
    return {
        "family": chosen.name,
        "parameters": model.parameter_count(),
        "dtype": written["dtype"],
        "files": sorted(file.name for file in out.iterdir()),
    }


def convert_to_llama2c(source: Path, out: Path) -> dict[str, Any]:
    """Write a LLaMA-shaped model as a `.bin` file of llama2.c. Raises UserError where it has other parts."""
    model = load_model(source)
    if not isinstance(model, Transformer):
        raise UserError(f"{source} is not a Transformer: llama2.c files hold LLaMA-shaped ones alone")
    write_llama2c(out, model)
    return {"family": "llama2.c", "parameters": model.parameter_count(), "dtype": "float32", "files": [out.name]}


def _save_ngram(model: NGramModel, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    with atomic_directory(out) as folder:
        model.save(folder)
        tokenizer.save(folder)
    files = sorted(file.name for file in out.iterdir())
    return {"family": NGRAM, "parameters": model.parameter_count(), "files": files}


def convert_to_arpa(source: Path, out: Path) -> dict[str, Any]:
    """Write an n-gram model as ARPA text, with the spelling of `arpa_words`; read back with the same tokenizer.

    Raises UserError for any other model.
    """
    if read_values(source).get("model_type") != NGRAM:
        raise UserError(f"{source} is not an n-gram model, and ARPA files hold nothing else")
    model, words = NGramModel.load(source), arpa_words(Tokenizer.load(source))
    write_arpa(model, out, words[: model.vocab_size])
    return {"family": "arpa", "parameters": model.parameter_count(), "files": [out.name]}
