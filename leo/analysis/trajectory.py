"""The way of each adaptation through latent space and through weight space, without sampling."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from leo.learner import Learner
from leo.leo import LEO, Noise
from leo.meta_sgd import MetaSGD


class Trajectory(NamedTuple):
    """Classifiers after 0, 1, 2, ... steps, and of each step its loop: ``latent`` or ``weight``.

    ``codes`` are those before and after each latent step; None for a learner that has none.
    """

    codes: list[Float[Tensor, "B N M Z"]] | None
    weights: list[Float[Tensor, "B N D"]]
    loops: list[str]


@torch.no_grad()
def trajectory(learner: Learner, support: Float[Tensor, "B N K D"]) -> Trajectory | None:
    """The way to ``learner.adapt(support)``; None for a learner that takes no steps."""
    if isinstance(learner, LEO):
        adaptation = learner.adaptation(support, Noise())
        matrix = learner.decoder.matrix(sampled=False)
        # The decoder is linear in evaluation, so the classifier of M codes is that of their mean.
        decoded = [codes.mean(2) @ matrix.T for codes in adaptation.latents]
        loops = ["latent"] * learner.num_latent_steps + ["weight"] * learner.num_finetune_steps
        return Trajectory(adaptation.latents, decoded[:-1] + adaptation.finetuned, loops)
    if isinstance(learner, MetaSGD):
        return Trajectory(None, learner.path(support), ["weight"] * learner.num_steps)
    return None
