"""What a result is computed on."""

import os
import platform
from typing import Any

import torch

from runner.errors import InputError


def device_of(key: str, name: str) -> torch.device:
    """The device that the configuration's ``key`` names; raises where this machine does not have it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{key}={name} cannot be used on this machine ({reason}); use {key}=cpu") from None
    return device


def machine(device: torch.device) -> dict[str, Any]:
    """Python, operating system, number of processor cores, and the device by its name."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
