"""Rankings: several responses to one prompt, put in order by a labeller, and the pairs that follow from them.

A file is JSON lines; each line has one of these shapes:

    {"prompt": ..., "responses": ["a", "b", "c"], "ranking": ...}
    {"prompt": ..., "chosen": ..., "rejected": ...}
    {"chosen": ..., "rejected": ...}                                   the prompt is what both begin with

`prompt` is a string or a list of messages `{"role", "content"}`. `ranking` is written in one of two ways, told apart
by whether its items are numbers or lists:

* ranks, one whole number a response: 1 is best, equal numbers are a tie: `[2, 1, 3, 1]`. The best must be 1;
  numbers may be left out after a tie (`[1, 1, 3]`), as in sports;
* groups of response indices counted from 0, best group first, a group is a tie: `[[1, 3], [0], [2]]` says the same.
  Every index occurs once.

`chosen` and `rejected` are strings, or lists of messages whose last is the assistant's. Without `prompt`, strings
are read as transcripts in the manner of hh-rlhf: the prompt reaches to the end of the last "\\n\\nAssistant:" that both
share; where there is none, to the last white space of the common prefix. If `chosen` equals `rejected`, that is a tie.
Optional: an object `metadata`; a ranking that a program made must say so there, `{"labeller": "simulated ..."}`.

    rankings = read_rankings(Path("preferences.jsonl"))
    pairs(rankings[0])            # [(1, 0), (1, 2), ...]: response 1 is better than response 0, ...

Sources: Ouyang et al. 2022 (K responses a prompt, all K(K-1)/2 pairs, ties dropped); Bai et al. 2022 (hh-rlhf).
"""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parlance.core.artifacts import read_jsonl, write_jsonl
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.text.chat_template import check_messages

Message = dict[str, str]
Prompt = str | list[Message]
_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class Ranking:
    """Responses to one prompt, in an order with ties. Raises UserError where the fields do not fit each other."""

    prompt: Prompt
    responses: list[str]
    """At least two."""
    ranks: list[int]
    """One a response: 1 is best, equal numbers tie."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON values: `labeller` (who ranked; begins with "simulated" where it was a program), optionally `scores`."""

    def __post_init__(self) -> None:
        if len(self.responses) < 2:
            raise UserError(f"a ranking needs at least two responses, not {len(self.responses)}")
        if len(self.ranks) != len(self.responses):
            raise UserError(f"the ranking has {len(self.ranks)} ranks for {len(self.responses)} responses")
        if min(self.ranks) != 1:
            raise UserError(f"the best rank is {min(self.ranks)}; it must be 1 (for indices write groups: [[0], [1]])")


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as a conversation: text is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def pairs(ranking: Ranking) -> list[tuple[int, int]]:
    """All (winner, loser) index pairs, ties left out, in the order of `itertools.combinations`."""
    ranks = ranking.ranks
    couples = itertools.combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in couples if ranks[i] != ranks[j]]


