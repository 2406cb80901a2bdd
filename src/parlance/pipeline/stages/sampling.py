"""What stages and evaluation sample: seeded choices of prompts, and one response to each, in batches.

rows = select(demonstrations, 100, seed=0)
sample_responses(model, [prompt_tokens(tokenizer, row.messages[:-1]) for row in rows], tokenizer, sampling, "test")
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import torch

from parlance.alignment.preferences import Prompt, as_messages
from parlance.core.devices import release_free_memory
from parlance.core.progress import Progress
from parlance.inference.generation import Response, generate_batch
from parlance.inference.sampling import SamplingConfig
from parlance.models.transformer import Transformer
from parlance.text.chat_template import encode_chat
from parlance.text.tokenizers import Tokenizer

SAMPLING_BATCH = 64
"""Sequences generated at once."""


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A prompt as tokens up to where the assistant begins."""
    return encode_chat(tokenizer, as_messages(prompt), add_generation_prompt=True)[0]


def sample_responses(
    model: Transformer, prompts: Sequence[list[int]], tokenizer: Tokenizer, sampling: SamplingConfig, label: str
) -> list[Response]:
    """One response to each prompt, in batches; deterministic in `sampling.seed`."""
    model = model.inference_copy()
    generator = torch.Generator().manual_seed(sampling.seed)
    stop = {tokenizer.end_of_turn, tokenizer.end_of_text}
    # Prompts of similar length together: less padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    responses: dict[int, Response] = {}
    with Progress(label, len(prompts), "responses") as bar:
        for start in range(0, len(order), SAMPLING_BATCH):
            chosen = order[start : start + SAMPLING_BATCH]
            batch = generate_batch(model, [prompts[index] for index in chosen], sampling, stop, generator)
            responses.update(zip(chosen, batch, strict=True))
            bar.update(len(chosen))
    release_free_memory()
    return [responses[index] for index in range(len(prompts))]


def response_text(tokenizer: Tokenizer, response: Response) -> str:
    """A response as text, without special tokens."""
    return tokenizer.decode(response.tokens).strip()


def select(rows: Sequence[Any], limit: int, seed: int) -> list[Any]:
    """At most `limit` rows, a seeded choice, in a seeded order."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order[:limit]


def derived_seed(seed: int, *parts: str | int) -> int:
    """A seed of its own for each named use of the run's seed."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:4])
