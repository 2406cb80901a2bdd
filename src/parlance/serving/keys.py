"""Who may call: API keys, which models each may use, and how often.

A file of keys is YAML (or JSON, which is YAML):

    - key: sk-...
      name: notebook             # shown in the log instead of the key
      models: [demo]             # none: all
      requests_per_minute: 60    # none: no limit

Keys are compared by their SHA-256 in constant time, all of them each time, so that neither the time of an answer nor
a core dump of a comparison says how much of a guess was right.

    keys = Keys([ApiKey(key="sk-1")]); keys.find("sk-1")
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import Field

from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError


class ApiKey(Config):
    """One caller."""

    key: str = Field(min_length=8, repr=False)
    """The secret, at least 8 characters."""
    name: str = "key"
    """What the log calls it."""
    models: list[str] | None = None
    """Names of the models it may use; none: all."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """How many requests a minute, as many of them at once; none: no limit."""


class Caller:
    """A key in use: its rights and its allowance."""

    def __init__(self, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = key.name
        self._models = None if key.models is None else frozenset(key.models)
        self._rate = key.requests_per_minute
        self._clock = clock
        self._allowance, self._since = float(self._rate or 0), clock()

    def may_use(self, model: str) -> bool:
        """Whether it may use a model of this name."""
        return self._models is None or model in self._models

    def wait(self) -> float:
        """Take one request from the allowance; 0, or the seconds until there is one to take."""
        if self._rate is None:
            return 0.0
        now = self._clock()
        self._allowance = min(self._rate, self._allowance + (now - self._since) * self._rate / 60)
        self._since = now
        if self._allowance < 1:
            return (1 - self._allowance) * 60 / self._rate
        self._allowance -= 1
        return 0.0


class Keys:
    """All keys of a server."""

    def __init__(self, keys: Sequence[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UserError where a key is there twice."""
        self._callers = [(_digest(key.key.encode()), Caller(key, clock)) for key in keys]
        if len({digest for digest, _ in self._callers}) < len(keys):
            raise UserError("two API keys are the same; give every caller its own")

    def find(self, presented: bytes) -> Caller | None:
        """Whose key this is; None: nobody's. Looks at every key, whichever fits."""
        digest = _digest(presented)
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def read_keys(path: Path | None, environment: str | None) -> Keys | None:
    """The keys of a file and those of an environment variable, separated by commas; None where there are neither.

    Raises UserError for a file that is not a list of keys; the message never holds one.
    """
    keys: list[ApiKey] = []
    if path is not None:
        try:
            listed = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the file of API keys cannot be read ({type(error).__name__})") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML; write a list of `- key: ...`") from error
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{path} holds no list of API keys; write `- key: ...`, one for every caller")
        keys += [parse_config(ApiKey, entry, where=f"{path}, key {n}") for n, entry in enumerate(listed, start=1)]
    words = [word.strip() for word in (environment or "").split(",") if word.strip()]
    keys += [
        parse_config(ApiKey, {"key": word, "name": f"environment {n}"}, where=f"API key {n} of the environment")
        for n, word in enumerate(words, start=1)
    ]
    return Keys(keys) if keys else None


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
