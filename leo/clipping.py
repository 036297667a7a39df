"""Gradient clipping of the released code."""

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_value: float, max_norm: float) -> None:
    """Clip each element to [-max_value, max_value], then scale each variable to a norm of at most max_norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_clamp_min_(gradients, -max_value)
    torch._foreach_clamp_max_(gradients, max_value)
    norms = torch._foreach_norm(gradients)
    torch._foreach_clamp_min_(norms, max_norm)
    torch._foreach_mul_(gradients, max_norm)
    torch._foreach_div_(gradients, norms)
