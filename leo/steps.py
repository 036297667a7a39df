"""The parts of a meta-update between its large matrix products, in torch; ``leo.kernels`` has the same ones in C.

Rows are the R = B N M weight vectors of B tasks: M for each of N classes, whose logits are averaged. The support of a
task is n images. With ``slope`` = dw/du of weights w that were drawn (None: weights are means), a ``factor`` is what is
multiplied with the decoder's matrix to get a gradient in latent space: [to_mean, to_u] of each row, or [to_mean].
"""

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn.functional import threshold

from leo import softmax
from leo.dropout import dropout
from leo.dropout import random_bits as random_bits  # which belongs to the steps too

STDDEV_FLOOR = 1e-10

Slope = Float[Tensor, "R D"] | None


def normal(*shape: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "*any"]:
    """Standard-normal draws, of the type and on the device of ``like``."""
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


def glorot_stddev(num_way: int, num_features: int) -> float:
    """The standard deviation of decoded weights at z = 0: Glorot's, sqrt(2 / (N + D))."""
    return (2 / (num_way + num_features)) ** 0.5


def decode(
    parameters: Float[Tensor, "R two_D"], eps: Float[Tensor, "R D"], num_way: int
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """Weights w = mean + stddev * eps (``LEO.decode``), from mean and u of each row, and their slope dw/du.

    With an offset (``glorot_stddev``) no digits are lost by exp, and
    expm1 takes ten times as long. The slope, 0 at the floor, is its own derivative with respect to u.
    """
    num_features = eps.shape[1]
    mean, u = parameters.split(num_features, dim=1)
    exp_u, floor = u.exp(), 1 - glorot_stddev(num_way, num_features)
    slope = threshold(exp_u, floor + STDDEV_FLOOR, 0.0).mul_(eps)
    return torch.addcmul(mean, exp_u.sub_(floor).clamp_min_(STDDEV_FLOOR), eps), slope


def gradient(
    weights: Float[Tensor, "R D"],
    slope: Slope,
    images: Float[Tensor, "*B n D"],
    num_tasks: int,
    num_way: int,
    factor: Float[Tensor, "R width"],
    labels: softmax.Labels | None = None,
) -> Float[Tensor, "B N n"]:
    """Fill ``factor`` with [g, g * slope], g = dL/dw of the support's summed cross-entropy L; the probabilities."""
    p = softmax.probabilities(class_mean(weights, num_tasks, num_way), images)
    g = spread(softmax.loss_gradient(p, images, labels), len(weights))
    join(factor, g, slope, g)
    return p


def hessian(
    to_factor: Float[Tensor, "R width"],
    slope: Slope,
    images: Float[Tensor, "*B n D"],
    p: Float[Tensor, "B N n"],
    factor: Float[Tensor, "R width"],
    out: Float[Tensor, "R width"],
    labels: softmax.Labels | None = None,
) -> None:
    """The derivative of ``gradient`` and ``decode``: fill ``out`` with the factor of what reaches mean and u of a row.

    ``to_factor`` is the gradient of the meta-loss with respect to ``factor``, which ``gradient`` gave with ``p``.
    """
    num_tasks, num_way, _ = p.shape
    if slope is None:
        to_class = softmax.hessian_product(p, images, class_mean(to_factor, num_tasks, num_way), labels)
        out.copy_(spread(to_class, len(to_factor)))
        return
    to_g, to_product = to_factor.chunk(2, dim=1)
    of_class = class_mean(torch.addcmul(to_g, to_product, slope), num_tasks, num_way)
    to_weights = spread(softmax.hessian_product(p, images, of_class, labels), len(to_factor))
    # The slope is its own derivative: w and g * slope both have d/du = slope times their own.
    join(out, to_weights, slope, torch.addcmul(to_weights, to_product, factor.chunk(2, dim=1)[0]))


def weight_step(
    weights: Float[Tensor, "B N D"],
    rate: Tensor,
    images: Float[Tensor, "*B n D"],
    stepped: Float[Tensor, "B N D"],
    labels: softmax.Labels | None = None,
) -> tuple[Float[Tensor, "B N n"], Float[Tensor, "B N D"]]:
    """Fill ``stepped`` with the classifiers after a step of fine-tuning, w - rate dL/dw; probabilities, and dL/dw."""
    p = softmax.probabilities(weights, images)
    to_weights = softmax.loss_gradient(p, images, labels)
    torch.addcmul(weights, rate, to_weights, value=-1, out=stepped)
    return p, to_weights


def weight_step_backward(
    to_weights: Float[Tensor, "B N D"],
    to_rate: Float[Tensor, "B N D"],
    rate: Tensor,
    images: Float[Tensor, "*B n D"],
    p: Float[Tensor, "B N n"],
    gradient: Float[Tensor, "B N D"],
    labels: softmax.Labels | None = None,
) -> None:
    """Turn ``to_weights`` from what reaches the classifiers after the step to what reaches those before it; add each
    task's part of what reaches the rates to ``to_rate``."""
    to_rate.addcmul_(to_weights, gradient, value=-1)
    to_weights.sub_(softmax.hessian_product(p, images, rate * to_weights, labels))


def query(
    weights: Float[Tensor, "B N D"],
    images: Float[Tensor, "B N Q D"],
    bits: Int16[Tensor, "B N Q D"] | None,
    rate: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "B N D"]]:
    """Mean cross-entropy and accuracy of queries under the dropout mask of ``bits``, and the gradient of the former."""
    seen = images if bits is None else dropout(images, rate, bits)
    logits = softmax.logits(weights, seen)
    residual = logits.softmax(-1)
    residual.diagonal(dim1=1, dim2=3).sub_(1)
    to_weights = residual.flatten(1, 2).mT @ seen.flatten(1, 2) / residual[..., 0].numel()
    return softmax.cross_entropy(logits).mean(), softmax.accuracy(logits).mean(), to_weights


