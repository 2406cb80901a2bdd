"""Decontamination against brute force over words, planted items, and sets with known contents."""

import csv
import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.decontamination import EvaluationSet, OverlapIndex, load_evaluation_set

QUESTION = "Which planet of the solar system has the largest number of moons known in the year 2020, Jupiter or Saturn?"
SHORT = "Who wrote the famous novel about a white whale?"  # 9 words
TINY = "What is two plus two?"  # 5 words
SET = EvaluationSet("quiz", (("long", QUESTION), ("short", SHORT), ("tiny", TINY)))


def test_an_item_is_found_where_it_stands() -> None:
    text = f"Some words before. {QUESTION} And some behind it."
    (overlap,) = OverlapIndex([SET]).find(text)
    assert (overlap.set, overlap.item) == ("quiz", "long")
    assert overlap.ngram == text[overlap.start : overlap.end]
    assert overlap.ngram == "Which planet of the solar system has the largest number of moons known"
    assert overlap.start == text.index("Which")


def test_case_accents_figures_and_punctuation_do_not_hide_an_item() -> None:
    disguised = QUESTION.upper().replace("PLANET", "PLÁNET").replace(" ", "  --\n").replace("2020", "1999")
    assert [overlap.item for overlap in OverlapIndex([SET]).find(disguised)] == ["long"]


def test_thirteen_words_are_enough_and_twelve_are_not() -> None:
    index = OverlapIndex([SET])
    words = QUESTION.split()
    assert [overlap.item for overlap in index.find("x " + " ".join(words[4:17]) + " y")] == ["long"]
    assert index.find("x " + " ".join(words[4:16]) + " y") == []
    assert index.find("x " + " ".join([*words[:12], "other", *words[13:]]) + " y") == []


def test_short_items_match_whole_and_tiny_ones_are_ignored_and_counted() -> None:
    index = OverlapIndex([SET])
    assert index.ignored == {"quiz": 1}
    assert [overlap.item for overlap in index.find(f"Quiz night! {SHORT} {TINY}")] == ["short"]
    assert index.find("Who wrote the famous novel about a white rabbit?") == []
    assert index.find(TINY) == []


def test_every_item_with_the_shared_words_is_reported_once_in_the_order_of_the_text() -> None:
    other = EvaluationSet("other", (("same", QUESTION), ("unlike", "a b c d e f g h i j k l m n o p")))
    found = OverlapIndex([SET, other]).find(f"{SHORT} {QUESTION} {QUESTION}")
    assert [(overlap.set, overlap.item) for overlap in found] == [
        ("quiz", "short"),
        ("quiz", "long"),
        ("other", "same"),
    ]


def test_a_collision_of_hashes_is_not_reported() -> None:
    """The item's text is exchanged under the index: its hashes still match, its words no longer do."""
    index = OverlapIndex([SET])
    assert index.find(QUESTION)
    changed = "x" * len(QUESTION)
    index._items = [(name, item, changed) for name, item, _ in index._items]
    assert index.find(QUESTION) == []


