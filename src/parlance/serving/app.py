"""The application: routes, errors, and what Prometheus reads.

app = make_app(host_models(["runs/demo"]), ServingConfig(), keys=None, hosts=None)     # any ASGI server runs it
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from parlance.serving.chat import chat
from parlance.serving.completions import complete
from parlance.serving.config import ServingConfig
from parlance.serving.embeddings import embeddings
from parlance.serving.errors import ApiError, json_bytes, wrong_field
from parlance.serving.gate import CALLER, Gate
from parlance.serving.hosted import Hosted, chosen
from parlance.serving.keys import Keys
from parlance.serving.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from parlance.serving.service import Service
from parlance.serving.tokens import detokenize, tokenize, tokenizer_info
from parlance.serving.watch import Family, Watch, exposition

_SENTENCES = {404: "there is no such page here; see /openapi.json", 405: "this page does not take that method"}
_ERROR = {"description": "What is wrong, in the shape of the OpenAI API."}


def make_app(
    models: Mapping[str, Hosted], config: ServingConfig, *, keys: Keys | None, hosts: frozenset[str] | None
) -> Gate:
    """The server of these models. `keys` None: anybody may call; `hosts`: the names under which, None: any."""
    app = FastAPI(
        title="Parlance", version=version("parlance"), docs_url=None, redoc_url=None, responses={"4XX": _ERROR}
    )
    watch = Watch()
    service = Service(models, config, watch)
    _add_routes(app, service)
    watch.paths = frozenset(app.openapi()["paths"])
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)
    return Gate(app, config, keys=keys, hosts=hosts, watch=watch)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def _chat(request: Request, body: ChatRequest) -> Response:
        return await chat(service, request, body)

    @app.post("/v1/completions")
    async def _complete(request: Request, body: CompletionRequest) -> Response:
        return await complete(service, request, body)

    @app.post("/v1/embeddings")
    async def _embeddings(request: Request, body: EmbeddingRequest) -> Response:
        return await embeddings(service, request, body)

    @app.post("/tokenize")
    async def _tokenize(request: Request, body: TokenizeRequest) -> Response:
        return await tokenize(service, request, body)

    @app.post("/detokenize")
    async def _detokenize(request: Request, body: DetokenizeRequest) -> Response:
        return await detokenize(service, request, body)

    @app.get("/tokenizer_info")
    async def _tokenizer_info(request: Request, model: str | None = None) -> Response:
        return tokenizer_info(service, request, model)

    @app.get("/v1/models")
    async def _models(request: Request) -> Response:
        caller = request.scope[CALLER]
        usable = [_model(entry) for name, entry in service.models.items() if caller is None or caller.may_use(name)]
        return Response(json_bytes({"object": "list", "data": usable}), media_type="application/json")

    @app.get("/v1/models/{name:path}")
    async def _one_model(request: Request, name: str) -> Response:
        return Response(
            json_bytes(_model(chosen(service.models, name, request.scope[CALLER]))), media_type="application/json"
        )

    @app.get("/health")
    async def _health() -> Response:
        if service.watch.stopped:
            raise ApiError(503, f"{len(service.watch.stopped)} of {len(service.models)} models have stopped")
        return Response(b'{"status":"ok"}', media_type="application/json")

    @app.get("/metrics")
    async def _metrics() -> Response:
        text = exposition([*service.watch.families(), *_engine_families(service.models)])
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(entry: Hosted) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "parlance",
        "max_model_len": entry.context_length,
    }


_GAUGES = {
    "running": "Texts that are read or written now.",
    "waiting": "Texts that wait for a place.",
    "pages": "Pages of memory.",
    "pages_used": "Those that are in use.",
}
_COUNTERS = {
    "finished": "Texts that ended.",
    "cancelled": "Texts that nobody wanted any more.",
    "failed": "Texts that failed.",
    "preempted": "Times that a text made room for another.",
    "steps": "Steps.",
    "step_seconds": "Time of all steps.",
    "step_texts": "Texts in a step, summed over the steps.",
    "queue_seconds": "Time that texts waited, together.",
}


def _engine_families(models: Mapping[str, Hosted]) -> list[Family]:
    """What the engines count."""
    counts = {name: vars(entry.engine.metrics()) for name, entry in models.items()}
    families = []
    for field, text in (_GAUGES | _COUNTERS).items():
        samples = [("", (("model", name),), float(values[field])) for name, values in counts.items()]
        if field in _GAUGES:
            families.append(Family(f"parlance_engine_{field}", "gauge", text, samples))
        else:
            families.append(Family(f"parlance_engine_{field}_total", "counter", text, samples))
    return families


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(json_bytes(error.body()), error.status, error.headers, "application/json")


async def _failure(request: Request, _error: Exception) -> Response:
    """What broke goes on to the gate, which logs it."""
    return await _api_error(request, ApiError(500, "the server failed at this request; its log says where"))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _api_error(request, wrong_field(error.errors()))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, _SENTENCES.get(error.status_code, "the request cannot be read: is it JSON?"))
    told.headers = dict(error.headers or {})
    return await _api_error(request, told)
