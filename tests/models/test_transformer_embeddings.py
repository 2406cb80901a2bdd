"""What embeddings know of the tokens before, in every way a Transformer is called; head offsets; dropout."""

from pathlib import Path

import pytest
import torch

from parlance.core.errors import UserError
from parlance.models.attention import offset_attention
from parlance.models.checkpoints import load_model, save_model
from parlance.models.padding import pad_right
from parlance.models.positions import head_offsets
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Layout, padding_layout
from parlance.models.transformer_config import TransformerConfig

PARTS = {
    "n-grams": {"ngram_tables": ((2, 261 * 261), (3, 500), (4, 700))},
    "all parts of the speedrun": {
        "ngram_tables": ((3, 90),),
        "norm_weight": False,
        "embedding_norm": True,
        "activation": "relu2",
        "gated_mlp": False,
        "sliding_window": 5,
        "head_offsets": 0.7,
    },
    "offsets of heads": {"head_offsets": 1.5, "heads": 4, "kv_heads": 2, "head_width": 8},
}


@pytest.fixture(params=PARTS, ids=str)
def model(request, tiny_transformer) -> Transformer:
    return tiny_transformer(**PARTS[request.param])


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 260, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_the_future_does_not_change_the_past(model):
    tokens = random_tokens(2, 30)
    before, _ = model.forward(tokens)
    for place in (0, 1, 13, 29):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 7) % 260
        after, _ = model.forward(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


@torch.inference_mode()
def test_token_by_token_equals_the_whole_also_for_rows_of_unequal_length(model):
    tokens = random_tokens(3, 40)
    whole = model.logits(model.hidden(tokens)).float()
    for pieces in ([1] * 40, [5, 1, 1, 33], [39, 1]):
        state, parts = None, []
        for piece in tokens.split(pieces, dim=1):
            logits, state = model.forward(piece, state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-5)
    lengths = [1, 7, 33]
    state = model.new_state(3, 8)
    model.hidden(pad_right([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)], 3), state)
    state.lengths = torch.tensor(lengths)
    following = torch.stack([row[n : n + 2] for row, n in zip(tokens, lengths, strict=True)])
    logits, state = model.forward(following, state)
    state = state.select(torch.tensor([2, 0]))
    last = torch.stack([tokens[2, 35:37], tokens[0, 3:5]])
    later, _ = model.forward(last, state)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(logits[row], whole[row, n : n + 2], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(later[0], whole[2, 35:37], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(later[1], whole[0, 3:5], atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_padded_and_packed_rows_know_the_tokens_of_their_own_text_alone(model):
    rows = [random_tokens(n, seed=n)[None] for n in (3, 11, 6)]
    alone = [model.hidden(row)[0] for row in rows]
    padded = torch.full((3, 12), 259)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    for number, row in enumerate(rows):  # on the left, the right, and both sides
        start = (12 - row.shape[1]) * (2 - number) // 2
        padded[number, start : start + row.shape[1]] = row
        mask[number, start : start + row.shape[1]] = True
    hidden = model.hidden(padded, layout=padding_layout(mask))
    for number, expected in enumerate(alone):
        torch.testing.assert_close(hidden[number][mask[number]], expected, atol=2e-5, rtol=1e-5)
    packed = torch.cat(rows, dim=1)
    documents = torch.tensor([[0] * 3 + [1] * 11 + [2] * 6])
    positions = torch.tensor([[*range(3), *range(11), *range(6)]])
    by_number = Layout(positions, None, documents)
    for layout in (by_number, Layout(positions, by_number.dense_mask())):
        together = model.hidden(packed, layout=layout)[0]
        torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_checkpoint_gives_the_same_model(model, tmp_path: Path):
    save_model(tmp_path, model, end_of_text=256, pad=257)
    tokens = random_tokens(2, 20)
    assert torch.equal(load_model(tmp_path).forward(tokens)[0], model.forward(tokens)[0])


@torch.inference_mode()
def test_head_offsets_are_added_to_the_scores():
    heads, window, slope = 4, 6, 0.8
    q, k, v = (torch.randn(2, heads, 140, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    back = torch.arange(140)[:, None] - torch.arange(140)
    hidden = (back < 0) | (back >= window)
    scores = q @ k.mT * 0.3
    for head, offset in enumerate((1, 2, 3, 4)):
        scores[:, head] -= slope * (back - offset).abs()
    expected = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
    offsets = head_offsets(heads, q.device)
    found = offset_attention(q, k, v, torch.full((heads,), slope), offsets, 0.3, window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_dropout_is_a_function_of_its_seed_and_changes_no_mean(tiny_transformer):
    model = tiny_transformer(ngram_tables=((2, 400),), dropout=0.3, ngram_dropout=0.4)
    plain = tiny_transformer(ngram_tables=((2, 400),))
    tokens = random_tokens(2, 20)
    with torch.inference_mode():
        assert torch.equal(model.hidden(tokens), plain.hidden(tokens))
        assert torch.equal(model.hidden(tokens, noise=1), model.hidden(tokens, noise=1))
        assert not torch.equal(model.hidden(tokens, noise=1), model.hidden(tokens, noise=2))
        # A row loses the same wherever it stands.
        whole, second = model.hidden(tokens, noise=1), model.hidden(tokens[1:], noise=2)
        torch.testing.assert_close(whole[1:], second, rtol=1e-5, atol=1e-6)
    kept = model._kept((200, 50), 0.3, [torch.Generator().manual_seed(0)], 0)
    assert kept is not None
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    # It changes training alone: other programs open such a model.
    assert model.config.canonical() == plain.config.canonical()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ngram_tables": ((1, 5),)}, "ngram_tables"),
        ({"ngram_tables": ((2, 0),)}, "ngram_tables"),
        ({"ngram_tables": ((2, 9),), "causal": False}, "only a causal model"),
        ({"head_offsets": 1.0, "positions": "alibi"}, "head_offsets go with"),
        ({"norm_weight": False, "norm": "layer"}, "choose norm rms"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(vocab_size=9, context_length=8, width=8, layers=1, heads=1, head_width=8, **fields)


def test_positions_divided_over_processes_are_refused(tiny_transformer):
    model = tiny_transformer(ngram_tables=((2, 9),))
    layout = Layout(torch.arange(4)[None], None, keys_at=torch.arange(8)[None])
    with pytest.raises(UserError, match="need whole sequences"):
        model.hidden(random_tokens(1, 4), layout=layout)
