"""Meta-SGD on features (Li et al., 2017): the baseline that adapts in weight space alone (Table 2, first row)."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo import objective
from leo.closed_form import WeightLoop, query_loss
from leo.episodes import Tasks
from leo.inner_loops import descend
from leo.learner import Learner
from leo.noise import Noise
from leo.support import AnySupport, examples_of, sizes_of, support_loss
from runner.errors import InputError


class MetaSGD(Learner):
    """A learned initial classifier and a learned rate for each of its weights; gradients go through every step.

    Args:
        num_features, num_way: D and N; unlike LEO, the classifier is tied to its number of classes.
        num_steps: inner steps.
        inner_lr: initial value of the learned rates.
        l2_weight: weight of half the squared norm of the initial classifier.
    """

    def __init__(self, *, num_features: int, num_way: int, num_steps: int, inner_lr: float, l2_weight: float) -> None:
        super().__init__()
        self.num_features, self.num_steps, self.l2_weight = num_features, num_steps, l2_weight
        self.initial_weights = nn.Parameter(torch.zeros(num_way, num_features))
        self.inner_lr = nn.Parameter(torch.full((num_way, num_features), float(inner_lr)))

    def adapt(self, support: AnySupport) -> Float[Tensor, "B N D"]:
        """The classifier after ``num_steps`` gradient steps on the summed support loss."""
        return self.path(support)[-1]

    def path(self, support: AnySupport) -> list[Float[Tensor, "B N D"]]:
        """The classifier after 0, 1, ..., ``num_steps`` steps."""
        (num_tasks, num_way, _), trained = sizes_of(support), len(self.initial_weights)
        if num_way != trained:
            raise InputError(
                f"the support has {num_way} classes, and Meta-SGD learns an initial weight for each class: this one "
                f"knows tasks of num_way={trained} only; use LEO or prototypes, or train it with num_way={num_way}"
            )
        initial, (images, labels) = self.initial_weights.expand(num_tasks, -1, -1), examples_of(support)
        if not images.requires_grad:  # data, which the closed form is for
            return [initial, *WeightLoop.apply(initial, self.inner_lr, [images] * self.num_steps, labels)]
        path = [initial]
        for _ in range(self.num_steps):
            path.append(descend(path[-1], self.inner_lr, partial(support_loss, support=support)))
        return path

    def objective(self, tasks: Tasks, noise: Noise) -> dict[str, Tensor]:
        """Mean query cross-entropy plus the weighted L2 term, ``loss``, and its terms."""
        loss, accuracy = query_loss(self.adapt(tasks.support), tasks.query, None, 0.0)
        return objective.query_loss_and_l2(loss, accuracy, self.initial_weights, self.l2_weight)

    def penalized(self) -> list[Tensor]:
        """The initial classifier."""
        return [self.initial_weights]
