"""What of a configuration the compiled loops do not compute, in words."""

from parlance.models.transformer_config import TransformerConfig


def unsupported(config: TransformerConfig) -> str | None:
    """Why the kernels cannot run a model of this configuration; None: they can."""
    scaling = config.rope_scaling
    reasons = {
        "an encoder": not config.causal,
        "cross-attention": config.cross_attention,
        "experts": config.experts is not None,
        "relative positions": config.positions == "relative",
        "dilated attention": bool(config.dilated_segments),
        "rotary positions whose base depends on the length of the text": config.positions == "rotary"
        and scaling is not None
        and scaling.kind == "dynamic",
        "segment embeddings": config.token_types > 0,
        "a dense layer before the head": config.head_transform,
        "a pooler": config.pooler,
        "no blocks": config.layers == 0,
    }
    return next((reason for reason, present in reasons.items() if present), None)
