"""The terms of LEO's meta-objective (Eq. 6) beside the query loss, before their weights; the baselines' objective."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from leo.networks import Gaussian, stddev
from leo.products import product


def kl_divergence(code: Gaussian, z: Float[Tensor, "B N M Z"], eps: Float[Tensor, "B N M Z"]) -> Float[Tensor, " B"]:
    """One-sample estimate of KL(q || N(0, 1)), mean over a task's elements, in nats.

    log q(z) is written with the noise that made z, since (z - mean) / stddev has no digits left where the
    standard deviation is at its floor.
    """
    log_q = -0.5 * eps**2 - stddev(code.u).log()
    log_p = -0.5 * z**2
    return (log_q - log_p).mean((1, 2, 3))


def encoder_penalty(initial: Float[Tensor, "B N M Z"], adapted: Float[Tensor, "B N M Z"]) -> Float[Tensor, " B"]:
    """Mean of (stopgrad(z') - z)^2: asks the encoder for codes that need little adaptation."""
    return (adapted.detach() - initial).square().mean((1, 2, 3))


def l2(weights: Iterable[Float[Tensor, "_out _in"]]) -> Float[Tensor, ""]:
    """Half the sum of squares of all ``weights``."""
    return 0.5 * torch.stack(torch._foreach_norm(list(weights))).square().sum()


class Orthogonality(torch.autograd.Function):
    """``apply(decoder_weight)``: see ``orthogonality``; with C the cosines, the gradient is (C - I) through both of its
    normalised factors."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        products = product(weight.T, weight.T)
        lengths = products.diagonal().sqrt()
        cosines = products / torch.outer(lengths, lengths)
        residual = cosines.clone()
        residual.diagonal().sub_(1)
        ctx.save_for_backward(weight, lengths, cosines, residual)
        return residual.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_mean: Tensor) -> Tensor:
        weight, lengths, cosines, residual = ctx.saved_tensors
        to_products = residual / torch.outer(lengths, lengths)
        # A longer row has smaller cosines: what is along the row itself goes.
        to_products.diagonal().sub_((residual * cosines).sum(1) / lengths.square())
        return product(weight, to_products) * (to_mean * 4 / residual.numel())


def orthogonality(decoder_weight: Float[Tensor, "two_D Z"]) -> Float[Tensor, ""]:
    """Mean squared distance from the identity of the cosines between the decoder's Z rows (its columns here)."""
    mean: Tensor = Orthogonality.apply(decoder_weight)
    return mean


def mean_orthogonality(decoder_weights: list[Tensor]) -> Float[Tensor, ""]:
    """The mean of ``orthogonality`` over the matrices of a decoder."""
    distances = [orthogonality(weight) for weight in decoder_weights]
    return distances[0] if len(distances) == 1 else torch.stack(distances).mean()


def query_loss_and_l2(
    query_loss: Float[Tensor, ""], accuracy: Float[Tensor, ""], weight: Float[Tensor, "_out _in"], l2_weight: float
) -> dict[str, Tensor]:
    """The baselines' objective, ``loss``: mean query cross-entropy plus the weighted L2 term; and its terms."""
    penalty = l2([weight])
    return {"loss": query_loss + l2_weight * penalty, "query_loss": query_loss, "l2": penalty, "accuracy": accuracy}
