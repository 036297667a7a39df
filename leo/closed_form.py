"""The inner loops of ``leo.algorithm`` in closed form, for a linear decoder and a linear softmax classifier.

The same numbers as autograd's, faster: the gradient of the support loss is written out, and so is its
derivative. The meta-gradient goes through every step, exactly (second order), in one ordinary backward pass. In
``backward``, ``to_x`` is the gradient of the meta-loss with respect to x. The steps between the matrix products are in
``leo.steps``, and in C in ``leo.kernels``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from leo import softmax, steps
from leo.dropout import dropout
from leo.kernels import steps_for
from leo.products import product
from leo.support import LabelledImages


class LatentLoop(torch.autograd.Function):
    """Algorithm 1, lines 8 to 14: z <- z - rate * dL/dz, S times, each with a decoding of its own; then the last one.

    ``apply(z, rate, matrix, eps, images, labels, num_tasks, num_way)``: R = B N M codes z [R, Z]; rates [Z]; the
    decoder's matrix ([2D, Z], or its upper half [D, Z] where weights are means); the draw of each decoding, eps
    [S + 1, R, D], or None; the support images of each of S steps, [B, n, D] or [n, D], which are data, and their labels
    (see ``softmax.loss_gradient``).

    Returns the last weights [R, D] and the codes after each step [S, R, Z].

    L is the summed cross-entropy of the classifiers of ``steps.class_mean``. With g = dL/dw of each of the R weight
    vectors and slope = dw/du, dL/dz = [g, g * slope] matrix.
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
        num_steps, num_rows = len(images), len(z)
        codes = z.new_empty(num_steps + 1, *z.shape)
        codes[0] = z
        directions = z.new_empty(num_steps, *z.shape)
        # What is multiplied with ``matrix``, of each step forward and then of each decoding backward.
        factors = z.new_empty(2 * num_steps + 1, num_rows, len(matrix))
        draws = [None] * (num_steps + 1) if eps is None else eps.unbind()
        form = steps_for(z, matrix, *images, *draws[:1]) if labels is None else steps
        slopes, probabilities = [], []
        for step in range(num_steps):
            weights, slope = decode(form, product(codes[step], matrix), draws[step], num_way)
            p = form.gradient(weights, slope, images[step], num_tasks, num_way, factors[step], labels)
            directions[step] = product(factors[step], matrix.T)
            torch.addcmul(codes[step], rate, directions[step], value=-1, out=codes[step + 1])
            slopes.append(slope)
            probabilities.append(p)
        weights, last_slope = decode(form, product(codes[-1], matrix), draws[-1], num_way)
        ctx.save_for_backward(rate, matrix, codes, directions, factors)
        ctx.slopes, ctx.probabilities, ctx.last_slope = slopes, probabilities, last_slope
        ctx.images, ctx.labels, ctx.form = images, labels, form
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
        steps.join(factors[-1], to_weights, ctx.last_slope, to_weights)
        to_codes[-1] = product(factors[-1], matrix.T)
        for step in reversed(range(num_steps)):
            if to_path is not None:
                to_codes[step + 1] += to_path[step]
            torch.mul(to_codes[step + 1], -rate, out=partners[step])  # to the direction
            to_factor, out = product(partners[step], matrix), factors[num_steps + step]
            ctx.form.hessian(
                to_factor, ctx.slopes[step], images[step], ctx.probabilities[step], factors[step], out, labels
            )
            torch.add(to_codes[step + 1], product(out, matrix.T), out=to_codes[step])
        to_matrix = product(partners.flatten(0, 1).T, factors.flatten(0, 1).T).T.contiguous()
        return to_codes[0], -(to_codes[1:] * directions).sum((0, 1)), to_matrix, None, None, None, None, None


