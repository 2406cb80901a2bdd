"""Texts that have to have a form: JSON of a schema, a regular expression, one of several strings.

    form = json_schema({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}, tokenizer)
    allowed = form.allowed()                        # (V,) bool: the tokens that may come next
    form.accept(token)
    more = form.forced()                            # tokens without a choice: no model need be asked

Each is for one text. Works with every tokenizer: forms are made of bytes, and the vocabulary is walked as a tree of
bytes. A vocabulary of all 256 bytes can write whatever a form asks for; another (characters, words) is tried out, and
refused where it cannot. The text may end, by one of the tokens that end texts, wherever the form is complete.

JSON is written as `json.dumps` does, without choice in white space; properties come in the order of the schema, and
those that it does not name are written only where it describes them (`additionalProperties`). A keyword that is not
known is refused, not passed over. Regular expressions are those of Rust's `regex`: no look-around, no references back.

Expressions and schemas have limits, in steps and not in seconds, so that none takes long, and the same ones are always
refused; what becomes too complex only while the text is written raises there.

The work is done by llguidance (derivatives of regular expressions, an Earley parser, masks computed as they are
needed), https://github.com/guidance-ai/llguidance.
"""

import json
import random
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MOST_CHARACTERS = 200_000
"""Longest expression, or schema as JSON, or options together."""
_STATES, _FIRST_FUEL, _STEP_FUEL = 20_000, 200_000, 20_000
"""Limits of one text: states of its automaton (some 2 kB each), and steps of work at first and for each token."""
_TRIED = 16
"""Tokens that are written at random to see whether a form becomes too complex at once."""
_TRIES, _LONGEST_TRY = 16, 200
"""How often, and how far, a vocabulary without all bytes tries to complete a form."""


class Constraint(Protocol):
    """The form of one text, which takes in its tokens one by one."""

    def allowed(self) -> NDArray[np.bool_]:
        """(V,) which tokens may follow, at least one; V is the tokenizer's. Raises UserError where the form has become
        too complex, or the vocabulary cannot go on."""
        ...

    def accept(self, token: int) -> None:
        """Take in a token that `allowed` named."""
        ...

    def forced(self) -> list[int]:
        """Take in the tokens that must follow, as far as there is no choice, and name them: most often none."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        ...


def json_schema(schema: Mapping[str, Any] | bool, tokenizer: Tokenizer, stop: Collection[int] = ()) -> Constraint:
    """JSON that a schema describes (`{}`: any JSON). `stop`: ids that end texts, besides those of the tokenizer.

    Raises UserError for what is no schema, one that nothing satisfies, keywords that are not known, what is too large,
    and a vocabulary that cannot write it.
    """
    from llguidance import LLMatcher

    if schema is False:
        raise UserError("JSON schema: false allows nothing; give a schema that something satisfies")
    try:
        text = json.dumps({} if schema is True else schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"JSON schema: this is no JSON ({error}); give a JSON object") from error
    _check_size("JSON schema", text)
    try:
        grammar = LLMatcher.grammar_from_json_schema(
            text,
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
                "lenient": False,
                "coerce_one_of": False,
            },
        )
    except ValueError as error:
        raise UserError(f"JSON schema: {_lowered(str(error))}; give a JSON object") from error
    return _Form(grammar, "JSON schema", tokenizer, frozenset(stop))


def regular_expression(pattern: str, tokenizer: Tokenizer, stop: Collection[int] = ()) -> Constraint:
    """A text that `pattern` matches as a whole. `stop`: ids that end texts, besides those of the tokenizer.

    Raises UserError for what is no regular expression, matches nothing, or is too complex, and for a vocabulary that
    cannot write what it matches.
    """
    from llguidance import LLMatcher, regex_to_lark

    _check_size("regular expression", pattern)
    letters = _alphabet(tokenizer)
    if letters is None:
        grammar = LLMatcher.grammar_from_regex(pattern)
    else:
        # What the vocabulary cannot write is no part of the form: no text leads to where it cannot go on.
        written = "".join(map(_literal, letters))
        rule = f"/{regex_to_lark(pattern, '')}/ & /[{written}]*/"
        grammar = LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {rule}")
    return _Form(grammar, "regular expression", tokenizer, frozenset(stop))


def choice(options: Sequence[str], tokenizer: Tokenizer, stop: Collection[int] = ()) -> Constraint:
    """One of `options`. `stop`: ids that end texts, besides those of the tokenizer.

    Raises UserError where there is none, or one is empty or cannot be written with the vocabulary.
    """
    from llguidance import LLMatcher

    if not options or not all(options):
        raise UserError("choices: give at least one, and none that is empty")
    _check_size("choices", "".join(options))
    if not _has_all_bytes(tokenizer):
        pieces = frozenset(_texts(tokenizer).values())
        for option in options:
            if not _can_write(option.encode(), pieces):
                raise UserError(f"choices: the tokenizer's vocabulary cannot write {option!r}; give others")
    grammar = LLMatcher.grammar_from_regex("|".join("".join(map(_literal, option)) for option in options))
    return _Form(grammar, "choices", tokenizer, frozenset(stop))


class _Form:
    """A `Constraint`: a grammar and how far a text has come in it."""

    def __init__(self, grammar: str, kind: str, tokenizer: Tokenizer, stop: frozenset[int]) -> None:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_lexer_states=_STATES,
            initial_lexer_fuel=_FIRST_FUEL,
            step_lexer_fuel=_STEP_FUEL,
            verbose_errors=False,
        )
        self._kind, self._vocab_size = kind, tokenizer.vocab_size
        self._matcher: LLMatcher = LLMatcher(_vocabulary(tokenizer, stop), grammar, log_level=0, limits=limits)
        if self._matcher.is_error():
            raise UserError(f"{kind}: {_reason(self._matcher.get_error())}")
        self._mask: NDArray[np.bool_] | None = None
        self._try_out(complete=_has_all_bytes(tokenizer))

    def allowed(self) -> NDArray[np.bool_]:
        """(V,) which tokens may follow, at least one."""
        if self._mask is None:
            self._mask = self._computed()
            if not self._mask.any():
                raise UserError(
                    f"{self._kind}: the tokenizer's vocabulary cannot write what must follow here; use a tokenizer of "
                    "bytes, or another form"
                )
        return self._mask

    def accept(self, token: int) -> None:
        """Take in a token that `allowed` named."""
        self._mask = None
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} may not follow here: {_reason(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """Take in the tokens that must follow, as far as there is no choice, and name them."""
        tokens = [] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())
        outside = (place for place, token in enumerate(tokens) if token >= self._vocab_size)
        tokens = tokens[: next(outside, None)]
        if tokens:
            self._mask = None
            self._matcher.consume_tokens(tokens)
        return tokens

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _computed(self) -> NDArray[np.bool_]:
        packed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise UserError(f"{self._kind}: {_reason(self._matcher.get_error())}")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def _try_out(self, complete: bool) -> None:
        """Write texts at random. Raises UserError where the form is too complex, or none of them can be completed."""
        tries, tokens = (1, _TRIED) if complete else (_TRIES, _LONGEST_TRY)
        for seed in range(tries):
            stuck, chosen = self._random_text(random.Random(seed), tokens)
            self._matcher.reset()
            if not stuck:
                return
            if not chosen:
                break
        raise UserError(
            f"{self._kind}: the tokenizer's vocabulary cannot write this; use a tokenizer of bytes, or another form"
        )

    def _random_text(self, generator: random.Random, tokens: int) -> tuple[bool, bool]:
        """(whether it came to where the vocabulary has nothing that may follow, whether there ever was a choice)."""
        chosen = False
        for _ in range(tokens):
            if self.finished:
                break
            ids = np.flatnonzero(self._computed())
            if not ids.size:
                return True, chosen
            chosen = chosen or ids.size > 1
            self._matcher.consume_token(int(ids[generator.randrange(ids.size)]))
            self.forced()
        return False, chosen


class _Vocabulary:
    """A tokenizer as llguidance asks for one.

    Bytes that the vocabulary lacks get ids behind it, which no text has: what follows of necessity is then known even
    where it cannot be written.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        texts = _texts(tokenizer)
        names = [tokenizer.token_bytes(index) or b"<%d>" % index for index in range(tokenizer.vocab_size)]
        lacking = sorted({bytes([byte]) for byte in range(256)} - set(texts.values()))
        self.tokens = [*names, *lacking]
        self.special_token_ids = [index for index in range(tokenizer.vocab_size) if index not in texts]
        self.eos_token_id, self.bos_token_id = tokenizer.end_of_text, None
        added = dict(enumerate(lacking, start=tokenizer.vocab_size))
        self._ids = {data: index for index, data in sorted((added | texts).items(), reverse=True)}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens whose bytes are those of `text`: as the tokenizer divides it where it can, else the longest first."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(data.decode("utf-8", errors="replace"))
        if b"".join(self.tokens[index] for index in ids) == data:
            return ids
        ids, place = [], 0
        while place < len(data):
            sizes = range(min(self._longest, len(data) - place), 0, -1)
            size = next(size for size in sizes if data[place : place + size] in self._ids)
            ids.append(self._ids[data[place : place + size]])
            place += size
        return ids


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer, stop: frozenset[int]) -> "LLTokenizer":
    """The tree of a vocabulary: a tenth of a second for 50,000 tokens, so the last ones are kept."""
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = {tokenizer.end_of_text, *(i for i in stop if i < tokenizer.vocab_size)}
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=sorted(ends))


