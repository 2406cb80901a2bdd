"""National identity, tax and health numbers whose check digits the library python-stdnum knows.

    list(find_national_ids("DNI 12345678Z"))   # -> [Span(4, 13, "NATIONAL_ID", 1.0)]

Two kinds. Numbers of a form that hardly occurs by chance (two check characters or more, a birth date and a check
character, or a fixed layout) are found anywhere: Belgium, Brazil (CPF with its punctuation), Chile (RUT with its
points), China, Finland, France, Italy, Korea, Mexico (CURP), Spain (DNI, NIE), Switzerland. Numbers that are mere
digits with one check digit also need a word such as "passport" or their own name among the five words before:
Australia (TFN), Bulgaria, Canada (SIN), Croatia, Czechia, Denmark, Estonia, Germany (IdNr), India (Aadhaar), Israel,
Netherlands (BSN), Norway, Poland (PESEL), Portugal (NIF), Romania (CNP), South Africa, Sweden, Turkey, United
Kingdom (NHS), United States (ITIN). Ids without a public check (United Kingdom NINO, passports, driving licences)
are not looked for.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import NamedTuple

from parlance.text.pii.context import has_context
from parlance.text.pii.spans import Span


class _Rule(NamedTuple):
    module: str
    """Module of `stdnum` whose `is_valid` decides."""
    form: re.Pattern[str]
    words: frozenset[str]
    """Context words; empty where the form is enough."""


_GENERAL = "id identity identification national passport citizen"


def _rule(module: str, form: str, words: str = "") -> _Rule:
    return _Rule(module, re.compile(form), frozenset(f"{words} {_GENERAL}".split()) if words else frozenset())


_DIGITS_11 = r"[0-9]{11}"
_RULES = (
    _rule("es.dni", r"[0-9]{8}-?[A-Z]"),
    _rule("es.nie", r"[XYZ]-?[0-9]{7}-?[A-Z]"),
    _rule("fr.nir", r"[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"),
    _rule("it.codicefiscale", r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]"),
    _rule("br.cpf", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"),
    _rule("cn.ric", r"[1-9][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9][0-9]{3}[0-9X]"),
    _rule("be.nn", r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}"),
    _rule("fi.hetu", r"[0-3][0-9][01][0-9]{3}[-+A][0-9]{3}[0-9A-FHJ-NPR-Y]"),
    _rule("kr.rrn", r"[0-9]{2}[01][0-9][0-3][0-9]-[1-8][0-9]{6}"),
    _rule("ch.ssn", r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}"),
    _rule("mx.curp", r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]"),
    _rule("cl.rut", r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]"),
    _rule("br.cpf", _DIGITS_11, "cpf"),
    _rule("be.nn", _DIGITS_11, "rijksregister registre niss insz"),
    _rule("pl.pesel", _DIGITS_11, "pesel"),
    _rule("no.fodselsnummer", r"[0-9]{6} ?[0-9]{5}", "fødselsnummer personnummer fnr"),
    _rule("tr.tckimlik", _DIGITS_11, "kimlik tckn tc"),
    _rule("de.idnr", r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "steuer steuerid idnr identifikationsnummer tin tax"),
    _rule("hr.oib", _DIGITS_11, "oib"),
    _rule("ee.ik", _DIGITS_11, "isikukood"),
    _rule("nl.bsn", r"[0-9]{4}\.?[0-9]{2}\.?[0-9]{3}", "bsn burgerservicenummer sofinummer"),
    _rule("se.personnummer", r"(?:[0-9]{2})?[0-9]{6}[-+]?[0-9]{4}", "personnummer"),
    _rule("dk.cpr", r"[0-9]{6}-[0-9]{4}", "cpr personnummer"),
    _rule("cz.rc", r"[0-9]{6}/[0-9]{3,4}", "rodné rodne rč rc"),
    _rule("gb.nhs", r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}", "nhs"),
    _rule("in_.aadhaar", r"[2-9][0-9]{3}[ -]?[0-9]{4}[ -]?[0-9]{4}", "aadhaar aadhar uidai"),
    _rule("ca.sin", r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{3}", "sin social insurance"),
    _rule("au.tfn", r"[0-9]{3} ?[0-9]{3} ?[0-9]{2,3}", "tfn tax"),
    _rule("za.idnr", r"[0-9]{6} ?[0-9]{4} ?[0-9]{3}", "rsa"),
    _rule("pt.nif", r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "nif contribuinte"),
    _rule("il.idnr", r"[0-9]{8}-?[0-9]", "teudat zehut mispar"),
    _rule("ro.cnp", r"[1-9][0-9]{12}", "cnp"),
    _rule("bg.egn", r"[0-9]{10}", "egn егн"),
    _rule("us.itin", r"9[0-9]{2}-[0-9]{2}-[0-9]{4}", "itin taxpayer"),
)
_RUN = re.compile(r"[0-9](?<![0-9][0-9])(?:[ .\-/+]?[0-9]){5,19}")
"""At least six digits, which all but the Italian code have in a row."""
_ITALIAN_RUN = re.compile(r"[0-9][0-9][A-EHLMPRST][0-9][0-9][A-Z][0-9][0-9][0-9][A-Z]")
_LONGEST = 24


def find_national_ids(text: str) -> Iterator[Span]:
    """National ids of the countries that the module names; the score is 1 with a context word and 0.9 without."""
    for run in _ITALIAN_RUN.finditer(text):
        yield from _match_rules(text, run.start() - 6, run.start() - 5)
    for run in _RUN.finditer(text):
        # An id begins at the run or up to four letters before it (and, where two numbers touch, at a later group).
        yield from _match_rules(text, max(0, run.start() - 4), run.start() + 1)


def _match_rules(text: str, first: int, last: int) -> Iterator[Span]:
    """Ids that begin at a place from `first` to `last - 1` where no word is cut."""
    for start in range(max(0, first), last):
        if not text[start].isalnum() or (start and (text[start - 1].isalnum() or text[start - 1] in "_./-+#=$")):
            continue
        for rule in _RULES:
            match = rule.form.match(text, start, start + _LONGEST)
            if not match or _goes_on(text, match.end()):
                continue
            in_context = has_context(text, start, rule.words or _GENERAL_WORDS)
            if (in_context or not rule.words) and _is_valid(rule.module)(match[0]):
                yield Span(start, match.end(), "NATIONAL_ID", 1.0 if in_context else 0.9)
                break


_GENERAL_WORDS = frozenset(_GENERAL.split())


def _goes_on(text: str, end: int) -> bool:
    after = text[end : end + 2]
    return bool(after) and (after[0].isalnum() or after[0] == "_" or (after[0] in ".-/" and after[1:].isalnum()))


@cache
def _is_valid(module: str) -> Callable[[str], bool]:
    check: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return check
