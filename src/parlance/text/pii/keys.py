"""Secrets (keys, tokens, passwords in configuration) and addresses of crypto-currencies.

    list(find_secrets('aws = "AKIA' + "IOSFODNN7ABCDEFG" + '"'))   # -> [Span(7, 27, "SECRET", 0.95)]

Secrets are found by the forms that issuers publish, by armour (private key blocks), by structure (JSON web tokens),
and by a telling name before a random value ("api_key = ..."). A random string alone is not enough: hashes, UUIDs and
encoded images are random too. Crypto-currency addresses are decided by base58check or bech32; Ethereum's by form and
a word before it.
"""

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from parlance.text.pii.checksums import base58check, bech32
from parlance.text.pii.context import has_context, word_set
from parlance.text.pii.spans import Span

_ISSUED: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (literal, re.compile(pattern + r"(?![A-Za-z0-9])"))
    for literal, pattern in (
        ("AKIA", r"AKIA[0-9A-Z]{16}"),
        ("ASIA", r"ASIA[0-9A-Z]{16}"),
        ("AIza", r"AIza[0-9A-Za-z_-]{35}"),
        ("ya29.", r"ya29\.[0-9A-Za-z_-]{20,400}"),
        ("GOCSPX-", r"GOCSPX-[0-9A-Za-z_-]{28}"),
        ("ghp_", r"ghp_[0-9A-Za-z]{36}"),
        ("gho_", r"gho_[0-9A-Za-z]{36}"),
        ("ghu_", r"ghu_[0-9A-Za-z]{36}"),
        ("ghs_", r"ghs_[0-9A-Za-z]{36}"),
        ("ghr_", r"ghr_[0-9A-Za-z]{36}"),
        ("github_pat_", r"github_pat_[0-9A-Za-z_]{22,255}"),
        ("glpat-", r"glpat-[0-9A-Za-z_-]{20,64}"),
        ("xox", r"xox[abeoprs]-[0-9A-Za-z-]{10,250}"),
        ("hooks.slack.com/", r"hooks\.slack\.com/services/T[0-9A-Z]{8,12}/B[0-9A-Z]{8,12}/[0-9A-Za-z]{24}"),
        ("_live_", r"(?<=[spr]k)_live_[0-9A-Za-z]{16,128}"),
        ("_test_", r"(?<=[spr]k)_test_[0-9A-Za-z]{16,128}"),
        ("whsec_", r"whsec_[0-9A-Za-z]{24,64}"),
        ("SG.", r"SG\.[0-9A-Za-z_-]{22}\.[0-9A-Za-z_-]{43}"),
        ("npm_", r"npm_[0-9A-Za-z]{36}"),
        ("pypi-", r"pypi-AgEIcHlwaS5vcmc[0-9A-Za-z_-]{50,400}"),
        ("sk-", r"sk-(?:ant-|proj-|svcacct-|or-)?[0-9A-Za-z_-]{20,250}"),
        ("hf_", r"hf_[0-9A-Za-z]{34}"),
        ("-us", r"(?<=[0-9a-f]{32})-us[0-9]{1,2}"),
        ("dop_v1_", r"dop_v1_[0-9a-f]{64}"),
        ("shpat_", r"shpat_[0-9a-fA-F]{32}"),
        ("AKCp", r"AKCp[0-9A-Za-z]{20,80}"),
        ("AccountKey=", r"(?<=AccountKey=)[0-9A-Za-z+/=]{88}"),
        ("EAACEdEose0cBA", r"EAACEdEose0cBA[0-9A-Za-z]{10,250}"),
        ("sq0", r"sq0(?:atp|csp)-[0-9A-Za-z_-]{22,43}"),
        ("key-", r"key-[0-9a-f]{32}"),
    )
)
"""A literal that is cheap to search for, and the whole form; Mailchimp, Stripe and Azure begin before or after it."""

_ARMOUR = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_ARMOUR_END = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_ARMOUR_BODY = re.compile(r"[A-Za-z0-9+/=:,\s-]{0,20000}")
_LONGEST_ARMOUR = 20_000
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{16,2000}")

_ASSIGNMENT = re.compile(r"[=:][=>]?[ \t]{0,4}[\"'`]?([A-Za-z0-9_+/=.~!@#$%^&*?-]{8,200})")
_NAME = re.compile(
    r"(?i:pass(?:word|wd|phrase|code)?|pwd|secret|token|api[_ -]?key|access[_ -]?key|auth[_ -]?key|private[_ -]?key|"
    r"encryption[_ -]?key|signing[_ -]?key|account[_ -]?key|credentials?|bearer|authorization|"
    r"secret[_ -]?(?:access[_ -]?)?key|"
    r"(?:api|auth|access|client|app)[_ -]?(?:token|secret|id[_ -]?secret))"
    r"[\"'`\])]{0,2}[ \t]{0,4}\Z"
)
_QUERY_NAME = re.compile(r"[?&][A-Za-z0-9_.-]{1,40}\Z")
"""A parameter of a URL: for `find_url_credentials` to judge."""
_BEARER = re.compile(r"(?i:earer) {1,2}([A-Za-z0-9_+/=.~-]{16,2000})")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_NO_SECRET = re.compile(
    r"(?i:example|your|changeme|placeholder|xxxx|\*\*\*|dummy|sample|1234567|abcdef|\.\.\.|none|null|true|false)"
)
_CODE = re.compile(r"[A-Za-z_][A-Za-z_]*(?:\.[A-Za-z_][A-Za-z_]*)*[(;,]?|.*[$%]\{|[$%<{(].*")
_LEAST_ENTROPY = 2.8

