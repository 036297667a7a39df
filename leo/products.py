"""Matrix products of a linear layer, by the faster of the two libraries inside torch."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# oneDNN uses AVX-512 on every processor that has it, MKL, which torch takes by default, on Intel's alone.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(a: Float[Tensor, "i k"], b: Float[Tensor, "j k"]) -> Float[Tensor, "i j"]:
    """a b^T, as a value. An exported program has the plain product, which every device knows."""
    on_cpu = a.dtype == torch.float32 and a.device.type == "cpu"
    if _ONEDNN is not None and on_cpu and not torch.compiler.is_exporting():
        return _ONEDNN(dense(a), dense(b), None, "none", [], "")
    return a @ b.T


def dense(a: Float[Tensor, "i k"]) -> Float[Tensor, "i k"]:
    """``a`` by rows or by columns without gaps, the layouts that oneDNN is fast in."""
    return a if a.is_contiguous() or a.T.is_contiguous() else a.contiguous()


def linear(x: Float[Tensor, "*any k"], weight: Float[Tensor, "j k"]) -> Float[Tensor, "*any j"]:
    """x weight^T, differentiable once."""
    return _Linear.apply(x.flatten(0, -2), weight).view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        # Torch's own product is the faster one of these layouts, and its result the parameter's.
        return product(v, weight.T) if ctx.needs_input_grad[0] else None, v.T @ x
