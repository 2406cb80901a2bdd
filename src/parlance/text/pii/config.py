"""Which personal data is looked for, and how sure a finding must be.

    PIIConfig(categories=("EMAIL", "PHONE", "PERSON"), min_score=0.6)

How each category is found is in the module of its finder.
"""

from typing import Literal, get_args

from pydantic import Field

from parlance.core.config import Config

Category = Literal[
    "SECRET",
    "URL_CREDENTIALS",
    "EMAIL",
    "IBAN",
    "CREDIT_CARD",
    "CRYPTO",
    "US_SSN",
    "NATIONAL_ID",
    "IP",
    "MAC",
    "PHONE",
    "ADDRESS",
    "PERSON",
    "USER_NAME",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)
"""All categories; where length, score and start of two findings are equal, the one named first here stays."""


class PIIConfig(Config):
    """What counts as personal data."""

    categories: tuple[Category, ...] = tuple(c for c in CATEGORIES if c not in ("ADDRESS", "PERSON", "USER_NAME"))
    """What to look for. Default: all that a checksum, an issuer's form or a strict grammar decides. Street
    addresses, names of people and `@handles` are found by rules that miss some and mark some that are none: ask
    for them by name."""
    min_score: float = Field(default=0.5, ge=0, le=1)
    """Findings below this score are dropped. A weak form scores 0.3 to 0.45 and gains 0.35 when a word such as "phone"
    is among the five words before it."""
    public_ips_only: bool = True
    """Keep private, documentation, loopback and otherwise unroutable addresses, and well-known public name servers."""
    phone_regions: tuple[str, ...] = ("US", "GB", "DE", "FR", "IT", "ES", "NL", "BE", "CH", "AT", "SE", "AU")
    """Countries (ISO 3166) whose national numbering plans decide about a number that starts with 0 and has neither a
    country code nor a word such as "phone" before it."""
