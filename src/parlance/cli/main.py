"""The command `parlance`: its commands by name, its exit codes, and errors in one sentence.

Exit codes: 0 done; 2 the input or the options are wrong; 130 interrupted (training stages can be resumed); 1 a bug, or
the reader of standard output went away. Tracebacks appear only with --debug, which may stand anywhere.
"""

import atexit
import errno
import gc
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import parlance
from parlance.cli import (
    align,
    bench,
    chat,
    convert,
    corpus,
    finetune,
    generate,
    plan,
    pretrain,
    quantize,
    reward,
    run,
    score,
    serve,
    tokenizer,
)
from parlance.cli.invocation import first_tells, program, told_elsewhere
from parlance.cli.options import help_of
from parlance.core.errors import Interrupted, UserError

_MACHINE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""Failures of the operating system that the user can mend: no space, no permission."""


class InOrder(TyperGroup):
    """Lists the commands in the order of the work."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=[*_COMMANDS].index)


app = typer.Typer(
    name="parlance",
    cls=InOrder,
    help="From text to a language model you can talk to, on the machine in front of you.\n\n"
    "Start here: parlance run --out runs/demo, then parlance chat runs/demo",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_COMMANDS: dict[str, tuple[str, Callable[..., None] | typer.Typer]] = {
    "run": ("The whole line", run.run),
    "corpus": ("One stage", corpus.app),
    "tokenizer": ("One stage", tokenizer.app),
    "pretrain": ("One stage", pretrain.pretrain),
    "finetune": ("One stage", finetune.finetune),
    "reward": ("One stage", reward.reward),
    "align": ("One stage", align.align),
    "generate": ("Use a model", generate.generate),
    "score": ("Use a model", score.score),
    "chat": ("Use a model", chat.chat),
    "serve": ("Use a model", serve.serve),
    "convert": ("Use a model", convert.convert),
    "quantize": ("Use a model", quantize.quantize),
    "plan": ("Plan", plan.plan),
    "bench": ("Compare", bench.app),
}
"""Panel of the help page, and command or group of commands, by name."""
for _name, (_panel, _command) in _COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name, rich_help_panel=_panel)
    else:
        app.command(_name, rich_help_panel=_panel, help=help_of(_command))(_command)


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=lambda on: _version(on)),
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    """See `app`; `main` reads --debug before the commands do."""


def _version(on: bool) -> None:
    if on:
        typer.echo(parlance.__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (None: those of this process) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options
    if debug:
        words.remove("--debug")
    # Threads that wait for work sleep instead of spinning: beside any other busy program, spinning makes a training
    # step many times slower. The OpenMP runtime reads this when PyTorch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The interpreter's last search for garbage walks over all that PyTorch made, for 0.4 s: there is none to find.
    atexit.register(gc.freeze)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or file that cannot show a character shows a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        return _run(words)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error, words)


def _run(words: list[str]) -> int:
    """Parse and carry out; a return value of 130 is an interruption that no stage turned into `Interrupted`."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ and words[:1] not in (["pretrain"], []):
        with first_tells():
            raise UserError(
                f"{words[0]} is done by one process: start it without torchrun (only pretrain takes several)"
            )
    command = typer.main.get_command(app)
    code = command.main(words or ["--help"], prog_name="parlance", standalone_mode=False)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes again at its end: give it somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if code == 130:
        _tell("interrupted")
    return code if isinstance(code, int) else 0


def _explain(error: Exception, words: list[str]) -> int:
    """Say in one sentence what went wrong; returns the exit code."""
    if isinstance(error, Interrupted):
        _tell(str(error))
        return 130
    if isinstance(error, UserError):
        _tell("error: " + " ".join(line.strip() for line in str(error).splitlines()))
        return 2
    if isinstance(error, typer.TyperException) and told_elsewhere():
        return 2
    if isinstance(error, typer.TyperException):
        message = " ".join(error.format_message().split()).rstrip(".")
        _tell(f"error: {message[:1].lower()}{message[1:]}; see: {program()} {shlex.join([*_named(words), '--help'])}")
        return 2
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        reason = error.strerror or str(error)
        where = f"{error.filename}: " if error.filename else ""
        _tell(f"error: {where}{reason[:1].lower()}{reason[1:]}")
        return 2
    if isinstance(error, MemoryError):
        _tell("error: there is not enough memory; choose a smaller model, batch or corpus")
        return 2
    if isinstance(error, typer.Abort):
        _tell("error: standard input ended")
        return 2
    _tell(
        f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}; this is a bug; "
        "run again with --debug for the traceback"
    )
    return 1


def _named(words: list[str]) -> list[str]:
    """The words of the command line that name the command."""
    if not words or words[0] not in _COMMANDS:
        return []
    command = _COMMANDS[words[0]][1]
    if isinstance(command, typer.Typer):
        names = {info.name or getattr(info.callback, "__name__", None) for info in command.registered_commands}
        return words[:2] if set(words[1:2]) & names else words[:1]
    return words[:1]


def _tell(message: str) -> None:
    """One line on standard error, whatever state it is in."""
    try:
        sys.stderr.write(f"parlance: {message}\n")
        sys.stderr.flush()
    except OSError:
        return
