"""Errors in the shape of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`.

raise ApiError(404, "there is no model x; see /v1/models", code="model_not_found", param="model")
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """`status` 400..599; `message` one sentence; `param` the field that is wrong; `retry_after` in seconds."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_after is None else {"retry-after": str(max(1, retry_after))}

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8 without blanks; a lone surrogate, which UTF-8 does not have, becomes `?`."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def wrong_field(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The 400 of a request that pydantic refused: its first wrong field, never the value."""
    # Where a field may have several types, the one that fits but for its value says more than those that do not.
    first = next((error for error in errors if not error["type"].endswith("_type")), errors[0])
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}")
    place = _place(first["loc"])
    if not place:
        return ApiError(400, "the body is not a JSON object; send one with content-type application/json")
    reason = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{place}: {reason[:1].lower()}{reason[1:]}", param=place)


def _place(location: Sequence[int | str]) -> str:
    """`messages[0].content` of ("body", "messages", 0, "content", "str"): without pydantic's names of the types."""
    place = ""
    for part in location[1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in _TYPE_NAMES or not part.isidentifier():
            continue
        else:
            place += f".{part}" if place else part
    return place[:200]


_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "dict", "list", "none", "key", "NamedTool", "Part"})
