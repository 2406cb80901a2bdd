"""Find personal data in one text.

    find_pii("mail ada@lovelace.org or call 212-555-0123", PIIConfig())
    # -> [Span(5, 21, "EMAIL", 1.0), Span(30, 42, "PHONE", 0.95)]

Each category has a finder that proposes spans with scores; what scores at least `config.min_score` and wins against the
spans it overlaps stays. The result is a function of text and configuration alone.
"""

from collections.abc import Iterator

from parlance.text.pii.addresses import find_addresses
from parlance.text.pii.config import Category, PIIConfig
from parlance.text.pii.keys import find_crypto_addresses, find_secrets
from parlance.text.pii.names import find_people
from parlance.text.pii.national_ids import find_national_ids
from parlance.text.pii.network import find_emails, find_ips, find_macs, find_url_credentials, find_user_names
from parlance.text.pii.numbers import find_cards, find_ibans, find_phones, find_ssns
from parlance.text.pii.prefilter import Traits, is_possible, traits
from parlance.text.pii.spans import Span, resolve_overlaps


def find_pii(text: str, config: PIIConfig) -> list[Span]:
    """Spans of personal data in `text`, by start, no two overlapping. Offsets count characters. Never raises."""
    has = traits(text)
    found = [
        span
        for category in config.categories
        if is_possible(category, has)
        for span in _find(text, category, config, has)
        if span.score >= config.min_score
    ]
    return resolve_overlaps(found) if found else found


def _find(text: str, category: Category, config: PIIConfig, has: Traits) -> Iterator[Span]:
    match category:
        case "SECRET":
            return find_secrets(text, has.has_token)
        case "URL_CREDENTIALS":
            return find_url_credentials(text)
        case "EMAIL":
            return find_emails(text)
        case "IBAN":
            return find_ibans(text)
        case "CREDIT_CARD":
            return find_cards(text)
        case "CRYPTO":
            return find_crypto_addresses(text)
        case "US_SSN":
            return find_ssns(text)
        case "NATIONAL_ID":
            return find_national_ids(text)
        case "IP":
            return find_ips(text, config.public_ips_only)
        case "MAC":
            return find_macs(text)
        case "PHONE":
            return find_phones(text, config.phone_regions)
        case "ADDRESS":
            return find_addresses(text)
        case "PERSON":
            return find_people(text)
        case "USER_NAME":
            return find_user_names(text)
