"""Names of people by rules: a title, a known given name, an introduction, or a name that the text gave in full before.

    list(find_people("I met Ada Lovelace. Lovelace smiled."))   # -> two spans: "Ada Lovelace" 0.55, "Lovelace" 0.55

A run of capitalised words is a name when its first words after a title are, when it begins with a common given name
and goes on, or when words such as "my name is" come before. A given name alone scores 0.5, or 0.3 when it is also a
word, a place or a surname; a word such as "named" before or "said" after it raises that to 0.55. A surname alone is
found only where the same text has it in a full name. Names in lower case, in other alphabets, with rare given names,
and most single names are missed: see the measured recall.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from parlance.text.pii.context import word_set, words_before
from parlance.text.pii.given_names import AMBIGUOUS, GIVEN_NAMES
from parlance.text.pii.spans import Span

_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆĈČĎĐĒĖĘĚĞĢĪĮİĶĹĻĽŁŃŅŇŐŒŔŘŚŞŠŢŤŪŮŰŲŹŻŽ"
_WORD = rf"[{_UPPER}](?:\.(?=[ ])|[^\W\d_]{{0,30}}(?:['’-][{_UPPER}][^\W\d_]{{1,30}}){{0,2}})"
_RUN = re.compile(
    rf"{_WORD}(?: (?:(?:van|von|de|da|do|dos|di|del|della|der|den|la|le|bin|ibn|al|el|ten|ter) ){{0,2}}{_WORD}){{0,6}}"
)
_PIECE = re.compile(r"\S+")
_TITLES = word_set(
    "Mr Mr. Mrs Mrs. Ms Ms. Miss Mx Mx. Dr Dr. Prof Prof. Professor Sir Lady Lord Dame Rev Rev. Reverend Fr. Hon. "
    "Herr Frau Monsieur Madame Mme Mlle Señor Señora Senhor Senhora Signor Signora Sgt. Capt. Lt. Col. Gen. Sen. Rep. "
    "Gov. Master Captain Colonel Inspector Sergeant Uncle Aunt Madam Mademoiselle"
)
_TITLE_BEFORE = re.compile(
    r"(?<![\w])(?:[Mm](?:r|rs|s|x)|[Dd]r|[Pp]rof|Rev|Hon|Sgt|Capt|Lt|Col|Gen|Sen|Rep|Gov)\.\s{1,2}\Z"
)
_INTRODUCTION = re.compile(
    r"(?i:(?<![\w])(?:(?:my|his|her|their|your|the|maiden|full|last|first|partner['’]s|husband['’]s|wife['’]s)"
    r" name(?: is|['’]s| was)?"
    r"|(?:sur)?name ?:|i am called|call me|this is|named (?:him|her|it)|what['’]s your name\?|"
    r"yours truly,|sincerely,|regards,"
    r"|signed,?|written by|directed by|sung by|starring|songwriter|singer|actor|actress|director|author|by))\s{1,2}\Z"
)
_BEFORE_ALONE = word_set(
    "named name called dear hello hi hey said told asked replied thanks thank friend wife husband son daughter "
    "brother sister mother father uncle aunt cousin partner boyfriend girlfriend mr mrs signed regards cheers love"
)
_AFTER_ALONE = re.compile(
    r",? (?:said|says|asked|replied|told|answered|cried|whispered|wrote|lives|lived|laughed|nodded|thought)(?!\w)"
    r"|: [A-Z]|, can (?:you|I)(?!\w)"
    r"|['’]s (?:wife|husband|mother|father|sister|brother|son|daughter|friend|address|house|phone|email)(?!\w)"
)
_NO_NAME_STARTS = word_set(
    "The A An And But Or Nor So Yet For If In On At By To Of From With Without As Is Was Were Are Be Been It Its He "
    "She They We You I His Her Their Our Your My This That These Those There Here When Where Why How What Who Whom "
    "Which While Then Than Thus Hence Not No Yes Now Later Soon After Before Since Until Unless Although Though "
    "Because However Also Only Even Just Still Once Again Such Both Either Neither Each Every Some Any All Most Many "
    "Much More Less Few Several One Two Three Four Five Six Seven Eight Nine Ten First Second Third Last Next Said "
    "Says Please Let Dear Hello Hi Hey Thanks Thank Oh Ah Well Ok Okay Good Great New Old Like Unlike Did Do Does Can "
    "Could Would Should Shall Will May Might Must Have Has Had Never Always Perhaps Maybe Director Actor Actress "
    "Starring President Minister Senator Chairman Chief Judge Pope King Queen Prince Princess Saint Mount Lake River "
    "North South East West Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April June "
    "July August September October November December Mother Father God Christmas Easter English French German "
    "American British Name Signed Author Chapter"
)
_NO_PERSON = word_set(
    "Street St Avenue Ave Road Rd Lane Drive Boulevard Square Park Bridge University College School Hospital Church "
    "Cathedral Institute Inc Inc. Corp Corp. Corporation Co Co. Company Ltd Ltd. LLC PLC Plc Group Bank Fund Trust "
    "Foundation Association Airport Station Hotel Museum Center Centre House Hall Castle Palace County City Town "
    "Island Islands Lake River Mountain Mountains Bay Beach Valley State States Republic Kingdom Union League Club "
    "Band Award Awards Prize Cup Festival Day Week Act Award Law Theory Theorem Effect Disease Syndrome War Treaty "
    "Committee Commission Department Ministry Court Congress Senate Parliament Party Press Times Post Journal "
    "Brothers Bros Bros. Sons Partners Holdings Industries International Systems Records Pictures Studios Films "
    "Productions Entertainment Cross Scale Clause Claus Carolina Dakota Jersey York Zealand Angeles Francisco Diego "
    "Jose Petersburg Louis Rica Salvador Stanley Lynch Securities Stores Motors Oil Gas Energy Airlines Air Gospel "
    "Bible Testament Series Mae Mac"
)
_SAFE_REPEAT = 4
"""Fewest letters of a part of a full name that is found again alone."""


class _Part(NamedTuple):
    start: int
    end: int
    word: str


def find_people(text: str) -> Iterator[Span]:
    """Names of people; only the name, not the title before it."""
    known: set[str] = set()
    alone: list[_Part] = []
    for match in _RUN.finditer(text):
        first = match.start()
        if first and (text[first - 1].isalnum() or text[first - 1] in "_<@#/\\&$'’-"):
            continue
        parts = [_Part(first + m.start(), first + m.end(), m[0]) for m in _PIECE.finditer(match[0])]
        span, words = _judge(text, parts)
        if span:
            yield span
            known.update(w for w in words if len(w) >= _SAFE_REPEAT and w not in AMBIGUOUS)
        elif len(parts) == 1 and len(parts[0].word) >= _SAFE_REPEAT:
            alone.append(parts[0])
    for part in alone:
        if part.word in known and part.word not in _NO_NAME_STARTS:
            yield Span(part.start, part.end, "PERSON", 0.55)


def _judge(text: str, parts: list[_Part]) -> tuple[Span | None, list[str]]:
    """The name in a run of capitalised words, if any, and those of its words that may stand for it later."""
    titled = (
        len(parts[0].word) > 1 and _TITLE_BEFORE.search(text, max(0, parts[0].start - 8), parts[0].start) is not None
    )
    while parts and (parts[0].word in _TITLES or parts[0].word in _NO_NAME_STARTS):
        titled = parts[0].word in _TITLES
        parts = parts[1:]
    while parts and (len(parts[-1].word) < 2 or parts[-1].word[0].islower()):
        parts = parts[:-1]
    if not parts or any(part.word in _NO_PERSON for part in parts):
        return None, []
    if len(parts[0].word) > 3 and all(part.word.isupper() for part in parts):
        return None, []
    if titled:
        return _named(parts[:4], 0.85)
    given = next((place for place, part in enumerate(parts) if part.word in GIVEN_NAMES), None)
    start = parts[0].start
    introduced = _INTRODUCTION.search(text, max(0, start - 24), start) is not None
    if given is None:
        if introduced and len(parts) >= 2 and len(parts) <= 4:
            return _named(parts, 0.55)
        if len(parts) == 3 and re.fullmatch(r"\w\.?", parts[1].word) and len(parts[0].word) > 2:
            return _named(parts, 0.55)  # "Stephan M. Urner"
        if introduced and len(parts) == 1 and re.search(r"(?i:name)", text[max(0, start - 24) : start]):
            return _named(parts, 0.55)
        return None, []
    rest = parts[given:]
    if len(rest) > 1:
        score = 0.55 if rest[0].word in AMBIGUOUS else 0.75
        return _named(rest[:5], 0.8 if introduced else score)
    if given:  # "Szöllösy Krisztián", or the end of something else
        return _named(parts, 0.7) if introduced else (None, [])
    part = rest[0]
    cued = introduced or not _BEFORE_ALONE.isdisjoint(words_before(text, part.start, 1))
    if cued or (part.word not in AMBIGUOUS and _AFTER_ALONE.match(text, part.end)):
        return _named(rest, 0.55)
    return Span(part.start, part.end, "PERSON", 0.3 if part.word in AMBIGUOUS else 0.5), []


def _named(parts: list[_Part], score: float) -> tuple[Span, list[str]]:
    return Span(parts[0].start, parts[-1].end, "PERSON", score), [part.word for part in parts if part.word[0].isupper()]
