"""Who reads what in the next step of an engine: texts in order of arrival, a few tokens of each. Holds no model.

There is no reading and no writing phase (Kwon et al. 2023; Agrawal et al. 2024): a text is a list of known tokens, of
which some are in memory, and each step reads some of the others. A text whose known tokens are all read gets its next
one drawn. The rules:

1. Texts that are being written go on in every step. What is left of the step's budget goes to prompts, in order of
   arrival, in pieces: where several prompts wait, each takes at most half of what is left, so that a long one delays
   nobody.
2. A text is let in when all its known tokens fit into memory, and takes their pages then. The next one may overtake it
   only where it would compute a beginning that a text before it is just computing: it waits for that, and shares it.
3. Where a text that is being written finds no page for its next token, the text that arrived last gives all its pages
   back and waits again. What it has written stays, and is read again later: its result does not change.

    scheduler = Scheduler(PageTable(100, 32), most_running=16, most_waiting=64)
    scheduler.add(Text([1, 2, 3]))
    for work in scheduler.plan(budget=512): ...          # read work.text.tokens[work.start : work.start + work.count]
    scheduler.done(works)
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from parlance.inference.pages import ROOT, Key, PageTable

SMALL = 16
"""Most tokens that a text reads outside the budget: the one drawn last, and those that a form prescribed after it."""
PIECE = 32
"""A prompt takes this many tokens of the budget where they are there, however many prompts wait: less does not pay."""


class QueueFull(Exception):  # noqa: N818  (the name says it)
    """Too many texts wait already; try again later."""


@dataclass(eq=False)
class Text:
    """One text as the scheduler sees it."""

    tokens: list[int]
    """All that are known; at least one. The engine appends what is drawn."""
    scored: bool = False
    """Whether the logits of all the tokens that it is added with are wanted: then nothing is shared with it."""
    prompt: int = field(init=False)
    """How many tokens it is added with."""
    arrival: int = -1
    """Its number in the order of arrival."""
    pages: list[int] = field(default_factory=list)
    read: int = 0
    """How many of the tokens are in memory."""
    cached: int | None = None
    """How many of them were there already when it was first let in; None before that."""
    published: int = 0
    """How many of its pages are offered to others, or from others."""
    node: int = ROOT
    """What stands for these in the page table."""
    preempted: int = 0
    """How many times it gave its pages back."""

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that are known and not in memory."""
        return len(self.tokens) - self.read

    @property
    def scoring(self) -> bool:
        """Whether the logits of the next tokens are wanted, all of them."""
        return self.scored and self.read < self.prompt

    @property
    def reading(self) -> bool:
        """Whether what is pending is a prompt, for which there is a budget."""
        return self.pending > SMALL or self.scoring


@dataclass(frozen=True)
class Work:
    """What one text reads in a step."""

    text: Text
    start: int
    count: int
    wanted: int
    """Of how many of these tokens, the last ones, the logits are wanted."""

    @property
    def last(self) -> bool:
        """Whether no known token is left behind these: the next one is drawn."""
        return self.start + self.count == len(self.text.tokens)


