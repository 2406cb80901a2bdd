"""GPU counters against a made-up driver library."""

import ctypes
from typing import Any

import pytest

from parlance.scaling.energy import EnergyMeter
from parlance.scaling.nvml import GpuCounter, gpu_counters


class Driver:
    """NVML's functions over GPUs given as {"uuid", "energy" in millijoules or None, "power" in milliwatts}."""

    def __init__(self, *gpus: dict[str, Any], works: bool = True) -> None:
        self.gpus, self.works = gpus, works

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0 if self.works else 9

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:  # noqa: N802
        number._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, buffer: Any, size: int) -> int:  # noqa: N802
        buffer.value = self._gpu(handle)["uuid"].encode()[: size - 1]
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, energy: Any) -> int:  # noqa: N802
        value = self._gpu(handle).get("energy")
        energy._obj.value = value or 0
        return 3 if value is None else 0

    def nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, power: Any) -> int:  # noqa: N802
        value = self._gpu(handle).get("power")
        power._obj.value = value or 0
        return 3 if value is None else 0

    def _gpu(self, handle: ctypes.c_void_p) -> dict[str, Any]:
        assert handle.value is not None
        return self.gpus[handle.value - 1]


def test_counted_energy_is_added_to_the_processors(tmp_path: Any) -> None:
    gpus = [{"uuid": "GPU-a", "energy": 1_000}, {"uuid": "GPU-b", "energy": 5_000_000}]
    with EnergyMeter(tmp_path, gpu_counters(Driver(*gpus), {})) as meter:
        gpus[0]["energy"] += 3_600_000  # 3 600 J
        gpus[1]["energy"] += 360_000
    result = meter.result()
    gpu = 3960 / 3.6e6
    assert result["kilowatt_hours"] == pytest.approx(gpu, rel=0.05)
    assert result["low"] >= gpu
    assert result["high"] == pytest.approx(1.5 * gpu, rel=0.05)
    assert result["method"].endswith("; 2 GPU measured by NVML, all programs included")
    assert result["method"].startswith("estimate: processor time"), "of the processor there is no counter here"


def test_power_is_summed_over_time_where_energy_is_not_counted() -> None:
    seconds = 0.0
    gpu: dict[str, Any] = {"uuid": "GPU-a", "energy": None, "power": 100_000}
    counter = GpuCounter(Driver(gpu), ctypes.c_void_p(1), clock=lambda: seconds)
    assert not counter.counts_energy
    start = counter.read()
    seconds, gpu["power"] = 10.0, 300_000
    assert counter.read() - start == 2_000_000_000  # 200 W on average for 10 s
    gpu["power"] = None
    with pytest.raises(OSError, match="power"):
        counter.read()


@pytest.mark.parametrize(
    ("chosen", "number"),
    [(None, 3), ("0,2", 2), ("1", 1), ("", 0), ("GPU-b", 1), ("GPU-a,GPU-c", 2), ("GPU-x", 0), ("0,-1", 1), ("-1", 0)],
)
def test_only_visible_gpus_count(chosen: str | None, number: int) -> None:
    driver = Driver(*({"uuid": f"GPU-{letter}", "energy": 1} for letter in "abc"))
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert len(gpu_counters(driver, environment)) == number


def test_without_a_working_driver_there_are_no_counters() -> None:
    assert gpu_counters(Driver(works=False), {}) == []
    assert gpu_counters(object(), {}) == [], "a library without these functions"
    assert gpu_counters(Driver({"uuid": "GPU-a"}), {}) == [], "neither energy nor power"
    assert isinstance(gpu_counters(), list)


def test_a_mute_gpu_does_not_silence_the_others(tmp_path: Any) -> None:
    gpus: list[dict[str, Any]] = [{"uuid": "GPU-a"}, {"uuid": "GPU-b", "energy": 1_000}]
    counters = gpu_counters(Driver(*gpus), {})
    assert len(counters) == 1
    with EnergyMeter(tmp_path, counters) as meter:
        gpus[1]["energy"] += 3_600_000
    assert meter.result()["method"].endswith("; 1 GPU measured by NVML, all programs included")


def test_a_gpu_that_falls_silent_is_left_out(tmp_path: Any) -> None:
    gpus: list[dict[str, Any]] = [{"uuid": "GPU-a", "energy": 1_000}]
    with EnergyMeter(tmp_path, gpu_counters(Driver(*gpus), {})) as meter:
        gpus[0]["energy"] = None
    assert meter.result()["method"].endswith("a GPU is not counted")
