"""What an engine counts: tokens, texts and times since it was opened.

books = Books()
books.began(prompt=10, cached=0, waited=0.01)
books.count.prompt_tokens
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metrics:
    """Counts since the engine was opened, and how it stands now."""

    running: int = 0
    """Texts that are read or written now."""
    waiting: int = 0
    """Texts in the queue now."""
    pages: int = 0
    """Of the memory."""
    pages_used: int = 0
    """Those that running texts use now."""
    started: int = 0
    """Texts that were let in."""
    answered: int = 0
    """Texts that got a token."""
    finished: int = 0
    """Texts that came to their end."""
    cancelled: int = 0
    """Texts that were given up by their readers."""
    failed: int = 0
    """Texts that an error ended."""
    preempted: int = 0
    """How many times a text had to make room and was read again."""
    prompt_tokens: int = 0
    """Of the texts that were let in."""
    cached_tokens: int = 0
    """How many of these were in memory already."""
    generated_tokens: int = 0
    """Given to readers."""
    steps: int = 0
    """Of the model."""
    step_seconds: float = 0.0
    """All steps together."""
    step_texts: int = 0
    """Texts in a step, summed over the steps: over `steps`, the mean batch."""
    queue_seconds: float = 0.0
    """Until a text was let in, summed over `started`."""
    first_token_seconds: float = 0.0
    """From the request to the first token, summed over `answered`."""


class Books:
    """Keeps the counts. For one thread at a time."""

    def __init__(self) -> None:
        self.count = Metrics()

    def began(self, *, prompt: int, cached: int, waited: float) -> None:
        """A text of `prompt` tokens was let in."""
        count = self.count
        self.count = replace(
            count,
            started=count.started + 1,
            queue_seconds=count.queue_seconds + waited,
            prompt_tokens=count.prompt_tokens + prompt,
            cached_tokens=count.cached_tokens + cached,
        )

    def stepped(self, *, texts: int, seconds: float) -> None:
        """The model read on in so many texts."""
        count = self.count
        self.count = replace(
            count,
            steps=count.steps + 1,
            step_seconds=count.step_seconds + seconds,
            step_texts=count.step_texts + texts,
        )

    def wrote(self, tokens: int, *, first_after: float | None) -> None:
        """A reader got tokens, its first ones `first_after` seconds after it asked; None: not the first."""
        count = self.count
        self.count = replace(
            count,
            generated_tokens=count.generated_tokens + tokens,
            answered=count.answered + (first_after is not None),
            first_token_seconds=count.first_token_seconds + (first_after or 0.0),
        )

    def ended(self, *, cancelled: bool, failed: bool, preempted: int) -> None:
        """A text left, after making room so many times."""
        count = self.count
        self.count = replace(
            count,
            finished=count.finished + (not cancelled and not failed),
            cancelled=count.cancelled + cancelled,
            failed=count.failed + failed,
            preempted=count.preempted + preempted,
        )
