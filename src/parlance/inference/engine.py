"""The batching engine: many texts through one model at once, for any number of threads and event loops.

One thread owns the model. In each step every text that is being written goes on by a token and prompts are read in
pieces beside them (`scheduler`); a text leaves as soon as it ends, and the next one takes its place. Beginnings that
texts have in common are computed once (`pages`). Each text has its own sampler and seed, so what else is in the batch
does not change it, but for the rounding of sums in another order.

    with open_engine(load("runs/demo/base")) as engine:
        stream = engine.submit(Request([1, 2, 3], SamplingConfig(max_tokens=20)))
        tokens = [draw.token for draw in stream]

Texts and HTTP are done elsewhere: this is tokens in, tokens out.

Sources: Yu et al. 2022 (continuous batching); Kwon et al. 2023 (paged memory); Agrawal et al. 2024 (prompts in pieces).
"""

import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from parlance.inference.backend import Backend, Piece
from parlance.inference.backends import Weights, choose_backend
from parlance.inference.limits import Limits
from parlance.inference.metrics import Books, Metrics
from parlance.inference.pages import PageTable
from parlance.inference.requests import Ending, EngineError, Request, Stream
from parlance.inference.sampler import Draw, Sampler
from parlance.inference.scheduler import PIECE, QueueFull, Scheduler, Text, Work

if TYPE_CHECKING:
    from parlance.inference.model import Model

SCORED_VALUES = 2**25
"""Most logits of scored prompts a step (128 MiB)."""


@dataclass(eq=False)
class _Job:
    """A text, its sampler and its reader."""

    text: Text
    stream: Stream
    sampler: Sampler
    limit: int
    """Tokens to write at most."""
    ending: Ending
    """Why it ends at the limit."""
    submitted: float
    cancelled: bool = False
    written: int = 0


