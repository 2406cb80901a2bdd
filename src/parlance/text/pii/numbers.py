"""Payment cards, IBANs, United States social security numbers and phone numbers.

    list(find_cards("card 4111 1111 1111 1111"))   # -> [Span(5, 24, "CREDIT_CARD", 1.0)]

Every pattern starts with a digit (a set search in C) and every repetition is bounded: time is linear in the text.
Checksums decide where they exist; without one, form and the words before a number do. Phone numbers with a country
code are checked against the numbering plans of the library phonenumbers; others by their form.
"""

import re
from collections.abc import Iterator

from parlance.text.pii.checksums import IBAN_LENGTHS, iban, luhn
from parlance.text.pii.context import has_context, mentioned_near, supported, word_set, words_before
from parlance.text.pii.spans import Span

_CARD = re.compile(
    r"[0-9](?<![0-9][0-9])[0-9]{3}"
    r"(?:([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|([ -])[0-9]{6}\2[0-9]{4,5}|[0-9]{8,15})(?![0-9])"
)
_CARD_WORDS = word_set(
    "card cards cc credit debit visa mastercard amex maestro discover jcb diners unionpay creditcard carte karte "
    "tarjeta"
)
_IBAN_START = re.compile(
    r"[0-9][0-9](?<=[A-Za-z]{2}[0-9]{2})(?<![A-Za-z0-9][A-Za-z]{2}[0-9]{2})[ -]?(?=[A-Za-z0-9]{2})"
)

_SSN = re.compile(r"[0-9](?<![0-9][0-9])[0-9]{2}([- ]?)[0-9]{2}\1[0-9]{4}(?![0-9])")
_SSN_WORDS = frozenset({"ssn", "ssns", "social", "security", "ss", "socialsecurity"})
_NOT_SSNS = frozenset({"078051120", "123456789", "219099999"})

_GAP = r"(?:[ .\-/]|[ .\-/]?\( ?|\)[ .\-/]{0,2}| - )?"
_PHONE = re.compile(
    rf"[0-9](?<![0-9][0-9])(?:{_GAP}[0-9]){{6,14}}(?![0-9])"
    r"(?: ?(?:x|ext\.?|extension) ?[0-9]{1,6}(?![0-9]))?"
)
_NORTH_AMERICAN = re.compile(
    r"(?<![0-9])(?:(?:001|1)[-. ]?)?\(?[2-9][0-9]{2}(?:\)[-. ]{0,2}|[-. ])[0-9]{3}[-. ][0-9]{4}(?![0-9]|[-.][0-9])"
)
_EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?[0-9]{1,6}(?![0-9])")
_PHONE_WORDS = word_set(
    "phone phones telephone tel tél tlf mobile mob cellphone fax landline hotline whatsapp sms callback telefon handy "
    "móvil teléfono telefono telefone téléphone telefoon puhelin gsm"
)
_WEAK_PHONE_WORDS = word_set(
    "cell cellular call calling calls desk text texting message messages contact reach ring dial answer answering"
)
"""They count only before a number that is written in groups or has at least ten digits."""
_NOT_PHONE_FORM = re.compile(r"[+(]?[0-9]+\.[0-9]+\)?|.*[.\-/]{2}.*|[0-9]{1,3}(?:\.[0-9]{1,3}){3}|0-[0-9]+")
"""A decimal, a range, a dotted quad."""
_SSN_FORM = re.compile(r"[0-9]{3}-[0-9]{2}-[0-9]{4}")
_DATE = re.compile(
    r"(?:1[5-9]|20)[0-9]{2}([-./ ])[01]?[0-9]\1[0-3]?[0-9](?![0-9])"
    r"|[0-3]?[0-9]([-./ ])[0-3]?[0-9]\2(?:1[5-9]|20)[0-9]{2}(?![0-9])"
    r"|(?:1[5-9]|20)[0-9]{2} ?[-/] ?(?:1[5-9]|20)[0-9]{2}(?![0-9])"
)
_NOT_PHONE_NEAR = ("isbn", "issn", "doi:", "doi ", "doi.", "#")
_NOT_PHONE_WORDS = word_set(
    "isbn issn doi order orders invoice tracking serial number ref id ticket page pages pp vol volume version sku "
    "patent card account iban"
)


def find_cards(text: str) -> Iterator[Span]:
    """Payment card numbers: an issuer's prefix and length, and Luhn; rare issuers only after a word such as "card"."""
    place = 0
    while match := _CARD.search(text, place):
        place = match.start() + 4
        start, end = match.span()
        if _touches_number(text, start, end):
            continue
        digits = re.sub(r"[ -]", "", match[0])
        if len(set(digits)) < 2 or not luhn(digits):
            continue
        issued = _has_card_issuer(digits)
        if issued or (_has_weak_issuer(digits) and has_context(text, start, _CARD_WORDS)):
            yield Span(start, end, "CREDIT_CARD", 1.0 if issued else 0.85)
            place = end


