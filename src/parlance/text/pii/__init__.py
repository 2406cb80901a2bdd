"""Personal data: find it (`find_pii`), and replace it by placeholders or pseudonyms (`Redactor`).

    Redactor(PIIConfig()).redact("mail ada@lovelace.org").text   # -> "mail <EMAIL>"

Rules, checksums and context words; no model, no network. What is found is counted, never stored.
"""

from parlance.text.pii.config import CATEGORIES, Category, PIIConfig
from parlance.text.pii.finding import find_pii
from parlance.text.pii.redaction import Redaction, RedactionMode, Redactor
from parlance.text.pii.spans import Span

__all__ = ["CATEGORIES", "Category", "PIIConfig", "Redaction", "RedactionMode", "Redactor", "Span", "find_pii"]