class Scheduler:
    """The texts of an engine, running and waiting, and their pages."""

    def __init__(self, table: PageTable, *, most_running: int, most_waiting: int, most_scored: int = 1024) -> None:
        """`most_scored`: rows of logits a step that are computed for scored prompts."""
        self.table, self.most_running, self.most_waiting = table, most_running, most_waiting
        self.most_scored = max(1, most_scored)
        self.running: list[Text] = []  # both in order of arrival
        self.waiting: list[Text] = []
        self._arrivals = 0

    def add(self, text: Text) -> None:
        """Let a text wait for its turn. Raises QueueFull where `most_waiting` wait already."""
        if len(self.waiting) >= self.most_waiting:
            raise QueueFull(f"{len(self.waiting)} texts wait already")
        text.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        self.waiting.append(text)

    def remove(self, text: Text) -> None:
        """A text that has ended, or is given up, wherever it stands. Its pages are free at once."""
        if text in self.running:
            self.running.remove(text)
            self._free(text)
        elif text in self.waiting:
            self.waiting.remove(text)

    def restart(self, text: Text, tokens: list[int]) -> None:
        """A running text goes on as this text, read anew."""
        text.tokens, text.scored = tokens, False
        self._put_back(text)

    def plan(self, budget: int) -> list[Work]:
        """What the next step reads, with at most `budget` (at least 1) tokens of prompts; empty: nothing is to do.

        Takes the pages for it; `done` must follow.
        """
        self._make_room()
        self._let_in(budget)
        works = [self._work(text, text.pending) for text in self.running if text.pending and not text.reading]
        reading = [text for text in self.running if text.reading]
        rows = self.most_scored
        for text in reading:
            count = min(text.pending, budget if text is reading[-1] else _share(budget))
            if text.scoring:
                count = min(count, rows)
                rows -= count
            else:
                count = self._whole_pages(text, count)
            if count > 0:
                works.append(self._work(text, count))
                budget -= count
        return works

    def done(self, works: Iterable[Work]) -> None:
        """The step has run: these tokens are in memory, and pages that are full now can be shared."""
        for work in works:
            text, size = work.text, self.table.page_size
            text.read += work.count
            while self.table.shares and (text.published + 1) * size <= text.read:
                start = text.published * size
                text.node = self.table.publish(text.node, text.tokens[start : start + size], text.pages[text.published])
                text.published += 1

    # --- steps of `plan` ---

    def _make_room(self) -> None:
        """Pages for the next tokens of the texts that run; the last of them may have to give its own back for that."""
        for text in list(self.running):
            while text in self.running:
                missing = self.table.needed(len(text.tokens)) - len(text.pages)
                pages = self.table.take(missing) if missing > 0 else []
                if pages is not None:
                    text.pages += pages
                    break
                self._put_back(self.running[-1])

    def _let_in(self, budget: int) -> None:
        """Move texts from waiting to running while there are pages, room, and tokens of the budget for them."""
        reading = [text for text in self.running if text.reading]
        for text in reading:
            budget -= min(text.pending, _share(budget))
        computing = {self._next_page(text) for text in reading} - {None}
        for text in list(self.waiting):
            if len(self.running) >= self.most_running or budget <= 0:
                return
            # The last token is always read, for its logits.
            found = self.table.find([] if text.scored else text.tokens[:-1])
            start = len(found.pages) * self.table.page_size if found.pages else 0
            if not text.scored and self.table.key(found.node, text.tokens[:-1], start) in computing:
                continue
            needed = self.table.needed(len(text.tokens)) - len(found.pages)
            # Each running text may soon need a page: without any left, one would be sent back at once.
            spare = len(self.running) if self.table.shares else 0
            if needed + self.table.unused(found.pages) + spare > self.table.free:
                return
            self.table.share(found.pages)
            text.pages = [*found.pages, *(self.table.take(needed) or [])]
            text.read, text.published, text.node = start, len(found.pages), found.node
            text.cached = start if text.cached is None else text.cached
            self.waiting.remove(text)
            insort(self.running, text, key=lambda each: each.arrival)
            budget -= min(text.pending, _share(budget))
            if text.reading:
                computing.add(self._next_page(text))

    def _next_page(self, text: Text) -> Key | None:
        return self.table.key(text.node, text.tokens, text.published * self.table.page_size if text.published else 0)

    def _whole_pages(self, text: Text, count: int) -> int:
        """As many of the next `count` tokens as end with a page, where any do and others are left: pieces of a prompt
        then end at the same places whenever it is read, and its numbers are the same."""
        if not self.table.shares or count == text.pending:
            return count
        return count - (text.read + count) % self.table.page_size if count >= self.table.page_size else count

    def _work(self, text: Text, count: int) -> Work:
        if text.scoring:
            return Work(text, text.read, count, count)
        return Work(text, text.read, count, int(count == text.pending))

    def _put_back(self, text: Text) -> None:
        """A running text gives its pages back and waits again, in its place by arrival."""
        self.running.remove(text)
        self._free(text)
        text.preempted += 1
        insort(self.waiting, text, key=lambda each: each.arrival)

    def _free(self, text: Text) -> None:
        self.table.give_back(text.pages)
        text.pages, text.read, text.published, text.node = [], 0, 0, ROOT


def _share(budget: int) -> int:
    """Tokens of the budget that one of several prompts may take."""
    return max(-(-budget // 2), min(budget, PIECE))
