"""The models of a server, each with its engine, by the names that requests use.

models = host_models(["runs/demo", "small=runs/other/base"])

A model is named after its folder unless `NAME=` stands before it. Adapters of one base would be further entries whose
engines share the base's weights; there are none yet.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parlance.core.errors import UserError
from parlance.inference.backends import Weights
from parlance.inference.engine import Engine, open_engine
from parlance.inference.model import Model, Precision, load
from parlance.inference.requests import Request
from parlance.inference.sampling import SamplingConfig
from parlance.serving.errors import ApiError
from parlance.serving.keys import Caller


@dataclass(frozen=True)
class Hosted:
    """A model that answers."""

    name: str
    model: Model
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was opened, seconds since 1970."""

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt and its answer; None: no limit."""
        return self.model.language_model.context_length

    @property
    def vocab_size(self) -> int:
        """How many token ids a prompt may have."""
        return min(self.model.language_model.vocab_size, self.model.tokenizer.vocab_size)


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Folders by name, of words like `runs/demo` and `small=runs/other`. Raises UserError for a name twice."""
    found: dict[str, Path] = {}
    for word in words:
        name, separator, folder = word.partition("=")
        if not separator or Path(word).exists():
            name, folder = Path(word).resolve().name, word
        if not name or not folder:
            raise UserError(f"{word!r} names no model; write FOLDER or NAME=FOLDER")
        if name in found:
            raise UserError(f"two models are called {name!r}; give one another name: NAME={folder}")
        found[name] = Path(folder)
    return found


def host_models(
    words: Sequence[str],
    *,
    device: str = "auto",
    precision: Precision = "auto",
    weights: Weights = "auto",
    most_running: int = 64,
    cache_bytes: int | None = None,
    opened: Callable[[str], None] = lambda _: None,
) -> dict[str, Hosted]:
    """Open models and start their engines; `opened` is told what computes each. Raises UserError.

    `weights`, `most_running` and `cache_bytes` (for each model) are those of `open_engine`.
    """
    hosted: dict[str, Hosted] = {}
    try:
        for name, folder in named_folders(words).items():
            model = load(folder, device, precision)
            engine = open_engine(model, most_running=most_running, cache_bytes=cache_bytes, weights=weights)
            hosted[name] = Hosted(name, model, engine)
            # Compiled code is loaded and memory is taken at the first step: not while a client waits.
            list(engine.submit(Request([0], SamplingConfig(max_tokens=2, temperature=0.0))))
            opened(f"{name}: {engine.description}")
    except BaseException:
        close_models(hosted, drain=False)
        raise
    return hosted


def close_models(hosted: Mapping[str, Hosted], *, drain: bool) -> None:
    """Stop the engines; with `drain` after what they are writing."""
    for entry in hosted.values():
        entry.engine.close(drain=drain)


def chosen(hosted: Mapping[str, Hosted], name: str | None, caller: Caller | None) -> Hosted:
    """The model that a request names, or the only one. Raises ApiError (404) where there is none for this caller."""
    usable = {key: entry for key, entry in hosted.items() if caller is None or caller.may_use(key)}
    if name is None and len(usable) == 1:
        return next(iter(usable.values()))
    if name is None:
        raise ApiError(400, f"model is missing; there are {', '.join(usable) or 'none for this key'}", param="model")
    if name not in usable:
        raise ApiError(
            404,
            f"there is no model {name[:100]!r} that this request may use; see /v1/models",
            code="model_not_found",
            param="model",
        )
    return usable[name]
