"""The page table against a plain model of it, and the scheduler without any language model."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.inference.backend import UNDIVIDED
from parlance.inference.pages import ROOT, PageTable
from parlance.inference.scheduler import SMALL, QueueFull, Scheduler, Text, Work

# --- pages -----------------------------------------------------------------------------------------------------------


def put(table: PageTable, tokens: list[int]) -> list[int]:
    """A text of these tokens, its full pages published."""
    found = table.find(tokens)
    table.share(found.pages)
    own = table.take(table.needed(len(tokens)) - len(found.pages))
    assert own is not None
    pages, node, size = [*found.pages, *own], found.node, table.page_size
    for number in range(len(found.pages), len(tokens) // size):
        node = table.publish(node, tokens[number * size : (number + 1) * size], pages[number])
    return pages


def test_a_common_beginning_is_found_in_full_pages():
    table = PageTable(10, 4)
    pages = put(table, list(range(10)))
    assert table.find([*range(8), 99, 98]).pages == pages[:2]
    assert table.find([*range(7), 99]).pages == pages[:1]
    assert table.find([*range(3)]).pages == []
    assert table.find([9, *range(1, 9)]).pages == []


def test_equal_pages_behind_different_beginnings_are_different():
    table = PageTable(10, 2)
    put(table, [1, 1, 7, 7])
    other = put(table, [2, 2, 7, 7])
    assert table.find([2, 2, 7, 7]).pages == other
    assert len(set(other)) == 2
    assert table.used == 4


def test_pages_stay_until_their_room_is_needed_the_oldest_text_and_its_end_first():
    table = PageTable(5, 2)
    first, second = put(table, [1, 1, 2, 2]), put(table, [5, 5, 6, 6])
    table.give_back(first)
    table.give_back(second)
    assert table.free == 5
    assert table.find([1, 1, 2, 2]).pages == first
    table.take(1)  # the page that was never used
    assert table.find([1, 1, 2, 2]).pages == first
    table.take(1)
    assert table.find([1, 1, 2, 2]).pages == first[:1]
    table.take(1)
    assert table.find([1, 1, 2, 2]).pages == []
    assert table.find([5, 5, 6, 6]).pages == second
    assert table.take(3) is None
    assert table.take(2) is not None
    assert table.free == 0


def test_undivided_memory_is_a_page_a_text_and_shares_nothing():
    table = PageTable(2, UNDIVIDED)
    assert table.needed(1) == table.needed(10**9) == 1
    assert table.find([1, 2, 3]).pages == []
    assert table.key(ROOT, [1, 2], 0) is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_table_against_a_plain_model(data):
    """Whatever texts come and go: a page of several texts holds the same beginning in all, and none is lost."""
    size = data.draw(st.integers(1, 3))
    table = PageTable(12, size)
    alive: list[tuple[list[int], list[int]]] = []
    content: dict[int, tuple[int, ...]] = {}  # all tokens up to a page's end
    for _ in range(data.draw(st.integers(1, 30))):
        if alive and data.draw(st.booleans()):
            tokens, pages = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            table.give_back(pages)
        tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=10))
        found = table.find(tokens)
        for number, page in enumerate(found.pages):
            assert content[page] == tuple(tokens[: (number + 1) * size])
        if table.needed(len(tokens)) - len(found.pages) + table.unused(found.pages) > table.free:
            continue
        pages = put(table, tokens)
        assert len(set(pages)) == len(pages) == table.needed(len(tokens))
        for number, page in enumerate(pages):
            end = tuple(tokens[: (number + 1) * size])
            for other_tokens, other_pages in alive:
                if page in other_pages:
                    assert other_pages.index(page) == number
                    assert tuple(other_tokens[: len(end)]) == end
                    assert len(end) == (number + 1) * size
            content[page] = end
        alive.append((tokens, pages))
        held = {page for _, pages in alive for page in pages}
        assert table.used == len(held)
        assert all(table.users(page) == sum(page in pages for _, pages in alive) for page in range(12))
    for _, pages in alive:
        table.give_back(pages)
    assert table.free == 12


# --- the scheduler ---------------------------------------------------------------------------------------------------


def scheduler(pages: int = 40, size: int = 4, running: int = 8, waiting: int = 100, scored: int = 1000) -> Scheduler:
    return Scheduler(PageTable(pages, size), most_running=running, most_waiting=waiting, most_scored=scored)


def step(plan: Scheduler, lengths: dict[Text, int], budget: int) -> tuple[list[Work], list[Text]]:
    """One step with a model whose next token is a function of those before; what was done, and texts that ended."""
    works = plan.plan(budget)
    check(plan, works, budget)
    plan.done(works)
    ended = []
    for work in works:
        if work.last:
            work.text.tokens.append(sum(work.text.tokens) * 31 % 97)
            if len(work.text.tokens) >= lengths[work.text]:
                plan.remove(work.text)
                ended.append(work.text)
    return works, ended


def run(plan: Scheduler, lengths: dict[Text, int], budget: int, steps: int = 10_000) -> list[Text]:
    """Run to the end; the texts as they end."""
    ended = []
    for _ in range(steps):
        if not plan.running and not plan.waiting:
            return ended
        works, newly = step(plan, lengths, budget)
        assert works, "texts are there and nothing is done"
        ended += newly
    raise AssertionError("texts never end")


def check(plan: Scheduler, works: list[Work], budget: int) -> None:
    """What must hold of every step."""
    table = plan.table
    assert len({id(work.text) for work in works}) == len(works)
    assert all(work.text in plan.running for work in works)
    assert sum(work.count for work in works if work.text.reading) <= budget
    writing = [text for text in plan.running if not text.reading]
    assert all(any(work.text is text and work.last for work in works) for text in writing), "a stream stands still"
    held = [page for text in plan.running for page in text.pages]
    assert table.used == len(set(held))
    assert not any(text.pages for text in plan.waiting)
    arrivals = [[text.arrival for text in texts] for texts in (plan.running, plan.waiting)]
    assert all(numbers == sorted(numbers) for numbers in arrivals)
    for work in works:
        assert work.start == work.text.read
        assert 0 < work.count <= work.text.pending
        assert len(work.text.pages) >= table.needed(work.start + work.count)
        if table.shares:
            first, last = work.start // table.page_size, (work.start + work.count - 1) // table.page_size
            assert all(table.users(page) == 1 for page in work.text.pages[first : last + 1]), "written while shared"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_text_ends_and_no_page_is_lost_or_written_while_shared(data):
    size = data.draw(st.sampled_from([1, 3, 4, UNDIVIDED]))
    pages = data.draw(st.integers(8, 30)) if size != UNDIVIDED else data.draw(st.integers(1, 5))
    capacity = pages * size
    running = data.draw(st.integers(1, 8)) if size != UNDIVIDED else pages
    plan = scheduler(pages, size, running=running)
    common = data.draw(st.lists(st.integers(0, 2), max_size=12))
    texts, lengths = [], {}
    most = min(capacity, 60)
    for _ in range(data.draw(st.integers(1, 12))):
        own = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
        tokens = (common if data.draw(st.booleans()) else []) + own
        text = Text(tokens[: most - 1] or [0], scored=data.draw(st.booleans()))
        texts.append(text)
        lengths[text] = min(most, len(text.tokens) + data.draw(st.integers(1, 20)))
    expected = {text: list(text.tokens) for text in texts}
    for text, tokens in expected.items():
        while len(tokens) < lengths[text]:
            tokens.append(sum(tokens) * 31 % 97)
    cancelled = []
    budget = data.draw(st.integers(1, 40))
    for text in texts:
        plan.add(text)
        if data.draw(st.booleans()):
            cancelled += step(plan, lengths, budget)[1]
        if data.draw(st.integers(0, 5)) == 0:
            plan.remove(text)
            cancelled.append(text)
    ended = run(plan, lengths, budget)
    assert len({id(text) for text in [*ended, *cancelled]}) == len(texts)
    assert all(text.tokens == expected[text] for text in ended)
    assert plan.table.free == pages
    assert plan.table.used == 0


def test_texts_are_let_in_by_arrival():
    plan = scheduler(running=2)
    texts = [Text([number] * 5) for number in range(4)]
    for text in texts:
        plan.add(text)
    assert [work.text for work in plan.plan(100)] == texts[:2]
    assert plan.waiting == texts[2:]


def test_a_long_prompt_leaves_half_of_each_step_to_those_behind_it():
    plan = scheduler(pages=400)
    long, short = Text([1] * 1000), Text([2] * 40)
    plan.add(long)
    plan.add(short)
    works = plan.plan(100)
    assert [(work.text, work.count) for work in works] == [(long, 48), (short, 40)]
    assert works[1].last
    assert works[1].wanted == 1
    assert works[0].wanted == 0


def test_a_prompt_alone_takes_the_whole_step():
    plan = scheduler(pages=400)
    plan.add(Text([1] * 1000))
    assert [work.count for work in plan.plan(100)] == [100]


def test_streams_go_on_while_a_prompt_is_read():
    plan = scheduler(pages=400)
    stream, long = Text([1] * 4), Text([2] * 1000)
    plan.add(stream)
    plan.done(plan.plan(100))
    stream.tokens.append(5)
    plan.add(long)
    for _ in range(5):
        works = plan.plan(100)
        assert [(work.text, work.count, work.wanted) for work in works] == [(stream, 1, 1), (long, 100, 0)]
        plan.done(works)
        stream.tokens.append(5)


def test_prescribed_tokens_are_read_in_one_piece():
    plan = scheduler()
    text = Text([1] * 4)
    plan.add(text)
    plan.done(plan.plan(100))
    text.tokens += [5] * SMALL
    assert [(work.count, work.wanted) for work in plan.plan(1)] == [(SMALL, 1)]


def test_texts_with_a_common_beginning_wait_until_it_is_computed_and_share_it():
    plan = scheduler(pages=400, running=9)
    common = list(range(100))
    texts = [Text([*common, 200 + number]) for number in range(8)]
    other = Text([7] * 20)
    for text in [*texts, other]:
        plan.add(text)
    first = plan.plan(200)
    assert [work.text for work in first] == [texts[0], other], "the others wait for the first, and hold up nobody"
    plan.done(first)
    second = plan.plan(200)
    assert {work.text for work in second} >= set(texts[1:])
    assert all(text.cached == 100 for text in texts[1:])
    assert sum(work.count for work in second if work.text in texts[1:]) == 7


def test_the_last_to_arrive_makes_room_and_is_read_again():
    plan = scheduler(pages=5, size=4)
    first, last = Text([1] * 8), Text([2] * 4)
    plan.add(first)
    plan.add(last)
    plan.done(plan.plan(100))
    for text in (first, last):
        text.tokens.append(9)
    works = plan.plan(100)
    plan.done(works)
    assert last.preempted == 0
    assert plan.table.free == 0
    first.tokens += [9] * 4
    works = plan.plan(100)
    assert [work.text for work in works] == [first]
    assert last.preempted == 1
    assert plan.waiting == [last]
    assert last.tokens == [2] * 4 + [9]
    assert not last.pages


def test_scored_prompts_are_computed_whole_a_few_rows_a_step():
    plan = scheduler(pages=400, scored=16)
    plan.add(Text([1] * 40))
    plan.done(plan.plan(100))
    plan.add(Text([1] * 40, scored=True))
    wanted = []
    for _ in range(3):
        works = [work for work in plan.plan(100) if work.text.scored]
        wanted += [(work.start, work.count, work.wanted) for work in works]
        plan.done(works)
    assert wanted == [(0, 16, 16), (16, 16, 16), (32, 8, 8)]


def test_the_queue_is_bounded():
    plan = scheduler(waiting=3)
    for _ in range(3):
        plan.add(Text([1]))
    with pytest.raises(QueueFull):
        plan.add(Text([1]))
    plan.done(plan.plan(100))
    plan.add(Text([1]))


def test_a_restarted_text_gives_its_pages_back_and_goes_on_first():
    plan = scheduler(pages=40, running=1)
    text, later = Text([1] * 20), Text([2])
    plan.add(text)
    plan.add(later)
    plan.done(plan.plan(100))
    plan.restart(text, [3] * 10)
    assert plan.table.used == 0
    assert [(work.text, work.start, work.count) for work in plan.plan(100)] == [(text, 0, 10)]


def test_plans_do_not_depend_on_chance():
    def once() -> list[tuple[int, int, int]]:
        plan, random_numbers, trace = scheduler(pages=20), random.Random(3), []
        texts = [Text([random_numbers.randrange(2) for _ in range(random_numbers.randrange(1, 30))]) for _ in range(9)]
        for text in texts:
            plan.add(text)
        for _ in range(20):
            works = plan.plan(13)
            trace += [(work.text.arrival, work.start, work.count) for work in works]
            plan.done(works)
            for work in works:
                if work.last:
                    work.text.tokens.append(1)
        return trace

    assert once() == once()
