"""The card of a prepared corpus as one HTML page for people: no script, no network, dark and light.

write_text(folder / "datasheet.html", render_datasheet(card))
"""

from typing import Any

from parlance.core import formatting as form

_SHOWN = 20
"""Rows of the longest lists."""


def render_datasheet(card: dict[str, Any]) -> str:
    """The page for the content of a `card.json`; all of it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parlance.text.preparation", "."), autoescape=True, trim_blocks=True
    )
    first, last = card["steps"][0], card["steps"][-1]
    return environment.get_template("datasheet.html.j2").render(
        card=card,
        form=form,
        read=first,
        left=last,
        kept_share=last["bytes"] / max(1, first["bytes"]),
        steps=_with_shares(card["steps"]),
        histogram=_histogram(card["lengths"]),
        reasons=_bars(card["reasons"]),
        languages=_bars({name: row["documents"] for name, row in card["languages"].items()}),
        personal_data=_bars(card["personal_data"]),
        settings=sorted((name, value) for name, value in card["config"].items() if not isinstance(value, dict)),
    )


def _with_shares(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each step with the share of the bytes read that is left after it."""
    total = max(1, steps[0]["bytes"])
    return [step | {"share": step["bytes"] / total} for step in steps]


def _bars(counts: dict[str, int]) -> list[dict[str, Any]]:
    """(name, count, share of the largest count), largest first."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return [{"name": name, "count": count, "share": count / max(1, rows[0][1])} for name, count in rows]


def _histogram(lengths: dict[str, int]) -> dict[str, Any]:
    """Bars of the length histogram, one for every power of two between the shortest and the longest document."""
    if not lengths:
        return {"bars": [], "width": 0}
    low, high = min(map(int, lengths)), max(map(int, lengths))
    most = max(lengths.values())
    bars = [
        {"low": 2**k, "count": lengths.get(str(k), 0), "height": 120 * lengths.get(str(k), 0) / most}
        for k in range(low, high + 1)
    ]
    return {"bars": bars, "width": 48 * len(bars)}
