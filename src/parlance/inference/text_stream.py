"""From tokens to text that is certain: whole characters, and nothing that may turn out to begin a stop string.

    text = TextStream(tokenizer, stop=["\n\n"])
    pieces = [text.push(token) for token in tokens]
    pieces.append(text.finish())

What comes out joined together is the text of the tokens up to where the first stop string is complete, however the
text is divided into tokens; bytes that are no UTF-8 become U+FFFD, as when they are decoded at once.
"""

import codecs
from collections.abc import Sequence

from parlance.text.tokenizers import Tokenizer


class TextStream:
    """The text of one sequence of tokens, as it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """`stop`: strings, none empty, that end the text and are not part of it."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._beginnings = {string[:length] for string in stop for length in range(1, len(string))}
        self._longest = max(map(len, stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """Whether a stop string is complete: what follows is not part of the text."""

    def push(self, token: int) -> str:
        """The text that is certain after one more token; often nothing."""
        return "" if self.stopped else self._grown(self._decoder.decode(self._tokenizer.continued_bytes(token)))

    def finish(self) -> str:
        """What is left when no more tokens come: a character that was cut is U+FFFD."""
        if self.stopped:
            return ""
        rest = self._grown(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return rest

    def _grown(self, text: str) -> str:
        """Take `text` in, and give what no stop string can reach any more."""
        if not self._stop:
            return text
        if not text:
            return ""
        text = self._held + text
        found = [(place + len(string), place) for string in self._stop if (place := text.find(string)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            # Where characters come one by one, the first to be complete ends the text.
            return text[: min(found)[1]]
        longest = min(self._longest - 1, len(text))
        held = next((n for n in range(longest, 0, -1) if text[-n:] in self._beginnings), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]
