"""Generation: one sequence from any language model, or a batch of unequal prompts from a Transformer.

for token in stream(model, prompt_ids, SamplingConfig(max_tokens=20), stop={end_of_text}): ...
responses = generate_batch(model, [[1, 2, 3], [4, 5]], SamplingConfig(max_tokens=20), stop={end_of_text})
"""

import sys
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from parlance.core.errors import UserError
from parlance.inference.sampling import SamplingConfig, sample
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.transformer import Transformer

Ending = Literal["stop", "max_tokens", "context"]
"""Why a text ended: a stop token was drawn, `max_tokens` are written, or the model's context is full."""


@torch.inference_mode()
def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    config: SamplingConfig,
    stop: Collection[int],
    vocab_size: int | None = None,
) -> Generator[int, None, Ending]:
    """Yield generated ids one by one, and return why there are no more; a token of `stop` is not yielded.

    Work per token is constant in the prompt's length but for attention. Where the context is full, generation ends or,
    with `overflow="slide"`, goes on from the second half of the context. An encoder-decoder reads the prompt as its
    source. `vocab_size`: only ids below it are drawn (that of a tokenizer smaller than the model). Raises UserError
    when the prompt is empty, holds an id outside the vocabulary, or leaves no room.
    """
    checked_prompt(model, prompt)
    slides = config.overflow == "slide" and model.context_length is not None
    half = (model.context_length or 0) // 2
    text = list(prompt)
    if isinstance(model, ConditionalLanguageModel):
        # The source slides; what is written ends where the decoder's context does.
        if slides and model.source_length is not None:
            text = text[-model.source_length :]
        if model.source_length is not None and len(text) > model.source_length:
            raise UserError(_too_long(len(text), model.source_length))
        room = _room(model, [model.start_token])
        state, text = model.begin(torch.tensor([text]), min(room, config.max_tokens)), [model.start_token]
    else:
        if slides and model.context_length is not None and len(text) >= model.context_length:
            text = text[-half:]
        room = sys.maxsize if slides else _room(model, text)
        state = None
    generator = torch.Generator().manual_seed(config.seed)
    logits, state = model.forward(torch.tensor([text], dtype=torch.int64), state)
    used = len(text)
    for remaining in range(min(config.max_tokens, room), 0, -1):
        token = int(sample(logits[:, -1, :vocab_size].cpu(), config, generator))
        if token in stop:
            return "stop"
        yield token
        if remaining == 1:
            break
        text.append(token)
        if used == model.context_length:
            text = text[-half:]
            logits, state = model.forward(torch.tensor([text], dtype=torch.int64))
            used = len(text)
        else:
            logits, state = model.forward(torch.tensor([[token]], dtype=torch.int64), state)
            used += 1
    return "context" if room < config.max_tokens else "max_tokens"


def checked_prompt(model: LanguageModel, prompt: Sequence[int]) -> None:
    """Raises UserError where a prompt is empty or holds an id that the model does not have."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character")
    outside = next((token for token in prompt if not 0 <= token < model.vocab_size), None)
    if outside is not None:
        raise UserError(
            f"token {outside} is outside the model's vocabulary of {model.vocab_size} (ids 0 to "
            f"{model.vocab_size - 1}): use the tokenizer that the model was made for"
        )


def _too_long(tokens: int, most: int) -> str:
    return (
        f"the prompt has {tokens} tokens and the model reads {most}; shorten it, or let the context slide "
        "(--overflow slide)"
    )


def _room(model: LanguageModel, prompt: Sequence[int]) -> int:
    """Tokens that fit behind a prompt: at least one, or UserError."""
    if model.context_length is None:
        return sys.maxsize
    if len(prompt) >= model.context_length:
        raise UserError(_too_long(len(prompt), model.context_length))
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
    for prompt in prompts:
        checked_prompt(model, prompt)
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
