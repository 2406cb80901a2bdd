"""The stages that take a user's demonstrations and rankings: divided alike, and checked before anything is trained.

    make_user_demonstrations(Path("my.jsonl"), None, Path("demonstrations"), skip_bad=False, seed=0)
    make_user_rankings(None, Path("ranked.jsonl"), Path("rankings"), skip_bad=False, seed=0)

No prompt that is held out by one is trained on by the other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parlance.alignment.preferences import Ranking, as_messages, pairs, read_rankings, write_rankings
from parlance.alignment.reward_model import encode_rankings
from parlance.core.artifacts import atomic_directory
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.finetuning.demonstrations import (
    Demonstration,
    parse_demonstration,
    read_demonstrations,
    write_demonstrations,
)
from parlance.finetuning.supervised import encode_demonstrations
from parlance.pipeline.division import divide_prompts, prompt_key
from parlance.pipeline.stages.sampling import prompt_tokens
from parlance.text.splits import SPLITS
from parlance.text.tokenizers import Tokenizer


def make_user_demonstrations(
    demonstrations: Path | None, preferences: Path | None, out: Path, *, skip_bad: bool, seed: int
) -> dict[str, Any]:
    """A user's demonstrations divided by prompt, 90 / 5 / 5; without any, the best-ranked responses of the preferences.

    What is held out here is held out by `make_user_rankings` of the same files too. Raises UserError where there are
    fewer than three different prompts.
    """
    rows, rankings = _user_files(demonstrations, preferences, skip_bad=skip_bad)
    if demonstrations is None:
        say("no demonstrations: the best-ranked responses of the preferences serve as demonstrations")
    prompts = len({_key(row) for row in rows})
    if prompts < 3:
        raise UserError(
            f"{demonstrations or preferences} gives {len(rows)} demonstrations; give at least 3 with different prompts "
            f"(here: {prompts}), one each for training, validation and test"
        )
    splits = _user_splits(rows, rankings, seed)
    parts = {split: [row for row in rows if splits[_key(row)] == split] for split in SPLITS}
    with atomic_directory(out) as folder:
        for split, part in parts.items():
            write_demonstrations(folder / f"{split}.jsonl", part)
    return {f"{split}_demonstrations": len(part) for split, part in parts.items()}


def make_user_rankings(
    demonstrations: Path | None, preferences: Path, out: Path, *, skip_bad: bool, seed: int
) -> dict[str, Any]:
    """A person's rankings divided by prompt: train.jsonl, and test.jsonl with about a tenth.

    test.jsonl has the prompts that `make_user_demonstrations` of the same files holds out for validation or test, so
    none of them is trained on by any stage. A ranking that is one tie tests nothing and teaches nothing, and is left
    out. Raises UserError where there are too few to divide.
    """
    rows, everything = _user_files(demonstrations, preferences, skip_bad=skip_bad)
    rankings = [ranking for ranking in everything if pairs(ranking)]
    prompts = len({prompt_key(ranking.prompt) for ranking in rankings})
    if prompts < 3:
        raise UserError(
            f"{preferences} prefers one response to another for {prompts} prompts; give rankings of at least 3"
        )
    splits = _user_splits(rows, rankings, seed)
    with atomic_directory(out) as folder:
        test = [ranking for ranking in rankings if splits[prompt_key(ranking.prompt)] != "train"]
        train = [ranking for ranking in rankings if splits[prompt_key(ranking.prompt)] == "train"]
        write_rankings(folder / "train.jsonl", train)
        write_rankings(folder / "test.jsonl", test)
    return {"labeller": "as given", "train_prompts": len(train), "test_prompts": len(test)}


def check_demonstrations(file: Path, tokenizer: Tokenizer, context_length: int, answer_tokens: int | None) -> None:
    """Raise UserError where no demonstration fits the context or, with `answer_tokens`, no prompt leaves room for an
    answer of that length: before anything is trained."""
    rows = read_demonstrations(file)
    examples, _ = encode_demonstrations(tokenizer, rows, context_length)
    if not examples:
        raise UserError(
            f"none of the {len(rows)} training demonstrations fits the context of {context_length} tokens; "
            "shorten them or set a larger pretraining.context_length"
        )
    if answer_tokens is not None:
        shortest = min(len(prompt_tokens(tokenizer, row.messages[:-1])) for row in rows)
        if shortest + answer_tokens > context_length:
            raise UserError(
                f"the shortest prompt has {shortest} tokens, which leaves no room for {answer_tokens} of an answer in "
                f"the context of {context_length}; set a larger pretraining.context_length"
            )


def check_rankings(file: Path, tokenizer: Tokenizer, context_length: int) -> None:
    """Raise UserError where no ranking has a pair of responses that fits the context: before anything is trained."""
    rankings = read_rankings(file)
    examples, _ = encode_rankings(tokenizer, rankings, context_length)
    if not examples:
        raise UserError(
            f"none of the {len(rankings)} training rankings fits the context of {context_length} tokens; "
            "shorten them or set a larger pretraining.context_length"
        )


def best_demonstrations(rankings: Sequence[Ranking]) -> list[Demonstration]:
    """The first response of the best rank of each ranking; where that makes no demonstration (it is empty, or the
    prompt has no user), the ranking gives none."""
    rows = []
    for ranking in rankings:
        best = ranking.responses[ranking.ranks.index(min(ranking.ranks))]
        messages = [*as_messages(ranking.prompt), {"role": "assistant", "content": best}]
        try:
            rows.append(parse_demonstration({"messages": messages}))
        except UserError:
            continue
    return rows


def _user_files(
    demonstrations: Path | None, preferences: Path | None, *, skip_bad: bool
) -> tuple[list[Demonstration], list[Ranking]]:
    """A user's demonstrations (without a file: the best-ranked responses) and rankings (without a file: none)."""
    rankings = [] if preferences is None else read_rankings(preferences, skip_bad=skip_bad)
    if demonstrations is None:
        return best_demonstrations(rankings), rankings
    return read_demonstrations(demonstrations, skip_bad=skip_bad), rankings


def _key(row: Demonstration) -> str:
    return prompt_key(row.messages[:-1])


def _user_splits(rows: Sequence[Demonstration], rankings: Sequence[Ranking], seed: int) -> dict[str, str]:
    """The split of every prompt of both files; see `divide_prompts`."""
    preferred = [prompt_key(ranking.prompt) for ranking in rankings if pairs(ranking)]
    return divide_prompts([_key(row) for row in rows], preferred, seed)
