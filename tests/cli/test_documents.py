"""What README.md and docs/ tell the reader: commands, options and file formats exist as written."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from parlance.alignment.preferences import pairs, parse_ranking
from parlance.cli.main import app
from parlance.core.config import parse_config
from parlance.core.errors import UserError
from parlance.finetuning.demonstrations import parse_demonstration
from parlance.pipeline.recipe import Recipe

HOME = Path(__file__).parents[2]
README, FORMATS = ((HOME / name).read_text() for name in ("README.md", "docs/formats.md"))
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README + FORMATS, flags=re.DOTALL)
LINES = [line.strip() for kind, block in BLOCKS if not kind for line in block.splitlines()]
INLINE = re.findall(r"`(parlance [^`]+)`", README + FORMATS + (HOME / "CONTRIBUTING.md").read_text())
COMMANDS = sorted({line.split("   ")[0] for line in LINES if line.startswith("parlance ")} | set(INLINE))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words after its name. Raises KeyError where there is none."""
    command: Any = typer.main.get_command(app)
    while words and getattr(command, "commands", None):
        if words[0].startswith("-"):
            break
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 20
    assert "parlance chat runs/demo" in COMMANDS


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line.replace("[", "").replace("]...", "").replace("COMMAND ", "run "))[1:]
    command, rest = command_of(words)
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert {word for word in rest if word.startswith("--")} <= known


def test_the_table_has_every_command() -> None:
    table = re.findall(r"^\| `parlance ([a-z ]+)[ `]", README, flags=re.MULTILINE)
    root: Any = typer.main.get_command(app)
    names = []
    for name, command in root.commands.items():
        children = getattr(command, "commands", None)
        names += [f"{name} {child}" for child in children] if children else [name]
    assert sorted(entry.strip() for entry in table) == sorted(names)


def test_json_examples_are_read() -> None:
    rankings, demonstrations = [], []
    for block in (block for kind, block in BLOCKS if kind == "json"):
        for record in map(json.loads, block.splitlines()):
            try:
                demonstrations.append(parse_demonstration(record))
            except UserError:
                rankings.append(parse_ranking(record))
    assert (len(demonstrations), len(rankings)) == (6, 7)
    assert [pairs(ranking) for ranking in rankings] == [
        [(0, 1)],
        [(1, 0), (2, 0)],
        [(1, 0), (2, 0)],
        [(0, 1)],
        [(0, 1)],
        [(1, 0), (2, 0)],
        [(1, 0), (2, 0)],
    ], "the last two say the same"
    assert rankings[4].prompt == "\n\nHuman: Say hi.\n\nAssistant:"


def test_the_recipe_example_is_read() -> None:
    (block,) = (block for kind, block in BLOCKS if kind == "yaml")
    recipe = parse_config(Recipe, yaml.safe_load(block), where="docs/formats.md")
    recipe.check()
    assert recipe.pretraining.context_length == 512


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "docs/formats.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (HOME / name).read_text()):
            assert (HOME / name).parent.joinpath(target).exists(), f"{name}: {target}"
