"""How loops become machine code: numba, compiled on first use, kept on disk, without the GIL.

@compiled
def total(values: NDArray[np.int64]) -> int: ...
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(function: Kernel) -> Kernel:
    """Compile `function` with numba when it is first called; to the type checker it stays the function.

    Array indices are not checked, and threads run side by side in it. Do not mix signed and unsigned 64-bit integers
    in it: their sum is a float. Signed 64-bit arithmetic must not overflow (LLVM takes it that it never does): hash and
    mix in `np.uint64`.
    """
    return cast(Kernel, njit(cache=True, nogil=True)(function))
