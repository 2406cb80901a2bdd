"""What `parlance plan` prints: the plan and its layouts, a fitted law; or one JSON object with --json."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from parlance.cli import output
from parlance.core import formatting as form
from parlance.core.errors import UserError

if TYPE_CHECKING:
    from parlance.scaling.loss_surface import LossSurface
    from parlance.scaling.plan import Plan
    from parlance.scaling.sizing import Size

SHOWN_LAYOUTS = 8
GIB = 2**30


def print_plan(plan: "Plan", size: "Size", surface: "LossSurface | None", *, json: bool) -> None:
    """A plan with its best layouts."""
    summary = plan.summary() | {"sizes": size.how, "layouts": plan.rows()}
    if surface is not None:
        summary["law"] = surface_facts(surface, plan)
    if json:
        output.print_json(summary)
        return
    shape = plan.shape
    experts = f", {shape.experts} experts, {shape.experts_per_token} a token" if shape.experts > 1 else ""
    if shape.window is not None:
        experts += f", window {shape.window}" + (f" but for {shape.full_layers} layers" if shape.full_layers else "")
    if shape.ngram_rows:
        experts += f", {form.count(shape.ngram_rows)} rows of n-grams"
    met = shape.active_parameters()
    active = f" ({form.magnitude(met)} a token)" if met < shape.parameters() else ""
    dollars = "no price known: give --price"
    if plan.cost is not None:
        origin = "given" if plan.price != plan.accelerator.price else plan.accelerator.price_source
        dollars = f"${_number(plan.cost)} at ${plan.price:g} an hour ({origin})"
    output.print_facts(
        {
            "model": f"{form.magnitude(shape.parameters())} parameters{active}: "
            f"{shape.layers} layers, width {shape.width}, {shape.heads} heads ({shape.kv_heads} key/value), "
            f"feed-forward {shape.mlp_width}, vocabulary {shape.vocab_size}, context {shape.context}{experts}",
            "tokens": f"{form.magnitude(plan.tokens)} ({plan.tokens / shape.active_parameters():.1f} a parameter), "
            f"{form.count(summary['steps'])} steps of {form.magnitude(plan.batch)}"
            + (f"; {plan.batch_note}" if plan.batch_note else ""),
            "sizes": None if size.how == "given" else size.how,
            "compute": f"{plan.flops:.3g} FLOPs with attention (6 N D = {plan.flops_6nd:.3g})",
            "expected_loss": _loss(plan, surface),
            "best_division": None if surface is None else _division(surface, summary["law"]["optimum"]),
            "devices": f"{plan.devices} x {plan.accelerator.name}, {plan.precision}",
            "MFU": f"{plan.mfu:.1%}, {plan.mfu_source}",
            "time": f"{_time(plan.days)}{_range(plan)}, {_number(plan.device_hours)} device hours, "
            f"{_number(plan.tokens_per_second_and_device)} tokens a second and device",
            "money": dollars,
            "energy": f"{_energy(plan.kilowatt_hours)} estimated: {plan.watts:g} W a device, PUE {plan.pue:g}",
            "CO2": f"{_number(plan.carbon_kilograms)} kg estimated, at {plan.carbon_intensity:g} kg a kWh",
            "serving": f"{form.size(2 * shape.parameters())} of 16-bit weights; "
            f"keys and values {form.size(shape.key_value_bytes_per_token())} a token, "
            f"{form.size(summary['key_value_bytes_per_sequence'])} a sequence; "
            f"memory bandwidth{_together(plan.serving_devices)} allows "
            f"{form.figure(plan.decoding_bound)} tokens a second and sequence",
            "layout": plan.best.layout.words(),
            "reason": plan.reason,
        },
        json=False,
    )
    Console().print()
    Console().print(_layouts(plan.rows(SHOWN_LAYOUTS)))


def print_surface(surface: "LossSurface", *, json: bool) -> None:
    """A fitted law alone."""
    facts = surface_facts(surface, None)
    if json:
        output.print_json(facts)
        return
    words = {name: f"{facts[name]:.5g} ({low:.5g} to {high:.5g})" for name, (low, high) in facts["intervals"].items()}
    output.print_facts(
        {"law": "E + A / N^alpha + B / D^beta", **words, "runs": facts["runs"], "status": facts["status"],
         "meaning": facts["explanation"], "best_division": _division(surface, facts["optimum"])},
        json=False,
    )  # fmt: skip


def _optimum(surface: "LossSurface", flops: float) -> dict[str, Any] | None:
    """The best division of a budget with its 95 % intervals; None where the runs do not tell."""
    if not surface.divides:
        return None
    try:
        best, ends = surface.optimum(flops), surface.optimum_interval(flops)
    except UserError:  # no refit has one
        return None
    return {
        "flops": flops,
        "parameters": {"value": best.parameters, "low": ends.parameters[0], "high": ends.parameters[1]},
        "tokens": {"value": best.tokens, "low": ends.tokens[0], "high": ends.tokens[1]},
        "refits": ends.refits,
        "refits_without": ends.without,
    }


def _division(surface: "LossSurface", optimum: dict[str, Any] | None) -> str:
    """The same in words, with the exponents."""
    if optimum is None:
        return f"not recommended ({'no refit has one' if surface.divides else surface.status})"
    n, d = (
        f"{end['value']:.3g} ({end['low']:.3g} to {end['high']:.3g})"
        for end in (optimum["parameters"], optimum["tokens"])
    )
    a, b = surface.law.exponents
    left_out = f"; {optimum['refits_without']} of {optimum['refits']} refits have none" * (
        optimum["refits_without"] > 0
    )
    return f"N ~ C^{a:.3f}, D ~ C^{b:.3f}; at {optimum['flops']:.3g} FLOPs N {n}, D {d}{left_out}"


def surface_facts(surface: "LossSurface", plan: "Plan | None") -> dict[str, Any]:
    """Constants with intervals and status, the best division of a plan's compute (else of ten times the largest run's),
    and the interval of a plan's loss."""
    law = surface.law
    largest = max(6.0 * n * d for n, d in zip(surface.parameters, surface.tokens, strict=True))
    facts: dict[str, Any] = {
        **{name: getattr(law, name) for name in ("e", "a", "b", "alpha", "beta")},
        "intervals": surface.constant_intervals(),
        "runs": len(surface.loss),
        "objective": surface.objective,
        "status": surface.status,
        "explanation": surface.explanation(),
        "optimum": _optimum(surface, 10.0 * largest if plan is None else plan.flops_6nd),
    }
    if plan is not None and plan.loss is not None:
        predicted = surface.interval(plan.shape.active_parameters(), plan.tokens)
        facts["loss"] = {"value": predicted.value, "low": predicted.low, "high": predicted.high}
    return facts


