"""What a result was computed on."""

import os
import platform
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """Python, operating system, number of processor cores, and the device by its name."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
