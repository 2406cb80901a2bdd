"""Demonstrations out of Python source: a function without its docstring -> the first sentence of that docstring.

The default job has no human demonstrations, but every documented function is one: somebody read the code and said in
a sentence what it does. The prompt is the function's own text (exact source lines, dedented, decorators and comments
kept, docstring removed); the completion is the docstring's first sentence on one line, closed with a period where
its author left that out. Nothing else is rewritten and nothing is executed.

    extraction = collect_demonstrations((p.read_text(), str(p)) for p in Path("src").rglob("*.py"))
    extraction.records[0]   # {"prompt": "def close(self): ...", "completion": "Close the file.", "metadata": {...}}
    extraction.counts       # {"kept": 5012, "no docstring": 9679, "too few words": 297, ...}

Left out, and counted by reason: see `REASONS`. Records of the held-out split that also occur in the training split
are removed from training by `drop_leaks`.
"""

import ast
import inspect
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_SOURCE_CHARS = 2000
"""Default longest prompt, in characters; 96 in 100 documented functions of the standard library are shorter."""
MIN_WORDS, MAX_WORDS = 3, 30
"""Fewest and most words of a completion. A word is a run of non-blank characters with a letter or digit in it."""
MAX_REPEATS = 3
"""How often one completion may occur over all documents ("Return the name." says little about its code)."""

KEPT = "kept"
NO_DOCSTRING = "no docstring"
BARE_SIGNATURE = "nothing but a docstring, and no parameters"
SHARED_LINE = "docstring shares a line with code"
TOO_LONG = "source too long"
NO_PROSE = "docstring without prose"
TOO_FEW_WORDS = "too few words"
TOO_MANY_WORDS = "too many words"
NOT_ASCII = "not plain ASCII"
DUPLICATE = "duplicate"
TOO_COMMON = "completion too common"
SYNTAX_ERROR = "file with a syntax error"
REASONS = (
    NO_DOCSTRING,
    BARE_SIGNATURE,
    SHARED_LINE,
    TOO_LONG,
    NO_PROSE,
    TOO_FEW_WORDS,
    TOO_MANY_WORDS,
    NOT_ASCII,
    DUPLICATE,
    TOO_COMMON,
    SYNTAX_ERROR,
)
"""Why a function (the last: a whole file) is left out."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Record = dict[str, Any]


@dataclass(frozen=True)
class Extraction:
    """What came out of a set of documents."""

    records: list[Record]
    """`{"prompt", "completion", "metadata": {"id", "function", "module"}}`, in the order of the documents."""
    counts: dict[str, int]
    """How many functions were kept, and how many left out for each of `REASONS` that occurred."""


def collect_demonstrations(
    documents: Iterable[tuple[str, str]], max_source_chars: int = MAX_SOURCE_CHARS, max_repeats: int = MAX_REPEATS
) -> Extraction:
    """The unique demonstrations in `documents`, which are pairs (source text, document id).

    Where a completion occurs too often its first `max_repeats` records stay. Files that do not parse are counted.
    """
    records: list[Record] = []
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    repeats: Counter[str] = Counter()
    for text, document_id in documents:
        try:
            examined = list(_examine(text, document_id, max_source_chars))
        except (SyntaxError, ValueError, RecursionError):  # ValueError: null bytes; RecursionError: absurd nesting
            counts[SYNTAX_ERROR] += 1
            continue
        for found in examined:
            outcome = found if isinstance(found, str) else _admit(found, seen, repeats, max_repeats)
            counts[outcome] += 1
            if outcome == KEPT:
                assert not isinstance(found, str)
                records.append(found)
    return Extraction(records, {reason: counts[reason] for reason in (KEPT, *REASONS) if counts[reason]})


def extract_demonstrations(
    document_text: str, document_id: str, max_source_chars: int = MAX_SOURCE_CHARS
) -> list[Record]:
    """The unique demonstrations in one Python file; an empty list where it does not parse."""
    return collect_demonstrations([(document_text, document_id)], max_source_chars).records


def drop_leaks(train: list[Record], heldout: list[Record]) -> list[Record]:
    """`train` without the records whose prompt, white space aside, is also a prompt of `heldout`."""
    known = {normalised_prompt(record) for record in heldout}
    return [record for record in train if normalised_prompt(record) not in known]


def normalised_prompt(record: Record) -> str:
    """A record's prompt with every run of white space made one blank."""
    return " ".join(str(record["prompt"]).split())


