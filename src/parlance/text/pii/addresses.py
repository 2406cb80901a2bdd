"""Street addresses by rules: English, Germanic, Nordic, Romance and some Slavic and Finno-Ugric forms, and post boxes.

    list(find_addresses("He lives at 221B Baker Street, London."))   # -> [Span(12, 29, "ADDRESS", 0.7)]

Three shapes: a number before a street ("12 Elm Road"), a street before a number ("Hauptstraße 5", "Via Roma 17"), a
box ("PO Box 12"); each with what follows as far as it is a flat or leads to a postal code. Text in lower case,
streets without a word for street (unless a word such as "address" comes before), and other alphabets are missed: see
the measured recall.
"""

import re
from collections.abc import Iterator

from parlance.text.pii.context import has_context, word_set
from parlance.text.pii.spans import Span

_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆĈČĎĐĒĖĘĚĞĢĪĮİĶĹĻĽŁŃŅŇŐŒŔŘŚŞŠŢŤŪŮŰŲŹŻŽΑ-Ω"
_STREET = (
    "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Parkway|Pkwy|Highway|Hwy|"
    "Circle|Cir|Way|Crescent|Cres|Close|Grove|Mews|Row|Alley|Trail|Loop|Plaza|Esplanade|Parade|Walk|Gardens|Quay|Turnpike|Drift"
)
_WEAK_STREETS = frozenset(
    {"Way", "Court", "Place", "Row", "Walk", "Close", "Plaza", "Parade", "Drive", "Loop", "Square", "Gardens", "Drift"}
)
_NUMBER_FIRST = re.compile(
    r"[0-9](?<![0-9A-Za-z.,$€£#/-][0-9])[0-9]{0,5}[A-Za-z]?(?:[-/ ][0-9]{1,5})?,? "
    rf"(?:(?:[{_UPPER}][\w'’.-]{{0,30}}|[0-9]{{1,3}}(?:st|nd|rd|th)) ){{1,4}}?"
    rf"(?:{_STREET})(?![\w])\.?"
)
_ROMANCE_FIRST = re.compile(
    r"[0-9](?<![0-9A-Za-z.,$€£#/-][0-9])[0-9]{0,3}(?: bis| ter|[A-Za-z])?,? "
    r"(?i:rue|avenue|boulevard|chemin|allée|quai|impasse|place) "
    rf"(?:(?:de la|de l['’]|des|du|de|d['’]|la|le|les|l['’]) ?)?"
    rf"(?:[{_UPPER}][\w'’-]{{1,30}}(?![\w])(?: (?=[{_UPPER}]))?){{1,4}}"
)
_AFTER_WORD = re.compile(r"[0-9](?<=[\w.,][ ][0-9])(?<![0-9][ ,.][0-9])[0-9]{0,4}[A-Za-z]?(?![\w])(?![.,:][0-9])")
_STREET_PREFIXES = word_set(
    "rue avenue av av. boulevard chemin allée quai place via viale piazza corso largo vicolo calle avenida avda avda. "
    "plaza paseo camino carrera c/ piazzetta rua travessa praça ul. ulica aleja al. os. strada bulevardul ulice "
    "λεωφόρος οδός"
)
_STREET_ENDINGS = (
    *(
        "straße",
        "strasse",
        "str.",
        "gasse",
        "weg",
        "platz",
        "allee",
        "damm",
        "ufer",
        "gatan",
        "gata",
        "gränd",
        "vägen",
        "vej",
    ),
    *(
        "vejen",
        "gade",
        "gaden",
        "veien",
        "vegen",
        "stræde",
        "straat",
        "laan",
        "plein",
        "hove",
        "kade",
        "dijk",
        "singel",
        "gracht",
    ),
    *("katu", "tie", "kuja", "stræti", "gate", "stråket", "stigen", "backe", "ská", "ova"),
)
_STREET_WORDS = word_set("utca u. út útja tér tn pst mnt strasse straße gade vej street st road avenue terrasse")
_PARTICLES = word_set(
    "de la le les des du del della dei di da do dos das y e i van der den am an im zum zur von fejedelem"
)
_ADDRESS_WORDS = word_set(
    "address addresses lives live located location office street reside resides residence restaurant ship deliver "
    "delivery taxi adresse dirección indirizzo wohnt corner"
)
_BOX = re.compile(
    r"(?:(?:P\.? ?O\.? ?|Post ?Office |Postal |Unit [0-9]{1,5},? |PSC [0-9]{1,5},? )Box|"
    r"Postbox|Postboks|Postfach|Casilla) [0-9]{1,6}(?![\w])"
)
_MILITARY = re.compile(
    rf"(?:PSC|CMR|Unit|USNS|USNV|USS|USCGC)(?: [0-9]{{1,5}}| [{_UPPER}]\w{{1,20}})"
    r"[, ]{0,2}(?:Box [0-9]{1,5})?\s{0,2}"
    r"[,]?\s?[AFD]PO,? A[AEP] [0-9]{5}(?![\w])"
)
_FLAT = re.compile(r",?\s{0,2}(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Room|#)\.? ?#?[0-9]{1,5}[A-Za-z]?(?![\w])")
_TOKEN = re.compile(r"[,\s]{0,4}([^\s,]{1,40})")
_POSTCODE = re.compile(r"[0-9]{4,6}(?:-[0-9]{3,4})?|[0-9][A-Z]{2}|[A-Z]{1,2}-?[0-9]{4,5}")
_PLACE_WORD = re.compile(rf"[{_UPPER}(][\w'’()./-]*|nan|∆\w*")
_YEAR = re.compile(r"(?:1[5-9]|20)[0-9]{2}")
_MOST_PLACE_WORDS = 8
_MONTHS_AND_KIN = word_set(
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday chapter page section part figure table no number version windows year in on the "
    "of and to at"
)


