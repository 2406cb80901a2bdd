"""From the fields of a request to how it is carried out: sampling, limits, constraints.

sampling_of(body, max_tokens=100, seed=1, alternatives=5, vocab_size=50257)
"""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from parlance.core.config import parse_config
from parlance.core.errors import UserError
from parlance.inference import constraints
from parlance.inference.constraints import Constraint
from parlance.inference.model import Model
from parlance.inference.sampling import COLDEST, SamplingConfig
from parlance.serving.config import ServingConfig
from parlance.serving.errors import ApiError
from parlance.serving.requests import ChatRequest, Function, NamedTool, ResponseFormat, SamplingBody
from parlance.serving.tools import call_schema

MAX_SCHEMA_BYTES = 256 << 10
"""Most bytes of a JSON schema."""


def check_limits(body: SamplingBody, config: ServingConfig) -> None:
    """Raises ApiError where a request asks for more than the server allows."""
    stop = body.stop_strings()
    if len(stop) > config.max_stop_strings:
        raise ApiError(
            400, f"stop: {len(stop)} strings are more than the {config.max_stop_strings} that are allowed", param="stop"
        )
    if any(len(text) > config.max_stop_length for text in stop):
        raise ApiError(400, f"stop: a stop string has at most {config.max_stop_length} characters", param="stop")
    if len(body.logit_bias or {}) > config.max_logit_bias:
        raise ApiError(400, f"logit_bias: at most {config.max_logit_bias} tokens are allowed", param="logit_bias")


def sampling_of(
    body: SamplingBody, *, max_tokens: int, seed: int, alternatives: int, vocab_size: int
) -> SamplingConfig:
    """How the tokens of one choice are drawn. Raises ApiError for a bias on what is no token."""
    values: dict[str, Any] = {
        "max_tokens": max_tokens,
        "seed": seed,
        "temperature": _temperature(body.temperature),
        "top_logprobs": alternatives,
        "logit_bias": _biases(body.logit_bias or {}, vocab_size),
    }
    given = {
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "top_p": body.top_p,
        "min_p": body.min_p,
        "typical_p": body.typical_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
    }
    if body.top_p == 0:  # clients mean: the likeliest token
        given |= {"top_p": None, "top_k": 1}
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return parse_config(SamplingConfig, values, where="the request")
    except UserError as error:
        raise ApiError(400, str(error)) from error


def _temperature(asked: float | None) -> float:
    """Clients write a tiny temperature where they mean none."""
    return 1.0 if asked is None else asked if asked >= COLDEST else 0.0


def first_seed(body: SamplingBody) -> int:
    """The seed of the first choice, drawn where none is given; choice k has the k-th after it."""
    return secrets.randbits(62) if body.seed is None else body.seed % 2**62


def _biases(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    found = {}
    for name, value in biases.items():
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 12 else -1
        if not 0 <= token < vocab_size:
            raise ApiError(
                400,
                f"logit_bias: {name[:20]!r} is not a token id; this model has 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        found[token] = value
    return found


def offered_functions(body: ChatRequest, config: ServingConfig) -> list[Function]:
    """The functions that the model is told of. Raises ApiError where two have one name, or there are too many."""
    functions = [tool.function for tool in body.tools or []]
    if len(functions) > config.max_tools:
        raise ApiError(400, f"tools: {len(functions)} are more than the {config.max_tools} allowed", param="tools")
    if len({function.name for function in functions}) < len(functions):
        raise ApiError(400, "tools: two functions have the same name", param="tools")
    for number, function in enumerate(functions):
        _check_size(function.parameters or {}, f"tools[{number}].function.parameters")
    if not functions and body.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    return [] if body.tool_choice == "none" else functions


def demanded_functions(body: ChatRequest, functions: Sequence[Function]) -> list[Function]:
    """Those of which one must be called; none where the model may choose. Raises ApiError for an unknown name."""
    if body.tool_choice == "required":
        return list(functions)
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        named = [function for function in functions if function.name == name]
        if not named:
            raise ApiError(400, f"tool_choice: there is no tool {name[:64]!r}", param="tool_choice")
        return named
    return []


def call_constraint(functions: Sequence[Function], model: Model) -> Constraint:
    """What a call of one of the functions looks like. Raises ApiError for parameters that are no JSON schema."""
    try:
        return constraints.json_schema(call_schema(functions), model.tokenizer, model.stop)
    except UserError as error:
        raise ApiError(400, f"tools: {error}", param="tools") from error


def form_constraint(form: ResponseFormat | None, model: Model) -> Constraint | None:
    """What an answer must look like; None: anything. Raises ApiError for a form that nothing can have."""
    if form is None or form.type == "text":
        return None
    tokenizer, stop = model.tokenizer, model.stop
    try:
        if form.type == "json_object":
            return constraints.json_schema({"type": "object"}, tokenizer, stop)
        if form.type == "json_schema":
            if form.json_schema is None or form.json_schema.schema_ is None:
                raise ApiError(
                    400, "response_format.json_schema.schema is missing", param="response_format.json_schema.schema"
                )
            _check_size(form.json_schema.schema_, "response_format.json_schema.schema")
            return constraints.json_schema(form.json_schema.schema_, tokenizer, stop)
        if form.type == "regex":
            if form.pattern is None:
                raise ApiError(400, "response_format.pattern is missing", param="response_format.pattern")
            return constraints.regular_expression(form.pattern, tokenizer, stop)
        if form.choices is None:
            raise ApiError(400, "response_format.choices is missing", param="response_format.choices")
        return constraints.choice(form.choices, tokenizer, stop)
    except UserError as error:
        raise ApiError(400, f"response_format: {error}", param="response_format") from error


def _check_size(schema: dict[str, Any], place: str) -> None:
    try:
        size = len(json.dumps(schema))
    except (RecursionError, ValueError) as error:
        raise ApiError(400, f"{place}: the schema is nested too deeply, or holds what is not JSON") from error
    if size > MAX_SCHEMA_BYTES:
        raise ApiError(400, f"{place}: a schema has at most {MAX_SCHEMA_BYTES} bytes", param=place)
