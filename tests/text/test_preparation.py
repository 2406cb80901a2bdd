import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.documents import Document
from parlance.text.preparation import PreparationConfig, prepare_corpus, read_split
from parlance.text.preparation.judging import content_hash, undecodable_share
from parlance.text.readers import FileCorpus
from parlance.text.splits import LEAST_HELD_OUT, LEAST_TRAIN, SPLITS, assign_groups, cut_by_position, group_key

CONFIG = PreparationConfig()


class ListCorpus:
    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)


def prose(words: int, seed: int) -> str:
    """Random words of letters; of digits, all of them would be the same simplified word."""
    letters = np.random.default_rng(seed).integers(ord("a"), ord("z") + 1, size=(words, 5), dtype=np.uint8)
    return " ".join(bytes(word).decode() for word in letters)


def read_removed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]


def assign(sizes: dict[str, int], seed: int) -> dict[str, str] | None:
    """Name of the split of every named group."""
    keys = np.array([group_key(seed, name) for name in sizes], dtype=np.uint64)
    splits = assign_groups(keys, np.array(list(sizes.values()), dtype=np.int64), 0.04, 0.06)
    return None if splits is None else dict(zip(sizes, [SPLITS[place] for place in splits], strict=True))


@given(
    sizes=st.dictionaries(st.text(max_size=4), st.integers(1, 10_000), max_size=60),
    seed=st.integers(0, 3),
)
def test_groups_are_assigned_whole_or_not_at_all(sizes: dict[str, int], seed: int) -> None:
    assigned = assign(sizes, seed)
    if assigned is None:
        return
    total = sum(sizes.values())
    share = {s: sum(sizes[g] for g in sizes if assigned[g] == s) / total for s in SPLITS}
    assert share["train"] >= LEAST_TRAIN
    assert share["validation"] >= LEAST_HELD_OUT * 0.04
    assert share["test"] >= LEAST_HELD_OUT * 0.06
    for split, wanted in (("validation", 0.04), ("test", 0.06)):
        # Never more than its share, unless it is one group because none is small enough.
        assert share[split] <= wanted + 1e-9 or list(assigned.values()).count(split) == 1
    assert assigned == assign(dict(reversed(sizes.items())), seed)


def test_many_small_groups_meet_the_shares() -> None:
    sizes = {f"g{i}": 100 + i % 7 for i in range(1000)}
    assigned = assign(sizes, seed=0)
    assert assigned is not None
    total = sum(sizes.values())
    for split, share in (("validation", 0.04), ("test", 0.06)):
        assert sum(sizes[g] for g in sizes if assigned[g] == split) / total == pytest.approx(share, abs=0.001)
    assert assigned != assign(sizes, seed=1)


def test_few_or_uneven_groups_are_refused() -> None:
    assert assign({"a": 1, "b": 1}, 0) is None
    assert assign({"a": 1, "b": 1, "c": 1}, 0) is None
    assert assign({"giant": 10_000, "b": 10, "c": 10, "d": 5}, 0) is None
    ten = assign({str(i): 100 for i in range(10)}, 0)
    assert ten is not None
    assert sorted(ten.values()) == ["test", *["train"] * 8, "validation"]


@given(st.text(alphabet="ab \n", min_size=1, max_size=400))
def test_cuts_tile_the_text(text: str) -> None:
    ranges = cut_by_position(text, 0.04, 0.06)
    assert "".join(text[a:b] for a, b in ranges.values()) == text
    if len(text) >= 3:
        assert list(ranges) == list(SPLITS)
        assert all(a < b for a, b in ranges.values())


def test_cuts_are_at_line_ends() -> None:
    text = "a line of text here\n" * 1000
    ranges = cut_by_position(text, 0.04, 0.06)
    assert all(text[b - 1] == "\n" for _, b in ranges.values())
    assert ranges["test"][0] / len(text) == pytest.approx(0.94, abs=0.01)
    assert ranges["validation"][0] / len(text) == pytest.approx(0.90, abs=0.01)


