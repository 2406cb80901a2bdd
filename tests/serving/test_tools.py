"""Tool calls as text: told, read, whatever pieces they come in."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.serving.requests import Function, FunctionCall, ToolCall
from parlance.serving.tools import Arguments, CallBegins, CallReader, Said, call_schema, call_text, system_text


def read(pieces: list[str], *, inside: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """(text, calls) of what a model wrote."""
    reader = CallReader(["add", "now"], inside=inside)
    said, calls = "", []
    for event in [event for piece in pieces for event in reader.push(piece)] + reader.finish():
        if isinstance(event, Said):
            said += event.text
        elif isinstance(event, CallBegins):
            calls.append((event.name, ""))
        else:
            assert isinstance(event, Arguments)
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    assert len(calls) == reader.calls
    return said, calls


ONE = '<tool_call>\n{"name": "add", "arguments": {"a": "}\\"{", "b": [1, {"c": 2}]}}\n</tool_call>'
CASES = [
    ("plain text, a < b", ("plain text, a < b", [])),
    (ONE, ("", [("add", '{"a": "}\\"{", "b": [1, {"c": 2}]}')])),
    (f"Let me see.{ONE}", ("Let me see.", [("add", '{"a": "}\\"{", "b": [1, {"c": 2}]}')])),
    (f'\n\n{ONE}\n<tool_call>{{"name":"now","arguments":{{}}}}</tool_call>\n', None),
    ('<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', ("", [("now", '{"a": 1}')])),
    ('<tool_call>{"name": "absent", "arguments": {}}</tool_call>', None),
    ("<tool_call>no json</tool_call> more", ("<tool_call>no json</tool_call> more", [])),
    ("<tool_call>cut sho", ("<tool_call>cut sho", [])),
    ("ends with <tool_c", ("ends with <tool_c", [])),
    ('<tool_call>{"name": "add", "arguments": {"a": [1', ("", [("add", '{"a": [1')])),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
@given(cuts=st.lists(st.integers(0, 120), max_size=8))
def test_calls_are_read_however_they_are_cut(text, expected, cuts):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    found = read(pieces)
    assert found == read(list(text)) == read([text])
    if expected is not None:
        assert found == expected


def test_two_calls_and_an_unknown_function():
    assert [name for name, _ in read([CASES[3][0]])[1]] == ["add", "now"]
    assert read([CASES[3][0]])[0].strip() == ""
    assert read([CASES[5][0]]) == (CASES[5][0], [])


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=4))
def test_what_is_written_is_read_again(arguments):
    given = json.dumps(arguments)
    written = call_text([ToolCall(function=FunctionCall(name="add", arguments=given))])
    (call,) = read([written])[1]
    assert (call[0], json.loads(call[1])) == ("add", arguments)
    inside = written.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert read(list(inside), inside=True)[1] == [call]


def test_a_schema_keeps_its_own_references():
    jsonschema = pytest.importorskip("jsonschema")
    parameters = {"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    functions = [Function(name="now"), Function(name="add", parameters=parameters)]
    for schema in (call_schema(functions), call_schema(functions[1:])):
        jsonschema.validate({"name": "add", "arguments": {"x": 1}}, schema)
        for wrong in ({"name": "add", "arguments": {"x": "1"}}, {"name": "sub", "arguments": {}}, {"name": "add"}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)
    assert '"name": "add"' in system_text(functions)