def pairs(halves: Float[Tensor, "B n two_H"]) -> Float[Tensor, "B n n H"]:
    """relu(left_i + right_j) for each ordered pair of a task's images; left and right are the halves."""
    left, right = halves.chunk(2, dim=-1)
    return (left.unsqueeze(2) + right.unsqueeze(1)).relu_()  # in place, as these are the largest tensors of an update


def pairs_backward(to_pairs: Float[Tensor, "B n n H"], met: Float[Tensor, "B n n H"]) -> Float[Tensor, "B n two_H"]:
    """What reaches the halves, from what reaches ``met``, their pairs. It may write over ``to_pairs``."""
    to_sums = to_pairs.mul_(met > 0)
    return torch.cat([to_sums.sum(2), to_sums.sum(1)], dim=-1)


def pair_means(hidden: Float[Tensor, "B n n H"], num_way: int) -> Float[Tensor, "B N H"]:
    """The mean of relu(hidden) over the partners and over the images of each class."""
    by_class = hidden.relu().sum(2).unflatten(1, (num_way, -1))
    return by_class.sum(2) / (hidden.shape[2] * by_class.shape[2])


def pair_means_backward(to_means: Float[Tensor, "B N H"], hidden: Float[Tensor, "B n n H"]) -> Float[Tensor, "B n n H"]:
    """What reaches ``hidden``."""
    num_images = hidden.shape[1]
    num_shot = num_images // to_means.shape[1]
    of_image = (to_means / (num_images * num_shot)).repeat_interleave(num_shot, dim=1)
    return of_image.unsqueeze(2) * (hidden > 0)


def class_mean(rows: Float[Tensor, "R D"], num_tasks: int, num_way: int) -> Float[Tensor, "B N D"]:
    """The classifiers of the M weight vectors of each class, whose logits are averaged."""
    by_class = rows.unflatten(0, (num_tasks, num_way, -1))
    return by_class.squeeze(2) if by_class.shape[2] == 1 else by_class.mean(2)


def spread(to_class: Float[Tensor, "B N D"], num_rows: int) -> Float[Tensor, "R D"]:
    """The adjoint of ``class_mean``: each of the M vectors gets 1 / M of its class's gradient."""
    by_class = to_class.flatten(0, 1)
    num_codes = num_rows // len(by_class)
    return by_class if num_codes == 1 else by_class.repeat_interleave(num_codes, 0) / num_codes


def join(out: Tensor, to_mean: Tensor, slope: Tensor | None, to_weights: Tensor) -> None:
    """Fill ``out`` with [to_mean, slope * to_weights]; with the first alone where there is no slope."""
    num_features = to_mean.shape[1]
    out[:, :num_features] = to_mean
    if slope is not None:
        torch.mul(slope, to_weights, out=out[:, num_features:])
