"""A user's demonstrations and rankings are divided by one table of prompts."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from parlance.core.errors import UserError
from parlance.pipeline.division import divide_prompts, prompt_key
from parlance.pipeline.stages.user_data import make_user_demonstrations, make_user_rankings


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts_of(file: Path) -> set[str]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {prompt_key(row["prompt"] if "prompt" in row else row["messages"][:-1]) for row in rows}


def as_turn(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def preference(prompt: Any, best: str = "yes") -> dict[str, Any]:
    return {"prompt": prompt, "responses": [best, "no"], "ranking": [1, 2]}


def tie(prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt, "responses": ["yes", "no"], "ranking": [1, 1]}


PROMPTS = [f"prompt {number}" for number in range(24)]
FILES: dict[str, tuple[list[dict[str, Any]] | None, list[dict[str, Any]]]] = {
    "preferences alone, one prompt tied": (None, [preference(p) for p in PROMPTS[:8]] + [tie(PROMPTS[8])]),
    "three preferences alone": (None, [preference(p) for p in PROMPTS[:3]]),
    "two rankings a prompt, spelt in two ways": (
        None,
        [preference(p) for p in PROMPTS] + [preference(as_turn(p), "sure") for p in PROMPTS],
    ),
    "a tie and a preference for each prompt": (
        None,
        [tie(p) for p in PROMPTS[:6]] + [preference(as_turn(p)) for p in PROMPTS[:6]],
    ),
    "both files with the same prompts, in another order": (
        [{"prompt": p, "completion": answer} for p in PROMPTS for answer in ("a", "b")],
        [preference(as_turn(p)) for p in reversed(PROMPTS)],
    ),
    "many demonstrations, few of them ranked": (
        [{"prompt": p, "completion": "a"} for p in PROMPTS],
        [preference(p) for p in PROMPTS[:3]],
    ),
    "three of each, one in common": (
        [{"prompt": p, "completion": "a"} for p in PROMPTS[:3]],
        [preference(p) for p in PROMPTS[2:5]],
    ),
    "nothing in common": (
        [{"prompt": p, "completion": "a"} for p in PROMPTS[:4]],
        [preference(p) for p in PROMPTS[4:]],
    ),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", FILES)
def test_what_one_file_holds_out_the_other_never_trains_on(tmp_path: Path, case: str, seed: int) -> None:
    rows, ranked = FILES[case]
    demonstrations = None if rows is None else write(tmp_path / "demonstrations.jsonl", rows)
    preferences = write(tmp_path / "preferences.jsonl", ranked)
    facts = make_user_demonstrations(demonstrations, preferences, tmp_path / "d", skip_bad=False, seed=seed)
    make_user_rankings(demonstrations, preferences, tmp_path / "r", skip_bad=False, seed=seed)
    parts = {name: prompts_of(tmp_path / "d" / f"{name}.jsonl") for name in ("train", "validation", "test")}
    train, test = (prompts_of(tmp_path / "r" / f"{name}.jsonl") for name in ("train", "test"))
    assert all(parts.values())
    assert train
    assert test
    for left, right in itertools.combinations(parts.values(), 2):
        assert not left & right
    assert not train & test
    assert not train & (parts["validation"] | parts["test"])
    assert not test & parts["train"]
    assert sum(facts.values()) == len(rows if rows is not None else ranked)
    assert train | test == {prompt_key(row["prompt"]) for row in ranked if row["ranking"] != [1, 1]}
    kept = [json.loads(line) for line in (tmp_path / "r" / "test.jsonl").read_text().splitlines()]
    assert all(row["ranking"] != [1, 1] for row in kept)


def test_the_division_of_random_files_keeps_its_promises() -> None:
    choose = random.Random(0)
    for seed in range(500):
        pool = [str(number) for number in range(choose.randint(3, 40))]
        demonstrated = choose.sample(pool, choose.randint(0, len(pool)))
        ranked = choose.sample(pool, choose.randint(0, len(pool)))
        splits = divide_prompts(demonstrated, ranked, seed)
        assert splits == divide_prompts(demonstrated * 2, ranked, seed)
        assert splits.keys() == {*demonstrated, *ranked}
        if len(demonstrated) >= 3:
            assert {splits[key] for key in demonstrated} == {"train", "validation", "test"}
        if len(ranked) >= 3:
            assert {"train", "test"} <= {splits[key] for key in ranked}


def test_the_shares_and_the_seed() -> None:
    keys = [str(number) for number in range(1000)]
    splits = divide_prompts(keys, keys[500:], seed=0)
    assert [list(splits.values()).count(name) for name in ("train", "validation", "test")] == [900, 50, 50]
    assert splits != divide_prompts(keys, keys[500:], seed=1)


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", [{"prompt": "p", "completion": str(number)} for number in range(9)])
    with pytest.raises(UserError, match=r"gives 9 demonstrations; give at least 3 with different prompts \(here: 1\)"):
        make_user_demonstrations(same, None, tmp_path / "d", skip_bad=False, seed=0)
    two = write(tmp_path / "two.jsonl", [preference("a"), preference("b"), preference(as_turn("b")), tie("c")])
    with pytest.raises(UserError, match="prefers one response to another for 2 prompts"):
        make_user_rankings(None, two, tmp_path / "r", skip_bad=False, seed=0)
