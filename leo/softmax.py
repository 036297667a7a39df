"""The inner model: a linear softmax classifier without bias, its loss and its gradient in closed form.

The label of ``x[:, i]`` is class i. Inner losses are sums over images, as in the released code.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Labels(NamedTuple):
    """The class of each of n images: 1 in ``targets``, else 0; and how often the image counts in a loss."""

    targets: Float[Tensor, "N n"]
    counts: Float[Tensor, "B 1 n"]


def logits(weights: Float[Tensor, "B N E"], x: Float[Tensor, "B N Q E"]) -> Float[Tensor, "B N Q N"]:
    """Score of each image for each class of its task."""
    # In this order the gradient of the weights comes out contiguous.
    return (weights @ x.flatten(1, 2).mT).mT.unflatten(1, x.shape[1:3])


def cross_entropy(logits: Float[Tensor, "B N Q N"]) -> Float[Tensor, "B N Q"]:
    """Cross-entropy of each image, in nats."""
    return logits.logsumexp(-1) - logits.diagonal(dim1=1, dim2=3).mT


def accuracy(logits: Float[Tensor, "B N Q N"]) -> Float[Tensor, " B"]:
    """Fraction of each task's images whose best score is their class's."""
    labels = torch.arange(logits.shape[1], device=logits.device).unsqueeze(1)
    return (logits.max(-1).indices == labels).to(logits.dtype).mean((1, 2))


def probabilities(weights: Float[Tensor, "B N E"], images: Float[Tensor, "*B n E"]) -> Float[Tensor, "B N n"]:
    """Probability p of each class for each image; the tasks have images of their own, or share them."""
    return (weights @ images.mT).softmax(1)


def loss_gradient(
    p: Float[Tensor, "B N n"], images: Float[Tensor, "*B n E"], labels: Labels | None = None
) -> Float[Tensor, "B N E"]:
    """Gradient of the summed cross-entropy with respect to the weights: sum over images of (p - y) x.

    Without ``labels`` the images of class 0 come first, then as many of class 1, ..., and each counts once.
    """
    return residual(p, labels) @ images


def residual(p: Float[Tensor, "B N n"], labels: Labels | None = None) -> Float[Tensor, "B N n"]:
    """Gradient of the summed cross-entropy with respect to the scores, p - y; see ``loss_gradient``."""
    if labels is not None:
        return (p - labels.targets) * labels.counts
    difference = p.clone()
    difference.unflatten(2, (p.shape[1], -1)).diagonal(dim1=1, dim2=2).sub_(1)
    return difference


def hessian_product(
    p: Float[Tensor, "B N n"],
    images: Float[Tensor, "*B n E"],
    v: Float[Tensor, "B N E"],
    labels: Labels | None = None,
) -> Float[Tensor, "B N E"]:
    """Hessian of the summed cross-entropy with respect to the weights, times v: sum over images of p (s - p.s) x, where
    s = v x are the scores of v."""
    weighted = p * (v @ images.mT)
    to_scores = weighted - p * weighted.sum(1, keepdim=True)
    return (to_scores if labels is None else to_scores * labels.counts) @ images