class WeightLoop(torch.autograd.Function):
    """Fine-tuning (Section 4.2.3): w <- w - rate * dL/dw, once for each of F supports.

    ``apply(weights, rate, images, labels)``: classifiers [B, N, E], rates [E] or [N, E], F times the support images
    [B, n, E] or [n, E], which are data, and their labels. Returns the classifiers after each step, [F, B, N, E]. L is
    the summed cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, rate: Tensor, images: Sequence[Tensor], labels: softmax.Labels | None
    ) -> Tensor:
        weights = weights.contiguous()
        ctx.form = steps_for(weights, rate, *images) if labels is None else steps
        ctx.images, ctx.labels, ctx.kept = images, labels, []
        path = weights.new_empty(len(images), *weights.shape)
        for seen, stepped in zip(images, path, strict=True):
            ctx.kept.append(ctx.form.weight_step(weights, rate, seen, stepped, labels))
            weights = stepped
        ctx.save_for_backward(rate)
        return path

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_path: Tensor) -> tuple[Tensor | None, ...]:
        (rate,) = ctx.saved_tensors
        to_weights, to_rate = torch.zeros_like(to_path[0]), torch.zeros_like(to_path[0])
        for to_stepped, seen, (p, gradient) in zip(to_path.flip(0), ctx.images[::-1], ctx.kept[::-1], strict=True):
            to_weights += to_stepped
            ctx.form.weight_step_backward(to_weights, to_rate, rate, seen, p, gradient, ctx.labels)
        return to_weights, to_rate.sum_to_size(rate.shape), None, None


def adapted_by_means(
    z: Float[Tensor, "B N Z"],
    latent_rate: Tensor,
    matrix: Float[Tensor, "D Z"],
    rate: Tensor,
    support: LabelledImages,
    num_steps: int,
    num_finetune_steps: int,
) -> Float[Tensor, "B N D"]:
    """The last classifiers of ``LatentLoop`` and ``WeightLoop``, as values, where nothing is drawn and nothing dropped.

    Weights are then linear in the codes, and all steps see the same images: so the steps are taken by the images'
    codes, and by their products with each other, which are smaller than the images. The codes z are the means of a
    class's M codes, and the rates are divided by M.
    """
    images, labels = support
    if num_steps:
        codes = product(images.flatten(0, -2), matrix.T).unflatten(0, images.shape[:-1])  # [*B, n, Z]
        for _ in range(num_steps):
            z = z - latent_rate * softmax.loss_gradient(softmax.probabilities(z, codes), codes, labels)
    weights = product(z.flatten(0, 1), matrix).unflatten(0, z.shape[:2])
    if not num_finetune_steps:
        return weights
    products = (images * rate) @ images.mT  # [*B, n, n]: how a step by one image changes the score of another
    scores, total = weights @ images.mT, torch.zeros(())
    for _ in range(num_finetune_steps):
        residual = softmax.residual(scores.softmax(1), labels)
        total, scores = total + residual, scores - residual @ products
    return weights - rate * (total @ images)


class QueryLoss(torch.autograd.Function):
    """Mean cross-entropy and accuracy of the queries (Algorithm 1, line 15). ``apply(weights, images, bits, rate)``.

    Classifiers [B, N, D]; queries [B, N, Q, D], which are data; bits of their dropout mask, or None, and its rate.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, images: Tensor, bits: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        assert not images.requires_grad, "queries are data; see query_loss"
        loss, accuracy, gradient = steps_for(weights, images).query(weights, images, bits, rate)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_loss: Tensor, to_accuracy: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return to_loss * gradient, None, None, None


def query_loss(
    weights: Float[Tensor, "B N D"], images: Float[Tensor, "B N Q D"], bits: Tensor | None, rate: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """``QueryLoss``; by autograd where the queries need a gradient, as an extractor trained jointly makes them."""
    if not images.requires_grad:
        loss, accuracy = QueryLoss.apply(weights, images, bits, rate)
        return loss, accuracy
    logits = softmax.logits(weights, images if bits is None else dropout(images, rate, bits))
    return softmax.cross_entropy(logits).mean(), softmax.accuracy(logits.detach()).mean()


def decode(
    form: Any, parameters: Float[Tensor, "R width"], eps: Float[Tensor, "R D"] | None, num_way: int
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"] | None]:
    """``steps.decode``; the parameters themselves and no slope where nothing is drawn."""
    return (parameters, None) if eps is None else form.decode(parameters, eps, num_way)