def test_every_document_ends_up_somewhere_with_its_reason(tmp_path: Path) -> None:
    documents = [Document(f"d{i:03}", prose(100, i), "web", {"licence": "CC0"}) for i in range(100)]
    documents += [
        Document("empty", " \n", "web"),
        Document("binary", "\x00\x01\ufffd abc" * 20, "web"),
        Document("copy", documents[5].text.replace(" ", "\n"), "web"),
        Document("longer", documents[6].text + " and a few more words", "web"),
    ]
    out = tmp_path / "corpus"
    card = prepare_corpus(ListCorpus(documents), out, CONFIG)

    removed = {row["id"]: row for row in read_removed(out)}
    assert {name: row["reason"] for name, row in removed.items()} == {
        "empty": "too short",
        "binary": "undecodable",
        "d005": "exact duplicate",
        "d006": "near duplicate",
    }
    assert removed["d005"]["stays"] == "copy"
    assert removed["d006"]["stays"] == "longer"
    assert removed["d006"]["figure"] > 0.8
    assert removed["binary"]["figure"] == pytest.approx(3 / 7, abs=1e-3)

    kept = {split: list(read_split(out, split)) for split in SPLITS}
    by_id = {d.id: d for d in documents}
    names = [d.id for part in kept.values() for d in part]
    assert sorted(names + list(removed)) == sorted(by_id)
    assert all(by_id[d.id] == d for part in kept.values() for d in part)

    assert [(row["step"], row["removed"], row["documents"]) for row in card["steps"]] == [
        ("read", 0, 104),
        ("undecodable", 1, 103),
        ("too short", 1, 102),
        ("exact duplicate", 1, 101),
        ("near duplicate", 1, 100),
    ]
    for split, part in kept.items():
        assert card["splits"][split]["documents"] == len(part)
        assert card["splits"][split]["bytes"] == sum(len(d.text.encode()) for d in part)
        assert card["splits"][split]["groups"] == len({d.group for d in part})
    assert sum(row["bytes"] for row in card["splits"].values()) == card["steps"][-1]["bytes"]
    assert card["steps"][0]["bytes"] == sum(len(d.text.encode()) for d in documents)
    assert card["split_method"] == "whole groups"
    assert card["splits"]["test"]["group_names"] == sorted(d.id for d in kept["test"])
    assert card["licences"] == {"CC0": 100, "not stated": 4}
    assert card["config"] == CONFIG.model_dump(mode="json")
    assert json.loads((out / "card.json").read_text()) == card
    assert {path.name for path in out.iterdir()} == {
        "train.jsonl", "validation.jsonl", "test.jsonl", "removed.jsonl", "card.json", "datasheet.html",
    }  # fmt: skip


