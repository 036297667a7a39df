"""Metric methods to be honest against: nearest centroid, and a prototypical network with one learned linear map."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from leo import objective, softmax
from leo.episodes import Tasks
from leo.learner import Learner
from leo.networks import glorot_linear
from leo.noise import Noise
from leo.support import AnySupport, images_of, mean_over_class


class NearestCentroid(Learner):
    """Cosine similarity to the mean of a class's unit-length support features. Nothing is learned.

    Args:
        num_features: D.
    """

    def __init__(self, *, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def embed(self, x: Float[Tensor, "*any D"]) -> Float[Tensor, "*any E"]:
        """Unit-length features."""
        return normalize(x, dim=-1)

    def adapt(self, support: AnySupport) -> Float[Tensor, "B N E"]:
        """The unit-length centroid of each class."""
        return normalize(mean_over_class(normalize(self.embed(images_of(support)), dim=-1), support), dim=-1)


class LinearPrototypes(NearestCentroid):
    """Nearest centroid after a learned linear map, trained on tasks (Snell et al., 2017, with cosine similarity).

    Args:
        num_features: D.
        num_dimensions: E, the width of the learned space.
        scale: initial value of the learned factor that turns cosines into logits.
        l2_weight: weight of half the squared norm of the map.
    """

    def __init__(self, *, num_features: int, num_dimensions: int, scale: float, l2_weight: float) -> None:
        super().__init__(num_features=num_features)
        self.l2_weight = l2_weight
        self.linear = glorot_linear(num_features, num_dimensions)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def embed(self, x: Float[Tensor, "*any D"]) -> Float[Tensor, "*any E"]:
        """Mapped features of length ``exp(log_scale)``."""
        return normalize(self.linear(x), dim=-1) * self.log_scale.exp()

    def objective(self, tasks: Tasks, noise: Noise) -> dict[str, Tensor]:
        """Mean query cross-entropy plus the weighted L2 term, ``loss``, and its terms."""
        logits = softmax.logits(self.adapt(tasks.support), self.embed(tasks.query))
        loss, accuracy = softmax.cross_entropy(logits).mean(), softmax.accuracy(logits.detach()).mean()
        return objective.query_loss_and_l2(loss, accuracy, self.linear.weight, self.l2_weight)

    def penalized(self) -> list[Tensor]:
        """The matrix of the map."""
        return [self.linear.weight]
