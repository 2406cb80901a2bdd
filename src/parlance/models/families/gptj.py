"""GPT-J (and GPT4All-J): attention and feed-forward beside each other after one LayerNorm, a head with a bias.

Rotary positions turn the first `rotary_dim` components of a head, as pairs of neighbours; ours turn (i, i + R/2), so
the rows of the query and key matrices are put in that order when a file is read and back when one is written. There
are no biases in attention.

    GPTJ.read(ConfigReader(json.loads(text), path))           # -> TransformerConfig

Sources: Wang and Komatsuzaki 2021; names and fields as `transformers` writes them.
"""

from collections.abc import Iterable

from parlance.models.families.family import (
    ConfigReader,
    Entry,
    Family,
    Stacked,
    Values,
    head,
    interleaved,
    layered,
    same,
    weights,
)
from parlance.models.families.gpt2 import read_sizes, write_sizes
from parlance.models.transformer_config import TransformerConfig

_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)


def _read(reader: ConfigReader) -> TransformerConfig:
    reader.only("rotary", True)
    reader.only("scale_attn_weights", True)
    sizes = read_sizes(reader)
    turning = reader.integer("rotary_dim")
    if turning % 2 or not 0 < turning <= sizes["head_width"]:
        raise reader.error(f"rotary_dim {turning} is not an even part of a head of width {sizes['head_width']}")
    config = TransformerConfig(
        **sizes,
        positions="rotary",
        rotary_width=turning,
        block="parallel",
        parallel_norms=1,
        head_bias=True,
        tie_embeddings=reader.flag("tie_word_embeddings", default=False),
    )
    reader.finish()
    return config


def _write(config: TransformerConfig) -> Values:
    return write_sizes(config) | {"rotary": True, "rotary_dim": config.rotary_width or config.head_width}


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"transformer.h.{number}"
        yield from weights(f"{theirs}.ln_1", f"{ours}.input_layernorm", bias=True)
        for part in ("q_proj", "k_proj"):
            yield interleaved(
                f"{theirs}.attn.{part}.weight",
                f"{ours}.self_attn.{part}.weight",
                heads=config.heads,
                rotary_width=config.rotary_width,
            )
        yield same(f"{theirs}.attn.v_proj.weight", f"{ours}.self_attn.v_proj.weight")
        yield same(f"{theirs}.attn.out_proj.weight", f"{ours}.self_attn.o_proj.weight")
        yield from weights(f"{theirs}.mlp.fc_in", f"{ours}.mlp.up_proj", bias=True)
        yield from weights(f"{theirs}.mlp.fc_out", f"{ours}.mlp.down_proj", bias=True)

    return [
        same("transformer.wte.weight", "embed_tokens.weight"),
        *layered(config, block),
        *weights("transformer.ln_f", "norm", bias=True),
        head("lm_head.weight", config),
        same("lm_head.bias", "head_bias"),
    ]


GPTJ = Family("gptj", ("GPTJForCausalLM",), _read, _write, _table, "transformer.", _IGNORED)