def _admit(record: Record, seen: set[tuple[str, str]], repeats: Counter[str], max_repeats: int) -> str:
    """KEPT, or why this record repeats others; notes it in `seen` and `repeats`."""
    key = (normalised_prompt(record), record["completion"])
    if key in seen:
        return DUPLICATE
    seen.add(key)
    repeats[record["completion"]] += 1
    return KEPT if repeats[record["completion"]] <= max_repeats else TOO_COMMON


def _examine(text: str, document_id: str, max_source_chars: int) -> Iterator[Record | str]:
    """A record, or a reason to leave it out, for each function of one file, in the order of the source."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")  # as the parser counts lines
    lines = text.split("\n")  # not splitlines(): it also splits at form feeds, which this parser does not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "invalid escape sequence" and the like are the author's business
        tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    for function in sorted(functions, key=lambda node: (node.lineno, node.col_offset)):
        docstring = ast.get_docstring(function, clean=False)
        if docstring is None:
            yield NO_DOCSTRING
            continue
        if len(function.body) == 1 and not _has_parameters(function):
            yield BARE_SIGNATURE
            continue
        prompt = source_without_docstring(lines, function)
        if prompt is None:
            yield SHARED_LINE
            continue
        sentence = first_sentence(docstring)
        problem = TOO_LONG if len(prompt) > max_source_chars else _problem(sentence)
        if problem:
            yield problem
            continue
        metadata = {
            "id": f"{document_id}:{function.lineno}",
            "function": function.name,
            "module": document_id,
        }
        yield {"prompt": prompt, "completion": sentence, "metadata": metadata}


def _has_parameters(function: Function) -> bool:
    """Whether the signature says anything beyond `self` or `cls`."""
    a = function.args
    names = [argument.arg for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if argument]
    return any(name not in ("self", "cls") for name in names)


def source_without_docstring(lines: list[str], function: Function) -> str | None:
    """The function's source lines, dedented, less its docstring and one blank line after it.

    `lines` are the file's lines without line ends. None where the docstring shares its lines with other code.
    """
    docstring = function.body[0]
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    last = function.end_lineno or function.lineno
    doc_last = docstring.end_lineno or docstring.lineno
    # Columns count UTF-8 bytes.
    before = lines[docstring.lineno - 1].encode()[: docstring.col_offset].decode()
    after = lines[doc_last - 1].encode()[docstring.end_col_offset :].decode().strip()
    if before.strip() or (after and not after.startswith("#")):
        return None
    kept = lines[first - 1 : docstring.lineno - 1]
    kept += [before + after] if after else []
    rest = lines[doc_last:last]
    kept += rest[1:] if rest and not rest[0].strip() else rest
    indent = lines[function.lineno - 1].encode()[: function.col_offset].decode()
    return "\n".join(line.removeprefix(indent) if line.strip() else "" for line in kept)


# --- sentences -------------------------------------------------------------------------------------------------------

_ABBREVIATIONS = frozenset(
    ("e.g", "i.e", "eg", "ie", "vs", "cf", "resp", "approx", "incl", "fig", "sec", "mr", "ms", "mrs", "dr")
)
"""Words whose period closes no sentence while text follows (lower case, without the last period)."""
_LIST_ENDINGS = frozenset(("etc", "al"))
"""Words whose period closes a sentence only where the text behind it begins in upper case."""
_STOP = re.compile(r"[.!?]+[\"'`*)\]]*(?=\s|$)")
_SIGNATURE = re.compile(r"[A-Za-z_][\w.]*\([^()]*(?:\([^()]*\)[^()]*)*\)")
_NOT_PROSE = re.compile(
    r">>>|[:@](?:param|return|type|arg)|\*\*|[-=~*#+|<\[\d]|[\w.-]+\s*(?:::)?=(?!=)\s|\([^()]*\)\s*=\s"
)
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]\s|\d+[.)]\s|>>>|[:@]\w+|(?:Args|Arguments|Returns|Raises|Parameters|Yields):)")
_OPENER = re.compile(r"(?:If|The|This|These|It|When|Note|Returns?|Raises?|Otherwise|Used|Should|Must|Does|May)\b")
_DANGLING = re.compile(r"\b(?:an?|the|of|to|in|on|at|by|for|from|with|and|or|is|are|as|that|this|its)$")
_ROOM = 56
"""A line that ends this side of so many characters, next word included, was not wrapped: its author ended it there."""


def sentence_end(text: str) -> int | None:
    """The index just past the first sentence of `text`, or None where no sentence ends in it.

    A sentence ends with `.`, `!` or `?` (and closing quotes or brackets) before white space or the end of the text,
    but not inside brackets, nor after an abbreviation or a suffix (".py.") with text behind it, nor at a quoted or
    bracketed mark after which the text goes on in lower case.
    """
    for match in _STOP.finditer(text):
        head, tail = text[: match.end()], text[match.end() :].lstrip()
        if not tail:
            return match.end()
        if head.count("(") > head.count(")") or head.count("[") > head.count("]"):
            continue
        word = head.split()[-1].lstrip("([\"'`")
        name = word.rstrip(".").lower()
        quoted_mark = match.group()[-1] not in ".!?" and tail[0].islower()
        if quoted_mark or word.startswith(".") or name in _ABBREVIATIONS:
            continue
        if name in _LIST_ENDINGS and not tail[0].isupper():
            continue
        return match.end()
    return None


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring on one line, ending in a period; "" where the docstring has no prose.

    A leading signature (`name(a, b) -> c`) is passed over. Without a sentence end the first paragraph counts, up to
    the first list, directive or evidently new thought in it. Grammar rules, doctests and arrows are not prose.
    """
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        text = _prose(paragraph)
        if not text:
            continue
        if _NOT_PROSE.match(text):
            return ""
        sentence = " ".join(text[: sentence_end(text)].split())
        return "" if "->" in sentence else _close(sentence)
    return ""


