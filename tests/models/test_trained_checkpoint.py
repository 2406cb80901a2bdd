"""A model that others trained: stories260K of llama2.c, read from its own file, tells the story its page prints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from parlance.inference.generation import generate_batch, stream
from parlance.inference.sampling import SamplingConfig
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig

START = 1
"""The token that begins and ends every story."""


def read_weights(path: Path) -> Transformer:
    """llama2.c's legacy format: seven int32 of sizes, then fp32 tensors, each kind for all layers together."""
    raw = path.read_bytes()
    width, mlp, layers, heads, kv_heads, vocab, length = np.frombuffer(raw, dtype="<i4", count=7).tolist()
    head = width // heads
    config = TransformerConfig(
        vocab_size=vocab,
        context_length=length,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head,
        mlp_width=mlp,
        qk_norm=False,
        tie_embeddings=True,
        norm_epsilon=1e-5,
    )
    values, place = np.frombuffer(raw, dtype="<f4", offset=28), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return torch.tensor(values[place - size : place].reshape(shape))

    def half_split(matrix: torch.Tensor) -> torch.Tensor:
        """Rows of each head from neighbours that turn together to halves that turn together."""
        return matrix.view(-1, head // 2, 2, width).transpose(1, 2).reshape(-1, width)

    tensors = {"embed_tokens.weight": take(vocab, width)}
    for name, *shape in (
        ("input_layernorm", width),
        ("self_attn.q_proj", heads * head, width),
        ("self_attn.k_proj", kv_heads * head, width),
        ("self_attn.v_proj", kv_heads * head, width),
        ("self_attn.o_proj", width, heads * head),
        ("post_attention_layernorm", width),
        ("mlp.gate_proj", mlp, width),
        ("mlp.down_proj", width, mlp),
        ("mlp.up_proj", mlp, width),
    ):
        for layer, tensor in enumerate(take(layers, *shape)):
            turned = half_split(tensor) if name.endswith(("q_proj", "k_proj")) else tensor
            tensors[f"layers.{layer}.{name}.weight"] = turned
    tensors["norm.weight"] = take(width)
    model = Transformer(config)
    model.load_state_dict(tensors)
    return model


def read_pieces(path: Path, count: int) -> list[str]:
    """The text of each token: (fp32 score, int32 length, bytes) after one int32."""
    data, place, pieces = path.read_bytes(), 4, []
    for _ in range(count):
        size = int(np.frombuffer(data, dtype="<i4", count=1, offset=place + 4)[0])
        pieces.append(data[place + 8 : place + 8 + size].decode().replace("<0x0A>", "\n"))
        place += 8 + size
    return pieces


@pytest.mark.data
def test_the_story_is_the_one_its_authors_printed(data_folder):
    folder = data_folder / "stories260K"
    model = read_weights(folder / "stories260K.bin")
    pieces = read_pieces(folder / "tok512.bin", model.vocab_size)
    page = (folder / "stories260K.md").read_text()
    begin = page.index("Once upon a time")
    story = page[begin : page.index("```", begin)].strip()
    greedy = SamplingConfig(max_tokens=256, temperature=0.0)
    for tokens in (
        list(stream(model, [START], greedy, stop={START})),
        generate_batch(model, [[START]], greedy, stop={START})[0].tokens,
    ):
        text = "".join(pieces[token] for token in tokens if token != START).strip()
        # The page's program cuts at its own limit of steps.
        assert text.startswith(story) or story.startswith(text)
        assert len(text) > 500
