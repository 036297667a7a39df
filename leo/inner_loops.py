"""The two inner loops of Algorithm 1, differentiable in closed form.

The gradient of the support loss is written out, and so is its derivative: the meta-gradient goes through every step,
exactly (second order), in one ordinary backward pass. In ``backward``, ``to_x`` is the gradient of the meta-loss with
respect to x.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from leo import softmax
from leo.networks import decode
from leo.products import product


class LatentLoop(torch.autograd.Function):
    """Lines 5-8 of Algorithm 1: z <- z - rate * dL/dz, S times, each with a decoding of its own; then the last one.

    ``apply(z, rate, matrix, eps, images, num_way)``: R = B N M codes z [R, Z]; rates [Z]; the decoder's matrix
    ([2D, Z], or its upper half [D, Z] where weights are means); the draw of each decoding, eps [S + 1, R, D], or
    None; the support images of each step [S, B, NK, D].

    Returns the last weights [R, D], and, as values alone, the codes after each step [S, R, Z].

    L is the summed cross-entropy of the classifiers of ``class_mean``. With g = dL/dw of each of the R weight vectors
    and slope = dw/du, dL/dz = [g, g * slope] matrix.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, rate: Tensor, matrix: Tensor, eps: Tensor | None, images: Tensor, num_way: int
    ) -> tuple[Tensor, Tensor]:
        num_steps, num_tasks = images.shape[:2]
        codes = z.new_empty(num_steps + 1, *z.shape)
        codes[0] = z
        directions = z.new_empty(num_steps, *z.shape)
        # What is multiplied with ``matrix``, of each step forward and then of each decoding backward.
        factors = z.new_empty(2 * num_steps + 1, len(z), len(matrix))
        draws = [None] * (num_steps + 1) if eps is None else eps.unbind()
        slopes, probabilities = [], []
        for step in range(num_steps):
            weights, slope = decode(codes[step], matrix, draws[step], num_way)
            p = softmax.probabilities(class_mean(weights, num_tasks, num_way), images[step])
            g = spread(softmax.loss_gradient(p, images[step]), len(z))
            join(factors[step], g, slope, g)
            directions[step] = product(factors[step], matrix.T)
            torch.addcmul(codes[step], rate, directions[step], value=-1, out=codes[step + 1])
            slopes.append(slope)
            probabilities.append(p)
        weights, last_slope = decode(codes[-1], matrix, draws[-1], num_way)
        ctx.save_for_backward(rate, matrix, images, codes, directions, factors)
        ctx.slopes, ctx.probabilities, ctx.last_slope = slopes, probabilities, last_slope
        path = codes[1:].clone()
        ctx.mark_non_differentiable(path)
        return weights, path

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_weights: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rate, matrix, images, codes, directions, factors = ctx.saved_tensors
        num_steps, num_tasks, _, num_features = images.shape
        partners = torch.empty_like(factors[..., : codes.shape[2]])  # of ``factors``, in the gradient of ``matrix``
        partners[num_steps:] = codes
        to_codes = torch.empty_like(codes)
        join(factors[-1], to_weights, ctx.last_slope, to_weights)
        to_codes[-1] = product(factors[-1], matrix.T)
        for step in reversed(range(num_steps)):
            slope, p = ctx.slopes[step], ctx.probabilities[step]
            torch.mul(to_codes[step + 1], -rate, out=partners[step])  # to the direction
            to_factor = product(partners[step], matrix)
            to_g, to_product = to_factor[:, :num_features], to_factor[:, num_features:]
            if slope is not None:
                to_g = torch.addcmul(to_g, to_product, slope)
            to_class = softmax.hessian_product(p, images[step], class_mean(to_g, num_tasks, p.shape[1]))
            to_weights = spread(to_class, len(to_g))
            g = factors[step, :, :num_features]
            # The slope is its own derivative: w and g * slope both have d/du = slope times their own.
            to_u = to_weights if slope is None else torch.addcmul(to_weights, to_product, g)
            join(factors[num_steps + step], to_weights, slope, to_u)
            torch.add(to_codes[step + 1], product(factors[num_steps + step], matrix.T), out=to_codes[step])
        to_matrix = product(partners.flatten(0, 1).T, factors.flatten(0, 1).T).T.contiguous()
        return to_codes[0], -(to_codes[1:] * directions).sum((0, 1)), to_matrix, None, None, None


class WeightStep(torch.autograd.Function):
    """One turn of lines 9-10: w <- w - rate * dL/dw. ``apply(weights, rate, images)``.

    Classifiers [B, N, E], rates [E] or [N, E], support images [B, NK, E]; L is the summed cross-entropy.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rate: Tensor, images: Tensor) -> Tensor:
        p = softmax.probabilities(weights, images)
        gradient = softmax.loss_gradient(p, images)
        ctx.save_for_backward(rate, images, p, gradient)
        return torch.addcmul(weights, rate, gradient, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_weights: Tensor) -> tuple[Tensor, Tensor, None]:
        rate, images, p, gradient = ctx.saved_tensors
        to_rate = -(to_weights * gradient).sum_to_size(rate.shape)
        return to_weights - softmax.hessian_product(p, images, rate * to_weights), to_rate, None


def class_mean(rows: Float[Tensor, "R D"], num_tasks: int, num_way: int) -> Float[Tensor, "B N D"]:
    """The classifiers of the M weight vectors of each class, whose logits are averaged."""
    by_class = rows.unflatten(0, (num_tasks, num_way, -1))
    return by_class.squeeze(2) if by_class.shape[2] == 1 else by_class.mean(2)


def spread(gradient: Float[Tensor, "B N D"], num_rows: int) -> Float[Tensor, "R D"]:
    """The adjoint of ``class_mean``: each of the M vectors gets 1 / M of its class's gradient."""
    by_class = gradient.flatten(0, 1)
    num_codes = num_rows // len(by_class)
    return by_class if num_codes == 1 else by_class.repeat_interleave(num_codes, 0) / num_codes


def join(out: Tensor, to_mean: Tensor, slope: Tensor | None, to_weights: Tensor) -> None:
    """Fill ``out`` with [to_mean, slope * to_weights]; with the first alone where there is no slope."""
    num_features = to_mean.shape[1]
    out[:, :num_features] = to_mean
    if slope is not None:
        torch.mul(slope, to_weights, out=out[:, num_features:])
