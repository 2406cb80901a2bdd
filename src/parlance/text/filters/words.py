"""Text -> words as the quality filters count them: what white space divides, with punctuation split off.

A run without white space is divided by these rules, which follow the choices of spaCy's English tokenizer:

1. A spelling of `filters.exceptions` is one word, or the words of a contraction (do n't).
2. Marks, quotation marks, currency signs and symbols at its ends are words of their own, one by one; so are `'s`, a
   unit behind a figure (5 km), and a full stop behind a lower-case letter, a figure, a mark or two capitals.
3. What is left is one word if it looks like a web or mail address, and otherwise divided at ellipses and symbols, at
   hyphens and at `: < > = /` before a letter, at commas between letters, at operators between figures, and at a full
   stop between a lower-case and a capital letter. The divider is a word too.
4. Spellings of the exceptions that 2 and 3 took apart are put together again.
5. Each character of Chinese, Japanese, Thai, Lao, Khmer and Burmese, with the marks on it, is a word: these languages
   put no spaces between words, and no dictionary is used. (spaCy's English tokenizer makes one word of a run.) The
   rules above hold for what stands between such characters.

    split_run("(don't!)")        # ["(", "do", "n't", "!", ")"]

Known differences from spaCy 3.8: languages without spaces (5); of two exceptions that overlap after rule 2, the earlier
one counts, not the longer one; letters and their case are those of Python's Unicode tables, which know more scripts.
Cost: 1 to 10 microseconds a run; `filters.table` remembers them.
"""

import re
import unicodedata

from parlance.text.filters.exceptions import divided, whole

_QUOTES = frozenset("'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧")
_MARKS = frozenset("…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪")
_CURRENCY = frozenset("$£€¥฿₽﷼" + "".join(map(chr, range(0x20A0, 0x20C0))))
_BEFORE = _QUOTES | _MARKS | _CURRENCY | frozenset("§%=—–")
_BEHIND = _QUOTES | _MARKS | frozenset("—–")
_BEFORE_FULL_STOP = _QUOTES | _MARKS | frozenset("%²-+|0123456789")

_LETTER = r"[^\W\d_]"
_UNITS = (
    r"[kdcm]?m[²³]?|ha|µm|nm|yd|in|ft|[km]?g|µg|t|lb|oz|m/s|km/h|kmh|mph|hPa|Pa|mbar|[mkgt]b|[MKGT]B|kB|[TGMK]|%|"
    r"(?:км|м|дм|см|мм)[²³]?|нм|[км]?г|м/с|км/ч|к?Па|мбар|[КМГТ]б|[КМГ]Б|[кмгт]б|"
    r"(?:كم|م|سم|مم)[²³]?|غرام|جرام|جم|كغ|ملغ|كوب|اكواب"
)
_UNIT = re.compile(rf"(?<=[0-9])(?:{_UNITS}|(?:US|[CA])?\$|[{''.join(sorted(_CURRENCY - {'$'}))}])$")
_INSIDE = re.compile(
    rf"\.\.+|…|(?<=[0-9])[+\-*^](?=[0-9-])|\.|(?<={_LETTER}),(?={_LETTER})"
    rf"|(?<=[^\W_])(?:-{{1,3}}|——?|[–~])(?={_LETTER})|(?<=[^\W_])[:<>=/](?={_LETTER})|(?P<other>[^\w\s\x00-\x7f])"
)
_ADDRESS = re.compile(
    r"(?:(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})(?!172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})"
    r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
    r"|(?:[A-Za-z0-9\u00a1-\uffff](?:[A-Za-z0-9\u00a1-\uffff_-]{0,62}[A-Za-z0-9\u00a1-\uffff])?\.)+(?P<top>[^\W\d_]{2,63}))"
    r"(?::\d{2,5})?(?:[/?#]\S*)?$"
)
_SCHEME = re.compile(r"[\w+.\-]{2,}://")
_SIMPLE = re.compile(r"([A-Za-z]+|[0-9]+(?:[.,][0-9]+)*)([,;:!?)]|(?<=[0-9a-z])\.)?")
_LONGEST_ADDRESS = 2000
_LONGEST_EXCEPTION = 4  # in the pieces that the rules make of it, but for rare emoticons

_MARKS_ON = (
    "\u3099\u309a\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd"
)
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6"
    "\u0edc-\u0edf\u1000-\u102a\u103f\u1050-\u1055\u105a-\u105d\u1061\u1065\u1066\u106e-\u1070\u1075-\u1081\u108e"
    "\u1780-\u17b3\u17d7\u17dc"
)
_ONE_UNSPACED = re.compile(f"[{_UNSPACED}]")
_UNSPACED_WORDS = re.compile(f"[{_UNSPACED}][{_MARKS_ON}]*|[^{_UNSPACED}]+")


def split_run(run: str) -> list[str]:
    """The words of `run`, a text without white space: at least one, their concatenation is `run`."""
    exceptions = divided()
    if run in exceptions:
        return list(exceptions[run])
    if run.isascii():
        # Most runs, for speed: a word, or a figure, and at most one mark behind it.
        found = _SIMPLE.fullmatch(run)
        if found:
            word, mark = found.groups()
            if not mark:
                return [run]
            if word not in exceptions and run not in whole():
                return [word, mark]
    if run.isascii() or not _ONE_UNSPACED.search(run):
        return _rejoin(_divide(run))
    words: list[str] = []
    for piece in _UNSPACED_WORDS.findall(run):
        words += [piece] if _ONE_UNSPACED.match(piece) else _rejoin(_divide(piece))
    return words


