"""The books of an engine's memory: which pages are free, whose, and which hold a beginning that another text may share.

Pages are numbered from 0 and hold `page_size` tokens each. A page that is full can be published: a later text that
begins with the same tokens takes it as it is. What is published forms a tree: a page is found under the page before it
and its own tokens, so that it stands for everything from the text's first token on; Python's dictionary hashes the pair
and compares the tokens. A page that nobody uses stays published until its room is needed; the one that was given back
longest ago goes first, and of one text the last page first, so that what is left is always a beginning.

Does not know what is in a page. Not for several threads at once.

    table = PageTable(pages=100, page_size=32)
    shared = table.find(prompt)                                  # pages of a beginning that is there already
    own = table.take(3)
    node = table.publish(ROOT, prompt[:32], own[0])
    table.give_back([*shared, *own])

Source: Kwon et al. 2023 (paged attention), section 4.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from parlance.inference.backend import UNDIVIDED

ROOT = 0
"""The node of the empty beginning."""

Key = tuple[int, tuple[int, ...]]
"""The node of what is before a page, and its tokens."""


@dataclass(frozen=True)
class Found:
    """A beginning that is in memory."""

    pages: list[int]
    """Its full pages in order."""
    node: int
    """What stands for it; `ROOT` where there is no page."""


class PageTable:
    """Which page belongs to how many texts, and what the published ones hold."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages, self.page_size = pages, page_size
        self._users = [0] * pages
        self._free: OrderedDict[int, None] = OrderedDict((page, None) for page in range(pages))  # next to go first
        self._published: dict[Key, tuple[int, int]] = {}  # (page, node)
        self._keys: dict[int, Key] = {}  # of published pages
        self._nodes = ROOT

    @property
    def shares(self) -> bool:
        """Whether texts can share pages."""
        return self.page_size != UNDIVIDED

    @property
    def free(self) -> int:
        """Pages that no text uses; some may still be published."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages that a text uses."""
        return self.pages - len(self._free)

    def users(self, page: int) -> int:
        """How many texts use a page."""
        return self._users[page]

    def needed(self, tokens: int) -> int:
        """Pages of a text of so many tokens."""
        return -(-tokens // self.page_size) if self.shares else 1

    def find(self, tokens: Sequence[int]) -> Found:
        """The longest published beginning of `tokens`, in full pages. Uses none of them yet."""
        pages: list[int] = []
        node = ROOT
        for start in range(0, len(tokens) - self.page_size + 1 if self.shares else 0, self.page_size):
            entry = self._published.get((node, tuple(tokens[start : start + self.page_size])))
            if entry is None:
                break
            pages.append(entry[0])
            node = entry[1]
        return Found(pages, node)

    def unused(self, pages: Sequence[int]) -> int:
        """How many of these published pages no text uses now: using them takes them from the free ones."""
        return sum(not self._users[page] for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Use published pages for one text more."""
        for page in pages:
            self._users[page] += 1
            self._free.pop(page, None)

    def take(self, count: int) -> list[int] | None:
        """So many pages for one text to write to; None, and nothing taken, where there are not enough."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in taken:
            self._users[page] = 1
            key = self._keys.pop(page, None)
            if key is not None:
                del self._published[key]
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        """A text ends its use of its pages, given in its order."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free[page] = None
                if page not in self._keys:  # nothing to keep: the first to be taken
                    self._free.move_to_end(page, last=False)

    def publish(self, before: int, tokens: Sequence[int], page: int) -> int:
        """Offer a full page, whose text must still use it, to others; the node of the text up to its end.

        before: the node of what is in front of it. Where another page holds the same, that one stays the one offered.
        """
        key = (before, tuple(tokens))
        entry = self._published.get(key)
        if entry is None:
            self._nodes += 1
            entry = page, self._nodes
            self._published[key] = entry
            self._keys[page] = key
        return entry[1]

    def key(self, before: int, tokens: Sequence[int], start: int) -> Key | None:
        """What the page of tokens[start : start + page_size] would be published as; None: it is not full."""
        if not self.shares or start + self.page_size > len(tokens):
            return None
        return before, tuple(tokens[start : start + self.page_size])