@lru_cache(maxsize=8)
def _texts(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes of every token that is text, by its id."""
    silent = {*tokenizer.special_tokens.values(), tokenizer.unknown}
    known = ((i, tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size) if i not in silent)
    return {index: data for index, data in known if data}


@lru_cache(maxsize=8)
def _has_all_bytes(tokenizer: Tokenizer) -> bool:
    return sum(len(data) == 1 for data in set(_texts(tokenizer).values())) == 256


def _alphabet(tokenizer: Tokenizer) -> list[str] | None:
    """The characters of a vocabulary of nothing but single characters; None for any other."""
    if _has_all_bytes(tokenizer):
        return None
    letters = [data.decode("utf-8", errors="replace") for data in _texts(tokenizer).values()]
    return sorted(letters) if all(len(letter) == 1 for letter in letters) else None


def _can_write(data: bytes, pieces: frozenset[bytes]) -> bool:
    """Whether `data` is pieces one after the other."""
    longest = max(map(len, pieces), default=0)
    reached = [True] + [False] * len(data)
    for end in range(1, len(data) + 1):
        reached[end] = any(reached[begin] and data[begin:end] in pieces for begin in range(max(0, end - longest), end))
    return reached[-1]


def _literal(character: str) -> str:
    """A character as a regular expression writes it."""
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


def _check_size(kind: str, text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{kind}: {len(text)} characters are too many; give at most {MOST_CHARACTERS}")


def _reason(error: str) -> str:
    """What llguidance says, in one line."""
    if "NoExtension" in error:
        return "nothing has this form; give one that some text can have"
    if any(word in error for word in ("too many", "limit", "fuel", "TooComplex")):
        return "it is too complex; give a smaller one, with fewer or shorter repetitions"
    _, found, message = error.rpartition("error: ")
    line = (message if found else error).strip().split("\n")[0]
    return _lowered(line)


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
