"""A simulated labeller: a fixed rule in the place of a person who ranks docstring sentences.

The default job has no people to ask. It has, for every function, the sentence its author wrote, and scores a response
against that reference with the rule below. Whoever reports rankings or scores made with it must call it simulated
(`LABELLER` is the name to store). It shows that the machinery works; it does not show what people prefer.

    total = similarity / 2 + form / 2                                                    all three in [0, 1]

similarity = (F_words + F_trigrams) / 2, both F1 = 2 m / (a + b) of weighted multisets: a and b are the weights of the
response's and the reference's items, m that of their intersection.

* words: lower case, without their ending (Return, returns, returned are one word); a stop word weighs 0.2, others 1;
* trigrams: of the lower-case text with every run of other characters than letters and digits made one blank, one
  blank added at both ends; each weighs 1. (As in chrF, Popovic 2015, with n = 3 alone and beta = 1.)

form = length * repetition * (0.15 capital + 0.3 sentence + 0.3 ended + 0.15 one line + 0.1 balanced), where

* length: 1 for 4 to 20 words; n / 4 below; 20 / n above (words are runs of non-blanks with a letter or a digit);
* repetition: 1 / (1 + r), r = repeated word trigrams + words equal to the one before;
* capital: the first character is an upper-case letter;
* sentence: ends in one period, and no sentence ends before it;
* ended: the model stopped by itself;
* one line: no line break inside;
* balanced: brackets nest and close, quotes come in twos.

White space around a response counts for nothing.

    score("Return the parser.", "Return a new parser.", ended=True).total
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from parlance.finetuning.docstrings import sentence_end

LABELLER = "simulated: word and trigram overlap with the author's docstring, and form"
"""Name of this labeller in a ranking's metadata."""

SHORTEST, LONGEST = 4, 20
"""Words between which the length is right."""
STOP_WEIGHT = 0.2
STOP_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "those", "it", "its", "is", "are", "was", "be", "been"),
        *("of", "to", "in", "on", "at", "by", "for", "from", "with", "as", "into", "and", "or", "if", "else"),
        *("not", "no", "any", "all", "given", "which", "has", "have", "will", "can", "may", "return"),
    )
)
"""Words that weigh little, without their ending; `return` opens one docstring in four and says nothing of its own."""


@dataclass(frozen=True)
class LabellerScore:
    """What the simulated labeller thinks of a response; each in [0, 1]."""

    total: float
    """The mean of the two below: rank by this."""
    similarity: float
    """Says what the author said."""
    form: float
    """Reads like a docstring's first sentence."""


def score(response: str, reference: str, ended: bool) -> LabellerScore:
    """Score a response against the author's sentence; `ended`: the model stopped by itself."""
    likeness, form = similarity(response, reference), form_only(response, ended)
    return LabellerScore((likeness + form) / 2, likeness, form)


def similarity(response: str, reference: str) -> float:
    """Mean of the word F1 and the trigram F1; symmetric, 1 for equal texts with a word, 0 where nothing is shared."""
    words = _f1(_weighted_words(response), _weighted_words(reference))
    return (words + _f1(_trigrams(response), _trigrams(reference))) / 2


def form_only(response: str, ended: bool) -> float:
    """The form half alone: the baseline that shows what a policy can gain without reading the code."""
    text = response.strip()
    words = _blank_separated_words(text)
    marks = (
        0.15 * text[:1].isupper()
        + 0.3 * _is_one_sentence(text)
        + 0.3 * ended
        + 0.15 * (len(text.splitlines()) == 1)
        + 0.1 * _is_balanced(text)
    )
    return length_only(response) / (1 + _repetitions(words)) * marks


def length_only(response: str) -> float:
    """The length factor alone: the baseline that shows how much of a reward is length."""
    count = len(_blank_separated_words(response))
    return min(1.0, count / SHORTEST, LONGEST / max(count, 1))


def rank(scores: Sequence[float], tie_margin: float) -> list[int]:
    """Ranks (1 = best, no number left out) of scores; a rank holds what lies within `tie_margin` of its best.

    Going down from the best score, a score opens a new rank where it is more than the margin below the best of the
    current one. So ties are transitive, and no two of one rank differ by more than the margin. Margin 0: equals tie.
    """
    ranks = [0] * len(scores)
    current, best = 0, float("inf")
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if best - scores[index] > tie_margin:
            current, best = current + 1, scores[index]
        ranks[index] = current
    return ranks


# --- similarity ------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z0-9]+")


def stem(word: str) -> str:
    """A lower-case word without its ending: -s, -es, -ed, -ing, final -e, and a consonant doubled before those."""
    if len(word) < 4:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        base = word.removesuffix(ending)
        if base != word and len(base) >= 3 and re.search("[aeiouy]", base):
            word = base[:-1] if base[-1] == base[-2] and base[-1] not in "lsz" else base
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _weighted_words(text: str) -> dict[str, float]:
    counts = Counter(stem(word) for word in _WORD.findall(text.lower()))
    return {word: count * (STOP_WEIGHT if word in _STOP_STEMS else 1.0) for word, count in counts.items()}


def _trigrams(text: str) -> Counter[str]:
    plain = " ".join(_WORD.findall(text.lower()))
    if not plain:
        return Counter()
    padded = f" {plain} "
    return Counter(padded[start : start + 3] for start in range(len(padded) - 2))


def _f1(first: dict[str, float] | Counter[str], second: dict[str, float] | Counter[str]) -> float:
    whole = sum(first.values()) + sum(second.values())
    shared = sum(min(weight, second[item]) for item, weight in first.items() if item in second)
    return 2 * shared / whole if whole else 0.0


_STOP_STEMS = frozenset(stem(word) for word in STOP_WORDS)

# --- form ------------------------------------------------------------------------------------------------------------


def _blank_separated_words(text: str) -> list[str]:
    return [word for word in text.lower().split() if any(character.isalnum() for character in word)]


def _is_one_sentence(text: str) -> bool:
    return text.endswith(".") and not text.endswith("..") and sentence_end(text) == len(text)


def _repetitions(words: list[str]) -> int:
    """Word trigrams that occurred before, plus words equal to the one before them; a closing mark is not a letter."""
    bare = [word.strip(".,;:!?") for word in words]
    triples = list(zip(bare, bare[1:], bare[2:], strict=False))
    return len(triples) - len(set(triples)) + sum(map(str.__eq__, bare, bare[1:]))


_CLOSING = {")": "(", "]": "[", "}": "{"}


def _is_balanced(text: str) -> bool:
    """Brackets nest and close, double quotes and backquotes are even; an apostrophe inside a word is no quote."""
    stack: list[str] = []
    for character in text:
        if character in "([{":
            stack.append(character)
        elif character in _CLOSING and (not stack or stack.pop() != _CLOSING[character]):
            return False
    opened = len(re.findall(r"(?<!\w)'(?=\S)", text))
    closed = len(re.findall(r"(?<=\S)'(?!\w)", text))
    # A plural's apostrophe ("files' names") closes nothing: only an opened quote has to find its end.
    return not stack and text.count('"') % 2 == 0 and text.count("`") % 2 == 0 and opened <= closed
