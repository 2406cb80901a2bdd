"""What the server counts, and how Prometheus reads it.

Counted here: requests by path and status, their time, tokens, time to first token, gaps between tokens. What the
engines know (running, waiting, memory) is asked of them when somebody reads. Names follow Prometheus: base units,
`_total` for what only grows. Not for several threads: all of it happens in the event loop.

    watch = Watch(); watch.answered("/v1/models", 200, 0.004); print(exposition(watch.families()))
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the classes of a histogram of times; the last has none."""
Labels = tuple[tuple[str, str], ...]


@dataclass
class Histogram:
    """How many times were up to each limit."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds


@dataclass(frozen=True)
class Family:
    """One metric: its samples as (suffix of the name, labels, value)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    samples: Sequence[tuple[str, Labels, float]]


class Watch:
    """The counts of one server."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        """`paths`: those that are counted by name; others, which clients invent, as `other`."""
        self.paths = frozenset(paths)
        self.open_requests = 0
        self.stopped: set[str] = set()
        """Models whose engine is broken: noticed by the first request that it fails."""
        self.requests: Counter[tuple[str, int]] = Counter()
        self.times: dict[str, Histogram] = {}
        self.prompt_tokens: Counter[str] = Counter()
        self.cached_tokens: Counter[str] = Counter()
        self.generated_tokens: Counter[str] = Counter()
        self.first_token: dict[str, Histogram] = {}
        self.between_tokens: dict[str, Histogram] = {}

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Count a request as open for the length of the block."""
        self.open_requests += 1
        try:
            yield
        finally:
            self.open_requests -= 1

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        known = path if path in self.paths else "other"
        self.requests[known, status] += 1
        self.times.setdefault(known, Histogram()).add(seconds)

    def token(self, model: str, seconds: float, *, first: bool) -> None:
        """Count a generated token, and the time since the request or since the token before."""
        self.generated_tokens[model] += 1
        (self.first_token if first else self.between_tokens).setdefault(model, Histogram()).add(seconds)

    def prompt(self, model: str, tokens: int, cached: int) -> None:
        """Count a prompt, of which `cached` tokens did not have to be read."""
        self.prompt_tokens[model] += tokens
        self.cached_tokens[model] += cached

    def families(self) -> list[Family]:
        """Everything, in the order in which it is shown."""
        answered: list[tuple[str, Labels, float]] = [
            ("", (("path", path), ("status", str(status))), count)
            for (path, status), count in sorted(self.requests.items())
        ]
        return [
            Family("parlance_requests_total", "counter", "Requests answered; 499: the client left.", answered),
            Family("parlance_open_requests", "gauge", "Requests in work.", [("", (), self.open_requests)]),
            _histograms("parlance_request_seconds", "Time of a request.", "path", self.times),
            _counters("parlance_prompt_tokens_total", "Tokens of prompts.", self.prompt_tokens),
            _counters("parlance_cached_tokens_total", "Those that were in memory already.", self.cached_tokens),
            _counters("parlance_generated_tokens_total", "Tokens written.", self.generated_tokens),
            _histograms("parlance_first_token_seconds", "Time to the first token.", "model", self.first_token),
            _histograms("parlance_between_tokens_seconds", "Gaps between tokens.", "model", self.between_tokens),
        ]


def exposition(families: Iterable[Family]) -> str:
    """The text form of Prometheus, version 0.0.4."""
    lines = []
    for family in families:
        lines += [f"# HELP {family.name} {family.text}", f"# TYPE {family.name} {family.kind}"]
        for suffix, labels, value in family.samples:
            lines.append(f"{family.name}{suffix}{_labels(labels)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _counters(name: str, text: str, counts: Counter[str]) -> Family:
    return Family(name, "counter", text, [("", (("model", model),), n) for model, n in sorted(counts.items())])


def _histograms(name: str, text: str, label: str, found: dict[str, Histogram]) -> Family:
    samples: list[tuple[str, Labels, float]] = []
    for value, histogram in sorted(found.items()):
        below = 0
        for limit, count in zip((*SECONDS, None), histogram.counts, strict=True):
            below += count
            samples.append(("_bucket", ((label, value), ("le", "+Inf" if limit is None else f"{limit:g}")), below))
        samples += [("_sum", ((label, value),), histogram.total), ("_count", ((label, value),), below)]
    return Family(name, "histogram", text, samples)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
