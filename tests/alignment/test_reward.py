"""Python functions as rewards."""

import sys
from pathlib import Path

import pytest

from parlance.alignment.reward import FunctionReward, load_reward
from parlance.core.errors import UserError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A user's module in the current folder, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "users_rewards.py"
    sys.modules.pop("users_rewards", None)


def test_a_function_of_the_current_folder(module: Path):
    module.write_text("def short(prompts, responses, **columns):\n    return [-len(r) for r in responses]\n")
    path = list(sys.path)
    reward = load_reward("users_rewards:short")
    assert reward(["p", "p"], ["abc", "a"], answer=[1, 2]) == [-3.0, -1.0]
    assert sys.path == path


def test_columns_reach_those_who_name_them():
    def right(_, responses, answer):
        return [response == a for response, a in zip(responses, answer, strict=True)]

    with pytest.raises(UserError, match="answer"):
        FunctionReward("right", right)

    def optional(_, responses, answer=("x",)):
        return [response == a for response, a in zip(responses, answer, strict=True)]

    assert FunctionReward("optional", optional)(["p"], ["y"], answer=["y"], other=[3]) == [1.0]


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        ("users_rewards", "module:function"),
        (":f", "module:function"),
        ("users_rewards:", "module:function"),
        ("no_such_module_here:f", "cannot import no_such_module_here"),
        ("users_rewards:absent", "no function absent"),
        ("users_rewards:NUMBER", "no function NUMBER"),
        ("users_rewards:lonely", "cannot be called"),
    ],
)
def test_what_cannot_be_loaded(module: Path, specification, reason):
    module.write_text("NUMBER = 3\ndef lonely():\n    return []\n")
    with pytest.raises(UserError, match=reason):
        load_reward(specification)


def test_a_module_that_fails_on_import(module: Path):
    module.write_text("1 / 0\n")
    with pytest.raises(UserError, match="cannot import users_rewards"):
        load_reward("users_rewards:f")


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([1.0], "1 scores for 2"),
        ([1.0, float("nan")], "nan for response 1"),
        (["x", 1], "ValueError"),
        (3, "TypeError"),
    ],
)
def test_what_comes_back_is_checked(result, reason):
    reward = FunctionReward("odd", lambda _prompts, _responses: result)
    with pytest.raises(UserError, match=reason):
        reward(["p", "p"], ["a", "b"])
