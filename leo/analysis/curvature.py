"""Figure 5a: the curvature of the task loss, in latent space and in weight space, where adaptation starts."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, vmap

from leo import softmax
from leo.analysis.trajectory import trajectory
from leo.learner import Learner
from leo.leo import LEO

TASKS_AT_ONCE = 100  # of which Hessians lie in memory


def curvature(learner: Learner, support: Float[Tensor, "B N K D"]) -> dict[str, Float[Tensor, "B r"]]:
    """By space, ``latent`` and ``weight``, the eigenvalues of the Hessian of each task's loss, the inner loops': the
    cross-entropy summed over the support, at the first codes and the classifier they decode to, or at the learned
    initial classifier. All other eigenvalues are 0. Empty for a learner that takes no steps.
    """
    path, eigenvalues = trajectory(learner, support), {}
    if path is None:
        return {}
    if isinstance(learner, LEO):
        assert path.codes is not None
        # The score of x is the product of z with matrix^T x: a linear classifier again. Each of the M codes of a
        # class, whose logits are averaged, moves its mean by 1 / M.
        codes, matrix = path.codes[0], learner.decoder.matrix(sampled=False)
        eigenvalues["latent"] = hessian_eigenvalues(codes.mean(2), support @ matrix) / codes.shape[2]
    eigenvalues["weight"] = hessian_eigenvalues(path.weights[0], support)
    return eigenvalues


def hessian_eigenvalues(weights: Float[Tensor, "B N E"], images: Float[Tensor, "B N K E"]) -> Float[Tensor, "B r"]:
    """The (N - 1) min(NK, E) eigenvalues, largest first, that can differ from 0, of the Hessian [NE, NE] of each task.

    The loss sees a classifier by its products with the images alone, so the Hessian is 0 across their span, and is
    taken in an orthonormal basis of that: the eigenvalues are the same. Moving all classes alike changes nothing,
    which leaves N - 1 of N.
    """
    weights, images = weights.double(), images.double()
    basis = torch.linalg.qr(images.flatten(1, 2).mT).Q  # [B, E, min(NK, E)]
    in_span = vmap(jacrev(grad(task_loss)), chunk_size=TASKS_AT_ONCE)(weights @ basis, images @ basis.unsqueeze(1))
    eigenvalues = torch.linalg.eigvalsh(in_span.flatten(3, 4).flatten(1, 2))
    num_way, num_directions = weights.shape[1], basis.shape[2]
    return eigenvalues.flip(1)[:, : (num_way - 1) * num_directions]


def task_loss(weights: Float[Tensor, "N E"], images: Float[Tensor, "N K E"]) -> Float[Tensor, ""]:
    """Summed cross-entropy of one task, in nats."""
    return softmax.cross_entropy(softmax.logits(weights.unsqueeze(0), images.unsqueeze(0))).sum()