_BASE58_STRING = re.compile(r"[13LMDT](?<![A-Za-z0-9].)[1-9A-HJ-NP-Za-km-z]{24,34}(?![A-Za-z0-9])")
_BECH32_STRING = re.compile(r"(?:bc1|tb1|ltc1|BC1|TB1|LTC1)(?<![A-Za-z0-9]...)[A-Za-z0-9]{8,86}(?![A-Za-z0-9])")
_ETHEREUM = re.compile(r"0x[0-9a-fA-F]{40}(?![0-9A-Za-z])")
_ETHEREUM_WORDS = word_set("eth ether ethereum wallet address token contract usdt usdc erc20 metamask donate donation")


def find_secrets(text: str, has_token: bool = True) -> Iterator[Span]:
    """API keys, tokens, private keys, and values of variables that are named like secrets.

    `has_token`: false where `prefilter.traits` says that the text has no long token; only the last two are looked for.
    """
    for literal, form in _ISSUED if has_token else ():
        if literal in text:
            yield from _issued(text, literal, form)
    if "PRIVATE KEY" in text:
        place = 0
        while match := _ARMOUR.search(text, place):
            # Without an end line (cut text), whatever looks like the key's lines.
            close = _ARMOUR_END.search(text, match.end(), match.end() + _LONGEST_ARMOUR)
            body = _ARMOUR_BODY.match(text, match.end())
            place = close.end() if close else body.end() if body else match.end()
            yield Span(match.start(), place, "SECRET", 1.0)
    if "eyJ" in text:
        for match in _JWT.finditer(text):
            if _is_jwt_header(match[0].partition(".")[0]):
                yield Span(match.start(), match.end(), "SECRET", 1.0)
    if "earer " in text:
        for match in _BEARER.finditer(text):
            if _is_random(match[1]):
                yield Span(match.start(1), match.end(1), "SECRET", 0.8)
    for match in _assignments(text):
        window = max(0, match.start() - 48), match.start()
        if _NAME.search(text, *window) and not _QUERY_NAME.search(text, *window) and _is_random(match[1]):
            yield Span(match.start(1), match.end(1), "SECRET", 0.75)


def _assignments(text: str) -> Iterator[re.Match[str]]:
    for sign in ":=":
        place = text.find(sign)
        while place >= 0:
            match = _ASSIGNMENT.match(text, place)
            if match:
                yield match
            place = text.find(sign, place + 1)


def _issued(text: str, literal: str, form: re.Pattern[str]) -> Iterator[Span]:
    place = text.find(literal)
    while place >= 0:
        match = form.match(text, place)
        start = place
        if literal in ("_live_", "_test_"):
            start -= 2
        elif literal == "-us":
            start -= 32
        free = start <= 0 or not text[start - 1].isalnum() or literal == "hooks.slack.com/"
        if match and free and any(c.isdigit() for c in match[0]) and len(set(match[0])) > 3:
            yield Span(start, match.end(), "SECRET", 0.95)
        place = text.find(literal, place + len(literal))


def _is_jwt_header(part: str) -> bool:
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and ("alg" in header or "enc" in header)


def _is_random(value: str) -> bool:
    """Whether a value looks generated: letters with digits, high entropy, no template, identifier, path or UUID."""
    value = value.rstrip(".,;")
    digits = sum(character.isdigit() for character in value)
    letters = sum(character.isalpha() for character in value)
    if not letters or digits < 1 or len(value) < 8 or _UUID.fullmatch(value):
        return False
    if _NO_SECRET.search(value) or _CODE.fullmatch(value) or "://" in value:
        return False
    return _entropy(value) >= _LEAST_ENTROPY


def _entropy(value: str) -> float:
    """Shannon entropy of the characters of `value`, in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def find_crypto_addresses(text: str) -> Iterator[Span]:
    """Bitcoin, Litecoin, Dogecoin and Tron by checksum; Ethereum (`0x`, 40 hexadecimal digits) after a word for it."""
    for match in _BASE58_STRING.finditer(text):
        if base58check(match[0]):
            yield Span(match.start(), match.end(), "CRYPTO", 1.0)
    if "bc1" in text or "tb1" in text or "tc1" in text or "BC1" in text or "TB1" in text or "TC1" in text:
        for match in _BECH32_STRING.finditer(text):
            if bech32(match[0]):
                yield Span(match.start(), match.end(), "CRYPTO", 1.0)
    if "0x" in text:
        for match in _ETHEREUM.finditer(text):
            if has_context(text, match.start(), _ETHEREUM_WORDS) and len(set(match[0])) > 4:
                yield Span(match.start(), match.end(), "CRYPTO", 0.85)
