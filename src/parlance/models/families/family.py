"""What a family of published checkpoints is: how its `config.json` reads and which of its tensors are ours.

A family is two translations of the configuration and one table of tensors, nothing else; the same `Transformer` serves
all. The table says for each tensor of the file which tensors of ours lie in it and how: alone, transposed, or fused.

    entries = [
        same("model.norm.weight", "norm.weight"),
        thirds("h.0.attn.c_attn.weight", ("layers.0.self_attn.q_proj.weight", ..., ...), transposed=True),
    ]

An unknown field of the configuration, a field whose value cannot be honoured, an unknown or missing tensor: each is
a `UserError` that names it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.encoder_decoder import EncoderDecoderConfig
from parlance.models.transformer_config import TransformerConfig

Values = dict[str, Any]
"""A `config.json`."""


# --- tensors ---------------------------------------------------------------------------------------------------------


def _itself(parts: Sequence[Tensor]) -> Tensor:
    (part,) = parts
    return part


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint file, and what of ours lies in it."""

    theirs: str
    """Its name in the file."""
    ours: tuple[str, ...]
    """Names of our parameters that it holds."""
    split: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: (tensor,)
    """File's tensor -> ours, in the order of `ours` (views where possible)."""
    join: Callable[[Sequence[Tensor]], Tensor] = _itself
    """Ours -> file's tensor."""
    optional: bool = False
    """Whether a file may lack it, because another tensor is the same (a tied head)."""


@dataclass(frozen=True)
class Stacked:
    """Several tensors of a file that are the slices of one of ours along its first dimension (experts)."""

    theirs: tuple[str, ...]
    """Their names in the file, in order."""
    ours: str
    """Our parameter."""


def same(theirs: str, ours: str) -> Entry:
    """The same tensor under another name."""
    return Entry(theirs, (ours,))


def turned(theirs: str, ours: str) -> Entry:
    """A matrix stored the other way round, (inputs, outputs)."""
    return Entry(theirs, (ours,), lambda tensor: (tensor.t(),), lambda parts: parts[0].t())


def weights(theirs: str, ours: str, *, bias: bool) -> list[Entry]:
    """Weight and (where there is one) bias of a norm, or of a linear map stored as ours: (outputs, inputs)."""
    return [same(f"{theirs}.{part}", f"{ours}.{part}") for part in (("weight", "bias") if bias else ("weight",))]