def _divide(run: str) -> list[str]:
    """Rules 1 to 3."""
    several, one = divided(), whole()
    before: list[str] = []
    behind: list[str] = []
    start, end = 0, len(run)
    while start < end:
        middle = run[start:end] if end - start <= 16 else ""  # no exception is longer
        if middle in several or middle in one:
            break
        ahead = _length_before(run, start, end)
        if ahead:
            rest = run[start + ahead : end] if end - start - ahead <= 16 else ""
            if rest and (rest in several or rest in one):
                before.append(run[start : start + ahead])
                start += ahead
                break
        after = _length_behind(run, start + ahead, end)
        if after:
            rest = run[start : end - after] if end - start - after <= 16 else ""
            if rest and (rest in several or rest in one):
                behind.append(run[end - after : end])
                end -= after
                break
        if not ahead and not after:
            break
        if ahead:
            before.append(run[start : start + ahead])
            start += ahead
        if after:
            behind.append(run[end - after : end])
            end -= after
    middle = run[start:end]
    if middle in several:
        before += several[middle]
    elif middle in one or _is_address(middle):
        before.append(middle)
    elif middle:
        before += _divide_inside(middle)
    return before + behind[::-1]


def _length_before(run: str, start: int, end: int) -> int:
    """How many characters at the beginning of run[start:end] are a word of their own."""
    first = run[start]
    if "a" <= first <= "z" or "0" <= first <= "9":
        return 0
    if first in _BEFORE:
        return 1
    if first == "+":
        return int(start + 1 == end or not "0" <= run[start + 1] <= "9")
    if first == ".":
        stop = start
        while stop < end and run[stop] == ".":
            stop += 1
        return stop - start if stop - start > 1 else 0
    if "A" <= first <= "Z":
        return 3 if run.startswith("US$", start, end) else 2 if run.startswith(("C$", "A$"), start, end) else 0
    return int(_is_symbol(first))


def _length_behind(run: str, start: int, end: int) -> int:
    """How many characters at the end of run[start:end] are a word of their own."""
    if start >= end:
        return 0
    last = run[end - 1]
    if last == ".":
        return _full_stops_behind(run, start, end)
    if last in "sS" and end - start > 1 and run[end - 2] in "'’":
        return 2
    if last == "…":
        return 2 if run.endswith("……", start, end) else 1
    if last in _BEHIND:
        return 1
    if last == "+":
        return int(end - start > 1 and "0" <= run[end - 2] <= "9")
    if end - start > 1 and not "0" <= last <= "9":
        found = _UNIT.search(run, max(start, end - 6), end)
        if found:
            return end - found.start()
    return int(_is_symbol(last))


def _full_stops_behind(run: str, start: int, end: int) -> int:
    stop = end
    while stop > start and run[stop - 1] == ".":
        stop -= 1
    if end - stop > 1:
        return end - stop
    if stop == start:
        return 0
    before = run[stop - 1]
    if before in _BEFORE_FULL_STOP:
        return 1
    if not before.isalpha():
        return 0
    if not before.isupper() or (before in "FCK" and stop - start > 1 and run[stop - 2] == "°"):
        return 1
    return int(stop - start > 1 and run[stop - 2].isalpha() and not run[stop - 2].islower())


def _divide_inside(middle: str) -> list[str]:
    pieces = []
    start = 0
    for found in _INSIDE.finditer(middle):
        divider, at = found.group(), found.start()
        if divider == ".":
            if not _is_between_sentences(middle, at):
                continue
        elif found["other"] and not _is_symbol(divider):
            continue
        if at == 0:
            continue
        if at != start:
            pieces.append(middle[start:at])
        pieces.append(divider)
        start = found.end()
    if start < len(middle):
        pieces.append(middle[start:])
    return pieces


def _is_between_sentences(middle: str, at: int) -> bool:
    if at == 0 or at + 1 == len(middle):
        return False
    before, behind = middle[at - 1], middle[at + 1]
    return (before in _QUOTES or (before.isalpha() and not before.isupper())) and (
        behind in _QUOTES or (behind.isalpha() and not behind.islower())
    )


def _is_address(middle: str) -> bool:
    """Whether it looks like a web or mail address: a host name with a dot, with or without what goes around it."""
    if "." not in middle or len(middle) > _LONGEST_ADDRESS:
        return False
    scheme = _SCHEME.match(middle)
    hosts = [scheme.end() if scheme else 0]
    if "@" in middle:
        hosts += [middle.index("@") + 1, middle.rindex("@") + 1]
    for host in hosts:
        found = _ADDRESS.match(middle, host)
        if found and (found["top"] is None or not any(map(str.isupper, found["top"]))):
            return True
    return False


def _is_symbol(character: str) -> bool:
    return character > "\x7f" and unicodedata.category(character) == "So"


def _rejoin(pieces: list[str]) -> list[str]:
    """Rule 4."""
    if len(pieces) < 2:
        return pieces
    one = whole()
    words = []
    at = 0
    while at < len(pieces):
        for length in range(min(_LONGEST_EXCEPTION, len(pieces) - at), 1, -1):
            together = "".join(pieces[at : at + length])
            if together in one:
                words.append(together)
                at += length
                break
        else:
            words.append(pieces[at])
            at += 1
    return words
