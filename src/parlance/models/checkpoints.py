"""Checkpoint folders in the Hugging Face format: `config.json` and `model.safetensors`.

A Transformer is written as `Qwen3ForCausalLM` (with query/key norms) or `LlamaForCausalLM` (without), with the tensor
names `transformers`, vLLM and llama.cpp expect; n-gram models have a format of their own (`ngram.py`) behind the same
`config.json`. No pickle is read or written. An unknown field or tensor that would change the result is an error.

    save_transformer(Path("base"), model, end_of_text=4092, pad=4093)
    model = load_transformer(Path("base"))
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from parlance.core.artifacts import read_json, write_bytes, write_json
from parlance.core.errors import UserError
from parlance.models.contract import LanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.transformer import Transformer, TransformerConfig

WEIGHTS = "model.safetensors"


def hugging_face_config(
    config: TransformerConfig, *, end_of_text: int, pad: int, end_of_turn: int | None = None
) -> dict[str, Any]:
    """`config.json` of a Transformer for `transformers`."""
    family = "Qwen3" if config.qk_norm else "Llama"
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text if end_of_turn is None else [end_of_turn, end_of_text],
        "pad_token_id": pad,
    }


def transformer_config(folder: Path) -> TransformerConfig:
    """Read the `config.json` of a Qwen3- or LLaMA-shaped checkpoint. Raises UserError for anything it cannot honour."""
    values = read_json(folder / "config.json")
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in ("qwen3", "llama"):
        raise UserError(f"{folder}: model_type {kind!r} is not one this version reads (qwen3, llama, parlance-ngram)")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"  # "type" in older files
    if rope_type != "default":
        raise UserError(f"{folder}: rope_type {rope_type!r} is not supported")
    for field, expected in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if values.get(field, expected) != expected:
            raise UserError(f"{folder}: {field} {values[field]!r} is not supported (only {expected!r})")
    if values.get("use_sliding_window"):
        raise UserError(f"{folder}: sliding-window attention is not supported")
    needed = (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "rms_norm_eps",
    )
    for field in needed:
        if field not in values:
            raise UserError(f"{folder / 'config.json'} has no field {field}; is it the configuration of a whole model?")
    heads = values["num_attention_heads"]
    return TransformerConfig(
        vocab_size=values["vocab_size"],
        context_length=values["max_position_embeddings"],
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads", heads),
        head_width=values.get("head_dim") or values["hidden_size"] // heads,
        mlp_width=values["intermediate_size"],
        qk_norm=kind == "qwen3",
        tie_embeddings=values.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", values.get("rope_theta", 10_000.0)),
        norm_epsilon=values["rms_norm_eps"],
    )


def _file_name(name: str) -> str:
    """The tensor's name in a causal-language-model checkpoint: all but the head are under `model.`."""
    return name if name.startswith(("lm_head.", "score.")) else f"model.{name}"


def transformer_tensors(model: Transformer) -> dict[str, Tensor]:
    """The model's weights under their checkpoint names, fp32, on the CPU."""
    return {_file_name(name): p.detach().float().cpu().contiguous() for name, p in model.named_parameters()}


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `model.safetensors`, then `config.json` (a folder without it is not a checkpoint), each atomically."""
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    if "CausalLM" in config["architectures"][0]:
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(folder / "generation_config.json", ids)
    write_json(folder / "config.json", config)


def save_transformer(
    folder: Path, model: Transformer, *, end_of_text: int, pad: int, end_of_turn: int | None = None
) -> None:
    """Write a checkpoint folder that `transformers.AutoModelForCausalLM` opens."""
    write_checkpoint(
        folder,
        hugging_face_config(model.config, end_of_text=end_of_text, pad=pad, end_of_turn=end_of_turn),
        transformer_tensors(model),
    )


def load_weights(
    folder: Path, parameters: dict[str, torch.nn.Parameter], optional: frozenset[str] = frozenset()
) -> None:
    """Copy the tensors of a checkpoint into `parameters`: names and shapes must match; `optional` ones are passed over.

    Raises UserError naming the first tensor that is missing, unknown or of another shape.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{folder} holds no {WEIGHTS}; is it a finished checkpoint?")
    expected = {_file_name(name): parameter for name, parameter in parameters.items()}
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            names = set(file.keys())
            unknown = sorted(names - expected.keys() - optional)
            missing = sorted(expected.keys() - names)
            if unknown or missing:
                problem = f"unknown tensor {unknown[0]}" if unknown else f"no tensor {missing[0]}"
                raise UserError(f"{path}: {problem}")
            for name, parameter in expected.items():
                tensor = file.get_tensor(name)
                if tensor.shape != parameter.shape:
                    raise UserError(f"{path}: {name} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
                parameter.copy_(tensor)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        # safetensors raises its own class, which derives from Exception only.
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"{path} is damaged: {error}") from error


def load_transformer(folder: Path) -> Transformer:
    """Open a Qwen3- or LLaMA-shaped checkpoint folder."""
    model = Transformer(transformer_config(folder))
    optional = frozenset({"lm_head.weight"} if model.lm_head is None else ())
    load_weights(folder, dict(model.named_parameters()), optional)
    return model


def load_language_model(folder: Path) -> LanguageModel:
    """Open any checkpoint folder Parlance knows: a Transformer or an n-gram model."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not a checkpoint folder: it has no config.json")
    if read_json(folder / "config.json").get("model_type") == "parlance-ngram":
        return NGramModel.load(folder)
    return load_transformer(folder)
