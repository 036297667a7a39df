"""The inner loops of ``leo.algorithm`` in closed form, for a linear decoder and a linear softmax classifier.

The same numbers as autograd's, faster: the gradient of the support loss is written out, and so is its
derivative. The meta-gradient goes through every step, exactly (second order), in one ordinary backward pass. In
``backward``, ``to_x`` is the gradient of the meta-loss with respect to x.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import threshold

from leo import softmax
from leo.networks import STDDEV_FLOOR
from leo.products import product


class LatentLoop(torch.autograd.Function):
    """Algorithm 1, lines 8 to 14: z <- z - rate * dL/dz, S times, each with a decoding of its own; then the last one.

    ``apply(z, rate, matrix, eps, images, labels, num_tasks, num_way)``: R = B N M codes z [R, Z]; rates [Z]; the
    decoder's matrix ([2D, Z], or its upper half [D, Z] where weights are means); the draw of each decoding, eps
    [S + 1, R, D], or None; the support images of each of S steps, [B, n, D] or [n, D], which are data, and their labels
    (see ``softmax.loss_gradient``).

    Returns the last weights [R, D] and the codes after each step [S, R, Z].

    L is the summed cross-entropy of the classifiers of ``class_mean``. With g = dL/dw of each of the R weight vectors
    and slope = dw/du, dL/dz = [g, g * slope] matrix.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        rate: Tensor,
        matrix: Tensor,
        eps: Tensor | None,
        images: Sequence[Tensor],
        labels: softmax.Labels | None,
        num_tasks: int,
        num_way: int,
    ) -> tuple[Tensor, Tensor]:
        num_steps = len(images)
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
            g = spread(softmax.loss_gradient(p, images[step], labels), len(z))
            join(factors[step], g, slope, g)
            directions[step] = product(factors[step], matrix.T)
            torch.addcmul(codes[step], rate, directions[step], value=-1, out=codes[step + 1])
            slopes.append(slope)
            probabilities.append(p)
        weights, last_slope = decode(codes[-1], matrix, draws[-1], num_way)
        ctx.save_for_backward(rate, matrix, codes, directions, factors)
        ctx.slopes, ctx.probabilities, ctx.last_slope = slopes, probabilities, last_slope
        ctx.images, ctx.labels, ctx.num_tasks, ctx.num_way = images, labels, num_tasks, num_way
        ctx.set_materialize_grads(False)  # most losses use the weights alone
        return weights, codes[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_weights: Tensor | None, to_path: Tensor | None) -> tuple[Tensor | None, ...]:
        rate, matrix, codes, directions, factors = ctx.saved_tensors
        images, labels, num_steps = ctx.images, ctx.labels, len(ctx.images)
        num_features = len(matrix) if ctx.last_slope is None else len(matrix) // 2
        if to_weights is None:
            to_weights = codes.new_zeros(codes.shape[1], num_features)
        partners = codes.new_empty(*factors.shape[:2], codes.shape[2])  # of ``factors``, in the gradient of ``matrix``
        partners[num_steps:] = codes
        to_codes = torch.empty_like(codes)
        join(factors[-1], to_weights, ctx.last_slope, to_weights)
        to_codes[-1] = product(factors[-1], matrix.T)
        for step in reversed(range(num_steps)):
            if to_path is not None:
                to_codes[step + 1] += to_path[step]
            slope, p = ctx.slopes[step], ctx.probabilities[step]
            torch.mul(to_codes[step + 1], -rate, out=partners[step])  # to the direction
            to_factor = product(partners[step], matrix)
            to_g, to_product = to_factor[:, :num_features], to_factor[:, num_features:]
            if slope is not None:
                to_g = torch.addcmul(to_g, to_product, slope)
            of_class = class_mean(to_g, ctx.num_tasks, ctx.num_way)
            to_class = softmax.hessian_product(p, images[step], of_class, labels)
            to_weights = spread(to_class, len(to_g))
            g = factors[step, :, :num_features]
            # The slope is its own derivative: w and g * slope both have d/du = slope times their own.
            to_u = to_weights if slope is None else torch.addcmul(to_weights, to_product, g)
            join(factors[num_steps + step], to_weights, slope, to_u)
            torch.add(to_codes[step + 1], product(factors[num_steps + step], matrix.T), out=to_codes[step])
        to_matrix = product(partners.flatten(0, 1).T, factors.flatten(0, 1).T).T.contiguous()
        return to_codes[0], -(to_codes[1:] * directions).sum((0, 1)), to_matrix, None, None, None, None, None


class WeightStep(torch.autograd.Function):
    """One step of fine-tuning (Section 4.2.3): w <- w - rate * dL/dw. ``apply(weights, rate, images, labels)``.

    Classifiers [B, N, E], rates [E] or [N, E], support images [B, n, E] or [n, E] and their labels; L is the summed
    cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, rate: Tensor, images: Tensor, labels: softmax.Labels | None = None
    ) -> Tensor:
        p = softmax.probabilities(weights, images)
        gradient = softmax.loss_gradient(p, images, labels)
        ctx.save_for_backward(rate, images, p, gradient)
        ctx.labels = labels
        return torch.addcmul(weights, rate, gradient, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_weights: Tensor) -> tuple[Tensor | None, ...]:
        rate, images, p, gradient = ctx.saved_tensors
        to_rate = -(to_weights * gradient).sum_to_size(rate.shape)
        return to_weights - softmax.hessian_product(p, images, rate * to_weights, ctx.labels), to_rate, None, None


def decode(
    z: Float[Tensor, "R Z"], matrix: Float[Tensor, "_ Z"], eps: Float[Tensor, "R D"] | None, num_way: int
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"] | None]:
    """Weights w = mean + stddev * eps (``LEO.decode``) and their slope dw/du; the mean and None where ``eps`` is None.

    At z = 0 the standard deviation is Glorot's, sqrt(2 / (N + D)). With an offset no digits are lost by exp, and
    expm1 takes ten times as long. The slope, 0 at the floor, is its own derivative with respect to u.
    """
    if eps is None:
        return product(z, matrix), None
    num_features = eps.shape[1]
    mean, u = product(z, matrix).split(num_features, dim=1)
    exp_u, floor = u.exp(), 1 - (2 / (num_way + num_features)) ** 0.5
    slope = threshold(exp_u, floor + STDDEV_FLOOR, 0.0).mul_(eps)
    return torch.addcmul(mean, exp_u.sub_(floor).clamp_min_(STDDEV_FLOOR), eps), slope


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
