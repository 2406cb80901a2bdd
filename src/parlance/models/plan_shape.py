"""The sizes of a Transformer as the planner counts them, from its configuration.

shape_of(config, context=2048)
"""

from parlance.core.errors import UserError
from parlance.models.transformer_config import TransformerConfig
from parlance.scaling.model_shape import ModelShape


def shape_of(config: object, context: int | None = None) -> ModelShape:
    """The shape of a decoder's configuration, for sequences of `context` tokens (None: the model's own).

    Raises UserError for other networks, whose memory and arithmetic the planner does not know.
    """
    if not isinstance(config, TransformerConfig) or config.cross_attention:
        raise UserError("a plan is made of decoder-only Transformers (and encoders of their form), not of this model")
    if config.dilated_segments:
        raise UserError(
            "a plan does not count dilated_segments, which this model has: its speed is that of kernels for plain "
            "attention, and dilated attention gathers its keys in between"
        )
    experts = config.experts or 1
    return ModelShape(
        vocab_size=config.vocab_size,
        context=context or config.context_length,
        width=config.width,
        layers=max(1, config.layers),
        heads=config.heads,
        kv_heads=config.key_value_heads,
        head_width=config.head_width,
        mlp_width=config.feed_forward_width,
        gated_mlp=config.gated_mlp,
        tie_embeddings=config.tie_embeddings,
        learned_positions=config.positions == "learned",
        experts=experts,
        experts_per_token=config.experts_per_token if experts > 1 else 1,
        expert_every=config.expert_every if experts > 1 else 1,
        window=config.sliding_window if config.causal else _both_sides(config.sliding_window),
        full_layers=len(set(config.full_attention_layers)) if config.sliding_window is not None else 0,
        ngram_rows=sum(rows for _, rows in config.ngram_tables),
    )


def _both_sides(window: int | None) -> int | None:
    """Tokens that a token of an encoder sees: `window` on either side, itself included."""
    return None if window is None else 2 * window - 1
