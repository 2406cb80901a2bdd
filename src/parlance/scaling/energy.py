"""How much electricity a block of code took: measured where the processor's counters can be read, else estimated.

    with EnergyMeter() as meter:
        train()
    meter.result()        # {"kilowatt_hours": ..., "low": ..., "high": ..., "method": "..."}

Measured: the RAPL counters of Linux (`/sys/class/powercap`), processor packages and their memory. They count whole
sockets, so other programs on the machine are included, and they miss power supply, disks and fans; `low` is the
reading and `high` is 1.5 times the reading. On most machines only root may read them.

Estimated: processor seconds of this process and its finished children, times stated watts for one busy core with its
share of the machine (`CORE_WATTS`). The bounds span a thrifty laptop and a power-hungry desktop core; nothing about
the machine is looked up.

Neither sees a GPU or another computer. No CO2 figure is made: that needs the carbon intensity of the grid, and this
code does not know where it runs.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows its energy counters."""

JOULES_PER_KILOWATT_HOUR = 3.6e6

CORE_WATTS = (3.0, 7.0, 15.0)
"""Low, assumed and high power of one busy core with its share of memory and board, watts.

Rated package power over cores: about 3-5 W in laptop and many-core server parts, 8-15 W in desktop parts.
"""

UNSEEN_SHARE = 1.5
"""High bound of the whole machine's power over what the counters see (power supply losses, board, disks, fans)."""

SAMPLE_SECONDS = 30.0
"""Counters wrap around (a 262 kJ counter after 22 minutes at 200 W), so they are read this often."""


class EnergyResult(TypedDict):
    """Energy of a block of code. Figures of several blocks with the same method may be added up."""

    kilowatt_hours: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Counter:
    """One RAPL counter: microjoules that start again at zero beyond `range_uj`."""

    path: Path
    range_uj: int

    def read(self) -> int:
        """Microjoules now. Raises OSError or ValueError where the counter cannot be read."""
        return int((self.path / "energy_uj").read_text())


def find_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """The readable counters that do not overlap: packages, and memory where it is counted apart from its package.

    Cores and graphics lie inside a package; `psys` would count packages twice. Empty where nothing can be read.
    """
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            counter = Counter(zone, int((zone / "max_energy_range_uj").read_text()))
            if name.startswith("package") or name == "dram":
                counter.read()
                counters.append(counter)
        except (OSError, ValueError):
            continue
    return counters if any((c.path / "name").read_text().startswith("package") for c in counters) else []


def estimate(cpu_seconds: float) -> EnergyResult:
    """Energy of `cpu_seconds` of busy cores by the stated watts."""
    low, middle, high = (cpu_seconds * watts / JOULES_PER_KILOWATT_HOUR for watts in CORE_WATTS)
    method = (
        f"estimate: processor time x {CORE_WATTS[1]:g} W per busy core "
        f"(bounds {CORE_WATTS[0]:g} and {CORE_WATTS[2]:g} W); a GPU is not counted"
    )
    return {"kilowatt_hours": middle, "low": low, "high": high, "method": method}


class EnergyMeter:
    """Context manager that meters its block; `result()` during or after it."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._counters = find_counters(powercap)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._last: list[int] = []
        self._microjoules = 0
        self._cpu_start = 0.0
        self._cpu_seconds = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._cpu_start = _cpu_seconds()
        try:
            self._last = [counter.read() for counter in self._counters]
        except (OSError, ValueError):
            self._counters = []
        if self._counters:
            self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sample()
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def result(self) -> EnergyResult:
        """Energy from the start of the block until its end, or until now while it runs."""
        if not self._done.is_set():
            self._sample()
        if not self._counters:
            return estimate(self._cpu_seconds)
        energy = self._microjoules / 1e6 / JOULES_PER_KILOWATT_HOUR
        method = (
            "measured: RAPL counters of the whole processor and its memory, all programs included "
            f"(high bound x {UNSEEN_SHARE:g} for the rest of the machine); a GPU is not counted"
        )
        return {"kilowatt_hours": energy, "low": energy, "high": UNSEEN_SHARE * energy, "method": method}

    def _sample(self) -> None:
        """Add what the counters gained since the last sample. A counter that fails turns the meter into an estimate."""
        with self._lock:
            self._cpu_seconds = _cpu_seconds() - self._cpu_start
            try:
                now = [counter.read() for counter in self._counters]
            except (OSError, ValueError):
                self._counters = []
                return
            for counter, before, after in zip(self._counters, self._last, now, strict=True):
                self._microjoules += after - before if after >= before else after - before + counter.range_uj
            self._last = now

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._sample()


def _cpu_seconds() -> float:
    """Processor seconds of this process (all threads) and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
