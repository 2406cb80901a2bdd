"""`POST /v1/embeddings`: a vector for each text."""

import base64
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.inference.embedding import embed_tokens
from parlance.serving.errors import ApiError, json_bytes
from parlance.serving.events import unless_gone
from parlance.serving.hosted import Hosted
from parlance.serving.requests import EmbeddingRequest
from parlance.serving.service import Service


async def embeddings(service: Service, request: Request, body: EmbeddingRequest) -> Response:
    """Answer a request. Raises ApiError."""
    hosted = service.hosted(request.scope, body.model)
    answer = await unless_gone(request, service.apart(lambda: _answer(service, hosted, body)))
    return Response(json_bytes(answer), media_type="application/json")


def _answer(service: Service, hosted: Hosted, body: EmbeddingRequest) -> dict[str, Any]:
    texts: list[Any] = (
        [body.input] if isinstance(body.input, str) or (body.input and isinstance(body.input[0], int)) else body.input
    )
    if not texts:
        raise ApiError(400, "input: the list is empty; give at least one text", param="input")
    if len(texts) > service.config.max_inputs:
        raise ApiError(400, f"input: at most {service.config.max_inputs} texts are allowed", param="input")
    tokens = [service.whole_text(hosted, text, "input") if isinstance(text, str) else list(text) for text in texts]
    for ids in tokens:
        service.checked_prompt(hosted, ids, "input")
        service.room(hosted, ids, 0, "input")
    try:
        vectors = embed_tokens(hosted.model.language_model, tokens, pooling=body.pooling or "mean")
    except UserError as error:
        raise ApiError(400, str(error)) from error
    if body.dimensions is not None:
        if body.dimensions > vectors.shape[1]:
            raise ApiError(400, f"dimensions: this model has {vectors.shape[1]}", param="dimensions")
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = sum(map(len, tokens))
    service.watch.prompt(hosted.name, count, 0)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _shown(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "model": hosted.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _shown(vector: NDArray[np.float32], encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
