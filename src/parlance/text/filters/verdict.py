"""What a quality filter says of a text.

Verdict(reason="gopher-quality: too few words", figure=12.0, limit=50.0).keeps     # False
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Keep or drop, why, and the text where the filter changed it."""

    reason: str | None = None
    """None: keep; else the filter's name and the rule that was broken, one of a fixed set of phrases."""
    figure: float | None = None
    """What was measured; only with a reason."""
    limit: float | None = None
    """The limit that `figure` is beyond."""
    text: str | None = None
    """The text after the filter took lines out of it; None where it is unchanged or dropped."""

    @property
    def keeps(self) -> bool:
        """Whether the text stays in the corpus."""
        return self.reason is None


KEEP = Verdict()
