"""What must hold of every model that reads a source and writes a target: causality, states, padding, gradients."""

import pytest
import torch
import torch.nn.functional as F
from conditional_samples import RECURRENT, SENTINELS, TRANSFORMERS, V, close, ids, recurrent, transformer
from torch import Tensor

from parlance.models.conditional import ConditionalLanguageModel

MODELS = {
    **{f"Transformer, {name}": (transformer, changes) for name, changes in TRANSFORMERS.items()},
    **{f"recurrent, {name}": (recurrent, changes) for name, changes in RECURRENT.items()},
}


@pytest.fixture(params=MODELS, ids=str)
def model(request) -> ConditionalLanguageModel:
    make, changes = MODELS[request.param]
    return make(**changes)


# --- source, target, state -------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_target_is_causal_and_the_source_is_not(model):
    source, target = ids(2, 8), ids(2, 13, seed=1)
    before = model.hidden(target, memory=model.encode(source))
    for place in (0, 5, 12):
        changed = target.clone()
        changed[:, place:] = (changed[:, place:] + 7) % V
        after = model.hidden(changed, memory=model.encode(source))
        close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])
    for place in (0, 7):
        changed = source.clone()
        changed[:, place] = (changed[:, place] + 7) % V
        after = model.hidden(target, memory=model.encode(changed))
        assert ((after - before).abs().amax(-1) > 1e-4).all()  # every token of the target sees every one of the source


@torch.inference_mode()
def test_writing_in_pieces_equals_writing_at_once(model):
    source, target = ids(3, 9), ids(3, 48, seed=1)
    whole = model.logits(model.hidden(target, memory=model.encode(source)))[..., :V]
    for pieces in ([48], [1] * 48, [47, 1], [5, 1, 1, 30, 11]):
        for capacity in (4, 100):
            state = model.begin(source, capacity)
            parts = []
            for piece in target.split(pieces, dim=1):
                logits, state = model.forward(piece, state)
                parts.append(logits)
            close(torch.cat(parts, dim=1), whole)


@torch.inference_mode()
def test_without_a_source_it_is_a_language_model_of_the_empty_source(model):
    target = ids(2, 8)
    empty = torch.tensor([list(model.empty_source)] * 2)
    expected = model.logits(model.hidden(target, memory=model.encode(empty)))
    close(model.logits(model.hidden(target)), expected)
    logits, state = model.forward(target[:, :5])
    close(torch.cat([logits, model.forward(target[:, 5:], state)[0]], 1), expected[..., :V])
    close(model.forward(target, model.new_state(2, 8))[0], expected[..., :V])


def places_of(side: str, length: int, room: int) -> list[int]:
    """Where the tokens of a padded row stand."""
    half = length // 2
    return {
        "right": list(range(length)),
        "left": list(range(room - length, room)),
        "between": [*range(half), *range(room - length + half, room)],
    }[side]


def padded_rows(rows: list[Tensor], room: int, filler: int, side: str) -> tuple[Tensor, Tensor]:
    """(rows of tokens with `filler` where there are none, which are tokens), both (B, room)."""
    tokens, mask = torch.full((len(rows), room), filler), torch.zeros(len(rows), room, dtype=torch.bool)
    for number, row in enumerate(rows):
        places = places_of(side, row.shape[1], room)
        tokens[number, places], mask[number, places] = row[0], True
    return tokens, mask


@torch.inference_mode()
def test_padding_reaches_nothing(model):
    """Between the tokens too, where a model has no positions that would tell."""
    sources = [ids(1, length, seed=length) for length in (1, 7, 12)]
    targets = [ids(1, length, seed=10 + length) for length in (9, 4, 10)]
    sides = ("left", "right", "between") if model.context_length is None else ("left", "right")
    for side in sides:
        for filler in (0, V - 1):
            padded, mask = padded_rows(sources, 12, filler, side)
            target, _ = padded_rows(targets, 10, filler, "right")
            together = model.hidden(target, memory=model.encode(padded, mask))
            state = model.begin(padded, 10, mask)
            stepped = torch.cat([model.hidden(target[:, t : t + 1], state) for t in range(10)], 1)
            for row, (source, tokens) in enumerate(zip(sources, targets, strict=True)):
                alone = model.hidden(tokens, memory=model.encode(source))[0]
                close(together[row, : len(alone)], alone)
                close(stepped[row, : len(alone)], alone)


