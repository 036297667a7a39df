"""Calibration: how often a prediction is right, against how sure the learner is of it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leo import softmax
from leo.episodes import Tasks
from leo.learner import Learner
from leo.leo import LEO


class Reliability(NamedTuple):
    """Of each of ``n`` bins of confidence, of equal width in [0, 1]: number of predictions, mean confidence, and
    fraction right (NaN in an empty bin)."""

    num_predictions: Float[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    accuracy: Float[Tensor, " n"]

    @property
    def expected_calibration_error(self) -> float:
        """ECE: the mean over predictions of their bin's distance between accuracy and confidence."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((self.num_predictions * gaps).sum() / self.num_predictions.sum())


def reliability(confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], num_bins: int) -> Reliability:
    """The bins of predictions of ``confidence``; a bin holds its upper edge."""
    bins = (confidence.double() * num_bins).ceil().long().clamp(1, num_bins) - 1
    count = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, torch.ones_like(confidence).double())
    sums = (torch.zeros_like(count).index_add_(0, bins, values.double()) for values in (confidence, correct))
    return Reliability(count, *(total / count for total in sums))


@torch.no_grad()
def predictions(learner: Learner, tasks: Tasks) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Confidence of every query's most probable class, and whether it is the right one; nothing is sampled."""
    return confidence_and_success(softmax.logits(learner.adapt(tasks.support), learner.embed(tasks.query)).softmax(-1))


@torch.no_grad()
def sampled_predictions(
    learner: LEO, tasks: Tasks, num_samples: int, generator: torch.Generator
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """The same for the probabilities' mean over adaptations whose codes and weights are sampled, as in training."""
    total = tasks.query.new_zeros(())
    for _ in range(num_samples):
        path = learner.adaptation(tasks.support, learner.draw_samples(tasks.support.shape[:3], generator))
        total = total + softmax.logits(path.weights, tasks.query).softmax(-1)
    return confidence_and_success(total / num_samples)


def confidence_and_success(
    probabilities: Float[Tensor, "B N Q N"],
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """The largest probability of each query, and whether it is its own class's; without tasks that diverged."""
    probabilities = probabilities[probabilities.isfinite().flatten(1).all(1)]
    confidence, predicted = probabilities.max(-1)
    return confidence.flatten(), (predicted == torch.arange(probabilities.shape[1]).unsqueeze(1)).flatten()
