"""`/tokenize`, `/detokenize`, `/tokenizer_info`: what texts are to a model. Field names are those of llama.cpp's server
and of vLLM's at once, so that the clients of both work."""

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from parlance.serving.errors import ApiError, json_bytes
from parlance.serving.events import unless_gone
from parlance.serving.hosted import Hosted
from parlance.serving.logprobs import token_text
from parlance.serving.prompts import conversation_tokens
from parlance.serving.requests import DetokenizeRequest, TokenizeRequest
from parlance.serving.service import Service


async def tokenize(service: Service, request: Request, body: TokenizeRequest) -> Response:
    """Text, or a conversation, to ids. Raises ApiError."""
    hosted = service.hosted(request.scope, body.model)
    answer = await unless_gone(request, service.apart(lambda: _tokens(hosted, body)))
    return Response(json_bytes(answer), media_type="application/json")


def _tokens(hosted: Hosted, body: TokenizeRequest) -> dict[str, Any]:
    tokenizer = hosted.model.tokenizer
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise ApiError(400, "give either prompt (a text) or messages (a conversation)", param="prompt")
    if text is None:
        ids = conversation_tokens(tokenizer, body.messages or [], [], calling=False)
    else:
        before, after = tokenizer.surrounding if body.add_special_tokens else ([], [])
        # Names of special tokens stay text, but for the one question that clients ask: which token is the last?
        whole = tokenizer.special_tokens.get(text)
        ids = [*before, *(tokenizer.encode(text) if whole is None else [whole]), *after]
    answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": hosted.context_length}
    if body.with_pieces:
        answer["pieces"] = [token_text(token, tokenizer) for token in ids]
    return answer


async def detokenize(service: Service, request: Request, body: DetokenizeRequest) -> Response:
    """Ids to text. Raises ApiError for what is no id."""
    hosted = service.hosted(request.scope, body.model)
    if body.tokens:
        service.checked_ids(hosted, body.tokens, "tokens")
    text = await unless_gone(
        request, service.apart(lambda: hosted.model.tokenizer.decode(body.tokens, skip_special=False))
    )
    return Response(json_bytes({"prompt": text, "content": text}), media_type="application/json")


def tokenizer_info(service: Service, request: Request, name: str | None) -> Response:
    """Its special tokens by role, and the template of its conversations. Raises ApiError."""
    tokenizer = service.hosted(request.scope, name).model.tokenizer
    names = {index: text for text, index in tokenizer.special_tokens.items()}
    before, _ = tokenizer.surrounding
    answer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size,
        "bos_token": names.get(before[0]) if before else None,
        "eos_token": names.get(tokenizer.end_of_text),
        "pad_token": names.get(tokenizer.pad),
        "chat_template": tokenizer.config.get("chat_template"),
    }
    return Response(json_bytes(answer), media_type="application/json")
