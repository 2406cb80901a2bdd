"""Log-probabilities in the two shapes of the OpenAI API. They are the model's own: before temperature and filters.

chat_entries(piece.draws, tokenizer)                    # of /v1/chat/completions
completion_columns(piece.draws, piece.offsets, tokenizer, alternatives=5)    # of /v1/completions
"""

from collections.abc import Sequence
from typing import Any

from parlance.inference.sampler import Draw
from parlance.text.tokenizers import Tokenizer

LEAST = -9999.0
"""What stands for the logarithm of 0, which JSON does not have."""


def finite(value: float) -> float:
    """A log-probability as JSON can hold it."""
    return max(value, LEAST) if value == value else LEAST


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """What a token is shown as: its text, or `bytes:\\xe2` where it is a part of a character."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_entries(draws: Sequence[Draw], tokenizer: Tokenizer, alternatives: int) -> list[dict[str, Any]]:
    """`logprobs.content` for these tokens."""

    def entry(token: int, log_prob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        return {"token": token_text(token, tokenizer), "logprob": finite(log_prob), "bytes": list(data)}

    return [
        entry(draw.token, draw.log_prob) | {"top_logprobs": [entry(*pair) for pair in draw.top[:alternatives]]}
        for draw in draws
    ]


def completion_columns(
    draws: Sequence[Draw | None], offsets: Sequence[int], tokens: Sequence[int], tokenizer: Tokenizer, alternatives: int
) -> dict[str, list[Any]]:
    """`logprobs` of these tokens; a draw of None is one that nothing predicted: the first of a text."""
    tops: list[dict[str, float] | None] = []
    for draw in draws:
        # Two ids may have one text; the likelier one is listed. The token itself is always among them.
        top: dict[str, float] = {}
        for token, log_prob in () if draw is None else (*draw.top[:alternatives], (draw.token, draw.log_prob)):
            top.setdefault(token_text(token, tokenizer), finite(log_prob))
        tops.append(None if draw is None else top)
    return {
        "tokens": [token_text(token, tokenizer) for token in tokens],
        "token_logprobs": [None if draw is None else finite(draw.log_prob) for draw in draws],
        "top_logprobs": tops,
        "text_offset": list(offsets),
    }