def thirds(theirs: str, ours: tuple[str, str, str], *, transposed: bool = False) -> Entry:
    """Queries, keys and values one after the other along the outputs."""

    def split(tensor: Tensor) -> Sequence[Tensor]:
        return (tensor.T if transposed and tensor.ndim == 2 else tensor).chunk(3, dim=0)

    def join(parts: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(list(parts), dim=0)
        return joined.T if transposed and joined.ndim == 2 else joined

    return Entry(theirs, ours, split, join)


def grouped(theirs: str, ours: tuple[str, str, str], *, groups: int, queries: int, head_width: int) -> Entry:
    """Fused queries, keys and values in `groups` of `queries` query heads, one key head and one value head.

    `groups` = H and one query a group is GPT-NeoX's and BLOOM's form, K groups of H/K that of Falcon 40B, one group of
    H that of Falcon 7B. Works for weights (outputs, D) and biases (outputs,).
    """
    sizes = [queries, 1, 1]

    def split(tensor: Tensor) -> Sequence[Tensor]:
        parts = torch.split(tensor.reshape(groups, queries + 2, head_width, *tensor.shape[1:]), sizes, dim=1)
        return [part.reshape(-1, *tensor.shape[1:]) for part in parts]

    def join(parts: Sequence[Tensor]) -> Tensor:
        rest = parts[0].shape[1:]
        blocks = [part.reshape(groups, size, head_width, *rest) for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(blocks, dim=1).reshape(-1, *rest)

    return Entry(theirs, ours, split, join)


def megatron_maps(theirs: str, ours: str, config: TransformerConfig, *, attention: str, groups: int) -> Iterable[Entry]:
    """A block's linear maps as the program Megatron names them: BLOOM, Falcon and GPT-NeoX.

    Fused queries, keys and values (see `grouped`, in `groups`), the map out of `attention`, and the feed-forward's two.
    """
    for part in ("weight", "bias") if config.attention_bias else ("weight",):
        q, k, v = (f"{ours}.self_attn.{name}_proj.{part}" for name in "qkv")
        yield grouped(
            f"{theirs}.{attention}.query_key_value.{part}",
            (q, k, v),
            groups=groups,
            queries=config.heads // groups,
            head_width=config.head_width,
        )
    yield from weights(f"{theirs}.{attention}.dense", f"{ours}.self_attn.o_proj", bias=config.output_bias)
    yield from weights(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up_proj", bias=config.mlp_bias)
    yield from weights(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down_proj", bias=config.mlp_bias)


def interleaved(theirs: str, ours: str, *, heads: int, rotary_width: int | None = None) -> Entry:
    """Queries or keys whose rotary pairs are neighbours (2i, 2i+1): ours are (i, i + R/2). GPT-J, Meta's LLaMA files.

    `rotary_width` R of each head's components turn; None: all. Works for weights (outputs, D) and biases (outputs,).
    """

    def order(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
        width = tensor.shape[0] // heads
        R = width if rotary_width is None else rotary_width
        parts = tensor.reshape(heads, width, *tensor.shape[1:])
        pairs = parts[:, :R].reshape(heads, *shape, *tensor.shape[1:]) if -1 not in shape else parts[:, :R]
        pairs = pairs.transpose(1, 2).reshape(heads, R, *tensor.shape[1:])
        return torch.cat((pairs, parts[:, R:]), dim=1).reshape(tensor.shape)

    def half(tensor: Tensor) -> int:
        return (tensor.shape[0] // heads if rotary_width is None else rotary_width) // 2

    return Entry(
        theirs,
        (ours,),
        lambda tensor: (order(tensor, (half(tensor), 2)),),
        lambda parts: order(parts[0], (2, half(parts[0]))),
    )


# --- configurations --------------------------------------------------------------------------------------------------

BOOKKEEPING = frozenset(
    (
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "mask_token_id",
        "model_type",
        "pad_token_id",
        "quantization_config",
        "reward_mean",
        "id2label",
        "label2id",
    )
)
"""What we write beside a model's own fields."""

_WITHOUT_EFFECT = BOOKKEEPING | frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels add_cross_attention
    architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward
    cross_attention_hidden_size custom_pipelines decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing init_device init_std initializer_factor initializer_range
    is_decoder is_encoder_decoder language length_penalty max_length min_length no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences onnx_safe output_attentions output_hidden_states
    output_past output_scores prefix pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tokenizer_class tokenizer_name top_k top_p torch_dtype torchscript transformers_version
    typical_p unk_token_id use_bfloat16 use_cache verbose
    """.split()  # noqa: SIM905 (shorter so)
)
"""Fields of any `config.json` that change no logits: bookkeeping, generation settings, initialisation."""


_NO_DROPOUT = ("dropout", "dropout_rate", "_pdrop", "_dropout_prob")


class ConfigReader:
    """A `config.json` that is asked for its fields one by one, and in the end says which nobody asked for."""

    def __init__(self, values: Values, where: Path, stored: Callable[[], Collection[str]] | None = None) -> None:
        """`stored` gives the names of the tensors beside it; None: there is a configuration alone."""
        self.values, self.where, self._stored = values, where, stored
        self._asked: set[str] = set()

    def stores(self, *names: str) -> bool | None:
        """Whether a tensor of one of these names lies beside it, for parts that the fields do not tell of.

        None: there is a configuration alone.
        """
        return None if self._stored is None else not set(names).isdisjoint(self._stored())

    def has(self, *names: str) -> bool:
        """Whether one of the fields is there and not null."""
        return any(self.values.get(name) is not None for name in names)

    def value(self, *names: str, default: Any = None) -> Any:
        """The first of the fields that is there and not null."""
        self._asked.update(names)
        return next((self.values[name] for name in names if self.values.get(name) is not None), default)

    def integer(self, *names: str, default: int | None = None) -> int:
        """A whole number; the first of the names that is there. Raises UserError where none is, without a default."""
        value = self._needed(names, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{names[0]} is {value!r}, not a whole number")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """A number. Raises UserError where it is missing, without a default."""
        value = self._needed(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{names[0]} is {value!r}, not a number")
        return float(value)

    def flag(self, *names: str, default: bool | None = None) -> bool:
        """True or false. Raises UserError where it is missing, without a default."""
        value = self._needed(names, default)
        if not isinstance(value, bool):
            raise self.error(f"{names[0]} is {value!r}, not true or false")
        return value

    def choice(self, *names: str, choices: dict[str, str], default: str | None = None) -> str:
        """Our word for one of their words. Raises UserError naming the word where it is none of `choices`."""
        value = self._needed(names, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(f"{names[0]} {value!r} is not supported (only {', '.join(choices)})")
        return choices[value]

    def only(self, name: str, *allowed: Any) -> None:
        """Raises UserError where the field has a value that is none of `allowed`; it may be missing or null."""
        value = self.value(name)
        if value is not None and value not in allowed:
            raise self.error(f"{name} {value!r} is not supported (only {' or '.join(map(repr, allowed))})")

    def head_width(self, width: int, heads: int) -> int:
        """`width` / `heads`. Raises UserError where that is no whole number."""
        if heads < 1 or width % heads:
            raise self.error(f"its {heads} attention heads cannot share a width of {width} evenly")
        return width // heads

    def nested(self, name: str) -> "ConfigReader":
        """A reader of an object within the configuration; of an empty one where it is missing."""
        value = self.value(name, default={})
        if not isinstance(value, dict):
            raise self.error(f"{name} is {value!r}, not an object")
        return ConfigReader(value, self.where)

    def passed_over(self, *names: str) -> None:
        """Fields that change nothing here."""
        self._asked.update(names)

    def _needed(self, names: Sequence[str], default: Any) -> Any:
        value = self.value(*names, default=default)
        if value is None:
            raise self.error(f"no field {names[0]}; is it the configuration of a whole model?", has=True)
        return value

    def error(self, problem: str, *, has: bool = False) -> UserError:
        """The sentence for a problem with this file."""
        return UserError(f"{self.where} has {problem}" if has else f"{self.where}: {problem}")

    def finish(self) -> None:
        """Raises UserError naming the first field that was never asked for and is not known to be without effect."""
        for name, value in self.values.items():
            known = name in self._asked or name in _WITHOUT_EFFECT or name.endswith(_NO_DROPOUT)
            if not known and value is not None:
                raise self.error(
                    f"the field {name} ({value!r}) is not known, so this model might not be what it says: "
                    "remove the field if it changes nothing"
                )


MEGATRON_TRAINING: Values = {
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}
"""What the configurations of BLOOM, Falcon and GPT-NeoX say of training, as said of a model that is trained."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""Activations as `transformers` calls them -> ours. Those of one name of ours differ by rounding alone."""

ACTIVATION_WORDS = {"gelu": "gelu", "gelu-tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "silu": "silu"}
"""The other way round, in the word that most published files have."""


# --- families --------------------------------------------------------------------------------------------------------


def _canonical(config: Any) -> Any:
    return config.canonical() if isinstance(config, TransformerConfig | EncoderDecoderConfig) else config


@dataclass(frozen=True)
class Family:
    """A published kind of checkpoint."""

    name: str
    """`model_type` of its config.json."""
    architectures: tuple[str, ...]
    """The first is written."""
    read: Callable[[ConfigReader], Any]
    """config.json -> our configuration (`TransformerConfig`, or `EncoderDecoderConfig`)."""
    write: Callable[[Any], Values]
    """Our configuration -> the fields of config.json, without token ids; those that it cannot say are left out."""
    table: Callable[[Any], Iterable[Entry | Stacked]]
    """Our configuration -> every tensor of the file."""
    prefix: str = ""
    """What names begin with that a dump of the model without its head lacks, e.g. `transformer.`."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors that hold nothing learned: masks, rotary tables."""
    other_table: Callable[[Any], Iterable[Entry | Stacked]] | None = None
    """Another form in which files hold the tensors: it is read, never written."""

    def expresses(self, config: Any) -> bool:
        """Whether a checkpoint of this family can say all of `config`: reading what is written gives it again."""
        try:
            said = self.read(ConfigReader(self.write(config), Path("config.json")))
            return bool(_canonical(said) == _canonical(config))
        except (UserError, ValueError, AttributeError):
            return False

    def unsaid(self, config: Any) -> list[str]:
        """Fields of `config` that a checkpoint of this family would come back with changed; none where it would not
        come back at all."""
        try:
            said = _canonical(self.read(ConfigReader(self.write(config), Path("config.json"))))
        except (UserError, ValueError, AttributeError):
            return []
        own = dict(_canonical(config))
        return [name for name, value in own.items() if getattr(said, name, value) != value]

    def ignores(self, name: str) -> bool:
        """Whether tensor `name` of a file is passed over."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def layered(config: TransformerConfig, entries: Callable[[int], Iterable[Entry | Stacked]]) -> list[Entry | Stacked]:
    """The entries of every block."""
    return [entry for number in range(config.layers) for entry in entries(number)]


def head(theirs: str, config: TransformerConfig) -> Entry:
    """The output matrix: one of its own, or the embedding again, which files may leave out."""
    tied = config.tie_embeddings
    return Entry(theirs, ("embed_tokens.weight" if tied else "lm_head.weight",), optional=tied)