class Engine:
    """One model, one thread that owns it, and the texts that go through it."""

    def __init__(
        self,
        backend: Backend,
        *,
        vocab_size: int | None = None,
        limits: Limits | None = None,
        most_running: int = 64,
        most_waiting: int = 256,
        step_tokens: int = 512,
        step_seconds: float = 0.1,
        description: str = "",
    ) -> None:
        """`vocab_size`: only ids below it are drawn (None: all). `limits`: how long texts may be (None: as the
        backend's context and memory have it). `step_tokens`: most tokens of prompts in a step; `step_seconds`: while
        texts are being written, prompts are read in pieces that take about this long, but of 32 tokens at least."""
        self.backend = backend
        self.vocab_size = min(vocab_size or backend.vocab_size, backend.vocab_size)
        self.limits = limits or Limits.of(backend)
        self.description = description
        self._scheduler = Scheduler(
            PageTable(backend.pages, backend.page_size),
            most_running=most_running,
            most_waiting=most_waiting,
            most_scored=SCORED_VALUES // backend.vocab_size,
        )
        self._step_tokens, self._step_seconds = step_tokens, step_seconds
        self._token_seconds = 0.0  # of a prompt, as measured lately
        self._jobs: dict[Text, _Job] = {}
        self._changed = threading.Condition()  # guards the scheduler, the jobs, and what follows
        self._closing = False
        self._failure: EngineError | None = None
        self._books = Books()
        self._thread = threading.Thread(target=self._run, name="parlance-engine", daemon=True)
        self._thread.start()

    # --- from any thread ---

    def submit(self, request: Request) -> Stream:
        """Have a text continued. Raises UserError where its prompt does not fit or is none of this model's, QueueFull
        where too many wait, and EngineError where the engine is closed or broken."""
        tokens = self.limits.beginning(request)
        limit, ending = self.limits.room(request, len(tokens))
        sampler = Sampler(request.sampling, request.prompt, vocab_size=self.vocab_size, constraint=request.constraint)
        stream = Stream(request, self._cancel)
        text = Text(tokens, scored=request.prompt_log_probs)
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise EngineError("the engine is closed")
            job = _Job(text, stream, sampler, limit, ending, time.perf_counter())
            self._scheduler.add(text)
            over = None
            try:
                # What a form prescribes from the very beginning is read with the prompt, where that is no source.
                over = self._write(job, []) if limit and self.limits.total is not None else None
                if over is None:
                    self._jobs[text] = job
                    self._changed.notify_all()
            finally:
                if text not in self._jobs:
                    self._scheduler.remove(text)
            if over is not None:
                stream.end(over)
        return stream

    def metrics(self) -> Metrics:
        """How the engine stands."""
        with self._changed:
            return replace(
                self._books.count,
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                pages=self._scheduler.table.pages,
                pages_used=self._scheduler.table.used,
            )

    def close(self, drain: bool = True) -> None:
        """Take no more texts; finish those that are there or, without `drain`, cancel them; and end the thread."""
        with self._changed:
            self._closing = True
            for job in [] if drain else self._jobs.values():
                job.cancelled = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def _cancel(self, stream: Stream) -> None:
        with self._changed:
            for job in self._jobs.values():
                if job.stream is stream:
                    job.cancelled = True
                    self._changed.notify_all()

    # --- the engine's thread ---

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Nothing can go on: every reader is told."""
        with self._changed:
            self._failure = EngineError(f"the engine has stopped: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for job in jobs:
            job.stream.end(None, self._failure)

    def _turn(self) -> bool:
        """One step, after waiting for something to do; False: there will be nothing any more."""
        with self._changed:
            while not self._jobs:
                if self._closing:
                    return False
                self._changed.wait()
            self._drop_cancelled()
            if not self._jobs:
                return True
            works = self._scheduler.plan(self._budget())
        if not works:
            raise RuntimeError("there are texts and nothing is to be done for any of them")
        now = time.perf_counter()
        for work in works:
            self._note_start(self._jobs[work.text], now)
        steps = self._computed(works)
        seconds = time.perf_counter() - now
        self._note_step(works, seconds)
        with self._changed:
            self._scheduler.done([work for work, _ in steps])
        for work, logits in steps:
            job = self._jobs[work.text]
            if job.cancelled:
                self._end(job, "cancelled")
                continue
            try:
                self._advance(job, work, logits)
            except Exception as error:  # of this text alone: its sampler, its form
                self._end(job, None, error)
        return True

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs.values() if job.cancelled]:
            self._end(job, "cancelled")

    def _budget(self) -> int:
        """Tokens of prompts in the next step."""
        writing = any(not text.reading for text in self._scheduler.running)
        if not writing or not self._token_seconds:
            return self._step_tokens
        # Never less than what the time is measured by, for one slow step would then be believed for ever.
        return min(self._step_tokens, max(PIECE, int(self._step_seconds / self._token_seconds)))

    def _computed(self, works: list[Work]) -> list[tuple[Work, NDArray[np.float32]]]:
        """Logits (wanted, V) of each work. Where the step fails, each text alone, and only those that fail end."""
        pieces = [
            Piece(work.text.tokens[work.start : work.start + work.count], work.start, work.text.pages, work.wanted)
            for work in works
        ]
        try:
            logits = self.backend.step(pieces)
        except Exception:
            return [step for work, piece in zip(works, pieces, strict=True) for step in self._alone(work, piece)]
        ends = np.cumsum([piece.wanted for piece in pieces])
        return list(zip(works, np.split(logits, ends[:-1]), strict=True))

    def _alone(self, work: Work, piece: Piece) -> list[tuple[Work, NDArray[np.float32]]]:
        try:
            return [(work, self.backend.step([piece]))]
        except Exception as error:
            self._end(self._jobs[work.text], None, error)
            return []

    def _advance(self, job: _Job, work: Work, logits: NDArray[np.float32]) -> None:
        """What a text does with its logits: note what its prompt's tokens get, and draw the next one."""
        if job.text.scored and len(logits):
            self._score(job, work, logits)
        if not work.last:
            return
        if not job.limit:
            self._end(job, job.ending)
            return
        draw = job.sampler.draw(logits[-1, : self.vocab_size])
        ending = self._write(job, [draw])
        if ending is not None:
            self._end(job, ending)
        elif self.limits.total is not None and len(job.text.tokens) > self.limits.total:
            with self._changed:
                self._scheduler.restart(job.text, job.text.tokens[-self.limits.slid :])

    def _write(self, job: _Job, draws: list[Draw]) -> Ending | None:
        """Give drawn tokens out, and those that must follow, which are read in the next step all at once; why the text
        ends with them, or None."""
        draws = draws + [Draw(token, 0.0) for token in job.sampler.forced()]
        stop = job.stream.request.stop
        ends = next((place for place, draw in enumerate(draws) if draw.token in stop), None)
        draws, room = draws[:ends], job.limit - job.written
        cut, draws = len(draws) > room, draws[:room]
        if draws:
            job.written += len(draws)
            job.text.tokens += [draw.token for draw in draws]
            self._note_tokens(job, len(draws))
            job.stream.put(draws)
        if not cut and (ends is not None or job.sampler.finished):
            return "stop"
        return job.ending if job.written == job.limit else None

    def _score(self, job: _Job, work: Work, logits: NDArray[np.float32]) -> None:
        """log p of the prompt's tokens that these logits (rows, V) predict, where they are not known yet."""
        known = len(job.stream.prompt_draws)
        first = work.start + work.count - len(logits) + 1  # the token that the first row predicts
        skipped = max(0, known + 1 - first)
        tokens = job.text.tokens[first + skipped : min(first + len(logits), job.text.prompt)]
        if not tokens:
            return
        log_probs = torch.from_numpy(logits[skipped : skipped + len(tokens)]).log_softmax(-1)
        own = log_probs.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1).tolist()
        count = job.stream.request.sampling.top_logprobs or 0
        best = log_probs.topk(min(count, log_probs.shape[1]), dim=-1)
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        job.stream.prompt_draws += [
            Draw(token, value, tuple(zip(ids, values, strict=True)))
            for token, value, (ids, values) in zip(tokens, own, tops, strict=True)
        ]

    def _end(self, job: _Job, ending: Ending | None, error: Exception | None = None) -> None:
        """A text leaves; its memory is free before its reader knows."""
        with self._changed:
            self._scheduler.remove(job.text)
            del self._jobs[job.text]
            self._books.ended(cancelled=ending == "cancelled", failed=error is not None, preempted=job.text.preempted)
        job.stream.end(ending, error)

    # --- books ---

    def _note_start(self, job: _Job, now: float) -> None:
        if job.stream.queue_seconds is None:
            with self._changed:
                job.stream.queue_seconds = now - job.submitted
                job.stream.cached_tokens = job.text.cached or 0
                self._books.began(
                    prompt=job.text.prompt, cached=job.stream.cached_tokens, waited=job.stream.queue_seconds
                )

    def _note_step(self, works: list[Work], seconds: float) -> None:
        with self._changed:
            self._books.stepped(texts=len(works), seconds=seconds)
        if any(work.count >= PIECE for work in works):
            latest = seconds / sum(work.count for work in works)
            self._token_seconds = (self._token_seconds + latest) / 2 if self._token_seconds else latest

    def _note_tokens(self, job: _Job, tokens: int) -> None:
        after = None
        if job.stream.first_token_seconds is None:
            after = job.stream.first_token_seconds = time.perf_counter() - job.submitted
        with self._changed:
            self._books.wrote(tokens, first_after=after)


def open_engine(
    model: "Model",
    *,
    most_running: int = 64,
    most_waiting: int = 256,
    cache_bytes: int | None = None,
    weights: Weights = "auto",
    step_tokens: int = 512,
    step_seconds: float = 0.1,
) -> Engine:
    """An engine for a loaded model, with the fastest backend that it has here; see `Engine` and `choose_backend`.

    `Engine.description` says what was chosen. Raises UserError where there is no memory for texts.
    """
    chosen = choose_backend(
        model.language_model,
        most_running=most_running,
        cache_bytes=cache_bytes,
        weights=weights,
        quantised=model.quantised,
    )
    limits = Limits.of(chosen.backend, source_length=chosen.source_length, reads_source=chosen.reads_source)
    return Engine(
        chosen.backend,
        vocab_size=model.tokenizer.vocab_size,
        limits=limits,
        most_running=most_running,
        most_waiting=most_waiting,
        step_tokens=step_tokens,
        step_seconds=step_seconds,
        description=chosen.description,
    )


__all__ = ["Engine", "EngineError", "Limits", "Metrics", "QueueFull", "Request", "Stream", "open_engine"]
