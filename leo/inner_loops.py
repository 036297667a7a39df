"""One inner step by autograd, for any loss: the plain form of every inner loop in this package."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def descend(
    start: Float[Tensor, "B *any"],
    rate: Tensor,
    loss_of: Callable[[Tensor], Float[Tensor, " B"]],
    max_norm: float | None = None,
) -> Float[Tensor, "B *any"]:
    """start - rate * gradient of each task's loss, differentiated through (second order) where gradients are enabled.

    Args:
        start: what descends, of each task.
        rate: learned or fixed, broadcast against ``start``.
        loss_of: the losses of the tasks, a differentiable function of ``start``.
        max_norm: of each task's gradient (last dimension), which is scaled down to it; None: no limit. Squared errors
            of steep functions can need one: a step too far makes the next gradient larger.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        start = start if differentiable and start.requires_grad else start.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(start).sum(), start, create_graph=differentiable)
    if max_norm is None:
        return torch.addcmul(start, rate, gradient, value=-1)
    return LimitedStep.apply(start, rate, gradient, max_norm)


class LimitedStep(torch.autograd.Function):
    """start - rate * gradient, each gradient (the last dimension) scaled to a norm of at most ``max_norm``.

    In closed form, which takes fewer operations than autograd's derivative of the limit.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, rate: Tensor, gradient: Tensor, max_norm: float) -> Tensor:
        ctx.max_norm = max_norm
        ctx.scale = max_norm / gradient.norm(dim=-1, keepdim=True).clamp_min(max_norm)
        limited = ctx.scale * gradient
        ctx.save_for_backward(rate, limited)
        return torch.addcmul(start, rate, limited, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_end: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rate, limited = ctx.saved_tensors
        to_limited = -rate * to_end
        # A limited gradient has a fixed length: only what is across it passes.
        along = (to_limited * limited).sum(-1, keepdim=True) / ctx.max_norm**2 * (ctx.scale < 1)
        to_gradient = torch.addcmul(to_limited, along, limited, value=-1).mul_(ctx.scale)
        return to_end, -(to_end * limited).sum_to_size(rate.shape), to_gradient, None
