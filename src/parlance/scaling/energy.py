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

GPUs: NVIDIA's are measured by the driver's counters where it is there (`nvml.py`), and added; of others the method says
that they are not counted. No CO2 figure is made: that needs the carbon intensity of the grid, and this code does not
know where it runs (`planner.py` takes it from the user).
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

from parlance.scaling.nvml import GpuCounter, gpu_counters

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

POWER_SAMPLE_SECONDS = 1.0
"""How often a GPU is asked for its power where it does not count its energy."""

NO_GPU = "; a GPU is not counted"


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
        f"(bounds {CORE_WATTS[0]:g} and {CORE_WATTS[2]:g} W){NO_GPU}"
    )
    return {"kilowatt_hours": middle, "low": low, "high": high, "method": method}


class EnergyMeter:
    """Context manager that meters its block; `result()` during or after it."""

    def __init__(self, powercap: Path = POWERCAP, gpus: Sequence[GpuCounter] | None = None) -> None:
        """`gpus`: their counters; None: those of this machine."""
        self._processor = _Sum(find_counters(powercap))
        found = gpu_counters() if gpus is None else gpus
        self._gpus = _Sum(found)
        counting = all(counter.counts_energy for counter in found)
        self._pause = SAMPLE_SECONDS if counting else min(SAMPLE_SECONDS, POWER_SAMPLE_SECONDS)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cpu_start = 0.0
        self._cpu_seconds = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._cpu_start = _cpu_seconds()
        self._processor.start()
        self._gpus.start()
        if self._processor.counters or self._gpus.counters:
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
        result = estimate(self._cpu_seconds)
        if self._processor.counters:
            energy = self._processor.kilowatt_hours
            method = (
                "measured: RAPL counters of the whole processor and its memory, all programs included "
                f"(high bound x {UNSEEN_SHARE:g} for the rest of the machine){NO_GPU}"
            )
            result = {"kilowatt_hours": energy, "low": energy, "high": UNSEEN_SHARE * energy, "method": method}
        if not self._gpus.counters:
            return result
        gpu = self._gpus.kilowatt_hours
        words = f"; {len(self._gpus.counters)} GPU measured by NVML, all programs included"
        return {
            "kilowatt_hours": result["kilowatt_hours"] + gpu,
            "low": result["low"] + gpu,
            "high": result["high"] + UNSEEN_SHARE * gpu,
            "method": result["method"].replace(NO_GPU, words),
        }

    def _sample(self) -> None:
        """Add what the counters gained since the last sample. Processor counters that fail turn the meter into an
        estimate; GPU counters that fail leave GPUs out."""
        with self._lock:
            self._cpu_seconds = _cpu_seconds() - self._cpu_start
            self._processor.sample()
            self._gpus.sample()

    def _watch(self) -> None:
        while not self._done.wait(self._pause):
            self._sample()


class _Sum:
    """What several counters have gained together; no counters any more once one of them fails."""

    def __init__(self, counters: Sequence[Counter] | Sequence[GpuCounter]) -> None:
        self.counters: Sequence[Counter | GpuCounter] = counters
        self.last: list[int] = []
        self._microjoules = 0

    @property
    def kilowatt_hours(self) -> float:
        return self._microjoules / 1e6 / JOULES_PER_KILOWATT_HOUR

    def start(self) -> None:
        self.last = self._read()

    def sample(self) -> None:
        now = self._read()
        for counter, before, after in zip(self.counters, self.last, now, strict=False):
            self._microjoules += after - before if after >= before else after - before + counter.range_uj
        self.last = now

    def _read(self) -> list[int]:
        try:
            return [counter.read() for counter in self.counters]
        except (OSError, ValueError):
            self.counters = []
            return []


def _cpu_seconds() -> float:
    """Processor seconds of this process (all threads) and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