def find_addresses(text: str) -> Iterator[Span]:
    """Street addresses and post boxes, as far as a flat or a postal code follows."""
    for match in _NUMBER_FIRST.finditer(text):
        street = match[0].rstrip(".").rsplit(" ", 1)[-1]
        # "In 1984 Wall Street": a bare year before a street is more often a date.
        score = 0.55 if street in _WEAK_STREETS or _YEAR.match(match[0]) else 0.7
        if _YEAR.match(match[0]) and not has_context(text, match.start(), _ADDRESS_WORDS):
            score = 0.35
        yield _extended(text, match.start(), match.end(), score)
    for match in _ROMANCE_FIRST.finditer(text):
        yield _extended(text, match.start(), match.end(), 0.7)
    for match in _AFTER_WORD.finditer(text):
        start, score = _street_before(text, match.start(), bool(_YEAR.fullmatch(match[0])))
        if score:
            yield _extended(text, start, match.end(), score)
    if "Box" in text or "Postb" in text or "Postfach" in text or "Casilla" in text:
        for match in _BOX.finditer(text):
            if match.start() == 0 or not text[match.start() - 1].isalnum():
                yield _extended(text, match.start(), match.end(), 0.8)
    if "PO A" in text or "PO, A" in text:
        for match in _MILITARY.finditer(text):
            yield Span(match.start(), match.end(), "ADDRESS", 0.9)


def _street_before(text: str, number: int, is_year: bool) -> tuple[int, float]:
    """Where the street that ends before `number` begins, and its score; 0 where there is none."""
    floor = max(0, number - 60, text.rfind("\n", max(0, number - 60), number) + 1)
    words = [(m.start(), m[0]) for m in re.finditer(r"[^\s]+", text[floor:number])][-6:]
    if not words:
        return 0, 0.0
    last = words[-1][1].rstrip(",")
    lower = last.lower()
    begin = len(words) - 1
    follows_comma = words[-1][1].endswith(",")
    if lower.endswith(_STREET_ENDINGS) and len(last) > 5 and last[0].isupper() and not follows_comma:
        while begin and _is_capital(words[begin - 1][1]) and len(words) - begin < 3:
            begin -= 1
        return floor + words[begin][0], 0.7 if not is_year else 0.5
    for back in range(len(words) - 2, -1, -1):
        word = words[back][1]
        if word.lower() in _STREET_PREFIXES and (word[0].isupper() or "." in word):
            between = [w for _, w in words[back + 1 :]]
            if all(_is_capital(w) or w.lower() in _PARTICLES for w in between) and not is_year:
                return floor + words[back][0], 0.7
        if not (_is_capital(word) or word.lower() in _PARTICLES):
            break
    if lower in _STREET_WORDS and len(words) > 1 and _is_capital(words[-2][1]) and not is_year:
        begin = len(words) - 2
        while begin and (_is_capital(words[begin - 1][1])) and len(words) - begin < 4:
            begin -= 1
        return floor + words[begin][0], 0.65
    while begin and _is_capital(words[begin - 1][1]) and len(words) - begin < 3:
        begin -= 1
    start = floor + words[begin][0]
    if (
        is_year
        or follows_comma
        or last.isupper()
        or not _is_capital(words[begin][1])
        or lower in _MONTHS_AND_KIN
        or not _is_capital(last)
    ):
        return 0, 0.0
    return (start, 0.65) if has_context(text, start, _ADDRESS_WORDS) else (0, 0.0)


def _is_capital(word: str) -> bool:
    return word[0].isupper() and not word.endswith((".", ":", "?", "!", ";"))


def _extended(text: str, start: int, end: int, score: float) -> Span:
    """The span with the house number before it, the flat after it, and the places up to a postal code."""
    before = re.search(r"(?<![\w.,$-])[0-9]{1,5}(?: [0-9]{1,5})? \Z", text[max(0, start - 12) : start])
    if before and not _YEAR.match(before[0]):
        start -= len(before[0])
    for _ in range(2):
        flat = _FLAT.match(text, end)
        end = flat.end() if flat else end
    place, lines = end, 0
    for _ in range(_MOST_PLACE_WORDS):
        token = _TOKEN.match(text, place)
        if not token:
            break
        lines += text.count("\n", place, token.start(1))
        word = token[1].rstrip(".;:?!\")'")
        if _POSTCODE.fullmatch(word):
            return Span(start, token.start(1) + len(word), "ADDRESS", min(1.0, score + 0.2))
        if lines > 4 or not _PLACE_WORD.fullmatch(word) or word != token[1]:
            break
        place = token.end()
    return Span(start, end, "ADDRESS", score)