def test_groups_are_never_torn(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", prose(60, i), "s", {"group": f"g{i % 40}"}) for i in range(200)]
    prepare_corpus(ListCorpus(documents), tmp_path / "corpus", CONFIG)
    groups = [{d.group for d in read_split(tmp_path / "corpus", split)} for split in SPLITS]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def test_filters_can_be_turned_off(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", prose(50, i // 2), "s") for i in range(60)]
    config = PreparationConfig(exact_duplicates=False, near_duplicates=False)
    card = prepare_corpus(ListCorpus(documents), tmp_path / "corpus", config)
    assert card["steps"][-1]["documents"] == 60
    near = prepare_corpus(ListCorpus(documents), tmp_path / "corpus", PreparationConfig(exact_duplicates=False))
    assert near["steps"][-1]["step"] == "near duplicate"
    assert near["steps"][-1]["removed"] == 30


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", prose(50, i), "s") for i in range(60)]
    for name in "ab":
        prepare_corpus(ListCorpus(documents), tmp_path / name, CONFIG)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_single_book_is_divided_by_position(tmp_path: Path) -> None:
    text = "".join(f"Line {i} of the book.\n" for i in range(2000))
    (tmp_path / "book.txt").write_text(text)
    out = tmp_path / "corpus"
    card = prepare_corpus(FileCorpus([tmp_path / "book.txt"]), out, CONFIG)
    assert card["split_method"].startswith("by position")
    parts = {split: next(read_split(out, split)) for split in SPLITS}
    assert "".join(part.text for part in parts.values()) == text
    assert len(parts["test"].text) / len(text) == pytest.approx(0.06, abs=0.01)
    assert len(parts["validation"].text) / len(text) == pytest.approx(0.04, abs=0.01)
    assert {part.group for part in parts.values()} == {"book.txt"}
    assert card["reading"]["files"] == 1


def test_one_kilobyte_is_enough(tmp_path: Path) -> None:
    card = prepare_corpus(ListCorpus([Document("a", prose(100, 0), "s")]), tmp_path / "c", CONFIG)
    assert all(row["bytes"] > 0 for row in card["splits"].values())


def test_a_corpus_may_be_prepared_inside_its_own_source_folder(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(prose(50, i))
    first = prepare_corpus(FileCorpus([tmp_path]), tmp_path / "corpus", CONFIG)
    again = prepare_corpus(FileCorpus([tmp_path]), tmp_path / "corpus", CONFIG)
    assert first["steps"] == again["steps"]
    assert first["splits"] == again["splits"]


def test_short_documents_beside_a_book_are_all_for_training(tmp_path: Path) -> None:
    documents = [Document("book", prose(5000, 0), "s"), Document("note", prose(10, 1), "s")]
    prepare_corpus(ListCorpus(documents), tmp_path / "c", CONFIG)
    assert [d.id for d in read_split(tmp_path / "c", "train")] == ["book#train", "note"]


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(UserError, match="no documents"):
        prepare_corpus(ListCorpus([]), out, CONFIG)
    with pytest.raises(UserError, match="left nothing of the corpus"):
        prepare_corpus(ListCorpus([Document("a", "x", "s")]), out, CONFIG)
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a prepared corpus"):
        prepare_corpus(ListCorpus([Document("a", prose(100, 0), "s")]), mine, CONFIG)
    assert (mine / "thesis.txt").read_text() == "precious"
    with pytest.raises(UserError, match="has no train split"):
        list(read_split(mine, "train"))


def test_an_old_corpus_is_kept_when_a_new_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    prepare_corpus(ListCorpus([Document("a", prose(100, 0), "s")]), out, CONFIG)
    before = (out / "card.json").read_bytes()
    with pytest.raises(UserError):
        prepare_corpus(ListCorpus([]), out, CONFIG)
    assert (out / "card.json").read_bytes() == before


def test_undecodable_share() -> None:
    assert undecodable_share("tabs\tand\nlines\r\n\x0c") == 0
    assert undecodable_share("a\x00b\ufffd") == 0.5
    assert undecodable_share("") == 0


def test_content_hash_ignores_white_space_only() -> None:
    assert content_hash("a b\n c") == content_hash(" a\tb c ")
    assert content_hash("a b c") != content_hash("a b d")
    assert content_hash("ab c") != content_hash("a bc")


def test_quality_filters_and_languages_say_why(tmp_path: Path) -> None:
    sentence = "The committee of the town said that it will have to be done with care and that we agree "
    good = [Document(f"g{i}", f"{sentence}{prose(100, i)}.", "s") for i in range(40)]
    bad = Document("bad", "word " * 80, "s")
    config = PreparationConfig(filters=("gopher-repetition", "gopher-quality"))
    prepare_corpus(ListCorpus([*good, bad]), tmp_path / "c", config)
    removed = {row["id"]: row for row in read_removed(tmp_path / "c")}
    assert removed.keys() == {"bad"}
    assert removed["bad"]["reason"].startswith("gopher-repetition")
    assert removed["bad"]["figure"] > removed["bad"]["limit"]
    with pytest.raises(UserError, match="gopher-repetition"):
        prepare_corpus(ListCorpus([bad]), tmp_path / "empty", config)


def test_personal_data_is_replaced_and_only_counted(tmp_path: Path) -> None:
    documents = [
        Document(f"d{i}", f"{prose(30, i)} write to jane.roe{i}@example.org {prose(30, i + 999)}", "s")
        for i in range(40)
    ]
    card = prepare_corpus(ListCorpus(documents), tmp_path / "c", PreparationConfig(personal_data="placeholder"))
    written = b"".join(path.read_bytes() for path in (tmp_path / "c").iterdir())
    assert b"jane.roe" not in written
    assert written.count(b"<EMAIL>") >= 40
    assert card["personal_data"] == {"EMAIL": 40}
    assert sum(row["bytes"] for row in card["splits"].values()) == card["steps"][-1]["bytes"]


def test_a_mixture_has_the_wanted_shares(tmp_path: Path) -> None:
    corpora = {
        name: ListCorpus([Document(f"{name}{i}", prose(50, 1000 * k + i), name) for i in range(count)])
        for k, (name, count) in enumerate((("web", 600), ("books", 200)))
    }
    config = PreparationConfig(weights={"web": 0.5, "books": 0.5})
    card = prepare_corpus(corpora, tmp_path / "c", config)
    mixture = card["mixture"]
    assert mixture["books"]["fraction"] == 1
    assert mixture["books"]["documents"] == 200
    assert mixture["web"]["fraction"] == pytest.approx(1 / 3, abs=0.01)
    assert mixture["web"]["documents"] == pytest.approx(200, abs=40)
    assert card["steps"][-1]["step"] == "not drawn"
    with pytest.raises(UserError, match="give each source a name and a weight"):
        prepare_corpus(corpora, tmp_path / "d", PreparationConfig(weights={"web": 1.0}))


def test_a_shuffled_corpus_is_a_permutation_by_seed(tmp_path: Path) -> None:
    documents = [Document(f"d{i:03}", prose(50, i), "s") for i in range(100)]
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_corpus(ListCorpus(documents), tmp_path / name, PreparationConfig(shuffle=True), seed=seed)
        orders.append([d.id for d in read_split(tmp_path / name, "train")])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_documents_that_contain_an_evaluation_item_are_named(tmp_path: Path) -> None:
    question = "Which of the following seven bright colours of the rainbow has the very longest wave length of all?"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": question, "answer": "red"}) + "\n")
    documents = [Document(f"d{i}", prose(50, i), "s") for i in range(40)]
    documents.append(Document("leak", f"{prose(20, 77)} {question} {prose(20, 78)}", "s"))
    config = PreparationConfig(evaluation_sets={"exam": str(tmp_path / "exam.jsonl")})
    card = prepare_corpus(ListCorpus(documents), tmp_path / "c", config)
    [removed] = read_removed(tmp_path / "c")
    assert (removed["id"], removed["reason"]) == ("leak", "contaminated")
    assert removed["matches"][0]["set"] == "exam"
    assert removed["matches"][0]["ngram"].lower() in question.lower()
    assert card["contaminated_by"] == {"exam": 1}


def test_repeated_spans_are_cut_but_for_the_first(tmp_path: Path) -> None:
    boilerplate = prose(80, 12345)
    texts = [f"{prose(150, i)}\n{boilerplate}\n{prose(150, i + 500)}" for i in range(40)]
    documents = [Document(f"d{i:02}", text, "s") for i, text in enumerate(texts)]
    config = PreparationConfig(near_duplicates=False, repeated_span=50)
    card = prepare_corpus(ListCorpus(documents), tmp_path / "c", config)
    texts = {d.id: d.text for split in SPLITS for d in read_split(tmp_path / "c", split)}
    assert [name for name, text in sorted(texts.items()) if boilerplate in text] == ["d00"]
    assert all(prose(150, i) in texts[f"d{i:02}"] for i in range(40))
    assert card["steps"][-1]["step"] == "repeated spans"
    assert card["steps"][-2]["bytes"] - card["steps"][-1]["bytes"] >= 39 * len(boilerplate)


def test_what_was_removed_shows_no_personal_data_either(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", prose(50, i), "s") for i in range(40)]
    leak = f"{prose(40, 99)} jane.roe@example.org"
    documents += [
        Document("copy", leak, "s"),
        Document("longer copy", f"{leak} ", "s"),
        Document("bad", f"\x00\x01 {leak}"[:30] + " jane.roe@example.org", "s"),
    ]
    config = PreparationConfig(personal_data="placeholder", max_undecodable=0.01)
    prepare_corpus(ListCorpus(documents), tmp_path / "c", config)
    assert {row["reason"] for row in read_removed(tmp_path / "c")} == {"exact duplicate", "undecodable"}
    assert all(b"jane.roe" not in path.read_bytes() for path in (tmp_path / "c").iterdir())


def test_settings_are_checked_before_any_work(tmp_path: Path) -> None:
    corpus = ListCorpus([Document("a", prose(100, 0), "s")])
    with pytest.raises(UserError, match="does not know tlh; it knows af, als"):
        prepare_corpus(corpus, tmp_path / "c", PreparationConfig(languages=("en", "tlh")))
    with pytest.raises(UserError, match="pseudonyms need a key"):
        prepare_corpus(corpus, tmp_path / "c", PreparationConfig(personal_data="pseudonym"))
    with pytest.raises(UserError, match="cannot read"):
        prepare_corpus(corpus, tmp_path / "c", PreparationConfig(personal_data="pseudonym", pseudonym_key="nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_ids_sources_and_metadata_show_no_personal_data(tmp_path: Path) -> None:
    texts = [prose(60, i) for i in range(40)]
    documents = [
        Document(f"by-u{i}@example.org", text, "https://ann:secret99@example.org/x", {"author": [f"u{i}@example.org"]})
        for i, text in enumerate(texts)
    ]
    documents.append(Document("copy", f"{texts[0]} ", "s"))
    card = prepare_corpus(ListCorpus(documents), tmp_path / "c", PreparationConfig(personal_data="placeholder"))
    written = b"".join(path.read_bytes() for path in (tmp_path / "c").iterdir())
    assert b"@example.org" not in written.replace(b"<EMAIL>", b"")
    assert b"secret99" not in written
    assert sum(row["groups"] for row in card["splits"].values()) == 40  # the groups are those of the true ids


def test_hostile_fields_are_harmless(tmp_path: Path) -> None:
    rows = [{"id": f"d{i}", "text": prose(60, i)} for i in range(40)]
    rows[0] |= {
        "id": "\ud800",
        "source": "\ud800",
        "metadata": {"group": "\ud800", "licence": "\ud800", "x": ["\ud800"]},
    }
    rows[1] |= {"metadata": {"language": ["en"], "group": None, "licence": None}}
    rows[2] |= {"id": None, "source": None, "metadata": None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = prepare_corpus(FileCorpus([tmp_path / "rows.jsonl"]), tmp_path / "c", CONFIG)
    kept = {d.id for split in SPLITS for d in read_split(tmp_path / "c", split)}
    assert len(kept) == 40
    assert {"\ufffd", "rows.jsonl:3"} <= kept
    assert card["licences"] == {"not stated": 39, "\ufffd": 1}
    assert card["split_method"] == "whole groups"


def test_two_corpora_in_memory_are_both_there(tmp_path: Path) -> None:
    corpora = {
        name: ListCorpus([Document(f"{name}{i}", prose(50, 100 * k + i), "s") for i in range(30)])
        for k, name in enumerate(("", "corpus", "../x"))
    }
    card = prepare_corpus(corpora, tmp_path / "c", CONFIG)
    assert [row["documents"] for row in card["mixture"].values()] == [30, 30, 30]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_is_not_drawn_does_not_cost_the_rest_its_passages(tmp_path: Path) -> None:
    passages = [prose(80, 5000 + i) for i in range(60)]
    corpora = {
        name: ListCorpus([Document(f"{name}{i}", f"{prose(40, 100 * k + i)} {p}", "s") for i, p in enumerate(passages)])
        for k, name in enumerate(("a", "b"), start=1)
    }
    config = PreparationConfig(weights={"a": 0.1, "b": 0.9}, repeated_span=50, near_duplicates=False)
    prepare_corpus(corpora, tmp_path / "c", config)
    text = " ".join(d.text for split in SPLITS for d in read_split(tmp_path / "c", split))
    assert all(passage in text for passage in passages)


def test_documents_that_are_nothing_but_repetition_are_listed(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", prose(100, i), "s") for i in range(40)]
    documents.append(Document("echo", documents[3].text + " x", "s"))
    config = PreparationConfig(repeated_span=50, near_duplicates=False)
    prepare_corpus(ListCorpus(documents), tmp_path / "c", config)
    assert [(row["id"], row["reason"]) for row in read_removed(tmp_path / "c")] == [
        ("echo", "repeated spans: too short without them")
    ]
