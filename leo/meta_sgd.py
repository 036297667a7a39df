"""Meta-SGD on features (Li et al., 2017): the baseline that adapts in weight space alone (Table 2, first row)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo import objective, softmax
from leo.episodes import Tasks
from leo.inner_loops import WeightStep
from leo.learner import Learner
from leo.support import Support
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

    def adapt(self, support: Float[Tensor, "B N K D"]) -> Float[Tensor, "B N D"]:
        """The classifier after ``num_steps`` gradient steps on the summed support loss."""
        return self.path(support)[-1]

    def adapt_to(self, support: Support) -> Float[Tensor, "B N D"]:
        """The same on classes of any number of images."""
        num_way, trained = len(support.targets), len(self.initial_weights)
        if num_way != trained:
            raise InputError(
                f"the support has {num_way} classes, and Meta-SGD learns an initial weight for each class: this one "
                f"knows tasks of num_way={trained} only; use LEO or prototypes, or train it with num_way={num_way}"
            )
        weights = self.initial_weights.expand(len(support.present), -1, -1)
        for _ in range(self.num_steps):
            weights = weights - self.inner_lr * support.loss_gradient(weights)
        return weights

    def path(self, support: Float[Tensor, "B N K D"]) -> list[Float[Tensor, "B N D"]]:
        """The classifier after 0, 1, ..., ``num_steps`` steps."""
        path, images = [self.initial_weights.expand(len(support), -1, -1)], support.flatten(1, 2)
        for _ in range(self.num_steps):
            path.append(WeightStep.apply(path[-1], self.inner_lr, images))
        return path

    def meta_loss(self, tasks: Tasks, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean query cross-entropy plus the weighted L2 term, ``loss``, and its terms."""
        logits = softmax.logits(self.adapt(tasks.support), tasks.query)
        return objective.query_loss_and_l2(logits, self.initial_weights, self.l2_weight)
