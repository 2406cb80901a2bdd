"""From the words of `parlance plan` to what the planner takes."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlance.core.errors import UserError

if TYPE_CHECKING:
    from parlance.scaling.accelerators import Accelerator, Precision
    from parlance.scaling.laws import ParametricLaw
    from parlance.scaling.loss_surface import LossSurface
    from parlance.scaling.model_shape import ModelShape
    from parlance.scaling.sizing import Division, Size

TRAINED = ("--params", "--tokens", "--flops", "--money")
"""Options that say what is to be trained."""


def counts(given: dict[str, str | None]) -> dict[str, float | None]:
    """The numbers that options write; None where an option is not given."""
    from parlance.scaling.quantities import count

    return {name: None if text is None else count(text, what=name) for name, text in given.items()}


def says_what_to_train(numbers: dict[str, float | None]) -> bool:
    """Whether any option does."""
    return any(numbers[name] is not None for name in TRAINED)


def surface_of(runs: Path | None, picture: Path | None) -> "LossSurface | None":
    """The surface fitted to the table of `runs`, drawn to `picture`; None without a table."""
    if runs is None:
        if picture is not None:
            raise UserError("--picture draws the runs of a table: give --runs too")
        return None
    from parlance.core.artifacts import write_text
    from parlance.scaling.frontier import fit_isoflop
    from parlance.scaling.isoflop_chart import isoflop_chart
    from parlance.scaling.loss_surface import fit_runs
    from parlance.scaling.runs_file import read_runs

    if picture is not None:
        if picture.suffix.lower() != ".svg":
            raise UserError(f"--picture {picture}: the picture is an SVG file: give a name that ends in .svg")
        if not picture.parent.is_dir():
            raise UserError(f"--picture {picture}: there is no folder {picture.parent}; make it first")
    table = read_runs(runs)
    surface = fit_runs(table)
    if picture is not None:
        write_text(picture, isoflop_chart(fit_isoflop(table)))
    return surface


def law_of(surface: "LossSurface | None") -> "ParametricLaw":
    """The fitted law, else the corrected Chinchilla law."""
    from parlance.scaling.laws import CORRECTED

    return CORRECTED if surface is None else surface.law


def shape_and_size(
    model: Path | None,
    numbers: dict[str, float | None],
    division: "Division",
    sizes: dict[str, Any],
    context: int | None,
    *,
    accelerator: "Accelerator",
    precision: "Precision",
    mfu: float | None,
    price: float | None,
) -> "tuple[ModelShape, Size]":
    """The model, from its folder or derived, and how much it is trained (6 N D, N the weights a token meets)."""
    from parlance.scaling.model_shape import derive_shape
    from parlance.scaling.sizing import affordable_flops, choose_size, shape_of_active

    tokens, flops, money = (numbers[name] for name in ("--tokens", "--flops", "--money"))
    if money is not None:
        if flops is not None:
            raise UserError("give --flops or --money, one of the two")
        flops = affordable_flops(money, accelerator, precision, mfu, price)

    def derived(parameters: float) -> "ModelShape":
        return derive_shape(parameters, context=context or 2048, **sizes)

    if model is None and numbers["--params"] is None:
        size = choose_size(division, tokens=tokens, flops=flops)
        shape = shape_of_active(derived, size.parameters)
        if flops is not None and tokens is None:  # a shape is not to the percent what was asked: spend what there is
            size = replace(size, tokens=flops / (6.0 * shape.active_parameters()))
        return shape, size
    if model is None:
        shape = derived(float(numbers["--params"] or 0.0))
    elif numbers["--params"] is not None or any(value not in (None, True, 1) for value in sizes.values()):
        raise UserError(f"{model} has its sizes: give no --params, --layers, --width, --heads, --vocab or --experts")
    else:
        shape = _shape_from(model, context)
    return shape, choose_size(division, parameters=float(shape.active_parameters()), tokens=tokens, flops=flops)


def _shape_from(model: Path, context: int | None) -> "ModelShape":
    """The sizes in a checkpoint folder's config.json."""
    from parlance.models.checkpoints import read_config
    from parlance.models.plan_shape import shape_of

    folder = model.parent if model.name == "config.json" else model
    try:
        config = read_config(folder)[1]
    except UserError as error:
        if not (folder / "config.json").is_file() or list(folder.glob("*.safetensors")):
            raise
        raise UserError(f"{folder / 'config.json'} alone does not tell this model's sizes: {error}") from error
    return shape_of(config, context)
