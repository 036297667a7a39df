"""The inner model: a linear softmax classifier without bias, its loss and its gradient in closed form.

The label of ``x[:, i]`` is class i. Inner losses are sums over images, as in the released code.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def logits(weights: Float[Tensor, "B N E"], x: Float[Tensor, "B N Q E"]) -> Float[Tensor, "B N Q N"]:
    """Score of each image for each class of its task."""
    return (x.flatten(1, 2) @ weights.mT).unflatten(1, x.shape[1:3])


def cross_entropy(logits: Float[Tensor, "B N Q N"]) -> Float[Tensor, "B N Q"]:
    """Cross-entropy of each image, in nats."""
    return logits.logsumexp(-1) - logits.diagonal(dim1=1, dim2=3).mT


def accuracy(logits: Float[Tensor, "B N Q N"]) -> Float[Tensor, " B"]:
    """Fraction of each task's images whose best score is their class's."""
    labels = torch.arange(logits.shape[1], device=logits.device).unsqueeze(1)
    return (logits.argmax(-1) == labels).to(logits.dtype).mean((1, 2))


def loss_gradient(weights: Float[Tensor, "B N E"], x: Float[Tensor, "B N K E"]) -> Float[Tensor, "B N E"]:
    """Gradient of the summed cross-entropy with respect to ``weights``: sum over images of (p - y) x."""
    probabilities = logits(weights, x).softmax(-1)
    labels = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).unsqueeze(1)
    return (probabilities - labels).flatten(1, 2).mT @ x.flatten(1, 2)