def _has_card_issuer(digits: str) -> bool:
    """Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay by prefix and length (ISO/IEC 7812)."""
    length, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if two in (34, 37):
        return length == 15
    if two in (36, 38) or 300 <= three <= 305 or four == 3095:
        return length == 14 or length == 16
    if four == 6011 or two == 65 or 644 <= three <= 649 or 3528 <= four <= 3589:
        return length in (16, 19)
    return (four in (2131, 1800) and length == 15) or (two == 62 and length in (16, 17, 18, 19))


def _has_weak_issuer(digits: str) -> bool:
    """Maestro and its kin (12 to 19 digits), or a card's usual lengths under any prefix 3 to 6."""
    return (digits[0] in "3456" and 12 <= len(digits) <= 19) or (digits[0] == "2" and len(digits) == 16)


def find_ibans(text: str) -> Iterator[Span]:
    """IBANs in one piece or in groups, in either case: the country's length, and 97."""
    for match in _IBAN_START.finditer(text):
        start = match.start() - 2
        length = IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None:
            continue
        kept: list[str] = []
        place = start
        while len(kept) < length and place < len(text):
            character = text[place]
            if character.isascii() and character.isalnum():
                kept.append(character)
            elif character not in " -" or not kept or not text[place - 1].isalnum():
                break
            place += 1
        if len(kept) == length and not text[place : place + 1].isalnum() and iban("".join(kept).upper()):
            yield Span(start, place, "IBAN", 1.0)


def find_ssns(text: str) -> Iterator[Span]:
    """United States social security numbers: ranges that can be issued; with hyphens, or after "ssn", "social" or
    their kin."""
    for match in _SSN.finditer(text):
        start, end = match.span()
        digits = re.sub(r"[- ]", "", match[0])
        if digits[:3] in ("000", "666") or digits[0] == "9" or digits[3:5] == "00" or digits[5:] == "0000":
            continue
        if len(set(digits)) == 1 or digits in _NOT_SSNS or _touches_number(text, start, end):
            continue
        score = 0.6 if match[1] == "-" else 0.3
        yield Span(start, end, "US_SSN", supported(score, text, start, _SSN_WORDS))


def find_phones(text: str, regions: tuple[str, ...]) -> Iterator[Span]:
    """Phone numbers: international, North American, national ones with a leading 0, any after "phone" or its kin."""
    for match in _PHONE.finditer(text):
        start, end = match.span()
        if start and text[start - 1] == "(" and ")" in match[0]:
            start -= 1
        if start and text[start - 1] == "+":
            start -= 1
        if start >= 2 and text[start - 2 : start] == "(+":
            start -= 2
        span = _judge_phone(text, start, end, regions)
        if span is None:
            part = _NORTH_AMERICAN.search(text, start, end)
            if part and part.span() != (start, end):
                tail = _EXTENSION.match(text, part.end())
                span = _judge_phone(text, part.start(), tail.end() if tail else part.end(), regions)
        if span:
            yield span


def _judge_phone(text: str, start: int, end: int, regions: tuple[str, ...]) -> Span | None:
    value = text[start:end]
    if _DATE.match(value) or value.count("(") != value.count(")") or _NOT_PHONE_FORM.fullmatch(value):
        return None
    spoken = has_context(text, start, _PHONE_WORDS)
    if not spoken and (len(value) >= 10 or not value.isdigit()) and not _SSN_FORM.fullmatch(value):
        spoken = has_context(text, start, _WEAK_PHONE_WORDS)
    if _touches_number(text, start, end):
        return None
    international = _international_validity(value) if value.startswith(("+", "(+")) else None
    if (
        not spoken
        and international != 2
        and (
            mentioned_near(text, start, end, _NOT_PHONE_NEAR)
            or not _NOT_PHONE_WORDS.isdisjoint(words_before(text, start, 2))
        )
    ):
        return None
    if international is not None:
        score = (0.0, 0.6, 0.95)[international]
    elif _NORTH_AMERICAN.match(value):
        score = 0.6
    elif value.startswith(("0", "(0")) and re.search(r"[ .\-()/]", value) and _is_national(value, regions):
        score = 0.55
    else:
        score = 0.3
    if spoken:
        score = min(1.0, score + 0.35)
    return Span(start, end, "PHONE", score)


def _international_validity(value: str) -> int:
    """0: no such country code or length; 1: the length is possible; 2: the numbering plan knows the number."""
    import phonenumbers

    try:
        number = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException:
        return 0
    return 2 if phonenumbers.is_valid_number(number) else int(phonenumbers.is_possible_number(number))


def _is_national(value: str, regions: tuple[str, ...]) -> bool:
    import phonenumbers

    for region in regions:
        try:
            number = phonenumbers.parse(value, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(number, region):
            return True
    return False


def _touches_number(text: str, start: int, end: int) -> bool:
    """Whether a candidate is a piece of a longer number, word, path, decimal or amount."""
    if start:
        before = text[start - 1]
        if (
            before.isalnum()
            or before in "_$€£¥%@\\=&+-"
            or (before in ".,/:" and start >= 2 and text[start - 2].isalnum())
        ):
            return not (before == ":" and not text[start - 2].isdigit())
    after = text[end : end + 2]
    return bool(after) and (after[0].isalnum() or after[0] in "_%" or (after[0] in ".,/:-" and after[1:].isalnum()))
