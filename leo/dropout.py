"""Dropout whose masks come from the run's own generator."""

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = 1 << 16  # the rate is a multiple of 1 / LEVELS


def dropout(x: Float[Tensor, "*any"], rate: float, generator: torch.Generator) -> Float[Tensor, "*any"]:
    """``x`` with each element dropped with probability ``rate``, the others divided by 1 - rate.

    Each 64-bit random integer serves four elements: random numbers are the largest cost of a training step.
    """
    if rate == 0:
        return x
    num_dropped_levels = round(rate * LEVELS)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    bits.random_(-(1 << 63), None, generator=generator)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= num_dropped_levels - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - num_dropped_levels))
