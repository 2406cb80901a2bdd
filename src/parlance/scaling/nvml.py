"""Energy counters of NVIDIA GPUs, through the driver's own library (NVML), loaded with ctypes.

    [counter.read() for counter in gpu_counters()]     # microjoules since a fixed moment

A counter is a whole GPU: all programs on it are included. GPUs since Volta count their energy; of older ones the power
is read and summed over the time between readings, so that they must be read often. `CUDA_VISIBLE_DEVICES` is honoured
where it lists numbers (in NVML's order, that of the bus) or whole UUIDs. A GPU that tells nothing is left out. Where
there is no library, no driver or no GPU, there are no counters; nothing is raised and nothing is installed.

Source: the NVML API reference (nvmlDeviceGetTotalEnergyConsumption: millijoules; nvmlDeviceGetPowerUsage: milliwatts).
"""

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

LIBRARIES = ("libnvidia-ml.so.1", "libnvidia-ml.so")
SUCCESS = 0
UUID_BYTES = 96


class GpuCounter:
    """Energy of one GPU, in microjoules."""

    range_uj = 1000 * 2**64
    """NVML counts millijoules in 64 bits: in practice never from the start again."""

    def __init__(self, library: Any, handle: ctypes.c_void_p, clock: Callable[[], float] = time.monotonic) -> None:
        self._library, self._handle, self._clock = library, handle, clock
        self.counts_energy = self._energy() is not None
        self._microjoules = 0.0
        self._last: tuple[float, float] | None = None

    def read(self) -> int:
        """Microjoules since a fixed moment. Raises OSError where the GPU no longer answers."""
        if self.counts_energy:
            energy = self._energy()
            if energy is None:
                raise OSError("the GPU's energy counter does not answer")
            return 1000 * energy
        power = ctypes.c_uint()
        if self._library.nvmlDeviceGetPowerUsage(self._handle, ctypes.byref(power)) != SUCCESS:
            raise OSError("the GPU's power cannot be read")
        now, watts = self._clock(), power.value / 1000.0
        if self._last is not None:
            before, watts_before = self._last
            self._microjoules += 1e6 * 0.5 * (watts + watts_before) * (now - before)
        self._last = now, watts
        return round(self._microjoules)

    def _energy(self) -> int | None:
        """Millijoules since the driver was loaded; None where this GPU does not count them."""
        energy = ctypes.c_ulonglong()
        code = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(energy))
        return int(energy.value) if code == SUCCESS else None


def gpu_counters(library: Any = None, environment: Mapping[str, str] = os.environ) -> list[GpuCounter]:
    """A counter for each GPU that this process may use; empty where there is none. `library`: NVML; None: the
    driver's."""
    nvml = _load() if library is None else library
    if nvml is None:
        return []
    try:
        if nvml.nvmlInit_v2() != SUCCESS:
            return []
        number = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)) != SUCCESS:
            return []
        handles = []
        for index in range(number.value):
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == SUCCESS and _visible(
                nvml, index, handle, environment.get("CUDA_VISIBLE_DEVICES")
            ):
                handles.append(handle)
        return [counter for handle in handles if (counter := _counter(nvml, handle)) is not None]
    except AttributeError:  # an older library
        return []


def _counter(nvml: Any, handle: ctypes.c_void_p) -> GpuCounter | None:
    """The counter of a GPU; None where it tells nothing."""
    counter = GpuCounter(nvml, handle)
    try:
        counter.read()
    except OSError:
        return None
    return counter


def _load() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _visible(nvml: Any, index: int, handle: ctypes.c_void_p, chosen: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets the process use this GPU."""
    if chosen is None:
        return True
    words = [word.strip() for word in chosen.split(",")]
    # CUDA reads up to the first word that names no GPU: "0,-1" is the first GPU alone.
    numbers = list(takewhile(lambda word: word.isascii() and word.isdigit(), words))
    if numbers or not words[0].startswith("GPU-"):
        return str(index) in numbers
    uuid = ctypes.create_string_buffer(UUID_BYTES)
    if nvml.nvmlDeviceGetUUID(handle, uuid, UUID_BYTES) != SUCCESS:
        return False
    return uuid.value.decode(errors="replace") in words
