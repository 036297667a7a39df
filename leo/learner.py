"""What meta-training and testing ask of a method."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo.episodes import Tasks
from leo.support import Support


class MetaLearner(nn.Module, ABC):
    """A method that meta-training improves."""

    @abstractmethod
    def meta_loss(self, tasks: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """What meta-training minimises, ``loss``, beside its terms; means over the tasks.

        ``generator`` draws what a learner samples in training.
        """


class Learner(MetaLearner):
    """A method that turns a task's support into a classifier, linear in the space of ``embed``."""

    def embed(self, x: Float[Tensor, "*any D"]) -> Float[Tensor, "*any E"]:
        """The space in which the classifier is linear, the same for every task: here, the features themselves."""
        return x

    @abstractmethod
    def adapt(self, support: Float[Tensor, "B N K D"]) -> Float[Tensor, "B N E"]:
        """One weight vector for each class; the score of x is its product with ``embed(x)``. Nothing is sampled."""

    @abstractmethod
    def adapt_to(self, support: Support) -> Float[Tensor, "B N E"]:
        """``adapt`` where classes differ in their number of images; equal to it in tasks as in training.

        Plain and for values alone: no gradient is asked of it.
        """

    def meta_loss(self, tasks: Tasks, generator: torch.Generator) -> dict[str, Tensor]:
        """What meta-training minimises, ``loss``, beside its terms and ``accuracy``; means over the tasks.

        ``generator`` draws what a learner samples in training.
        """
        raise TypeError(f"{type(self).__name__} has nothing to train")