def ranking_counts(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """`rankings`, `responses`, `pairs`, `all_tied` (rankings without a pair) and `labellers` (name -> rankings)."""
    counts = [len(pairs(ranking)) for ranking in rankings]
    return {
        "rankings": len(rankings),
        "responses": sum(len(ranking.responses) for ranking in rankings),
        "pairs": sum(counts),
        "all_tied": counts.count(0),
        "labellers": dict(Counter(str(ranking.metadata.get("labeller", "not stated")) for ranking in rankings)),
    }


# --- files -----------------------------------------------------------------------------------------------------------


def read_rankings(path: Path, skip_bad: bool = False) -> list[Ranking]:
    """Read a JSON-lines file of rankings.

    A bad line raises UserError with file, line and reason; with `skip_bad` such lines are left out, and their number
    and the first reason are told on standard error. So is the number of rankings that are one tie (they are returned,
    but have no pairs). A file without any ranking raises UserError.
    """
    rankings: list[Ranking] = []
    problems: list[str] = []
    for number, record in read_jsonl(path, skip_bad=skip_bad):
        try:
            rankings.append(parse_ranking(record))
        except UserError as error:
            problems.append(f"{path}, line {number}: {error}")
            if not skip_bad:
                raise UserError(f"{problems[0]}; mend the line, or pass --skip-bad to leave such lines out") from error
    if problems:
        say(f"left out {len(problems)} of {len(problems) + len(rankings)} rankings; first: {problems[0]}")
    if not rankings:
        raise UserError(f"{path} has no usable rankings; write at least one JSON object a line")
    if tied := ranking_counts(rankings)["all_tied"]:
        say(f"{tied} of {len(rankings)} rankings in {path} rank all responses alike and give no pairs")
    return rankings


def write_rankings(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write rankings with ranks, atomically; `read_rankings` gives them back."""
    write_jsonl(path, [ranking_to_json(ranking) for ranking in rankings])


def ranking_to_json(ranking: Ranking) -> dict[str, Any]:
    """The JSON object of one line; `parse_ranking` is its inverse."""
    return {
        "prompt": ranking.prompt,
        "responses": ranking.responses,
        "ranking": ranking.ranks,
        "metadata": ranking.metadata,
    }


def parse_ranking(record: dict[str, Any]) -> Ranking:
    """The ranking in one JSON object, in any of the shapes above. Raises UserError saying what is wrong with it."""
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError("`metadata` is not an object")
    if "responses" in record:
        responses = record["responses"]
        if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
            raise UserError("`responses` is not a list of strings")
        return Ranking(_prompt(record), responses, parse_ranks(record.get("ranking"), len(responses)), metadata)
    if "chosen" not in record or "rejected" not in record:
        raise UserError("no ranking here; give `responses` and `ranking`, or `chosen` and `rejected`")
    prompt, chosen, rejected = _preference(record)
    return Ranking(prompt, [chosen, rejected], [1, 1] if chosen == rejected else [1, 2], metadata)


def parse_ranks(ranking: Any, count: int) -> list[int]:
    """Ranks (1 = best) of `count` responses from either way of writing a ranking. Raises UserError."""
    if not isinstance(ranking, list) or not ranking:
        raise UserError("`ranking` is not a list of ranks ([2, 1, 3]) or of groups of indices ([[1], [0], [2]])")
    if all(_is_integer(rank) for rank in ranking):
        return ranking  # `Ranking` checks their number and the best of them
    if not all(isinstance(group, list) and group and all(map(_is_integer, group)) for group in ranking):
        raise UserError("`ranking` mixes things; write all ranks ([2, 1, 3]) or all groups ([[1], [0], [2]])")
    ranks = [0] * count
    for rank, group in enumerate(ranking, start=1):
        for index in group:
            if not 0 <= index < count:
                raise UserError(f"`ranking` names response {index}, but they are numbered 0 to {count - 1}")
            if ranks[index]:
                raise UserError(f"`ranking` names response {index} twice")
            ranks[index] = rank
    if 0 in ranks:
        raise UserError(f"`ranking` does not name response {ranks.index(0)}")
    return ranks


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _prompt(record: dict[str, Any]) -> Prompt:
    prompt = record.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return _messages(prompt)
    raise UserError("`prompt` is missing, or neither a string nor a list of messages")


def _messages(turns: list[Any]) -> list[Message]:
    check_messages(turns)
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _preference(record: dict[str, Any]) -> tuple[Prompt, str, str]:
    """(prompt, chosen response, rejected response)."""
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        return (_prompt(record), chosen, rejected) if "prompt" in record else split_transcripts(chosen, rejected)
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise UserError("`chosen` and `rejected` are not both strings or both lists of messages")
    answers: list[str] = []
    prompts: list[Prompt] = []
    for turns in (_messages(chosen), _messages(rejected)):
        if turns[-1]["role"] != "assistant":
            raise UserError("the last message of `chosen` or `rejected` is not the assistant's")
        answers.append(turns[-1]["content"])
        prompts.append(turns[:-1])
    if prompts[0] != prompts[1]:
        raise UserError("`chosen` and `rejected` differ before their last message")
    if "prompt" not in record:
        if not prompts[0]:
            raise UserError("`prompt` is missing, and `chosen` begins with its answer")
        return prompts[0], answers[0], answers[1]
    prompt = _prompt(record)
    written = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if prompts[0] and prompts[0] != written:
        raise UserError("the messages of `chosen` before its last one are not those of `prompt`")
    return prompt, answers[0], answers[1]


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen response, rejected response) of two transcripts with a common beginning.

    The prompt ends after the last "\\n\\nAssistant:" of the common prefix (transcripts that part earlier keep their
    later turns in the responses); without such a mark, after its last white space, never inside a word. Raises
    UserError for equal transcripts without a mark.
    """
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - character by character is what is wanted
    place = common.rfind(_ASSISTANT)
    if place >= 0:
        end = place + len(_ASSISTANT)
    elif chosen == rejected:
        raise UserError("`chosen` and `rejected` are the same, and no prompt is marked")
    else:
        end = max((index + 1 for index, character in enumerate(common) if character.isspace()), default=0)
    return chosen[:end], chosen[end:], rejected[end:]
