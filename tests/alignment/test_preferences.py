"""Rankings, their file formats, and the pairs that follow."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parlance.alignment.preferences import (
    Ranking,
    pairs,
    parse_ranking,
    parse_ranks,
    ranking_counts,
    ranking_to_json,
    read_rankings,
    split_transcripts,
    write_rankings,
)
from parlance.core.errors import UserError

USER = {"role": "user", "content": "Hi"}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_both_ways_of_writing_a_ranking_say_the_same():
    assert parse_ranks([2, 1, 3, 1], 4) == [2, 1, 3, 1]
    assert parse_ranks([[1, 3], [0], [2]], 4) == [2, 1, 3, 1]
    assert parse_ranks([1, 1, 3], 3) == [1, 1, 3]


def test_pairs_leave_ties_out():
    ranking = Ranking("p", ["a", "b", "c", "d"], [2, 1, 3, 1])
    assert set(pairs(ranking)) == {(1, 0), (0, 2), (3, 0), (1, 2), (3, 2)}
    assert pairs(Ranking("p", ["a", "b"], [1, 1])) == []
    # K(K - 1)/2 of them without ties.
    assert len(pairs(Ranking("p", list("abcde"), [5, 3, 1, 2, 4]))) == 10


def test_counts():
    rankings = [
        Ranking("p", ["a", "b", "c"], [1, 2, 3], {"labeller": "simulated: x"}),
        Ranking("p", ["a", "b"], [1, 1]),
    ]
    assert ranking_counts(rankings) == {
        "rankings": 2,
        "responses": 5,
        "pairs": 3,
        "all_tied": 1,
        "labellers": {"simulated: x": 1, "not stated": 1},
    }


@pytest.mark.parametrize(
    ("record", "ranking"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, Ranking("Hi", ["a", "b"], [1, 2])),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, Ranking("Hi", ["a", "a"], [1, 1])),
        ({"prompt": [USER], "chosen": [say("a")], "rejected": [say("b")]}, Ranking([USER], ["a", "b"], [1, 2])),
        ({"prompt": "Hi", "chosen": [USER, say("a")], "rejected": [USER, say("b")]}, Ranking("Hi", ["a", "b"], [1, 2])),
        ({"chosen": [USER, say("a")], "rejected": [USER, say("b")]}, Ranking([USER], ["a", "b"], [1, 2])),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
            Ranking("\n\nHuman: Hi\n\nAssistant:", [" Hello.", " Go."], [1, 2]),
        ),
        (
            {"prompt": "Hi", "responses": ["a", "b", "c"], "ranking": [[2], [0, 1]], "metadata": {"labeller": "Ann"}},
            Ranking("Hi", ["a", "b", "c"], [2, 2, 1], {"labeller": "Ann"}),
        ),
    ],
)
def test_shapes(record, ranking):
    assert parse_ranking(record) == ranking


def test_transcripts_are_split_at_the_last_common_turn():
    turn = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"
    assert split_transcripts(turn + " yes", turn + " yet") == (turn, " yes", " yet")
    # Transcripts that part in an earlier turn keep the rest of themselves.
    start = "\n\nHuman: A\n\nAssistant:"
    first, second = start + " B\n\nHuman: C\n\nAssistant: D", start + " E\n\nHuman: F\n\nAssistant: G"
    assert split_transcripts(first, second) == (start, first[len(start) :], second[len(start) :])
    # Without a mark: whole words.
    assert split_transcripts("It is 123.", "It is 124.") == ("It is ", "123.", "124.")
    assert split_transcripts("yes", "yet") == ("", "yes", "yet")
    with pytest.raises(UserError, match="the same"):
        split_transcripts("a b", "a b")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ranking": [1, 2]}, "2 ranks for 3 responses"),
        ({"ranking": [0, 1, 2]}, "best rank is 0; it must be 1"),
        ({"ranking": [2, 3, 4]}, "best rank is 2"),
        ({"ranking": [True, 2, 3]}, "mixes"),
        ({"ranking": [1.0, 2, 3]}, "mixes"),
        ({"ranking": [[0], 1, 2]}, "mixes"),
        ({"ranking": [[0], [], [1, 2]]}, "mixes"),
        ({"ranking": [[0], [1], [3]]}, "names response 3"),
        ({"ranking": [[0], [1], [-1]]}, "names response -1"),
        ({"ranking": [[0], [1], [1, 2]]}, "names response 1 twice"),
        ({"ranking": [[0], [2]]}, "does not name response 1"),
        ({"ranking": []}, "not a list"),
        ({"ranking": None}, "not a list"),
        ({"ranking": "1,2,3"}, "not a list"),
        ({"responses": ["a"], "ranking": [1]}, "at least two"),
        ({"responses": ["a", 2, "c"]}, "list of strings"),
        ({"prompt": None}, "`prompt` is missing"),
        ({"prompt": [{"role": "robot", "content": ""}]}, "robot"),
        ({"metadata": "Ann"}, "`metadata`"),
    ],
)
def test_malformed_rankings_are_named(tmp_path: Path, changes, reason, capsys):
    good = {"prompt": "Hi", "responses": ["a", "b", "c"], "ranking": [1, 2, 3]}
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | changes) + "\n")
    with pytest.raises(UserError, match=reason) as caught:
        read_rankings(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert read_rankings(path, skip_bad=True) == [Ranking("Hi", ["a", "b", "c"], [1, 2, 3])]
    assert "left out 1 of 2 rankings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Hi"}, "no ranking here"),
        ({"prompt": "Hi", "chosen": "a"}, "no ranking here"),
        ({"prompt": "Hi", "chosen": "a", "rejected": [say("b")]}, "not both"),
        ({"prompt": "Hi", "chosen": [say("a")], "rejected": [USER]}, "not the assistant's"),
        ({"prompt": "Ho", "chosen": [USER, say("a")], "rejected": [USER, say("b")]}, "not those of `prompt`"),
        ({"chosen": [say("a")], "rejected": [say("b")]}, "`prompt` is missing"),
        ({"chosen": [USER, say("a")], "rejected": [say("b")]}, "differ before"),
    ],
)
def test_malformed_preferences_are_named(record, reason):
    with pytest.raises(UserError, match=reason):
        parse_ranking(record)


def test_all_tied_is_allowed_and_told(tmp_path: Path, capsys):
    path = tmp_path / "rankings.jsonl"
    write_rankings(path, [Ranking("p", ["a", "b"], [1, 1]), Ranking("p", ["a", "b"], [1, 2])])
    assert len(read_rankings(path)) == 2
    assert "1 of 2 rankings" in capsys.readouterr().err
    path.write_text("\n")
    with pytest.raises(UserError, match="no usable rankings"):
        read_rankings(path)


messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}), min_size=1
)


@st.composite
def rankings(draw) -> Ranking:
    responses = draw(st.lists(st.text(), min_size=2, max_size=6))
    ranks = draw(st.lists(st.integers(1, 9), min_size=len(responses), max_size=len(responses)))
    ranks[draw(st.integers(0, len(ranks) - 1))] = 1
    metadata = draw(st.dictionaries(st.text(), st.text() | st.lists(st.floats(allow_nan=False))))
    return Ranking(draw(st.text() | messages), responses, ranks, metadata)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rankings(), min_size=1, max_size=4))
def test_round_trip(tmp_path: Path, items):
    write_rankings(tmp_path / "r.jsonl", items)
    assert read_rankings(tmp_path / "r.jsonl") == items
    assert [parse_ranking(ranking_to_json(item)) for item in items] == items


@given(rankings())
def test_groups_give_the_same_pairs_as_ranks(ranking):
    groups = [[i for i, r in enumerate(ranking.ranks) if r == rank] for rank in sorted(set(ranking.ranks))]
    again = Ranking(ranking.prompt, ranking.responses, parse_ranks(groups, len(ranking.responses)))
    assert pairs(again) == pairs(ranking)
    assert len(set(ranking.ranks)) == len(set(again.ranks)) == max(again.ranks)
