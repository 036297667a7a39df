"""The C library's memory, kept by the process."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory rather than give it back: each update asks for the same again.

    By default tensors of megabytes go back to the system, which clears every page before it lends them once more: a
    quarter of the time of an update. Elsewhere than on Linux with glibc nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest it takes; beyond, memory still comes and goes
            mallopt(_TRIM_THRESHOLD, 1 << 30)
