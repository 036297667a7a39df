"""Ambiguous tasks: whose points more than one family explains; and what the samples of a learner make of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2
from torch import Tensor

from leo.functions import Family, ModelTasks, fit, nearest_family
from leo.model_problem import Sampled, predict
from leo.regression import ModelLearner

NUM_GRID = 101  # inputs at which a sample is compared with the families
NUM_FUNCTIONS = 20_000  # of each family, where probabilities are averaged over tasks


class FamilyShares:
    """Which families explain a task's support, and which ones its samples belong to.

    A family *explains* the support where its best fit by least squares lies within the family's limits, and the
    squared residuals sum to no more than noise^2 times the 95 % quantile of chi^2 with as many degrees of freedom as
    there are points: the true function misses by more in one task of twenty, its best fit in fewer. A task is
    *ambiguous* where every family explains it. A sample belongs to the family whose best fit to it, on a grid over
    ``inputs``, is nearest.

    Args:
        families, inputs, noise: those of the distribution.
    """

    def __init__(self, *, families: Sequence[Family], inputs: Sequence[float], noise: float) -> None:
        self.families, self.inputs, self.noise = families, inputs, noise

    def explained(self, x: Tensor, y: Tensor) -> Bool[Tensor, "B F"]:
        """Whether each family explains each task's points."""
        limit = self.noise**2 * chi2.ppf(0.95, x.shape[1])
        best = fit(self.families, x, y)
        return best.is_member & (best.residual <= limit)

    def ambiguous(self, x: Tensor, y: Tensor) -> Bool[Tensor, " B"]:
        """Whether all families explain a task's points."""
        return self.explained(x, y).all(1)

    def probability(self, x: Tensor, y: Tensor, num_functions: int) -> Float[Tensor, "B F"]:
        """How probable each family is given a task's points: exact as ``num_functions``, drawn from each, grow.

        As the mean likelihood of a family's functions; before the points all families are equally probable.
        """
        generator, evidence = torch.Generator(x.device).manual_seed(0), []
        for family in self.families:
            functions = family.draw(num_functions, generator).to(x.dtype)
            misses = (family.basis(x) @ functions.T - y).square().sum(1)
            evidence.append((misses / (-2 * self.noise**2)).logsumexp(-1))
        return torch.stack(evidence, -1).softmax(-1)

    def of_samples(self, learner: ModelLearner, parameters: Tensor) -> Int[Tensor, "S B"]:
        """The family of each sample."""
        low, high = self.inputs
        grid = torch.linspace(low, high, NUM_GRID, device=parameters.device).view(1, -1, 1)
        grid = grid.expand(parameters.shape[1], -1, -1)
        return nearest_family(self.families, grid, predict(learner, parameters, grid))

    def __call__(self, tasks: ModelTasks, learner: ModelLearner, sampled: Sampled) -> dict[str, Tensor]:
        """Of each task: is it ambiguous; and do its samples hold every family, if it is, and if it is not.

        ``exact``: the probability that as many independent samples of exact inference hold every family (of two).
        """
        ambiguous = self.ambiguous(tasks.support_x, tasks.support_y)
        family, dtype = self.of_samples(learner, sampled.parameters), sampled.parameters.dtype
        both = torch.stack([(family == i).any(0) for i in range(len(self.families))]).all(0).to(dtype)
        exact = 1 - self.probability(tasks.support_x, tasks.support_y, NUM_FUNCTIONS).pow(len(family)).sum(1)
        nothing = torch.full_like(both, torch.nan)
        return {
            "ambiguous": ambiguous.to(dtype),
            "both_if_ambiguous": torch.where(ambiguous, both, nothing),
            "exact_if_ambiguous": torch.where(ambiguous, exact, nothing),
            "both_if_certain": torch.where(ambiguous, nothing, both),
            "exact_if_certain": torch.where(ambiguous, nothing, exact),
        }