def _prose(paragraph: str) -> str:
    """A paragraph less a leading signature and what follows its first thought: a list, a directive, a new start.

    A new start is a line that begins in upper case after one that ended without punctuation though it had room.
    """
    text = paragraph.strip()
    signature = _SIGNATURE.match(text)
    if signature:
        rest = text[signature.end() :]
        if separator := re.match(r"\s*(?::|--?(?!>))\s+", rest):
            text = rest[separator.end() :]
        elif not rest.strip() or re.match(r"\s*(?:->|=>)", rest):
            # Only the signature and its result on this line: what the lines after it say is the description.
            text = rest.partition("\n")[2].strip()
    lines = text.split("\n")
    for number, (previous, line) in enumerate(itertools.pairwise(lines), start=1):
        if _LIST_ITEM.match(line) or _starts_anew(previous.strip(), line.strip()):
            return "\n".join(lines[:number])
    return text


def _starts_anew(previous: str, line: str) -> bool:
    """Whether `line` opens a thought of its own though `previous` has no final punctuation."""
    if not re.match(r"[A-Z][a-z]*\b", line) or not re.search(r"[\w)\]\"'`]$", previous):
        return False
    if _DANGLING.search(previous):
        return False
    return bool(_OPENER.match(line)) or len(previous) + 1 + len(line.split()[0]) <= _ROOM


def _close(sentence: str) -> str:
    """`sentence` with a final period where it ends without punctuation; "" where it announces something (":", ",")."""
    if not sentence or sentence[-1] in ":,;-=\\":
        return ""
    if re.search(r"[.!?][\"'`*)\]]*$", sentence):
        return sentence
    return sentence + "."


def _problem(sentence: str) -> str | None:
    """Why a first sentence is no completion, or None."""
    if not sentence:
        return NO_PROSE
    if not (sentence.isascii() and sentence.isprintable()):
        return NOT_ASCII
    words = sum(any(character.isalnum() for character in word) for word in sentence.split())
    if words < MIN_WORDS:
        return TOO_FEW_WORDS
    return TOO_MANY_WORDS if words > MAX_WORDS else None
