"""Generation: one sequence from any language model, or a batch of unequal prompts from a Transformer.

for token in stream(model, prompt_ids, SamplingConfig(max_tokens=20), stop={end_of_text}): ...
responses = generate_batch(model, [[1, 2, 3], [4, 5]], SamplingConfig(max_tokens=20), stop={end_of_text})
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from parlance.core.errors import UserError
from parlance.inference.sampling import SamplingConfig, sample
from parlance.models.contract import LanguageModel
from parlance.models.transformer import Transformer


@torch.inference_mode()
def stream(model: LanguageModel, prompt: Sequence[int], config: SamplingConfig, stop: Collection[int]) -> Iterator[int]:
    """Yield generated ids one by one; a token of `stop` ends the text and is not yielded.

    Work per token is constant in the prompt's length but for attention. Generation ends where the context is full.
    Raises UserError when the prompt is empty or leaves no room in the context.
    """
    room = min(config.max_tokens, _room(model, prompt))
    generator = torch.Generator().manual_seed(config.seed)
    logits, state = model.forward(torch.tensor([list(prompt)], dtype=torch.int64))
    for remaining in range(room, 0, -1):
        token = int(sample(logits[:, -1].cpu(), config, generator))
        if token in stop:
            return
        yield token
        if remaining > 1:
            logits, state = model.forward(torch.tensor([[token]], dtype=torch.int64), state)


def _room(model: LanguageModel, prompt: Sequence[int]) -> int:
    """Tokens that fit behind a prompt: at least one, or UserError."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character")
    if model.context_length is None:
        return sys.maxsize
    if len(prompt) >= model.context_length:
        raise UserError(f"the prompt has {len(prompt)} tokens and the model reads {model.context_length}; shorten it")
    return model.context_length - len(prompt)


@dataclass(frozen=True)
class Response:
    """One generated sequence."""

    tokens: list[int]
    """Generated ids, the stop token included where one was drawn."""
    ended: bool
    """Whether a stop token ended it, rather than the limit."""


@torch.inference_mode()
def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    stop: Collection[int],
    generator: torch.Generator | None = None,
) -> list[Response]:
    """Continue every prompt, all at once; the result is in the order of `prompts`.

    Prompts of unequal length are padded on the right and each row keeps its own length, so padding is never attended
    to. A row ends at its stop token, after `max_tokens`, or where its context is full; finished rows leave the batch.
    Draws come from `generator` (None: a fresh one with `config.seed`). Raises UserError when a prompt is empty or
    leaves no room in the context.
    """
    if not prompts:
        return []
    generator = generator or torch.Generator().manual_seed(config.seed)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    limits = [min(config.max_tokens, _room(model, prompt)) for prompt in prompts]
    longest = int(lengths.max())
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(list(prompt))
    state = model.new_state(len(prompts), longest + config.max_tokens)
    hidden = model.hidden(tokens.to(model.device), state)
    state.lengths = lengths.to(model.device)  # the padding beyond each prompt is overwritten as the row goes on
    last = hidden[torch.arange(len(prompts)), lengths - 1]
    generated: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    active = list(range(len(prompts)))
    for count in range(1, max(limits) + 1):
        drawn = sample(model.logits(last).float().cpu(), config, generator)
        for row, token in zip(active, drawn.tolist(), strict=True):
            generated[row].append(token)
            ended[row] = ended[row] or token in stop
        running = [place for place, row in enumerate(active) if not ended[row] and count < limits[row]]
        if not running:
            break
        if len(running) <= 0.75 * len(active):
            # Dropping finished rows copies the cache, so wait until it pays.
            state = state.select(torch.tensor(running, device=model.device))
            drawn, active = drawn[running], [active[place] for place in running]
        last = model.hidden(drawn.unsqueeze(1).to(model.device), state)[:, 0]
    # A finished row that was still in the batch drew on: cut at its limit and behind its first stop token.
    return [_cut(tokens[:limit], stop) for tokens, limit in zip(generated, limits, strict=True)]


def _cut(tokens: list[int], stop: Collection[int]) -> Response:
    for place, token in enumerate(tokens):
        if token in stop:
            return Response(tokens[: place + 1], True)
    return Response(tokens, False)
