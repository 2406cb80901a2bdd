"""Large counts as people write them: 65b parameters, 1.4t tokens, 2^20, 6e23.

count("65b", what="--params")      # 65e9
"""

import math
import re

from parlance.core.errors import UserError

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}


def count(text: str, *, what: str) -> float:
    """The number above zero that `text` writes; `what` names it in errors. Raises UserError."""
    word = text.strip().lower().replace("_", "").replace(",", "")
    if power := re.fullmatch(r"(\d+)\^(\d{1,3})", word):
        value = float(int(power[1]) ** int(power[2])) if int(power[1]) < 1000 else math.inf
    elif match := re.fullmatch(r"(\d+(?:\.\d*)?(?:e[+]?\d{1,3})?)([kmbgtp]?)", word):
        value = float(match[1]) * _UNITS[match[2]]
    else:
        raise UserError(f"{what} {text}: write a number, like 65b, 1.4t, 350m, 6e23 or 2^20")
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{what} {text}: it must be above zero, and finite")
    return value
