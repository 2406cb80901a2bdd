"""A checkpoint as a file for llama.cpp: `parlance convert MODEL FILE.gguf --to gguf`.

    convert_to_gguf(Path("my-model"), Path("my-model.gguf"), "q8_0")

A decoder of the families below becomes a file of the architecture that computes the same there; matrices are of the
type that is asked for, vectors and tables of positions float32. With q4_0, embedding and head are q8_0. LLaMA's queries
and keys are stored with rotary pairs side by side, as llama.cpp's `llama` turns them.

What llama.cpp would compute otherwise is refused, but for two things: it has one form of GELU, the tanh one; and it
knows no sliding windows in these architectures, so that the context of such a model ends where its window does.

Source: llama.cpp, `src/models/*.cpp` (the tensors and keys of each architecture), `src/llama-model.cpp`
(`llama_model_rope_type`), `src/llama-arch.cpp` (names).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.checkpoints import load_model, read_config, read_values
from parlance.models.families import FAMILIES
from parlance.models.families.family import interleaved
from parlance.models.gguf_file import BLOCK, GGUFTensor, TensorType, Value, write_gguf
from parlance.models.gguf_tokenizer import tokenizer_metadata
from parlance.models.positions import rotary_frequencies
from parlance.models.tensor_files import stored_type
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.text.tokenizers import Tokenizer

GGUFType = Literal["f16", "q8_0", "q4_0"]
FILE_TYPES: dict[GGUFType, int] = {"f16": 1, "q4_0": 2, "q8_0": 7}
"""`general.file_type`."""


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp."""

    name: str
    fused: bool = False
    """Whether queries, keys and values are one matrix."""
    pairs: bool = False
    """Whether the two components that a rotary position turns are neighbours."""
    head: bool = False
    """Whether a head must be there even where it is the embedding."""
    scalings: tuple[str, ...] = ()
    """Kinds of rotary scaling that it can have."""


ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True, scalings=("linear", "yarn", "llama3")),
    "mistral": Architecture("llama", pairs=True, scalings=("linear", "yarn", "llama3")),
    "qwen2": Architecture("qwen2", scalings=("linear", "yarn")),
    "qwen3": Architecture("qwen3", scalings=("linear", "yarn")),
    "gpt2": Architecture("gpt2", fused=True),
    "gpt_neox": Architecture("gptneox", fused=True, head=True, scalings=("linear", "yarn")),
    "falcon": Architecture("falcon", fused=True, scalings=("linear", "yarn")),
    "bloom": Architecture("bloom", fused=True),
    "mpt": Architecture("mpt", fused=True),
}
"""By family of checkpoints."""


def architecture_of(config: TransformerConfig, family: str) -> Architecture:
    """The architecture that computes what `config` does: that of its family, or of another that can say it.

    Raises UserError naming the part that no architecture has.
    """
    # The first that can say it; its own family before others.
    names = [family, *(name for name in ARCHITECTURES if name != family)]
    able = {known.name for known in FAMILIES if known.name in ARCHITECTURES and known.expresses(config)}
    name = next((name for name in names if name in able), None)
    if name is None:
        raise UserError(
            f"GGUF files hold the families {', '.join(ARCHITECTURES)}, and a model of the family {family} with these "
            "parts is none of them"
        )
    architecture = ARCHITECTURES[name]
    problem = _unsupported(config, architecture)
    if problem is not None:
        raise UserError(f"llama.cpp's architecture {architecture.name} has no {problem}, so the model cannot be GGUF")
    return architecture


