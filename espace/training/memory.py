"""What the C library does with memory that one step gives back and the next one asks for again."""

from __future__ import annotations

import ctypes
import os

_MIB = 2**20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT, _LARGEST = 256 * _MIB, (64 * _MIB, 32 * _MIB)  # 32 MiB is the most that an older glibc takes


def keep_freed() -> bool:
    """Let glibc keep up to 256 MiB that this process has freed, for arrays of up to 64 MiB; returns whether it will.

    By default it hands large arrays back to the system at once, which then clears the same pages for the next step.
    Nothing happens with another C library, nor where the environment tunes malloc already.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
