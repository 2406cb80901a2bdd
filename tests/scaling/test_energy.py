"""The meter against made-up counters (sums, wrap-around, overlap) and against processor time that was really used."""

import math
import time
from pathlib import Path

import pytest

from parlance.scaling import energy
from parlance.scaling.energy import EnergyMeter, estimate, find_counters


def make_counter(folder: Path, zone: str, name: str, microjoules: int, limit: int = 1_000_000_000) -> Path:
    path = folder / zone
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return path / "energy_uj"


def test_counters_are_summed_without_overlap(tmp_path: Path) -> None:
    package = make_counter(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    core = make_counter(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    memory = make_counter(tmp_path, "intel-rapl:0:1", "dram", 0)
    whole = make_counter(tmp_path, "intel-rapl:1", "psys", 0)
    with EnergyMeter(tmp_path) as meter:
        package.write_text("365000000")  # 360 J
        core.write_text("300000000")
        memory.write_text("36000000")  # 36 J
        whole.write_text("900000000")
    result = meter.result()
    assert result["kilowatt_hours"] == pytest.approx(396 / 3.6e6)
    assert (result["low"], result["high"]) == (result["kilowatt_hours"], 1.5 * result["kilowatt_hours"])
    assert result["method"].startswith("measured")
    package.write_text("999000000")
    assert meter.result() == result, "nothing after the block counts"


def test_a_counter_that_wraps_around_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 0.005)
    package = make_counter(tmp_path, "intel-rapl:0", "package-0", 900, limit=1000)
    gained = 0
    with EnergyMeter(tmp_path) as meter:
        for value in (100, 800, 500):  # +200, +700, +700: more than one turn in all
            replacement = tmp_path / "next"
            replacement.write_text(str(value))
            replacement.replace(package)
            gained = {100: 200, 800: 900, 500: 1600}[value]
            deadline = time.monotonic() + 5
            while meter._processor.last != [value] and time.monotonic() < deadline:
                time.sleep(0.002)
    assert meter.result()["kilowatt_hours"] == pytest.approx(gained / 1e6 / 3.6e6)


def test_unreadable_counters_give_an_estimate(tmp_path: Path) -> None:
    broken = make_counter(tmp_path, "intel-rapl:0", "package-0", 0)
    broken.write_text("not a number")
    make_counter(tmp_path, "intel-rapl:0:1", "dram", 0)
    assert find_counters(tmp_path) == [], "memory alone is no measurement of the processor"
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.result()["method"].startswith("estimate")


def test_a_counter_that_breaks_during_the_block_gives_an_estimate(tmp_path: Path) -> None:
    package = make_counter(tmp_path, "intel-rapl:0", "package-0", 0)
    with EnergyMeter(tmp_path) as meter:
        package.unlink()
    assert meter.result()["method"].startswith("estimate")


def test_estimate_is_processor_seconds_times_watts() -> None:
    result = estimate(3600.0)
    assert (result["low"], result["kilowatt_hours"], result["high"]) == (0.003, 0.007, 0.015)
    assert result["method"].startswith("estimate: processor time x 7 W")


def test_estimate_follows_the_work_done_not_the_time_passed(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path) as idle:
        time.sleep(0.2)
    with EnergyMeter(tmp_path) as busy:
        start, value = time.process_time(), 0.0
        while time.process_time() - start < 0.2:
            value = math.sin(value + 1)
        running = busy.result()["kilowatt_hours"]
    used = busy.result()["kilowatt_hours"] * 3.6e6 / 7.0
    assert 0.15 < used < 0.5
    assert 0 < running <= busy.result()["kilowatt_hours"]
    assert idle.result()["kilowatt_hours"] < 0.5 * busy.result()["kilowatt_hours"]
