"""Reading and writing demonstrations."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.finetuning.demonstrations import (
    Demonstration,
    parse_demonstration,
    read_demonstrations,
    write_demonstrations,
)

HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": HELLO}, HELLO),
        ({"prompt": "Hi", "completion": "Hello."}, HELLO),
        ({"instruction": "Hi", "output": "Hello."}, HELLO),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, HELLO),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}],
        ),
        (
            {"messages": [{"role": "system", "content": "Be kind.", "name": "x"}, *HELLO]},
            [{"role": "system", "content": "Be kind."}, *HELLO],
        ),
    ],
)
def test_shapes(record, messages):
    assert parse_demonstration(record).messages == messages
    assert parse_demonstration(record | {"metadata": {"id": 7}}).metadata == {"id": 7}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no demonstration"),
        ({"text": "Hi"}, "no demonstration"),
        ({"messages": "Hi"}, "not a list"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "robot"),
        ({"messages": [{"role": "user", "content": None}]}, "not a string"),
        ({"messages": HELLO[:1]}, "not the assistant's"),
        ({"messages": HELLO[1:]}, "no user message"),
        ({"prompt": "Hi", "completion": " "}, "empty"),
        ({"prompt": "Hi", "completion": 3}, "`completion` is not a string"),
        ({"completion": "Hello."}, "`prompt` is missing"),
        ({"instruction": "Hi", "input": 1, "output": "x"}, "`input` is not a string"),
        ({"prompt": "Hi", "completion": "x", "metadata": []}, "`metadata`"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record, reason, capsys):
    path = tmp_path / "demonstrations.jsonl"
    good = json.dumps({"messages": HELLO})
    path.write_text(f"{good}\n\n{json.dumps(record)}\n")
    with pytest.raises(UserError, match=reason) as caught:
        read_demonstrations(path)
    assert f"{path}, line 3: " in str(caught.value)
    assert [item.messages for item in read_demonstrations(path, skip_bad=True)] == [HELLO]
    assert f"left out 1 of 2 demonstrations; first: {path}, line 3" in capsys.readouterr().err


def test_a_line_that_is_no_json_and_a_file_without_any(tmp_path: Path):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("{\n")
    with pytest.raises(UserError, match="line 1"):
        read_demonstrations(path)
    with pytest.raises(UserError, match="no usable demonstrations"):
        read_demonstrations(path, skip_bad=True)
    path.write_text("")
    with pytest.raises(UserError, match="no usable demonstrations"):
        read_demonstrations(path)
    with pytest.raises(UserError, match="cannot read"):
        read_demonstrations(tmp_path / "absent.jsonl")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(), st.text().filter(str.strip), st.dictionaries(st.text(), st.integers())), min_size=1)
)
def test_round_trip(tmp_path: Path, items):
    demonstrations = [Demonstration.of(prompt, completion, metadata) for prompt, completion, metadata in items]
    write_demonstrations(tmp_path / "d.jsonl", demonstrations)
    assert read_demonstrations(tmp_path / "d.jsonl") == demonstrations
