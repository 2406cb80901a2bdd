"""Normalisation: what it repairs, what it must leave alone, and that twice is once."""

import gzip
import inspect
import json
import textwrap
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parlance.text.normalisation import NormalisationConfig, normalise

LAYOUT = NormalisationConfig(strip_line_ends=True, collapse_blanks=True, max_blank_lines=1)

ODD = st.sampled_from(
    [
        *"Ãâ€™©ÂßðŸ˜Šï»¿“\xa0\xad\x80\x85\x81\x93\r\n\t \x0b\x0c\x00\x1b3m\x7f",
        *"\u2028\u2029\u200b\u200c\u200d\u2060\ufeff",
        *"e\u0301\u0327אیीกک👩\ufe0f❤\u0958\u212b가\u11a8\ud800\ufffda-",
        "\r\n",
        "\x1b[",
    ]
)
TEXTS = st.one_of(st.lists(ODD, max_size=30).map("".join), st.text(max_size=40))


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252"])
@pytest.mark.parametrize(
    "text",
    [
        "Schöne Grüße aus Köln, sagte der Bäcker und schloß die Tür.",
        "L’été dernier, j’ai mangé une crème brûlée à 5 €.",
        "Где находится библиотека?",
        "我喜欢在图书馆看书。",
        "“I don’t know” — she said… 🎉",
    ],
)
def test_utf8_read_as_another_encoding_is_repaired(text: str, encoding: str) -> None:
    broken = "".join(
        bytes([byte]).decode(encoding, "replace").replace("\ufffd", chr(byte)) for byte in text.encode("utf-8")
    )
    assert broken != text
    intact = "Größe: “naïve” ß"
    assert normalise(f"{intact}\n{broken}\n{intact}").text == f"{intact}\n{text}\n{intact}"
    assert normalise(broken).changes == {"encoding": 1}
    assert normalise(broken, NormalisationConfig(repair_encoding=False)).text != text


def test_windows_quotation_marks_that_became_control_characters_come_back() -> None:
    assert normalise("\x93Yes\x94 \x96 he said\x85").text == "“Yes” – he said…"
    assert normalise("a\x81b").text == "ab"


@pytest.mark.parametrize(
    "text",
    [
        "Er schrieb „Gruß“ und «é» – Größe ½ ÷ 3 §§ 12.",
        "GRUẞ, ÀÉÎÕÜ, ¿Qué? ¡No! 50 €, 3 × 4 ± 1, 20 °C, naïve café",
        "def f(x):\n\treturn x  \n\n\n    # two blanks at the line's end  \n",
        "- one\n    - two  \n      with a line break\n\n\n| a   |   b |\n",
        "می‌خواهم कर्‍म ക്‍ 👩‍👩‍👧 ❤️‍🔥 🏳️‍🌈",
        "ภาษา\u200bไทย ភាសា\u200bខ្មែរ",
        "אב\u200fג ‎(1)‎",
        "",
        " \n\t",
    ],
)
def test_correct_text_stays_as_it_is(text: str) -> None:
    assert normalise(text).changes == {}
    assert normalise(text).text == text


def test_source_code_stays_as_it_is() -> None:
    for module in (inspect, json, textwrap, unicodedata if hasattr(unicodedata, "__file__") else json):
        if (path := getattr(module, "__file__", "")).endswith(".py"):
            source = Path(path).read_text(encoding="utf-8")
            assert normalise(source).text == source


def test_each_step_counts_its_changes() -> None:
    text = "\ufeffcafe\u0301\r\nso\u00adft\x00\x07 \x1b[31mred\x1b[0m\x0bend\u2028"
    result = normalise(text)
    assert result.text == "café\nsoft red\nend\n"
    assert result.changes == {"line ends": 3, "control characters": 11, "invisible characters": 2, "unicode form": 1}
    off = NormalisationConfig(line_ends=False, control_characters=False, invisible_characters=False, unicode_form=False)
    assert normalise(text, off).text == text


def test_zero_width_characters_go_where_no_script_needs_them() -> None:
    assert normalise("a\u200bb\u200cc\u200dd \u2060x").text == "abcd x"
    assert normalise("می\u200c\u200cخواهم").text == "می\u200cخواهم"
    assert normalise("\u200dx").text == "x"


def test_layout_is_changed_by_choice() -> None:
    text = "    a  b\t\tc  \n\n \n\n\nd \t e\t\n"
    assert normalise(text).text == text
    assert normalise(text, LAYOUT).text == "    a b c\n\nd e\n"
    assert normalise(text, LAYOUT).changes == {"trailing blanks": 3, "blanks": 3, "blank lines": 1}
    assert normalise(text, NormalisationConfig(strip_line_ends=True)).text == "    a  b\t\tc\n\n\n\n\nd \t e\n"
    assert normalise(text, NormalisationConfig(collapse_blanks=True)).text == "    a b c  \n\n \n\n\nd e\t\n"
    assert normalise(text, NormalisationConfig(max_blank_lines=2)).text == "    a  b\t\tc  \n\n\nd \t e\t\n"


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from([NormalisationConfig(), LAYOUT]))
@example("Ã\u200b©", NormalisationConfig())
@example("e\u200b\u0301", NormalisationConfig())
@example("\x1b\x00[1m", NormalisationConfig())
@example("Ã\u0192Â©", NormalisationConfig())
def test_twice_is_once(text: str, config: NormalisationConfig) -> None:
    once = normalise(text, config)
    assert normalise(once.text, config).text == once.text
    assert normalise(once.text, config).changes == {}
    assert (once.text != text) == bool(once.changes)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_result_is_clean(text: str) -> None:
    result = normalise(text).text
    assert unicodedata.is_normalized("NFC", result)
    for character in result:
        assert unicodedata.category(character) != "Cc" or character in "\n\t"
        assert character not in "\xad\u2028\u2029\u2060\ufeff"


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]) | st.sampled_from("\n\t")))
def test_plain_ascii_is_never_changed(text: str) -> None:
    assert normalise(text).text == text
    assert normalise(text).changes == {}


@given(st.text(alphabet=st.characters(min_codepoint=0x400, max_codepoint=0x44F) | st.sampled_from(" \n.,«»—")))
def test_cyrillic_is_never_changed(text: str) -> None:
    assert normalise(text).text == unicodedata.normalize("NFC", text)


@pytest.mark.data
@pytest.mark.parametrize("language", ["de", "en", "fr"])
def test_captions_stay_and_come_back_from_wrong_encodings(data_folder: Path, language: str) -> None:
    with gzip.open(data_folder / "multi30k" / f"train.{language}.gz", "rt", encoding="utf-8", newline="\n") as file:
        text = unicodedata.normalize("NFC", file.read(400_000)).replace("\xad", "")
    without_controls = normalise(text, NormalisationConfig(repair_encoding=False)).text
    assert normalise(text).text == without_controls
    lines = [line for line in without_controls.split("\n") if not line.isascii()][:300]
    repaired = [normalise(line.encode("utf-8").decode("latin-1")).text for line in lines]
    assert sum(one == other for one, other in zip(lines, repaired, strict=True)) >= 0.99 * len(lines)
