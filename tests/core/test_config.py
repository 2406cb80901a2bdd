"""Configurations are immutable and checked; overrides and durations say what is wrong with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parlance.core.config import Config, changes, differences, override, parse_config, parse_duration
from parlance.core.errors import UserError


class Inner(Config):
    rate: float = 0.1
    """How fast."""


class Outer(Config):
    steps: int = 10
    """How long."""
    name: str | None = None
    """What it is called."""
    fast: bool = False
    """Whether to hurry."""
    inner: Inner = Inner()
    """More."""


def test_a_config_is_frozen_closed_and_described():
    with pytest.raises(ValidationError):
        Outer().steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Outer(speed=3)  # type: ignore[call-arg]
    assert Outer.model_fields["steps"].description == "How long."


def test_parsing_names_place_and_field():
    assert parse_config(Outer, {"inner": {"rate": 1}}, where="recipe.yaml").inner.rate == 1.0
    with pytest.raises(UserError, match=r"recipe\.yaml: inner\.rate: input should be a valid number"):
        parse_config(Outer, {"inner": {"rate": "x"}}, where="recipe.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml: speed: extra inputs"):
        parse_config(Outer, {"speed": 1}, where="recipe.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml: input should be a valid dictionary"):
        parse_config(Outer, [1], where="recipe.yaml")


def test_overrides_reach_nested_fields_and_leave_the_original():
    before = Outer()
    after = override(before, ["inner.rate=1e-3", "steps=20", "fast=true", "name=a=b"])
    assert after == Outer(inner=Inner(rate=0.001), steps=20, fast=True, name="a=b")
    assert before == Outer()
    assert override(after, ["name=null"]).name is None
    assert override(before, ["steps=1e2"]).steps == 100
    assert override(before, ["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("speed=3", "there is no field speed; fields here: fast, inner, name, steps"),
        ("inner.speed=3", "there is no field inner.speed; fields here: rate"),
        ("steps.rate=3", r"there is no field steps\.rate"),
        ("steps=many", "steps: input should be a valid integer"),
        ("steps=1.5", "steps: input should be a valid integer"),
        ("inner=3", "inner: input should be a valid dictionary"),
        ("name=[1", "is not a YAML value"),
        ("inner.rate=.inf", "inner.rate: input should be a finite number"),
        ("inner.rate=.nan", "inner.rate: input should be a finite number"),
    ],
)
def test_a_wrong_override_is_a_user_error(assignment, message):
    with pytest.raises(UserError, match=message):
        override(Outer(), [assignment])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("8m", 480), ("1.5h", 5400), ("1h30m", 5400), (" 2M ", 120), ("1h2m3s", 3723)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "8 m", "-3", "8d", "1e3", "1..5h", "m8", "abc"])
def test_what_is_no_duration(text):
    with pytest.raises(UserError, match="is not a duration; write it like 90s, 8m or"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "0s", "0h0m"])
def test_no_time_at_all(text):
    with pytest.raises(UserError, match="not a duration above zero"):
        parse_duration(text)


@given(hours=st.integers(0, 99), minutes=st.integers(0, 99), seconds=st.integers(1, 99))
def test_durations_add_up(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


def test_differences_name_every_field():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}, "e": None}, {"a": 2, "b": {"c": 2, "d": 4}, "e": {"x": 1}}
    assert differences(old, new) == ["a", "b.d", "e"]
    assert differences(old, old) == []
    assert changes(old, new) == ["a 1 -> 2", "b.d 3 -> 4", "e none -> {'x': 1}"]
    assert changes({"a": "x" * 100}, {"a": "y"}) == [f"a {'x' * 57}... -> y"]
