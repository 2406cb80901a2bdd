"""One page that says what a run made, how good it is, and how to make it again.

    write_report(Path("runs/demo"))      # runs/demo/report.html

The page is one file: charts are inline SVG, there is no script and nothing is fetched, so that it can be mailed,
printed and kept. A section appears where its files exist (`report_files.DOCUMENTS`, metrics.jsonl, recipe.yaml); a
value that is missing is left out. Everything that comes from the run, above all what models wrote, is escaped. Equal
files give equal bytes. matplotlib is imported when the first chart is drawn.
"""

from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from parlance.core.artifacts import write_text
from parlance.core.formatting import text
from parlance.pipeline import report_charts, report_goals, report_sections
from parlance.pipeline.report_files import RunFiles, read_run_files


def write_report(run_directory: Path) -> Path:
    """Write `report.html` in the run directory and return its path.

    Raises UserError where the folder holds nothing of a run or cannot be written.
    """
    path = run_directory / "report.html"
    write_text(path, render_report(read_run_files(run_directory)))
    return path


def render_report(run: RunFiles) -> str:
    """The HTML of the report."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    # Charts are made by our own code from numbers; matplotlib escapes their few words.
    environment.filters["svg"] = Markup
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    summary = run.get("summary.json")
    return template.render(
        name=run.name,
        headline=report_goals.headline(run),
        goals=report_goals.goals(run),
        facts=report_sections.facts(run),
        loss_charts=report_charts.loss_charts(run),
        ladder=report_sections.ladder(run),
        ladder_split=text(run.get("evaluation/language_modelling.json").get("split")),
        alignment_charts=report_charts.alignment_charts(run),
        policy_tables=report_sections.policy_tables(run),
        policy_note=report_sections.policy_note(run),
        samples=report_sections.samples(run),
        reward_model=report_sections.reward_model(run),
        reward_note=report_sections.reward_note(run),
        corpus=report_sections.corpus(run),
        stages=report_sections.stage_bars(run),
        resources=report_sections.resources(run),
        choices=[sentence for choice in _strings(summary.get("choices")) if (sentence := choice.strip())],
        environment=report_sections.environment(run),
        recipe=run.recipe,
        command=text(summary.get("command")),
        notes=run.notes,
    )


def _strings(value: object) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []
