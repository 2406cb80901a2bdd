"""How long a prompt and a text may be, of a model's context and an engine's memory, and what is done with longer ones.

limits = Limits.of(backend)
tokens = limits.beginning(request)                      # the prompt, or its end; UserError where it does not fit
most, ending = limits.room(request, len(tokens))        # tokens to write, and what ends the text there
"""

from dataclasses import dataclass

from parlance.core.errors import UserError
from parlance.inference.backend import Backend
from parlance.inference.reading import check_ids
from parlance.inference.requests import Ending, Request


@dataclass(frozen=True)
class Limits:
    """How long texts may be."""

    vocab_size: int
    """Tokens are ids below it."""
    total: int | None
    """Most tokens of a prompt and what is written together; None: the prompt is a source, and apart from it."""
    source: int | None = None
    """Most tokens of a source; None: no limit."""
    written: int | None = None
    """Most tokens that are written to a source; None: no limit."""

    @classmethod
    def of(cls, backend: Backend, *, source_length: int | None = None, reads_source: bool = False) -> "Limits":
        """Those of a backend; `reads_source`: its prompts are an encoder-decoder's sources."""
        context = backend.context_length
        if reads_source:  # the decoder's context begins with a token of its own
            return cls(backend.vocab_size, None, source_length, None if context is None else context - 1)
        memory = backend.pages * backend.page_size
        return cls(backend.vocab_size, memory if context is None else min(context, memory))

    @property
    def slid(self) -> int:
        """How many tokens a text goes on from that slides."""
        return max(1, (self.total or 0) // 2)

    def beginning(self, request: Request) -> list[int]:
        """The tokens of a prompt that are read. Raises UserError where it is empty, holds an id that the model does not
        have, or is too long and may not be cut."""
        tokens = [int(token) for token in request.prompt]
        if not tokens:
            raise UserError("the prompt is empty; give at least one token")
        check_ids(tokens, self.vocab_size)
        most = self.source if self.total is None else self.total - min(1, request.most)
        if most is None or len(tokens) <= most:
            return tokens
        if request.sampling.overflow == "error":
            raise UserError(
                f"the prompt has {len(tokens)} tokens and at most {most} fit; shorten it, or let the context slide"
            )
        if self.total is not None:
            slides = request.sampling.overflow == "slide"
            most = self.slid if slides else self.total - min(request.most, self.total // 2)
        return tokens[-most:]

    def room(self, request: Request, prompt: int) -> tuple[int, Ending]:
        """How many tokens may be written behind a prompt, and what it is that ends a text there."""
        room = self.written
        if self.total is not None and request.sampling.overflow != "slide":
            room = self.total - prompt
        return (request.most, "max_tokens") if room is None or request.most <= room else (room, "context")