def _loss(plan: "Plan", surface: "LossSurface | None") -> str:
    if plan.loss is None:
        return plan.loss_note
    if surface is None:
        return f"{plan.loss:.3f} nats a token of Chinchilla's text (corrected law); other text has another level"
    predicted = surface.interval(plan.shape.active_parameters(), plan.tokens)
    return f"{predicted.value:.3f} ({predicted.low:.3f} to {predicted.high:.3f}) nats a token; {surface.explanation()}"


def _time(days: float) -> str:
    if days < 2:
        return _seconds(86400.0 * days)
    return f"{days:.3g} days" if days < 1000 else f"{form.count(days)} days"


def _range(plan: "Plan") -> str:
    """What published runs make of an estimate."""
    if plan.days_range is None:
        return ""
    low, high = plan.days_range
    return f" ({_time(low)} to {_time(high)} by published runs)"


def _seconds(seconds: float) -> str:
    return form.duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _number(value: float) -> str:
    """Groups of three digits; below ten, three digits in all."""
    return form.count(value) if value >= 10 else f"{value:.3g}"


def _together(devices: int) -> str:
    return f" of the {devices} devices that hold it" if devices > 1 else ""


def _energy(kilowatt_hours: float) -> str:
    return form.energy(kilowatt_hours) if kilowatt_hours < 1000 else f"{kilowatt_hours / 1000:.4g} MWh"


def _layouts(rows: list[dict[str, Any]]) -> Table:
    """A line a layout: the axes that divide anything in one of them, then memory."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption = "GiB on the fullest device; steps as estimated without --mfu"
    names = {
        "pipeline": "pipe",
        "data": "data",
        "shard": "shard",
        "expert": "exp",
        "context": "ctx",
        "tensor": "tensor",
    }
    axes = [axis for axis in names if any(row[axis] > 1 for row in rows)]
    parts = {"weights": "wts", "gradients": "grad", "optimizer": "opt", "activations": "act", "logits": "logit"}
    for heading in (*(names[axis] for axis in axes), "ZeRO", "micro", *parts.values(), "GiB", "step", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        sign = {"none": "", "selective": "s", "full": "f"}[row["recompute"]]
        table.add_row(
            *(str(row[axis]) for axis in axes),
            str(row["zero"]),
            f"{row['micro_batch']}x{row['accumulation']}{sign}",
            *(f"{row['bytes'][part] / GIB:.1f}" for part in (*parts, "total")),
            _seconds(row["step_seconds"]["total"]),
            "yes" if row["fits"] else "no",
        )
    if any(row["recompute"] != "none" for row in rows):
        table.caption = f"{table.caption}; s, f: selective and full recomputation"
    return table
