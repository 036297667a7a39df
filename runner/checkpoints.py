"""Checkpoint files: written where they are told, read with a message where they are damaged."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from runner.errors import InputError


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` to ``path``; raises the system's own error where that fails, which torch.save hides."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    path.write_bytes(content.getbuffer())


def load_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """The checkpoint at ``path``, on the CPU; nothing in it is run. ``remedy`` is what to do where it is damaged."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()  # torch does not look at the check sums
        if damaged is not None:
            raise InputError(f"{damaged} has another check sum than when it was written")
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # of bytes that are no checkpoint, unpickling may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a checkpoint of this project, or is damaged: {reason}; {remedy}") from error
    return checkpoint
