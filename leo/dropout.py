"""Dropout whose masks are drawn ahead, from the run's own generator."""

import torch
from jaxtyping import Float, Int16
from torch import Tensor

LEVELS = 1 << 16  # the rate is a multiple of 1 / LEVELS


def random_bits(*shape: int, device: torch.device, generator: torch.Generator) -> Int16[Tensor, "*any"]:
    """Uniform 16-bit numbers, the masks of ``dropout``.

    Each 64-bit random integer serves four elements: random numbers are among the largest costs of a training step.
    """
    count = torch.Size(shape).numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    return bits.random_(-(1 << 63), None, generator=generator).view(torch.int16)[:count].view(shape)


def dropout(
    x: Float[Tensor, "*any"], rate: float, bits: Int16[Tensor, "*masks_and_any"]
) -> Float[Tensor, "*masks_and_any"]:
    """``x``, broadcast against the masks, with each element dropped with probability ``rate``, the others divided by
    1 - rate. Differentiable."""
    threshold, scale = threshold_and_scale(rate)
    mask = torch.ge(bits, threshold, out=x.new_empty(bits.shape))
    return mask * x * scale if x.requires_grad else mask.mul_(x).mul_(scale)


def threshold_and_scale(rate: float) -> tuple[int, float]:
    """The smallest number of bits that is kept, and what is kept is multiplied with."""
    num_dropped_levels = round(rate * LEVELS)
    return num_dropped_levels - LEVELS // 2, LEVELS / (LEVELS - num_dropped_levels)
