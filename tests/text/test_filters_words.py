"""What the quality filters take for words: against a list of known divisions, and the table against the rules."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.text.filters import table
from parlance.text.filters.table import HAS_LETTER, MORE_THAN_SYMBOLS, PUNCTUATION, SENTENCE_MARK, WordTable, word_hash
from parlance.text.filters.view import TextView
from parlance.text.filters.words import split_run

# Each line is one run without white space, its words divided by spaces: what spaCy 3.8's English tokenizer makes of it.
DIVISIONS = """
hello
Hello , world
( see ) .
" Quoted , "
do n't
Do n’t
they 'll 've
can not
wo nt
i d
its
She 's
cats '
dog 's
1990s
Mr.
St.
U.S.
U.K. ,
e.g. ,
end . Next
www.example.com
https://example.com/a-b?c=d
( https://example.com/a,b )
someone@example.com
well - known
state - of - the - art
2010 - 11
3 + 4
3.14 .
$ 5.00
US$ 5
5 km
5.5 % .
20 ° C .
10 am
wait ... what
Yes ! ! !
no … yes
and/or
either / or
a = b
key : value
10:30
one , two
1,000
:)
thanks :)
:-( .
rock'n'roll
o'clock
'em
' hello '
“ hello , ”
— dash — word
— — —
[ 23 ]
< br
/ > <
/br >
# tag
100 % ,
ﬁne . ”
Ünder . Über
x²
a.m. ,
p.m.
F.
naïve - café
☃ ☃
nice ☃
Ph.D. ,
C++
http://
192.0.2.7
.5
.hidden
file.txt
v1.2.3 .
""".strip().split("\n")


@pytest.mark.parametrize("division", DIVISIONS)
def test_divisions(division: str) -> None:
    words = division.split(" ")
    assert split_run("".join(words)) == words


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("我喜欢猫。", ["我", "喜", "欢", "猫", "。"]),
        ("カタカナとABC、", ["カ", "タ", "カ", "ナ", "と", "ABC", "、"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("がぎ", ["が", "ぎ"]),
        ("한국어", ["한국어"]),
    ],
)
def test_languages_without_spaces_count_characters(run: str, words: list[str]) -> None:
    assert split_run(run) == words


RUNS = st.text(st.sampled_from("abcXYZ019.,:;!?'’\"“”()[]{}-–—~…#$€%&*+/<=>@^_|é漢ทか☃"), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(RUNS)
def test_words_put_together_are_the_run(run: str) -> None:
    words = split_run(run)
    assert "".join(words) == run
    assert all(words)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_divides(text: str) -> None:
    for run in text.split():
        assert "".join(split_run(run)) == run


@pytest.mark.parametrize("character", [".", "-", "(", "@", "a.", "a-", "漢", "1,", "://", "x@y.", ":)"])
def test_long_runs_take_linear_time(character: str) -> None:
    run = character * (200_000 // len(character))
    assert "".join(split_run(run)) == run


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("word", MORE_THAN_SYMBOLS | HAS_LETTER),
        ("12", MORE_THAN_SYMBOLS),
        ("1st", MORE_THAN_SYMBOLS | HAS_LETTER),
        (".", SENTENCE_MARK | PUNCTUATION),
        ("...", PUNCTUATION),
        ("。", SENTENCE_MARK | PUNCTUATION),
        ("'s", MORE_THAN_SYMBOLS | HAS_LETTER),
        ("+", 0),
        ("•", MORE_THAN_SYMBOLS | PUNCTUATION),
    ],
)
def test_kinds_of_words(word: str, kind: int) -> None:
    assert table.word_kind(word) == kind


@settings(deadline=None)
@given(st.text(st.sampled_from("ab.,' \n"), max_size=60))
def test_a_view_sums_up_its_words(text: str) -> None:
    view = TextView(text, WordTable())
    words = [word for run in text.split() for word in split_run(run)]
    proper = [word for word in words if table.word_kind(word) & MORE_THAN_SYMBOLS]
    assert view.word_count == len(words) == view.totals.words
    assert view.hashes.tolist() == [word_hash(word) for word in words]
    assert view.lengths.tolist() == [len(word) for word in words]
    assert view.totals.proper_words == len(proper)
    assert view.totals.proper_characters == sum(map(len, proper))
    assert view.totals.words_with_letter == sum(any(map(str.isalpha, word)) for word in words)
    assert view.totals.longest_run == max(map(len, text.split()), default=0)


def test_a_full_table_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MOST_RUNS", 3000)
    words = WordTable()
    for start in range(0, 12_000, 1500):
        words.make_room()
        runs = [f"w{number}," for number in range(start, start + 1500)]
        view = TextView(" ".join(runs), words)
        assert view.hashes.tolist() == [word_hash(word) for run in runs for word in (run[:-1], ",")]
    assert len(words.arrays().hashes) < 12_000


def test_words_are_counted_in_a_table_that_grows_meanwhile() -> None:
    words = WordTable()
    words.look_up(["a"])
    assert TextView(" ".join(f"w{number}." for number in range(5000)), words).word_count == 10_000


def test_hashes_are_the_same_everywhere() -> None:
    assert word_hash("the") == 0x2E3A97906CABDA5E  # BLAKE2b with 8 bytes, little-endian


def test_every_thread_has_a_table() -> None:
    with ThreadPoolExecutor(2) as threads:
        tables = {id(found) for found in threads.map(lambda _: table.thread_table(), range(8))}
    assert id(table.thread_table()) not in tables
