"""Device names, and what a run records about its machine."""

import json

import pytest
import torch

from parlance.core.devices import environment, fast_bfloat16, peak_memory_bytes, select_device, usable_cores
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
