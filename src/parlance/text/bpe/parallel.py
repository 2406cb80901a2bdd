"""Work on many texts by a few threads, in order, with little read ahead.

for result in in_order(work, chunks_of(texts), threads=2): ...
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from parlance.core.devices import usable_cores

CHUNK_CHARACTERS = 1 << 19
"""Text that a thread takes at a time: a few milliseconds of work."""

Result = TypeVar("Result")


def chunks_of(texts: Iterable[str], size: int = CHUNK_CHARACTERS) -> Iterator[list[str]]:
    """Divide `texts` into lists of about `size` characters; one long text is a list of its own."""
    chunk: list[str] = []
    length = 0
    for text in texts:
        if chunk and length + len(text) > size:
            yield chunk
            chunk, length = [], 0
        chunk.append(text)
        length += len(text)
    if chunk:
        yield chunk


def in_order(
    work: Callable[[list[str]], Result], chunks: Iterable[list[str]], threads: int | None = None
) -> Iterator[Result]:
    """`work` of each chunk, in order. At most two chunks for each thread are read ahead or wait to be taken.

    `threads`: the processor's cores by default; with 1 nothing runs beside the caller.
    """
    threads = threads or usable_cores()
    if threads == 1:
        yield from map(work, chunks)
        return
    waiting = deque[Future[Result]]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
