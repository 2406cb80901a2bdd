"""Device names, and what a run records about its machine."""

import json
import resource

import pytest
import torch

from parlance.core import devices
from parlance.core.devices import (
    environment,
    fast_bfloat16,
    free_memory_bytes,
    matrix_rate,
    peak_memory_bytes,
    select_device,
    usable_cores,
)
from parlance.core.errors import UserError


def test_named_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert select_device("cpu") == select_device("auto") == torch.device("cpu")
    for name, reason in (("cuda", "no CUDA device"), ("mps", "no Apple GPU"), ("tpu", "choose auto, cpu, cuda or mps")):
        with pytest.raises(UserError, match=reason):
            select_device(name)


def test_auto_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == torch.device("mps")


def test_only_devices_known_to_be_fast_compute_in_bfloat16(monkeypatch):
    assert not fast_bfloat16(torch.device("mps"))
    for amx, avx512 in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert fast_bfloat16(torch.device("cpu")) == (amx or avx512)


@pytest.mark.parametrize("instructions", [True, False])
def test_a_cuda_device_that_only_emulates_bfloat16_is_not_fast_at_it(monkeypatch, instructions):
    def supported(including_emulation: bool = True) -> bool:
        return instructions or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert fast_bfloat16(torch.device("cuda")) == instructions


def test_the_environment_is_json_and_plausible():
    facts = json.loads(json.dumps(environment()))
    assert facts["cores"] >= 1
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["memory_bytes"] > 2**28
    block = bytearray(64 << 20)
    assert peak_memory_bytes() > len(block)


def test_threads_are_those_the_user_asked_for_or_all_cores(monkeypatch):
    for text, expected in (("3", 3), ("64,2", 64)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert usable_cores() == expected
    for text in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert usable_cores() == environment()["cores"]


@pytest.fixture
def no_rates(monkeypatch, tmp_path):
    """A cache folder of one's own, and processes that have measured nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices._highest_rate.cache_clear()
    yield tmp_path / "parlance" / "matrix-rates.json"
    devices._highest_rate.cache_clear()


def test_the_highest_rate_of_matrix_products_is_kept(no_rates, monkeypatch):
    cpu, lengths = torch.device("cpu"), []
    measured = iter([2e10, 1e10, 3e10])

    def measure(_device, _dtype, seconds):
        lengths.append(seconds)
        return next(measured)

    monkeypatch.setattr(devices, "_measured_rate", measure)
    found = []
    for _ in range(3):
        found.append(matrix_rate(cpu, torch.float32))
        assert matrix_rate(cpu, torch.float32) == found[-1]  # once a process
        devices._highest_rate.cache_clear()
    assert found == [2e10, 2e10, 3e10]
    assert lengths == [0.2, 0.05, 0.05]
    assert list(json.loads(no_rates.read_text()).values()) == [3e10]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": "b"}', "null"])
def test_a_damaged_or_missing_cache_costs_a_measurement(no_rates, monkeypatch, content):
    monkeypatch.setattr(devices, "_measured_rate", lambda *_, **__: 5e9)
    no_rates.parent.mkdir(parents=True)
    no_rates.write_text(content)
    assert matrix_rate(torch.device("cpu"), torch.float32) == 5e9
    devices._highest_rate.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert matrix_rate(torch.device("cpu"), torch.float32) == 5e9


def test_a_measured_rate_is_plausible():
    assert 1e8 < devices._measured_rate(torch.device("cpu"), torch.float32, seconds=0.0) < 1e14


@pytest.mark.usefixtures("no_rates")
@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Some other card", 7e9)]
)
def test_published_peaks(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    monkeypatch.setattr(devices, "_measured_rate", lambda *_, **__: 7e9)
    assert matrix_rate(torch.device("cuda"), torch.bfloat16) == peak


def test_free_memory_is_the_least_of_what_limits_it(monkeypatch):
    files = {
        "/proc/meminfo": ["MemTotal: 9 kB", "MemAvailable: 4000 kB"],
        "/sys/fs/cgroup/memory.max": ["5000000"],
        "/sys/fs/cgroup/memory.current": ["2000000"],
        "/sys/fs/cgroup/memory.stat": ["anon 7", "inactive_file 500000"],
    }
    monkeypatch.setattr(devices, "_lines", lambda path: files.get(path, []))
    cpu = torch.device("cpu")
    assert free_memory_bytes(cpu) == 3_500_000
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert free_memory_bytes(cpu) == 4_096_000
    files["/proc/self/statm"] = ["100 1 1"]
    page = resource.getpagesize()
    monkeypatch.setattr(devices.resource, "getrlimit", lambda _kind: (150 * page, 150 * page))
    assert free_memory_bytes(cpu) == 50 * page
    files.clear()
    monkeypatch.setattr(devices.resource, "getrlimit", lambda _kind: (resource.RLIM_INFINITY,) * 2)
    assert free_memory_bytes(cpu) is None
