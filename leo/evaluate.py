"""Testing: adapted classifiers of many tasks scored on all remaining images of their classes."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from rich.progress import track
from torch import Tensor

from leo.episodes import TaskIndices, sample_tasks
from leo.features import FeatureTable
from leo.learner import Learner
from leo.products import product
from runner.terminal import shares_terminal

TASKS_PER_CHUNK = 500
TASKS_PER_ADAPTATION = 20  # few, so that the pairs of the relation network stay in the processor's cache


class Scores(NamedTuple):
    """Per task: fraction of correct queries, mean query cross-entropy in nats, and whether the adaptation diverged.

    A task whose classifier or loss is not finite has an accuracy of 0, and no loss: NaN, to be left out of means.
    """

    accuracy: Float[Tensor, " B"]
    loss: Float[Tensor, " B"]
    diverged: Bool[Tensor, " B"]


class Scorer:
    """Adapts ``learner`` to tasks of ``table`` and scores it on every image of their classes that is not support.

    No sampling, no dropout: the learner must be in evaluation mode. Tasks are scored class by class, so that the
    images of a class meet the classifiers of all tasks that contain it in one matrix product.
    """

    def __init__(self, learner: Learner, table: FeatureTable, num_shot: int) -> None:
        assert not learner.training
        self.learner, self.table, self.num_shot = learner, table, num_shot
        with torch.no_grad():
            self.embedded = learner.embed(table.features)

    @torch.no_grad()
    def __call__(self, tasks: TaskIndices) -> Scores:
        """The scores of ``tasks``, whose images are the support."""
        support = tasks.images[:, :, : self.num_shot]
        parts = support.split(TASKS_PER_ADAPTATION)
        weights = torch.cat([self.learner.adapt(self.table.features[part]) for part in parts])  # [B, N, E]
        num_tasks, num_way, num_features = weights.shape
        num_correct, loss_sum, num_queries = (weights.new_zeros(num_tasks) for _ in range(3))
        order = tasks.classes.flatten().argsort(stable=True)
        counts = tasks.classes.flatten().bincount(minlength=len(self.table.class_names)).tolist()
        starts = self.table.offsets.tolist()
        for label, uses in enumerate(order.split(counts)):
            if not len(uses):
                continue
            first, last = starts[label], starts[label + 1]
            task, position = uses // num_way, uses % num_way
            images = self.embedded[first:last]
            logits = product(weights[task].view(-1, num_features), images).view(len(uses), num_way, -1)
            is_query = torch.ones(len(uses), last - first, dtype=logits.dtype, device=logits.device)
            is_query.scatter_(1, support[task, position] - first, 0)
            of_class = logits.gather(1, position.view(-1, 1, 1).expand(-1, 1, last - first)).squeeze(1)
            best = logits.max(1).indices  # argmax takes seven times as long
            correct = (best == position.unsqueeze(1)) * is_query
            loss = (logits.logsumexp(1) - of_class) * is_query
            num_correct.index_add_(0, task, correct.sum(1))
            loss_sum.index_add_(0, task, loss.sum(1))
            num_queries.index_add_(0, task, is_query.sum(1))
        loss = loss_sum / num_queries
        diverged = ~(weights.isfinite().all(2).all(1) & loss.isfinite())
        accuracy = (num_correct / num_queries).masked_fill(diverged, 0.0)
        return Scores(accuracy, loss.masked_fill(diverged, torch.nan), diverged)


def fixed_tasks(table: FeatureTable, num_tasks: int, num_way: int, num_shot: int, seed: int) -> list[TaskIndices]:
    """A fixed set of tasks, in chunks: the same for every run with the same ``seed``."""
    generator = torch.Generator(table.offsets.device).manual_seed(seed)
    return [
        sample_tasks(table, min(TASKS_PER_CHUNK, num_tasks - start), num_way, num_shot, generator)
        for start in range(0, num_tasks, TASKS_PER_CHUNK)
    ]


def evaluate(learner: Learner, table: FeatureTable, chunks: list[TaskIndices], num_shot: int) -> Scores:
    """The scores of all tasks of ``chunks``, with a progress bar."""
    scorer = Scorer(learner.eval(), table, num_shot)
    scores = [scorer(tasks) for tasks in track(chunks, description="test", disable=shares_terminal())]
    return Scores(*(torch.cat(parts) for parts in zip(*scores, strict=True)))


def mean_of(values: Float[Tensor, " B"], diverged: Bool[Tensor, " B"]) -> float | None:
    """The mean over the tasks that did not diverge; None where all did."""
    finite = values[~diverged]
    return finite.mean().item() if len(finite) else None


def interval95(values: Float[Tensor, " B"]) -> float:
    """Half the 95 % confidence interval of the mean over tasks (normal approximation)."""
    return 1.96 * (values.double().std() / len(values) ** 0.5).item()
