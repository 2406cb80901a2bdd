"""Every limit of the server.

ServingConfig(max_tokens=512, max_seconds=60)
"""

from pydantic import Field

from parlance.core.config import Config


class ServingConfig(Config):
    """What a request may ask for, and how long anything may take."""

    max_request_bytes: int = Field(default=4 << 20, ge=1024)
    """Most bytes of a request's body."""
    max_tokens: int = Field(default=8192, ge=1)
    """Most tokens that one choice may have; the model's context is the other limit."""
    max_prompt_tokens: int = Field(default=1 << 20, ge=1)
    """Most tokens of one prompt; the model's context is the other limit."""
    max_choices: int = Field(default=64, ge=1)
    """Most texts of one request: its prompts times `n` or `best_of`."""
    max_inputs: int = Field(default=256, ge=1)
    """Most texts that one request may have embedded."""
    max_stop_strings: int = Field(default=16, ge=1)
    """Most stop strings of a request."""
    max_stop_length: int = Field(default=256, ge=1)
    """Most characters of a stop string."""
    max_top_logprobs: int = Field(default=20, ge=0)
    """Most alternatives shown for each token."""
    max_logit_bias: int = Field(default=1024, ge=0)
    """Most tokens whose logits one request may change."""
    max_tools: int = Field(default=128, ge=1)
    """Most tools of a request."""
    max_messages: int = Field(default=4096, ge=1)
    """Most messages of a conversation."""
    max_requests: int = Field(default=512, ge=1)
    """Most requests that are worked on or wait at once; the next is told to come again."""
    max_connections: int = Field(default=4096, ge=1)
    """Most open connections; the next is closed at once."""
    max_seconds: float = Field(default=600.0, gt=0)
    """Most time of a request; what is written by then is the answer."""
    header_seconds: float = Field(default=15.0, gt=0)
    """Most time that a client may take for the head of a request, and that a connection may be idle."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Most time that a client may take for the body of a request."""
    ping_seconds: float = Field(default=15.0, gt=0)
    """A stream in which nothing happened for so long gets a comment, so that nobody on the way closes it."""
    drain_seconds: int = Field(default=30, ge=0)
    """How long a server that was asked to stop lets its streams go on."""
    log_prompts: bool = False
    """Whether the log holds what was asked, which may be private."""
