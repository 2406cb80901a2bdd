"""Numbers as a report prints them, and tolerant readers of values that may be missing or of the wrong type.

Readers give None for what is not there, so that a report leaves it out; nothing is replaced by a default.

    duration(482.3)        # "8 min 2 s"
    number({"loss": float("nan")}.get("loss"))    # None
"""

import math
from datetime import datetime
from typing import Any

THIN = "\N{NARROW NO-BREAK SPACE}"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON allows whole numbers of any length
        return None
    return found if math.isfinite(found) else None


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """A JSON array, or an empty one."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str | None:
    """A string with something in it, or None."""
    return value if isinstance(value, str) and value.strip() else None


def interval(value: Any) -> tuple[float, float | None, float | None] | None:
    """(value, low, high) of a bare number or of {"value", "low", "high"}; the ends are None where they are missing."""
    if isinstance(value, dict):
        middle = number(value.get("value"))
        return None if middle is None else (middle, number(value.get("low")), number(value.get("high")))
    middle = number(value)
    return None if middle is None else (middle, None, None)


def count(value: float) -> str:
    """A whole number in groups of three digits."""
    return f"{round(value):,}".replace(",", THIN)


def decimal(value: float, digits: int = 3) -> str:
    """A number with a fixed number of decimals and a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """A share 0..1 as a percentage."""
    return f"{100 * value:.1f}{THIN}%"


def figure(value: float) -> str:
    """A number of unknown kind: whole numbers in groups, others with up to four significant digits."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "\N{MINUS SIGN}infinite"
    if value == int(value):
        return count(value).replace("-", "\N{MINUS SIGN}")
    if abs(value) >= 1000:
        return count(value).replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


DIGITS = {"decimal": 3, "two decimals": 2, "one decimal": 1}
"""Decimals of each kind of figure."""


def with_interval(value: tuple[float, float | None, float | None], kind: str = "decimal") -> str:
    """ "0.712 (0.680 to 0.741)"; `kind` is "percent" or one of `DIGITS`."""
    middle, low, high = value

    def show(part: float) -> str:
        return percent(part) if kind == "percent" else decimal(part, DIGITS[kind])

    if low is None or high is None:
        return show(middle)
    ends = f"{show(low)} to {show(high)}"
    if kind == "percent":
        ends = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{show(middle)} ({ends})"


def size(value: float) -> str:
    """Bytes in decimal units, three significant digits."""
    return _scaled(value, ("bytes", "kB", "MB", "GB", "TB"))


def magnitude(value: float) -> str:
    """A large count in words: 1.23 million; below a million, all digits."""
    if value < 999_500:
        return count(value)
    return _scaled(value / 1e6, ("million", "billion", "trillion"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three significant digits in the unit, each a thousand times the one before, that keeps them below 1000."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {units[-1]}" if value < 999.5 else f"{count(value)} {units[-1]}"


def compact(value: float) -> str:
    """An axis tick: 250, 10k, 1.5M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= (1e4 if unit == "k" else factor):
            return f"{value / factor:g}{unit}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Seconds as "4.2 s", "8 min 2 s" or "3 h 20 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def energy(kilowatt_hours: float) -> str:
    """Kilowatt-hours, or watt-hours below one tenth of one."""
    return f"{kilowatt_hours:.3g} kWh" if kilowatt_hours >= 0.1 else f"{1000 * kilowatt_hours:.3g} Wh"


def moment(value: Any) -> str | None:
    """An ISO 8601 moment to the minute; a string that is none is given back as it is."""
    written = text(value)
    if written is None:
        return None
    try:
        when = datetime.fromisoformat(written)
    except ValueError:
        return written
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def label(name: str) -> str:
    """A field name as words: "ended_share" becomes "Ended share"."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
