"""Settings of the process: what its surroundings must not change, and what makes small updates faster."""

import ctypes
import os
import sys
from io import TextIOWrapper

from hydra.core.hydra_config import HydraConfig
from lightning_utilities.core.rank_zero import rank_zero_only

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# By these a launcher says to its processes which of them they are, and so does Lightning to those that it starts.
_RANKS = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def is_first_process() -> bool:
    """Whether this is not a further process of a distributed training: Lightning names those that it starts."""
    return not (HydraConfig.initialized() and HydraConfig.get().job.name.startswith("train_ddp_process_"))


def ignore_surroundings() -> None:
    """Be the first process of a training of its own, whatever SLURM or another launcher has left in the environment.

    A process that Lightning started for a distributed training stays what it is. SLURM's own variables stay too, as
    the launcher of SLURM jobs reads them.
    """
    if is_first_process():
        for name in _RANKS:
            os.environ.pop(name, None)
        rank_zero_only.rank = 0  # type: ignore[attr-defined]


def show_all_letters() -> None:
    """Show a replacement for what the terminal's encoding cannot show, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


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
    import torch  # a second, which the list of keys and a misspelt one should not take

    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
