"""Settings of the process that make small updates faster."""

import ctypes
import os
import sys

import torch

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


def hide_absent_gpus() -> None:
    """Tell torch that there is no GPU where none is found: its optimisers look for a driver on disk at each step."""
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
