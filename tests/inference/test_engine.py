"""The engine against generation of one text alone, and its life: cancellation, errors, endings, closing."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.inference.backend import UNDIVIDED, Backend, Piece
from parlance.inference.engine import Engine, EngineError, QueueFull, Request, Stream, open_engine
from parlance.inference.generation import stream
from parlance.inference.kernels.kernel_backend import KernelBackend
from parlance.inference.limits import Limits
from parlance.inference.sampler import Sampler
from parlance.inference.sampling import SamplingConfig
from parlance.inference.state_backend import StateBackend
from parlance.inference.torch_backend import TorchBackend
from parlance.models.contract import LanguageModel
from parlance.models.recurrent import Recurrent, RecurrentConfig
from parlance.models.transformer import Transformer

PROMPTS = [[5, 3, 200], [7], list(range(40, 60)), [9, 9], [250, 1, 2, 3, 4, 5, 6], list(range(30)), [*range(29), 7]]
SAMPLINGS = [
    SamplingConfig(max_tokens=16, temperature=0.0),
    SamplingConfig(max_tokens=16, temperature=0.8, top_p=0.9, seed=1),
    SamplingConfig(max_tokens=16, top_k=20, presence_penalty=0.5, repetition_penalty=1.2, seed=2),
]


@pytest.fixture
def model(tiny_transformer) -> Transformer:
    return tiny_transformer(heads=4, kv_heads=2, head_width=8)


@torch.inference_mode()
def alone(
    model: LanguageModel, prompt: Sequence[int], sampling: SamplingConfig, stop: Collection[int] = ()
) -> tuple[list[int], str]:
    """This one text, everything read anew for each token, and why it ends."""
    text, sampler = list(prompt), Sampler(sampling, prompt, vocab_size=model.vocab_size)
    while len(text) < len(prompt) + sampling.max_tokens:
        token = sampler.draw(model.forward(torch.tensor([text]))[0][0, -1]).token
        if token in stop:
            return text[len(prompt) :], "stop"
        text.append(token)
    return text[len(prompt) :], "max_tokens"


def generated(model: LanguageModel, prompt: Sequence[int], sampling: SamplingConfig) -> tuple[list[int], str]:
    """What `generation.stream` makes of it."""
    tokens, pieces = [], stream(model, prompt, sampling, ())
    while True:
        try:
            tokens.append(next(pieces))
        except StopIteration as end:
            return tokens, end.value


def tokens_of(answer: Stream) -> list[int]:
    return [draw.token for draw in answer]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Counting:
    """A model without one: the token after t is t + 1, in 100; steps wait at a gate where there is one."""

    def __init__(self, pages: int = 64, page_size: int = 4, gate: threading.Semaphore | None = None) -> None:
        self.vocab_size, self.context_length, self.pages, self.page_size = 100, 60, pages, page_size
        self.gate = gate
        self.steps: list[list[Piece]] = []
        self.fails: Callable[[Piece], BaseException | None] = lambda _: None

    def step(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        self.steps.append([Piece(list(p.tokens), p.start, list(p.pages), p.wanted) for p in pieces])
        for piece in pieces:
            error = self.fails(piece)
            if error is not None:
                raise error
        rows = [token for p in pieces for token in p.tokens[len(p.tokens) - p.wanted :]]
        logits = np.zeros((len(rows), 100), np.float32)
        for row, token in enumerate(rows):
            logits[row, (token + 1) % 100] = 20.0
        return logits


GREEDY = SamplingConfig(max_tokens=5, temperature=0.0)

# --- the same texts as alone -----------------------------------------------------------------------------------------


def backends(model: Transformer) -> Iterator[Backend]:
    yield TorchBackend(model, pages=64, page_size=8)
    yield TorchBackend(model, pages=9, page_size=8)  # texts have to make room for each other
    yield KernelBackend(model, "float32", pages=12, page_size=16, cache="float32")


def test_texts_in_a_batch_are_those_of_generation_alone(model):
    cases = [(prompt, sampling) for prompt in PROMPTS for sampling in SAMPLINGS]
    expected = [alone(model, prompt, sampling, stop=[17]) for prompt, sampling in cases]
    assert {ending for _, ending in expected} >= {"max_tokens", "stop"}
    for backend in backends(model):
        with Engine(backend, most_running=6, step_tokens=20) as engine:
            answers = [engine.submit(Request(prompt, sampling, frozenset({17}))) for prompt, sampling in cases]
            found = [(tokens_of(answer), answer.ending) for answer in answers]
            assert found == expected
            metrics = engine.metrics()
        assert metrics.pages_used == metrics.running == metrics.waiting == 0
        assert metrics.finished == metrics.started == len(cases)
        assert metrics.generated_tokens == sum(len(tokens) for tokens, _ in expected)
        if backend.pages == 9:
            assert metrics.preempted > 0


@pytest.mark.parametrize("overflow", ["error", "slide"])
def test_texts_that_outgrow_the_context(model, overflow):
    sampling = SamplingConfig(max_tokens=90, temperature=0.0, overflow=overflow)
    prompts = [[5, 3, 200], list(range(40)), list(range(100, 163)), list(range(180))][: 4 if overflow == "slide" else 3]
    with Engine(TorchBackend(model, pages=24, page_size=8)) as engine:
        answers = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            assert (tokens_of(answer), answer.ending) == generated(model, prompt, sampling)


def test_a_longer_prompt_can_lose_its_beginning(model):
    """So much that there is room for what is to be written, of half the context at most."""
    for most, kept in ((10, 54), (90, 32)):
        sampling = SamplingConfig(max_tokens=most, temperature=0.0)
        cut = sampling.model_copy(update={"overflow": "truncate"})
        with Engine(TorchBackend(model, pages=24, page_size=8)) as engine:
            answer = engine.submit(Request(list(range(180)), cut))
            assert (tokens_of(answer), answer.ending) == generated(model, list(range(180 - kept, 180)), sampling)


def test_a_recurrent_model():
    network = Recurrent(RecurrentConfig(vocab_size=260, width=16, layers=2))
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    with Engine(StateBackend(network, texts=3), most_running=3) as engine:
        answers = [engine.submit(Request(prompt, sampling)) for prompt in PROMPTS for sampling in SAMPLINGS]
        found = [tokens_of(answer) for answer in answers]
    assert found == [alone(network, prompt, sampling)[0] for prompt in PROMPTS for sampling in SAMPLINGS]


def test_a_tokenizer_smaller_than_the_model(model):
    with Engine(TorchBackend(model, pages=20), vocab_size=50) as engine:
        answer = engine.submit(Request([7], SamplingConfig(max_tokens=20, temperature=0.0)))
        expected = list(stream(model, [7], SamplingConfig(max_tokens=20, temperature=0.0), (), 50))
        assert tokens_of(answer) == expected
    assert max(expected) < 50


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_a_common_beginning_is_computed_once(model):
    common = list(range(100, 140))
    with Engine(TorchBackend(model, pages=40, page_size=8)) as engine:
        answers = [engine.submit(Request([*common, number], GREEDY)) for number in range(6)]
        for number, answer in enumerate(answers):
            assert tokens_of(answer) == alone(model, [*common, number], GREEDY)[0]
        assert sorted(answer.cached_tokens for answer in answers) == [0, 40, 40, 40, 40, 40]
        # An answer can be gone on from too.
        longer = [*common, 0, *alone(model, [*common, 0], GREEDY)[0], 50, 51, 52, 53]
        answer = engine.submit(Request(longer, GREEDY))
        assert tokens_of(answer) == alone(model, longer, GREEDY)[0]
        assert answer.cached_tokens == 40
        assert engine.metrics().cached_tokens == 6 * 40


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_log_probs_of_a_prompt(model):
    prompt = list(range(40))
    with torch.inference_mode():
        log_probs = model.forward(torch.tensor([prompt]))[0][0].log_softmax(-1)
    sampling = SamplingConfig(max_tokens=3, temperature=0.0, top_logprobs=2)
    with Engine(TorchBackend(model, pages=30, page_size=8), step_tokens=7) as engine:
        tokens_of(engine.submit(Request(prompt, sampling)))  # its pages are not used for a text that is scored
        for most in (0, None):
            request = Request(prompt, sampling, max_tokens=most, prompt_log_probs=True)
            answer = engine.submit(request)
            written = list(answer)
            assert [draw.token for draw in answer.prompt_draws] == prompt[1:]
            for place, draw in enumerate(answer.prompt_draws):
                best = log_probs[place].topk(2)
                assert draw.log_prob == pytest.approx(float(log_probs[place, prompt[place + 1]]), abs=1e-4)
                assert [token for token, _ in draw.top] == best.indices.tolist()
                assert [value for _, value in draw.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert len(written) == (3 if most is None else 0)
            assert answer.ending == "max_tokens"
            assert answer.cached_tokens == 0


def test_a_scored_prompt_that_has_to_be_read_again_is_scored_once():
    both_are_there = threading.Event()

    class Held(Counting):
        def step(self, pieces):
            assert both_are_there.wait(10)
            return super().step(pieces)

    with Engine(Held(pages=18, page_size=4)) as engine:
        first = engine.submit(Request([1] * 4, SamplingConfig(max_tokens=40, temperature=0.0)))
        prompt = list(range(50, 80))
        sampling = SamplingConfig(max_tokens=20, temperature=0.0)
        scored = engine.submit(Request(prompt, sampling, prompt_log_probs=True))
        both_are_there.set()
        assert len(tokens_of(first)) == 40
        assert tokens_of(scored) == [*range(80, 100)]
        assert engine.metrics().preempted > 0
    assert [draw.token for draw in scored.prompt_draws] == prompt[1:]


# --- forms -----------------------------------------------------------------------------------------------------------


class Spelled:
    """A form of exactly one text: some of its tokens are drawn, the others prescribed."""

    def __init__(self, tokens: list[int], drawn: set[int]) -> None:
        self.tokens, self.drawn, self.at = tokens, drawn, 0

    def allowed(self) -> NDArray[np.bool_]:
        return np.arange(100) == self.tokens[self.at]

    def accept(self, token: int) -> None:
        assert token == self.tokens[self.at]
        self.at += 1

    def forced(self) -> list[int]:
        begin = self.at
        while self.at < len(self.tokens) and self.at not in self.drawn:
            self.at += 1
        return self.tokens[begin : self.at]

    @property
    def finished(self) -> bool:
        return self.at == len(self.tokens)


@pytest.mark.parametrize("drawn", [{0, 3, 4}, {2}, {4}, set()])
def test_prescribed_tokens_are_not_computed_one_by_one(drawn):
    backend = Counting()
    text = [10, 20, 30, 40, 50]
    with Engine(backend) as engine:
        answer = engine.submit(Request([1, 2], SamplingConfig(), constraint=Spelled(text, drawn)))
        draws = list(answer)
    assert [draw.token for draw in draws] == text
    assert answer.ending == "stop"
    assert [place for place, draw in enumerate(draws) if draw.log_prob != 0] == sorted(drawn)
    assert len(backend.steps) == len(drawn)
    read = [token for step in backend.steps for piece in step for token in piece.tokens]
    assert read == [1, 2, *text][: 2 + max(drawn, default=-2)]


def test_a_form_is_cut_at_the_limit():
    with Engine(Counting()) as engine:
        sampling = SamplingConfig(max_tokens=3)
        answer = engine.submit(Request([1], sampling, constraint=Spelled([10, 20, 30, 40, 50], {1})))
        assert tokens_of(answer) == [10, 20, 30]
        assert answer.ending == "max_tokens"


# --- readers ---------------------------------------------------------------------------------------------------------


def test_tokens_come_as_they_are_drawn():
    gate = threading.Semaphore(1)
    with Engine(Counting(gate=gate)) as engine:
        answer = engine.submit(Request([1], GREEDY))
        for token in (2, 3, 4):
            assert next(answer).token == token
            assert answer.ending is None
            gate.release()
        gate.release()
        assert tokens_of(answer) == [5, 6]
        assert answer.ending == "max_tokens"
        assert list(answer) == []
    assert answer.queue_seconds is not None
    assert answer.first_token_seconds is not None
    assert 0 <= answer.queue_seconds <= answer.first_token_seconds


def test_an_event_loop_reads_many_streams_at_once():
    async def read(answer: Stream) -> list[int]:
        return [draw.token async for draw in answer]

    async def main(engine: Engine) -> list[list[int]]:
        answers = [engine.submit(Request([number], GREEDY)) for number in range(20)]
        return list(await asyncio.gather(*map(read, answers)))

    with Engine(Counting()) as engine:
        assert asyncio.run(main(engine)) == [[number + place for place in range(1, 6)] for number in range(20)]


def test_an_event_loop_that_ends_leaves_the_engine_unharmed():
    gate = threading.Semaphore(1)

    async def first_token(answer: Stream) -> int:
        draw = await anext(answer)
        waiting = asyncio.ensure_future(anext(answer))
        await asyncio.sleep(0.01)
        waiting.cancel()
        return draw.token

    with Engine(Counting(gate=gate)) as engine:
        answer = engine.submit(Request([1], GREEDY))
        assert asyncio.run(first_token(answer)) == 2
        gate.release(20)
        assert tokens_of(answer) == [3, 4, 5, 6]


def test_many_threads_submit_and_read(model):
    found: dict[int, list[int]] = {}
    with Engine(TorchBackend(model, pages=40, page_size=8), most_running=4) as engine:

        def one(number: int) -> None:
            found[number] = tokens_of(engine.submit(Request([number, number], GREEDY)))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: alone(model, [number, number], GREEDY)[0] for number in range(16)}


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(5))
def test_a_text_cancelled_at_any_moment_frees_its_memory(after):
    gate = threading.Semaphore(0)
    backend = Counting(gate=gate)
    with Engine(backend) as engine:
        gone, other = engine.submit(Request([1], GREEDY)), engine.submit(Request([50], GREEDY))
        for _ in range(after):
            gate.release()
            next(gone)
        gone.cancel()
        gone.cancel()
        gate.release(30)
        assert tokens_of(other) == [51, 52, 53, 54, 55]
        list(gone)
        assert gone.ending == "cancelled"
        wait_for(lambda: engine.metrics().finished == 1)
        metrics = engine.metrics()
        assert (metrics.pages_used, metrics.cancelled, metrics.running) == (0, 1, 0)
    gone.cancel()


def test_a_text_that_waits_can_be_cancelled():
    gate = threading.Semaphore(0)
    with Engine(Counting(gate=gate), most_running=1) as engine:
        first, second, third = (engine.submit(Request([number], GREEDY)) for number in (1, 20, 30))
        second.cancel()
        gate.release(30)
        assert (tokens_of(first), tokens_of(second), tokens_of(third)) == (
            [2, 3, 4, 5, 6],
            [],
            [31, 32, 33, 34, 35],
        )
    assert second.ending == "cancelled"


def test_leaving_the_context_of_a_stream_cancels_it():
    gate = threading.Semaphore(1)
    with Engine(Counting(gate=gate)) as engine:
        with engine.submit(Request([1], GREEDY)) as answer:
            next(answer)
        gate.release(10)
        wait_for(lambda: engine.metrics().cancelled == 1)


# --- errors ----------------------------------------------------------------------------------------------------------


class Broken(Spelled):
    """A form that fails after some tokens."""

    def accept(self, token: int) -> None:
        super().accept(token)
        if self.at == 3:
            raise UserError("the form is broken")


def test_an_error_of_one_text_ends_no_other():
    backend = Counting()
    backend.fails = lambda piece: ValueError("66!") if 66 in piece.tokens else None
    with Engine(backend) as engine:
        form = Broken([10, 20, 30, 40], {0, 1, 2, 3})
        good, formed = engine.submit(Request([1], GREEDY)), engine.submit(Request([2], constraint=form))
        bad = engine.submit(Request([64], GREEDY))
        assert tokens_of(good) == [2, 3, 4, 5, 6]
        assert [next(formed).token, next(formed).token] == [10, 20]
        with pytest.raises(UserError, match="the form is broken"):
            next(formed)
        assert [next(bad).token, next(bad).token] == [65, 66]
        with pytest.raises(ValueError, match="66!"):
            next(bad)
        assert bad.ending is None
        assert tokens_of(engine.submit(Request([5], GREEDY))) == [6, 7, 8, 9, 10]
        metrics = engine.metrics()
        assert (metrics.failed, metrics.finished, metrics.pages_used) == (2, 2, 0)


def test_where_the_engine_dies_every_reader_is_told():
    gate = threading.Semaphore(0)
    backend = Counting(gate=gate)
    backend.fails = lambda piece: SystemExit("no memory left") if 12 in piece.tokens else None
    engine = Engine(backend)
    answers = [engine.submit(Request([number], SamplingConfig(max_tokens=50, temperature=0.0))) for number in (1, 10)]
    gate.release(100)
    for answer in answers:
        with pytest.raises(EngineError, match="SystemExit: no memory left"):
            list(answer)
    with pytest.raises(EngineError, match="has stopped"):
        engine.submit(Request([1]))
    engine.close()


def test_a_full_queue_is_told_at_once():
    gate = threading.Semaphore(0)
    with Engine(Counting(gate=gate), most_running=1, most_waiting=2) as engine:
        answers = [engine.submit(Request([1], GREEDY))]
        wait_for(lambda: engine.metrics().running == 1)
        answers += [engine.submit(Request([1], GREEDY)) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.submit(Request([1], GREEDY))
        gate.release(100)
        assert all(tokens_of(answer) == [2, 3, 4, 5, 6] for answer in answers)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1, 100], "token 100 is outside"), ([-1], "token -1"), ([1] * 60, "60 tokens and at most 59")],
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt, message):
    with Engine(Counting()) as engine, pytest.raises(UserError, match=message):
        engine.submit(Request(prompt, GREEDY))


def test_a_prompt_may_fill_the_context_where_nothing_is_written():
    with Engine(Counting()) as engine:
        answer = engine.submit(Request([1] * 60, GREEDY, max_tokens=0, prompt_log_probs=True))
        assert tokens_of(answer) == []
        assert len(answer.prompt_draws) == 59
        with pytest.raises(UserError, match="61 tokens and at most 60"):
            engine.submit(Request([1] * 61, GREEDY, max_tokens=0))


def test_a_form_that_fails_at_once_harms_nobody():
    class Failing(Spelled):
        def forced(self) -> list[int]:
            raise UserError("there is no such form")

    with Engine(Counting()) as engine:
        with pytest.raises(UserError, match="no such form"):
            engine.submit(Request([1], constraint=Failing([10], set())))
        assert tokens_of(engine.submit(Request([1], GREEDY))) == [2, 3, 4, 5, 6]


def test_a_text_ends_where_memory_does():
    """Less memory than one context: the limit is what fits."""
    with Engine(Counting(pages=3, page_size=4)) as engine:
        answer = engine.submit(Request([1] * 5, SamplingConfig(max_tokens=30, temperature=0.0)))
        assert len(tokens_of(answer)) == 7
        assert answer.ending == "context"


def test_limits_of_an_encoder_decoder():
    backend = Counting(pages=4, page_size=UNDIVIDED)
    limits = Limits.of(backend, source_length=10, reads_source=True)
    with Engine(backend, limits=limits, most_running=4) as engine:
        answer = engine.submit(Request([1] * 10, SamplingConfig(max_tokens=90, temperature=0.0)))
        assert len(tokens_of(answer)) == 59
        assert answer.ending == "context"
        with pytest.raises(UserError, match="at most 10 fit"):
            engine.submit(Request([1] * 11))


# --- closing ---------------------------------------------------------------------------------------------------------


def test_closing_finishes_what_is_there():
    gate = threading.Semaphore(0)
    engine = Engine(Counting(gate=gate), most_running=1)
    answers = [engine.submit(Request([number], GREEDY)) for number in range(3)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    wait_for(lambda: engine._closing)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(Request([1]))
    gate.release(100)
    closer.join()
    assert [tokens_of(answer) for answer in answers] == [[n + 1, n + 2, n + 3, n + 4, n + 5] for n in range(3)]


def test_closing_without_draining_cancels():
    gate = threading.Semaphore(0)
    engine = Engine(Counting(gate=gate), most_running=1)
    answers = [engine.submit(Request([number], GREEDY)) for number in range(3)]
    threading.Timer(0.05, gate.release).start()
    engine.close(drain=False)
    for answer in answers:
        list(answer)
    assert [answer.ending for answer in answers] == ["cancelled"] * 3
    assert not engine._thread.is_alive()


def test_prompts_are_read_in_smaller_pieces_while_texts_are_written():
    """Pieces follow the measured time: a model that needs 1 ms a token reads 50 of them in 50 ms."""
    backend = Counting(pages=200)
    backend.context_length = 500
    step = backend.step

    def slowly(pieces: Sequence[Piece]) -> NDArray[np.float32]:
        time.sleep(0.001 * sum(len(piece.tokens) for piece in pieces))
        return step(pieces)

    backend.step = slowly  # type: ignore[method-assign]
    with Engine(backend, step_tokens=100, step_seconds=0.05) as engine:
        writing = engine.submit(Request([1] * 50, SamplingConfig(max_tokens=400, temperature=0.0)))
        next(writing)
        reading = engine.submit(Request([2] * 200, GREEDY))
        tokens_of(reading)
        writing.cancel()
    sizes = [len(piece.tokens) for pieces in backend.steps for piece in pieces if piece.tokens[:2] == [2, 2]]
    assert max(sizes) <= 50
    assert min(sizes[:-1]) >= 28  # whole pages of at least 32 tokens
    assert sum(sizes) == 200


# --- a model from a folder -------------------------------------------------------------------------------------------


def test_an_engine_of_a_loaded_model(model, tiny_tokenizer, tmp_path):
    from parlance.inference.model import Model

    loaded = Model(model, tiny_tokenizer, tmp_path)
    with open_engine(loaded, most_running=4) as engine:
        assert "room for 256 tokens" in engine.description
        answers = [engine.submit(Request(prompt, SAMPLINGS[0], loaded.stop)) for prompt in PROMPTS]
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            assert tokens_of(answer) == alone(model, prompt, SAMPLINGS[0], loaded.stop)[0]