@torch.inference_mode()
def test_a_mask_of_all_tokens_is_no_mask(model):
    source, target = ids(2, 9), ids(2, 5, seed=1)
    plain = model.hidden(target, memory=model.encode(source))
    close(model.hidden(target, memory=model.encode(source, torch.ones(2, 9, dtype=torch.bool))), plain)


@torch.inference_mode()
def test_rows_leave_and_repeat_with_their_sources(model):
    source, target = ids(4, 7), ids(4, 9, seed=1)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None]
    whole = model.logits(model.hidden(target, memory=model.encode(source, mask)))[..., :V]
    _, state = model.forward(target[:, :4], model.begin(source, 6, mask))
    rows = torch.tensor([3, 1, 1])
    logits, _ = model.forward(target[rows, 4:], state.select(rows))
    close(logits, whole[rows, 4:])
    close(
        model.hidden(target[rows], memory=model.encode(source, mask).select(rows)),
        model.hidden(target, memory=model.encode(source, mask))[rows],
    )


@torch.inference_mode()
def test_sentinels_are_scored_in_training_and_never_drawn(model):
    assert isinstance(model, ConditionalLanguageModel)
    assert (model.vocab_size, model.config.first_sentinel) == (V, V)
    target = torch.tensor([[1, V, V + SENTINELS - 1]])
    hidden = model.hidden(target, memory=model.encode(torch.tensor([[3, V + 1]])))
    assert model.logits(hidden).shape == (1, 3, V + SENTINELS)
    assert model.forward(target)[0].shape == (1, 3, V)


# --- precision, gradients --------------------------------------------------------------------------------------------


def test_gradients_reach_every_weight_and_are_float32_in_bfloat16(model):
    source, target = ids(4, 12), ids(4, 16, seed=1)
    mask = torch.arange(12) < torch.tensor([12, 3, 5, 1])[:, None]
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model.compute_dtype = dtype
        model.zero_grad()
        hidden = model.hidden(target, memory=model.encode(source, mask))
        assert hidden.dtype == dtype
        F.cross_entropy(model.logits(hidden).float().flatten(0, 1), target.flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == torch.float32
            assert float(parameter.grad.norm()) > 0, name
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert float(F.cosine_similarity(*gradients, dim=0)) > 0.98


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "changes", "steps", "rate"),
    [
        (transformer, {"layers": 1, "positions": "learned", "context_length": 8}, 150, 1e-2),
        (recurrent, {"layers": 1, "width": 32}, 200, 2e-2),
        (recurrent, {"layers": 1, "width": 32, "attention": "additive"}, 200, 2e-2),
    ],
    ids=["Transformer", "multiplicative", "additive"],
)
def test_it_learns_to_reverse_what_it_reads(make, changes, steps, rate):
    """Only cross-attention can carry the source over."""
    model = make(vocab_size=9, sentinels=0, start_token=1, empty_source=(0,), **changes)
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / steps))
    for _ in range(steps):
        source = torch.randint(2, 9, (32, 4), generator=generator)
        target = source.flip(1)
        inputs = torch.cat([torch.full((32, 1), model.start_token), target[:, :-1]], 1)
        logits = model.logits(model.hidden(inputs, memory=model.encode(source)))
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
        optimizer.step()
        schedule.step()
    source = torch.randint(2, 9, (200, 4), generator=generator)
    with torch.inference_mode():
        state, tokens, written = model.begin(source, 4), torch.full((200, 1), model.start_token), []
        for _ in range(4):
            logits, state = model.forward(tokens, state)
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            written.append(tokens)
    assert float((torch.cat(written, 1) == source.flip(1)).all(1).float().mean()) > 0.95
