"""The Transformer that reads a source and writes a target: an encoder, and a decoder that attends to it.

Both are a `Transformer` with the parts of `TransformerConfig`; they share one embedding, and the decoder has the head.
T5 (`families/t5.py`) is one choice of the parts. What training makes of it (span corruption, translation) is not said
here.

    sizes = {"vocab_size": 356, "context_length": 128, "width": 64, "layers": 2, "heads": 1, "head_width": 64}
    config = EncoderDecoderConfig(
        vocab_size=256,
        sentinels=100,
        start_token=0,
        empty_source=(1,),
        encoder=TransformerConfig(**sizes, causal=False),
        decoder=TransformerConfig(**sizes, cross_attention=True),
    )
    model = EncoderDecoder(config)
    model.initialise(torch.Generator().manual_seed(0))
    state = model.begin(torch.tensor([[5, 3, 8]]), capacity=20)                        # reads the source
    logits, state = model.forward(torch.tensor([[model.start_token]]), state)          # (1, 1, 256)

Shapes: B batch, S source tokens, T target tokens, V vocabulary, D width. Sources: Vaswani et al. 2017; Raffel et al.
2020 (T5); Shazeer 2020 (its version 1.1).
"""

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from parlance.core.config import Config
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.key_value_cache import KeyValueCache, Memory
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import padding_layout
from parlance.models.transformer_config import MOST, TransformerConfig

_NO_HEAD = ("head_transform", "head_bias", "pooler", "next_sentence", "logit_scale")
"""Parts that an encoder without a head of its own cannot have."""
_SHARED = ("width", "embedding_width", "tie_embeddings")
"""What the two stacks must agree in: one embedding serves both, and the decoder reads the encoder's activations."""


class EncoderDecoderConfig(Config):
    """Two stacks, and the tokens with which each begins."""

    vocab_size: int = Field(ge=1, le=MOST)
    """Token ids of the tokenizer (V)."""
    sentinels: int = Field(default=0, ge=0, le=MOST)
    """Rows of the embedding beyond V, for the gaps of span corruption: V is the first."""
    start_token: int = Field(ge=0, le=MOST)
    """What the decoder reads first."""
    empty_source: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=1024)
    """What the encoder reads where there is no source."""
    encoder: TransformerConfig
    """The stack that reads the source; of V + sentinels rows, without a head."""
    decoder: TransformerConfig
    """The stack that writes the target; of V + sentinels rows, with cross-attention."""

    @model_validator(mode="after")
    def _stacks_fit(self) -> Self:
        if self.encoder.causal or self.encoder.cross_attention:
            raise ValueError("the encoder sees its whole source (causal false), and has no cross_attention")
        if not self.decoder.causal or not self.decoder.cross_attention:
            raise ValueError("the decoder is causal and has cross_attention")
        for stack, config in (("encoder", self.encoder), ("decoder", self.decoder)):
            if config.vocab_size != self.vocab_size + self.sentinels:
                rows = f"vocab_size + sentinels ({self.vocab_size} + {self.sentinels})"
                raise ValueError(f"{stack}.vocab_size ({config.vocab_size}) must be {rows}")
        for name in _SHARED:
            if getattr(self.encoder, name) != getattr(self.decoder, name):
                raise ValueError(f"encoder.{name} and decoder.{name} must be equal: the stacks share one embedding")
        for name in _NO_HEAD:
            if getattr(self.encoder, name) != TransformerConfig.model_fields[name].default:
                raise ValueError(f"encoder.{name} is of the head, and only the decoder has one")
        if max(self.start_token, *self.empty_source) >= self.vocab_size + self.sentinels:
            raise ValueError("start_token and empty_source are rows of the embedding")
        return self

    @property
    def first_sentinel(self) -> int:
        """The first of the sentinels' ids."""
        return self.vocab_size

    def canonical(self) -> "EncoderDecoderConfig":
        """The same model, said in one way."""
        stacks = {"encoder": self.encoder.canonical(), "decoder": self.decoder.canonical()}
        return self.model_copy(update=stacks)

    def forward_flops_per_token(self, length: int) -> float:
        """Floating-point operations of a forward pass per token, of `length` tokens: half of them source, half target.

        2 N + attention, as `TransformerConfig.forward_flops_per_token` counts; the head works on the target alone.
        """
        half = length / 2
        source = 2.0 * self.encoder.matrix_parameters() + _attention(self.encoder, half)
        target = 2.0 * (self.decoder.matrix_parameters() + self.decoder.head_parameters())
        target += _attention(self.decoder, half)
        target += 4.0 * self.decoder.layers * self.decoder.heads * self.decoder.head_width * half  # cross-attention
        return (source + target) / 2


def _attention(config: TransformerConfig, length: float) -> float:
    """Operations of self-attention's scores and weighted sums, per token of a sequence of `length`."""
    seen = sum(config.attended(layer, int(length)) for layer in range(config.layers))
    return 4.0 * config.heads * config.head_width * seen


class EncoderDecoder(ConditionalLanguageModel):
    """Two `Transformer`s that share one embedding."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config: EncoderDecoderConfig = config
        self.vocab_size = config.vocab_size
        self.context_length: int | None = config.decoder.context_length
        self.source_length: int | None = config.encoder.context_length
        self.start_token, self.empty_source = config.start_token, config.empty_source
        encoder, decoder = Transformer(config.encoder), Transformer(config.decoder)
        encoder.embed_tokens = decoder.embed_tokens
        encoder.lm_head = None  # its activations go to the decoder
        self.embed_tokens = decoder.embed_tokens  # first, so that parameters know it by this name
        self.encoder, self.decoder = encoder, decoder

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations and matrix products, in both stacks."""
        return self.decoder.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.encoder.compute_dtype = self.decoder.compute_dtype = dtype

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights, as `Transformer.initialise` does; the shared embedding goes by the decoder's head."""
        self.encoder.initialise(generator)
        self.decoder.initialise(generator)

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Memory:
        """Keys and values of source tokens (B, S) for every block of the decoder; `mask` (B, S) bool. None: all."""
        layout = None
        if mask is not None:
            mask = mask.to(self.device)
            layout = padding_layout(mask, causal=False)
        return self.decoder.read_memory(self.encoder.hidden(source, layout=layout), mask)

    def hidden(self, tokens: Tensor, state: KeyValueCache | None = None, memory: Memory | None = None) -> Tensor:
        """Decoder activations (B, T, D) of target tokens (B, T); rows may be padded on the right."""
        if state is None and memory is None:
            memory = self.empty_memory(tokens.shape[0])
        return self.decoder.hidden(tokens, state, memory=memory)

    def new_state(self, batch: int, capacity: int, memory: Memory | None = None) -> KeyValueCache:
        """An empty cache for `batch` targets of up to `capacity` tokens, and their source."""
        state = self.decoder.new_state(batch, capacity)
        state.memory = self.empty_memory(batch) if memory is None else memory
        return state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V + sentinels) of decoder activations (..., D), in the compute dtype."""
        return self.decoder.logits(hidden)

    def forward_flops_per_token(self, length: int) -> float:
        """See `EncoderDecoderConfig.forward_flops_per_token`."""
        return self.config.forward_flops_per_token(length)