def _unsupported(config: TransformerConfig, architecture: Architecture) -> str | None:
    """The part of a model that an architecture has not."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind not in architecture.scalings:
        return f"rotary scaling of the kind {scaling.kind}"
    if config.attention_scale is not None and not math.isclose(config.scale, config.head_width**-0.5):
        return "scale of attention of its own"
    if architecture.name == "qwen3" and config.output_bias:
        return "bias of attention's output"
    if architecture.fused and config.width != config.heads * config.head_width:
        return "heads that are not as wide together as the model"
    if architecture.name == "qwen2" and config.width != config.heads * config.head_width:
        return "heads that are not as wide together as the model"
    if architecture.name == "falcon" and (config.attention_bias or config.positions != "rotary"):
        return "biases and ALiBi positions"
    if architecture.name == "falcon" and config.block != "parallel":
        return "feed-forward behind attention"
    if architecture.name == "mpt" and config.positions != "alibi":
        return "positions other than ALiBi's"
    return None


def convert_to_gguf(source: Path, tokenizer: Tokenizer, out: Path, kind: GGUFType) -> dict[str, Any]:
    """Write the model in `source` as the file `out`, with matrices of type `kind`.

    Returns facts: architecture, parameters, bytes, context, and whether llama.cpp divides texts as `tokenizer` does.
    Raises UserError for what the format or llama.cpp cannot hold; the file appears whole or not at all.
    """
    values = read_values(source)
    family, config = read_config(source)
    if not isinstance(config, TransformerConfig) or not config.causal:
        raise UserError(f"{source} is not a decoder: GGUF files hold decoder-only Transformers alone")
    if "SequenceClassification" in str(values.get("architectures")):
        raise UserError(f"{source} is a reward model; only language models are converted")
    architecture = architecture_of(config, family.name)
    found = values.get("eos_token_id")
    ends = [index for index in (found if isinstance(found, list) else [found]) if isinstance(index, int)]
    keys = tokenizer_metadata(tokenizer, rows=config.vocab_size, ends=ends, source=source)
    model = load_model(source, stored_type(source))
    assert isinstance(model, Transformer)
    tensors = list(_tensors(model, architecture, kind))
    metadata: dict[str, Value] = {
        "general.architecture": architecture.name,
        "general.name": source.resolve().name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        **_sizes(config, architecture),
        **keys.metadata,
    }
    write_gguf(out, metadata, tensors)
    return {
        "family": architecture.name,
        "parameters": model.parameter_count(),
        "type": kind,
        "bytes": out.stat().st_size,
        "context": _context(config),
        "tokenizer": keys.metadata["tokenizer.ggml.model"],
        "same_tokens": keys.exact,
    }


def _context(config: TransformerConfig) -> int:
    """Tokens up to which llama.cpp computes the same."""
    return min(config.context_length, config.sliding_window or config.context_length)


def _sizes(config: TransformerConfig, architecture: Architecture) -> dict[str, Value]:
    """The keys of an architecture."""
    keys: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": _context(config),
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.feed_forward_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.key_value_heads,
    }
    norm = "layer_norm_rms_epsilon" if config.norm == "rms" else "layer_norm_epsilon"
    keys[f"attention.{norm}"] = float(config.norm_epsilon)
    if config.positions == "rotary":
        keys["rope.dimension_count"] = config.rotary_width or config.head_width
        keys["rope.freq_base"] = float(config.rope_theta)
        keys |= _scaling(config)
    if config.width != config.heads * config.head_width:
        keys |= {"attention.key_length": config.head_width, "attention.value_length": config.head_width}
    if architecture.name == "gptneox":
        keys["use_parallel_residual"] = config.block == "parallel"
    if architecture.name == "mpt":
        keys["attention.max_alibi_bias"] = float(config.alibi_bias_max)
        keys |= {} if config.clip_qkv is None else {"attention.clamp_kqv": float(config.clip_qkv)}
    return {f"{architecture.name}.{name}": value for name, value in keys.items()}


def _scaling(config: TransformerConfig) -> dict[str, Value]:
    """The keys of rotary scaling; that of LLaMA 3 is a tensor."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "llama3":
        return {}
    keys: dict[str, Value] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        keys |= {
            "rope.scaling.original_context_length": scaling.original_context_length,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
        if scaling.attention_factor is not None:
            # llama.cpp multiplies what it is given by the usual factor.
            usual = 0.1 * math.log(scaling.factor) + 1.0
            keys["rope.scaling.attn_factor"] = float(scaling.attention_factor / usual)
    return keys


def _tensors(model: Transformer, architecture: Architecture, kind: GGUFType) -> Iterator[GGUFTensor]:
    """Every tensor of the file, in the order of the model. Raises UserError for a width that blocks do not divide."""
    config = model.config
    outer: GGUFType = "q8_0" if kind == "q4_0" else kind

    def own(theirs: str, ours: str, type: TensorType = "f32") -> Iterator[GGUFTensor]:
        """Weight and bias of a module."""
        for part, parameter in model.get_submodule(ours).named_parameters():
            yield _tensor(f"{theirs}.{part}", parameter, type)

    yield from own("token_embd", "embed_tokens", outer)
    if config.embedding_norm:
        yield from own("token_embd_norm", "embed_norm")
    if config.positions == "learned":
        yield from own("position_embd", "embed_positions")
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        yield _tensor("rope_freqs.weight", _frequency_factors(config))
    for number in range(config.layers):
        ours, theirs = f"layers.{number}", f"blk.{number}"
        yield from _attention(model, number, architecture, kind)
        yield from own(f"{theirs}.attn_output", f"{ours}.self_attn.o_proj", kind)
        if architecture.name != "falcon":
            yield from own(f"{theirs}.attn_norm", f"{ours}.input_layernorm")
            yield from own(f"{theirs}.ffn_norm", f"{ours}.post_attention_layernorm")
        elif config.parallel_norms == 1:
            yield from own(f"{theirs}.attn_norm", f"{ours}.input_layernorm")
        else:  # the norm of attention is the second there
            yield from own(f"{theirs}.attn_norm_2", f"{ours}.input_layernorm")
            yield from own(f"{theirs}.attn_norm", f"{ours}.post_attention_layernorm")
        for part in ("gate", "up", "down") if config.gated_mlp else ("up", "down"):
            yield from own(f"{theirs}.ffn_{part}", f"{ours}.mlp.{part}_proj", kind)
    yield from own("output_norm", "norm")
    if model.lm_head is not None:
        yield from own("output", "lm_head", outer)
    elif architecture.head:
        yield from own("output", "embed_tokens", outer)


def _attention(model: Transformer, number: int, architecture: Architecture, kind: GGUFType) -> Iterator[GGUFTensor]:
    """Queries, keys and values of a block, and their norms."""
    config, theirs = model.config, f"blk.{number}"
    attention = model.get_submodule(f"layers.{number}.self_attn")
    for part in ("weight", "bias") if config.attention_bias else ("weight",):
        found: dict[str, Tensor] = {name: attention.get_parameter(f"{name}_proj.{part}").detach() for name in "qkv"}
        if architecture.pairs:
            for name, heads in (("q", config.heads), ("k", config.key_value_heads)):
                found[name] = interleaved("", "", heads=heads).join([found[name]])
        if architecture.fused:
            found = {"qkv": torch.cat([found[name] for name in "qkv"])}
        for name, values in found.items():
            yield _tensor(f"{theirs}.attn_{name}.{part}", values, kind)
    for name in ("q", "k") if config.qk_norm else ():
        yield _tensor(f"{theirs}.attn_{name}_norm.weight", attention.get_parameter(f"{name}_norm.weight"))


def _tensor(name: str, values: Tensor, type: TensorType = "f32") -> GGUFTensor:
    """One tensor; vectors are float32 whatever `type` says."""
    if values.ndim > 1 and type in ("q8_0", "q4_0") and values.shape[-1] % BLOCK:
        raise UserError(
            f"{name} has {values.shape[-1]} inputs, and blocks of {type} hold {BLOCK}: write --type f16, which takes "
            "any width"
        )
    return GGUFTensor(name, "f32" if values.ndim == 1 else type, values)


def _frequency_factors(config: TransformerConfig) -> Tensor:
    """What LLaMA 3's scaling divides each frequency by."""
    plain = config.model_copy(update={"rope_scaling": None})
    device = torch.device("cpu")
    scaled, _ = rotary_frequencies(config, config.context_length, device)
    return rotary_frequencies(plain, config.context_length, device)[0] / scaled
