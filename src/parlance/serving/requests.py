"""The bodies of requests as the OpenAI API describes them, plus the samplers it lacks.

Fields that are not here are ignored, as clients send many; a wrong type is refused. `null` means: not given. Types are
strict ("5" is no number), so that a mistake is told and not guessed at. Limits that depend on the server or the model
are checked where the request is carried out.

    ChatRequest.model_validate({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]})
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Token = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    """Base of all: strict types, unknown fields ignored, finite numbers."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class StreamOptions(Body):
    """What a stream says besides text."""

    include_usage: bool | None = None
    """Whether a last event counts the tokens."""


class SamplingBody(Body):
    """What both kinds of generation share."""

    model: str | None = Field(default=None, max_length=512)
    """Which model; may be left out where there is only one."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0: always the likeliest token; default 1."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """The smallest set of tokens with this probability; default 1."""
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    """The k likeliest tokens; 0 or -1: all."""
    min_p: float | None = Field(default=None, ge=0, lt=1)
    """Tokens with at least this part of the likeliest one's probability."""
    typical_p: float | None = Field(default=None, gt=0, le=1)
    """The tokens whose surprise is closest to the expected one, up to this probability."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    """Divides the logits of tokens that stand in the text already."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from the logits of tokens that were written already."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from them for each time that they were written."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Added to the logits of tokens by id."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed gives the same text."""
    n: int | None = Field(default=None, ge=1, le=1024)
    """How many choices; default 1."""
    stop: str | list[str] | None = None
    """Strings before which the text ends."""
    stream: bool | None = None
    """Whether the text is sent as it is written."""
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Ignored."""

    def stop_strings(self) -> list[str]:
        """As a list; empty strings, which would stop everything, are left out."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in found if text]


class CompletionRequest(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[Token] | list[list[Token]] | None = None
    """Text or ids, one or several; none: a text from its beginning."""
    max_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Most tokens to write; default 16."""
    logprobs: int | None = Field(default=None, ge=0, le=1024)
    """How many alternatives to show for each token, with their log-probabilities."""
    echo: bool | None = None
    """Whether the answer begins with the prompt."""
    best_of: int | None = Field(default=None, ge=1, le=1024)
    """Write so many and give the `n` whose tokens are likeliest on average."""
    suffix: str | None = None
    """Not supported."""


class Part(Body):
    """A part of a message's content."""

    type: str = Field(max_length=64)
    text: str | None = None


class FunctionCall(Body):
    """Which function was called."""

    name: str
    arguments: str
    """A JSON object, as a string."""


class ToolCall(Body):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """A turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    """Ignored."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Body):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments; none: no arguments."""
    strict: bool | None = None
    """Ignored: arguments always follow the schema."""


class Tool(Body):
    """What the model may use."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The tool that must be used."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    """The form that an answer must have."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Ignored: answers always follow the schema."""


class ResponseFormat(Body):
    """Text, any JSON object, JSON of a schema, or (not in the OpenAI API) what a regular expression matches, or one
    of some choices."""

    type: Literal["text", "json_object", "json_schema", "regex", "choice"]
    json_schema: JsonSchema | None = None
    pattern: str | None = Field(default=None, max_length=10_000)
    choices: list[str] | None = Field(default=None, min_length=1, max_length=1000)


class ChatRequest(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Most tokens to write; default: as many as fit."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """The newer name of the same."""
    logprobs: bool | None = None
    """Whether to show the log-probability of each token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=1024)
    """How many alternatives to show for each."""
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Default: auto where there are tools."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may hold several calls; default true."""


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`."""

    model: str | None = Field(default=None, max_length=512)
    input: str | list[str] | list[Token] | list[list[Token]]
    """Text or ids, one or several."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of little-endian float32."""
    dimensions: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Only the first so many, scaled to length 1 again."""
    pooling: Literal["mean", "last"] | None = None
    """Of all tokens' activations the mean (default), or those of the last."""
    user: str | None = None
    """Ignored."""


class TokenizeRequest(Body):
    """`POST /tokenize`; `prompt` and `content` are two names of one field, `messages` a conversation instead."""

    model: str | None = Field(default=None, max_length=512)
    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    """Whether the tokens that stand around a whole text are added; default false."""
    with_pieces: bool | None = None
    """Whether to give the text of each token."""


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = Field(default=None, max_length=512)
    tokens: list[Token]
