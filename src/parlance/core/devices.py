"""Which machine this is and what it is good at: device, precision, threads, memory.

`bfloat16` matrix products are 3 to 10 times faster than fp32 on CPUs with AMX or AVX512-BF16 and many times slower on
all others (pytorch#118499), so the precision is chosen by what the processor says it has, never assumed.
"""

import ctypes
import os
import platform
import resource
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


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