WORDS = st.lists(st.sampled_from("abc"), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), WORDS, st.integers(2, 10))
def test_the_items_found_are_those_of_brute_force(items: list[list[str]], document: list[str], n: int) -> None:
    def runs(words: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    least = min(n, 8)
    expected = {
        str(number)
        for number, words in enumerate(items)
        if len(words) >= least and runs(words, min(n, len(words))) & runs(document, min(n, len(words)))
    }
    evaluation_set = EvaluationSet("set", tuple((str(number), " ".join(words)) for number, words in enumerate(items)))
    if all(len(words) < least for words in items):
        with pytest.raises(UserError, match="8 words"):
            OverlapIndex([evaluation_set], n=n)
    else:
        index = OverlapIndex([evaluation_set], n=n)
        assert {overlap.item for overlap in index.find(" ".join(document))} == expected
        assert index.ignored == {"set": sum(len(words) < least for words in items)}


def test_a_saved_index_finds_the_same(tmp_path: Path) -> None:
    index = OverlapIndex([SET], n=10)
    index.save(tmp_path)
    again = OverlapIndex.load(tmp_path)
    text = f"{SHORT} {QUESTION}"
    assert index.find(text)
    assert again.find(text) == index.find(text)
    assert (again.n, again.ignored) == (10, {"quiz": 1})


@pytest.mark.parametrize("name", ["index.json", "items.jsonl", "hashes.npy", "places.npy"])
def test_a_damaged_index_is_named(tmp_path: Path, name: str) -> None:
    OverlapIndex([SET]).save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(UserError, match=str(tmp_path)):
        OverlapIndex.load(tmp_path)


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    OverlapIndex([SET]).save(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match="make the index again"):
        OverlapIndex.load(tmp_path)


RECORD = {
    "question": "What?",
    "id": 7,
    "choices": ["one", {"text": "two", "wrong": ["three", None, True]}],
    "answer": "a",
}
TEXT = "What?\none\ntwo\nthree\na"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\ufeff" + json.dumps(RECORD) + "\n\n" + json.dumps(RECORD) + "\n"),
        ("a.jsonl.gz", json.dumps(RECORD) + "\n\n" + json.dumps(RECORD)),
    ],
)
def test_all_strings_of_a_record_are_read(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert load_evaluation_set("s", tmp_path / name) == EvaluationSet("s", ((f"{name}:1", TEXT), (f"{name}:3", TEXT)))


@pytest.mark.parametrize(
    "value", [[RECORD, RECORD], {"canary": "c", "tags": ["t"], "data": [RECORD], "more": [RECORD]}]
)
def test_the_elements_of_a_json_array_are_items(tmp_path: Path, value: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert load_evaluation_set("s", tmp_path / "a.json").items == (("a.json:1", TEXT), ("a.json:2", TEXT))


def test_a_json_object_without_arrays_of_objects_is_one_item(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"question": "What?", "choices": ["one", "two"]}')
    assert load_evaluation_set("s", tmp_path / "a.json").items == (("a.json:1", "What?\none\ntwo"),)


def test_the_rows_of_the_csv_files_of_a_folder_are_items(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text('"two\nlines, quoted",1\n')
    (tmp_path / "a.csv").write_text("q,a\nx,y\n")
    (tmp_path / "notes.txt").write_text("no item")
    items = load_evaluation_set("s", tmp_path).items
    assert items == (("a.csv:1", "q\na"), ("a.csv:2", "x\ny"), ("b.csv:1", "two\nlines, quoted\n1"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": "a"}\n{"q": ', "record 2: not valid JSONL"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.csv", b'a,"b', "record 1: not valid CSV"),
        ("a.csv", b'a\n"' + b"x" * 200_000 + b'"', "not valid CSV"),
        ("a.jsonl.gz", gzip.compress(b'{"q": "a"}')[:-9], "cannot read"),
        ("a.jsonl.gz", b"not gzip", "cannot read"),
        ("a.json", b"[]", "no evaluation items"),
        ("a.json", b"[1, null]", "no evaluation items"),
        ("a.txt", b"text", "are read from"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    before = csv.field_size_limit(128 * 1024)  # readers of other files raise it for the whole process
    try:
        with pytest.raises(UserError, match=message):
            load_evaluation_set("s", tmp_path / name)
    finally:
        csv.field_size_limit(before)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_evaluation_set("s", tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no evaluation items"):
        load_evaluation_set("s", tmp_path)


def test_sets_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SET.name = "other"  # type: ignore[misc]


@pytest.mark.data
def test_items_planted_in_real_prose_are_found_and_clean_prose_is_clean(data_folder: Path) -> None:
    sets = [
        load_evaluation_set("mmlu", data_folder / "mmlu" / "test"),
        load_evaluation_set("hellaswag", next((data_folder / "hellaswag").glob("*.jsonl*"))),
        load_evaluation_set("gsm8k", next((data_folder / "gsm8k").glob("*test*.jsonl*"))),
    ]
    index = OverlapIndex(sets)
    assert index.ignored["mmlu"] + index.ignored["hellaswag"] + index.ignored["gsm8k"] <= 5
    with gzip.open(data_folder / "gutenberg_ml5" / "darwin.txt.gz", "rt", encoding="utf-8") as file:
        darwin = file.read()
    documents = [darwin[start : start + 4000] for start in range(0, len(darwin), 4000)]
    assert [index.find(document) for document in documents] == [[] for _ in documents]
    planted = [(each.name, item, text) for each in sets for item, text in each.items if len(text.split()) >= 20]
    generator = np.random.default_rng(0)
    for name, item, text in planted[::9]:
        document = documents[generator.integers(len(documents))]
        cut = int(generator.integers(len(document)))
        found = index.find(f"{document[:cut]}\n{text.title()}\n{document[cut:]}")
        assert (name, item) in {(overlap.set, overlap.item) for overlap in found}


@pytest.mark.data
def test_a_question_that_quotes_jane_eyre_is_found_in_jane_eyre(data_folder: Path) -> None:
    index = OverlapIndex([load_evaluation_set("mmlu", data_folder / "mmlu" / "test")])
    with gzip.open(data_folder / "gutenberg_ml5" / "bronte.txt.gz", "rt", encoding="utf-8") as file:
        found = index.find(file.read())
    assert {overlap.item for overlap in found} == {"miscellaneous_test.csv:515", "miscellaneous_test.csv:596"}
    assert all("Mrs. Fairfax" in overlap.ngram for overlap in found)
