"""Accuracy against the number of inner steps, fewer and more than in training."""

import copy

from jaxtyping import Float
from torch import Tensor

from leo.episodes import TaskIndices
from leo.evaluate import Scorer
from leo.features import FeatureTable
from leo.learner import Learner, MetaLearner

LOOPS = {"num_latent_steps": "latent", "num_finetune_steps": "weight", "num_steps": "weight"}


def trained_steps(learner: MetaLearner) -> dict[str, int]:
    """The number of steps of each loop that has learned rates, by the attribute that says it."""
    return {name: getattr(learner, name) for name in LOOPS if getattr(learner, name, 0)}


def accuracy_after(
    learner: Learner, loop: str, num_steps: int, table: FeatureTable, tasks: TaskIndices, num_shot: int
) -> Float[Tensor, " B"]:
    """The accuracy on each task after ``num_steps`` of ``loop``, with the other loop as it was trained."""
    varied = copy.copy(learner)
    setattr(varied, loop, num_steps)
    return Scorer(varied, table, num_shot)(tasks).accuracy
