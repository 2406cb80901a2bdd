"""Options that several commands share, each with its help, so that they read the same everywhere.

`help_of(command)` is a command's help: its docstring, each paragraph on one line, for the terminal to wrap.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

MOST_STEPS = 10**12
"""More than any run makes; what is larger is a slip of the finger."""

DeviceName = Literal["auto", "cpu", "cuda", "mps"]

Device = Annotated[
    DeviceName, typer.Option("--device", help="Where to compute; auto takes CUDA, else an Apple GPU, else the CPU.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.", min=0, max=2**32 - 1)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any field of the configuration; repeatable. A wrong key lists the fields.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead of tables.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with what --out holds: the same command again, plus --resume.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count and leave out broken records instead of stopping.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the result; new, or empty.")]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="Time for this stage: 90s, 3m, 1.5h. Or use --steps.")
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, max=MOST_STEPS, help="Training steps; repeatable bit for bit, unlike a time budget."
    ),
]
Runner = Annotated[Literal["native", "ray"], typer.Option("--runner", help="native: this machine. ray: a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="Address of the Ray cluster; none: start one here."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes at a time; none: one a core. Changes no output.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to generate.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, help="Below 1 bolder, above 1 more varied; 0: always the likeliest.")
]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Draw among the K likeliest tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw among the likeliest tokens that hold this probability.")
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        "--precision", help="What to compute in; auto: bfloat16 where that is fast, float32 for small models."
    ),
]
Overflow = Annotated[
    Literal["error", "truncate", "slide"],
    typer.Option(
        "--overflow",
        help="A text longer than the model's context: refuse it and stop there; cut the beginning off the prompt and "
        "stop there; or forget the beginning again and again.",
    ),
]
ModelFolder = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Checkpoint folder, or a run directory: its most advanced model.")
]


def help_of(command: Callable[..., None]) -> str:
    """The docstring of a command with each paragraph on one line."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs)
