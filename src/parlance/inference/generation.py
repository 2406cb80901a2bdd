"""Generation: one sequence from any language model, or a batch of unequal prompts from a Transformer.

for draw in draws(model, prompt_ids, SamplingConfig(max_tokens=20), stop={end_of_text}): ...
for token in stream(model, prompt_ids, SamplingConfig(max_tokens=20), stop={end_of_text}): ...
responses = generate_batch(model, [[1, 2, 3], [4, 5]], SamplingConfig(max_tokens=20), stop={end_of_text})

`draws` obeys everything in `SamplingConfig` but stop strings, which are about text (`text_stream.py`).
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from parlance.core.errors import UserError
from parlance.inference.constraints import Constraint
from parlance.inference.reading import Reader, checked_prompt, room_behind
from parlance.inference.sampler import Draw, Sampler
from parlance.inference.sampling import SamplingConfig, sample
from parlance.inference.speculative import Drafter, Proposal, judged
from parlance.models.contract import LanguageModel
from parlance.models.transformer import Transformer

Ending = Literal["stop", "max_tokens", "context"]
"""Why a text ended: a stop token was drawn, `max_tokens` are written, or the model's context is full."""


def draws(
    model: LanguageModel,
    prompt: Sequence[int],
    config: SamplingConfig,
    stop: Collection[int],
    vocab_size: int | None = None,
    *,
    constraint: Constraint | None = None,
    drafter: Drafter | None = None,
) -> Generator[Draw, None, Ending]:
    """Yield what is drawn, and return why there is no more; a token of `stop` is not yielded.

    Where the context is full, generation ends or, with `overflow="slide"`, goes on from the second half of the context.
    An encoder-decoder reads the prompt as its source. `vocab_size`: only ids below it are drawn (that of a tokenizer
    smaller than the model). `constraint`: the form of the text; it ends where the form is complete and leaves no
    choice. `drafter`: guesses ahead (`speculative.py`), which the model checks several at a time. Raises UserError when
    the prompt is empty, holds an id outside the vocabulary, or leaves no room, and where a form becomes too complex.
    """
    reader = Reader(model, prompt, config)
    sampler = Sampler(config, prompt, vocab_size=vocab_size or model.vocab_size, constraint=constraint)
    limit = min(config.max_tokens, reader.room)
    ending: Ending = "context" if reader.room < config.max_tokens else "max_tokens"
    text, unread, written = list(prompt), reader.beginning, 0
    while True:
        forced = sampler.forced()[: limit - written]
        for token in forced:
            yield Draw(token, 0.0)
        text, unread, written = [*text, *forced] if forced else text, [*unread, *forced], written + len(forced)
        if sampler.finished:
            return "stop"
        if written == limit:
            return ending
        guess = Proposal()
        if drafter is not None and reader.can_take_back:
            most = min(limit - written - 1, reader.free - len(unread))
            guess = drafter.propose(text, most) if most > 0 else guess
        logits = reader.read([*unread, *guess.tokens], wanted=len(guess.tokens) + 1)
        right = 0
        for place in range(len(guess.tokens) + 1):
            if place < len(guess.tokens):
                draw = judged(sampler, guess.tokens[place], guess.laws[place], logits[place])
            else:
                draw = sampler.draw(logits[place])
            if draw.token in stop:
                return "stop"
            yield draw
            text.append(draw.token)
            written += 1
            if sampler.finished:
                return "stop"
            if place == len(guess.tokens) or draw.token != guess.tokens[place]:
                break
            right += 1
        reader.take_back(len(guess.tokens) - right)
        unread = text[-1:]


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    config: SamplingConfig,
    stop: Collection[int],
    vocab_size: int | None = None,
) -> Generator[int, None, Ending]:
    """The ids of `draws`."""
    drawn = draws(model, prompt, config, stop, vocab_size)
    while True:
        try:
            yield next(drawn).token
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


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
    leaves no room in the context, and for settings that need each row's text: penalties, stop strings, alternatives.
    """
    plain = SamplingConfig()
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "stop", "top_logprobs"):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"{name}: batches are drawn without the text of their rows; generate one text at a time")
    if not prompts:
        return []
    generator = generator or torch.Generator().manual_seed(config.seed)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    for prompt in prompts:
        checked_prompt(model, prompt)
    limits = [min(config.max_tokens, room_behind(model, len(prompt))) for prompt in prompts]
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
