"""Functions timed in turns, so that what disturbs a machine disturbs all of them alike."""

import time
from collections.abc import Callable


def in_turns(
    rounds: int, functions: dict[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function by `clock`, called once before it starts and then in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds
