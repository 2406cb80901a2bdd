"""Which machine this is and what it is good at: device, precision, threads, memory.

`bfloat16` matrix products are 3 to 10 times faster than fp32 on CPUs with AMX or AVX512-BF16 and many times slower on
all others (pytorch#118499), so the precision is chosen by what the processor says it has, never assumed.
"""

import ctypes
import json
import os
import platform
import resource
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlance.core.artifacts import write_json
from parlance.core.errors import UserError

if TYPE_CHECKING:
    import torch


def select_device(name: str) -> "torch.device":
    """The device called "auto" (CUDA, else MPS, else CPU), "cpu", "cuda" or "mps". Raises UserError if absent."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is available here; use --device auto or cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or mps")
    return torch.device(name)


def fast_bfloat16(device: "torch.device") -> bool:
    """Whether bfloat16 matrix products are faster than fp32 ones on this device."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # which V100 and T4 do
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


PUBLISHED_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "V100": 125e12}
"""Dense operations a second in 16 bits by the makers' data sheets; by a part of the device's name."""


def matrix_rate(device: "torch.device", dtype: "torch.dtype") -> float:
    """Floating-point operations a second of the device's matrix products: the peak that a share (MFU) is of.

    What the maker publishes for a CUDA device in 16 bits. Else measured, once a process: other work on the machine only
    ever makes products slower, so the highest rate found so far is kept in the user's cache folder, by processor,
    number of threads and dtype.
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    if device.type == "cuda" and dtype.itemsize == 2:
        for part, peak in PUBLISHED_PEAKS.items():
            if part in name:
                return peak
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return _highest_rate(device, dtype, f"{name}, {threads} threads, {str(dtype).removeprefix('torch.')}")


@cache
def _highest_rate(device: "torch.device", dtype: "torch.dtype", key: str) -> float:
    """The rate measured now or earlier, whichever is higher."""
    file = cache_folder() / "matrix-rates.json"
    rates: dict[str, float] = {}
    with suppress(OSError, ValueError, TypeError):
        rates = {str(name): float(rate) for name, rate in dict(json.loads(file.read_bytes())).items()}
    rate = max(rates.get(key, 0.0), _measured_rate(device, dtype, seconds=0.05 if key in rates else 0.2))
    if rate > rates.get(key, 0.0):
        with suppress(UserError):  # where nothing can be kept, the next process measures for longer
            write_json(file, rates | {key: rate})
    return rate


def _measured_rate(device: "torch.device", dtype: "torch.dtype", seconds: float) -> float:
    """The best of the products of two matrices of 1024 rows that fit into some seconds; the first warms up."""
    import torch

    size = 1024
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < seconds:
        started = time.perf_counter()
        float((left @ left)[0, 0])  # waits for a device that works beside the program
        times.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(times[1:])


def cache_folder() -> Path:
    """Where what can be made again is kept for this user: `$XDG_CACHE_HOME`/parlance, or ~/.cache/parlance."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parlance"


def free_memory_bytes(device: "torch.device") -> int | None:
    """Memory that can still be had: of the device, or of this machine, container and process; None: unknown."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_free_by_meminfo(), _free_in_container(), _free_by_limit()]
    return min((limit for limit in limits if limit is not None), default=None)


def _free_by_meminfo() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_in_container() -> int | None:
    """What the control group (version 2) of a container leaves, page cache counted as free."""
    most, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if not most or not used or most[0] == "max":
        return None
    cached = [int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file")]
    return max(0, int(most[0]) - int(used[0]) + sum(cached))


def _free_by_limit() -> int | None:
    """What the limit of the address space (ulimit -v) leaves."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _lines("/proc/self/statm")
    if most == resource.RLIM_INFINITY or not used:
        return None
    return max(0, most - int(used[0].split()[0]) * resource.getpagesize())


def _lines(path: str) -> list[str]:
    """The lines of a file of the system; none where it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def usable_cores() -> int:
    """Threads worth starting: `OMP_NUM_THREADS` where the user set it, else the cores this process may run on.

    Two hardware threads of one core count as two.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested parallelism
    return int(wanted) if wanted.isascii() and wanted.isdigit() and int(wanted) > 0 else _available_cores()


def _available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def _c_library() -> ctypes.CDLL | None:
    """The GNU C library, or None elsewhere."""
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None


def release_free_memory() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) keeps it; takes about 0.04 s.

    Tensors of ever-changing shapes leave holes in its heap: without this, PPO's process grew to twice what it uses.
    """
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)


@cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Machine and versions, as stored in a run's `environment.json`."""
    import torch

    packages = ("parlance", "torch", "numpy", "numba", "tokenizers", "safetensors", "pyarrow", "daft")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _cpu_name(),
        "cores": _available_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "fast_bfloat16": fast_bfloat16(torch.device("cpu")),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": {name: metadata.version(name) for name in packages},
    }
