"""How torch computes on a CPU: with how many threads, and in which memory.

Small models gain nothing from a second thread, and lose much when another process uses the core: one thread that waits
makes all others spin. One thread also makes sums, and so results, independent of the number of cores.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Compute with `number` threads inside the `with`; None keeps torch's choice."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_INT_MAX = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next tensor of that size.

    glibc gives large blocks back to the system at once, and the system clears them anew for every step of a training:
    a fifth of a fit on an idle CPU, far more on a busy one. Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _INT_MAX)
