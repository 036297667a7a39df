"""What meta-training and testing ask of a method."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo.noise import NO_NOISE, Noise
from leo.support import Support


class MetaLearner(nn.Module, ABC):
    """A method that meta-training improves."""

    def draw_noise(self, tasks: Any, generator: torch.Generator) -> Noise:
        """The random numbers of one training pass over ``tasks``; here, none."""
        return NO_NOISE

    def objective(self, tasks: Any, noise: Noise) -> dict[str, Tensor]:
        """What meta-training minimises, ``loss``, next to its terms; means over the tasks.

        A function of the tasks and of ``noise``, so that it can be taken again for a part of them. ``loss`` is not
        finite where the parameters that a task was adapted to are not.
        """
        raise TypeError(f"{type(self).__name__} has nothing to train: it does not define objective(tasks, noise)")

    def meta_loss(self, tasks: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """``objective`` with random numbers of ``generator``."""
        return self.objective(tasks, self.draw_noise(tasks, generator))

    def penalized(self) -> list[Tensor]:
        """The parameters of the L2 term; here, none."""
        return []


class Learner(MetaLearner):
    """A method that turns a task's support into a classifier, linear in the space of ``embed``."""

    def embed(self, x: Float[Tensor, "*any D"]) -> Float[Tensor, "*any E"]:
        """The space in which the classifier is linear, the same for every task: here, the features themselves."""
        return x

    @abstractmethod
    def adapt(self, support: Float[Tensor, "B N K D"] | Support) -> Float[Tensor, "B N E"]:
        """One weight vector for each class; the score of x is its product with ``embed(x)``. Nothing is sampled.

        ``support`` is that of training, K images a class, or a ``Support``, whose classes differ in their number of
        images. Where these happen to be equal, both give the same classifier.
        """
