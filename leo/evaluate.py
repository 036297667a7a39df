"""Testing: adapted classifiers of many tasks scored on all remaining images of their classes."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from torch import Tensor

from leo.episodes import Classes, TaskIndices, sample_tasks
from leo.features import AnyTable, FeatureTable
from leo.learner import Learner
from leo.products import product
from runner.terminal import shares_terminal

TASKS_PER_CHUNK = 500
# Adapted together: many, as each step costs little more for them, but with no more pairs of support images than this,
# so that the relation network's hidden layer (16 MB for 64 latents) stays in the processor's cache.
TASKS_PER_ADAPTATION, PAIRS_PER_ADAPTATION = 100, 1 << 15


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

    def __init__(self, learner: Learner, table: AnyTable, num_shot: int) -> None:
        assert not learner.training
        self.learner, self.table, self.num_shot = learner, table, num_shot
        with torch.no_grad():
            self.embedded = learner.embed(table.features) if isinstance(table, FeatureTable) else None

    @torch.no_grad()
    def __call__(self, tasks: TaskIndices) -> Scores:
        """The scores of ``tasks``, whose images are the support."""
        support = tasks.images[:, :, : self.num_shot]
        weights = self.adapted(support)  # [B, N, E]
        num_tasks, num_way, num_features = weights.shape
        num_correct, loss_sum = weights.new_zeros(num_tasks), weights.new_zeros(num_tasks)
        order = tasks.classes.flatten().argsort(stable=True)
        counts = tasks.classes.flatten().bincount(minlength=len(self.table.class_names)).tolist()
        starts = self.table.offsets.tolist()
        for label, uses in enumerate(order.split(counts)):
            if not len(uses):
                continue
            first, last = starts[label], starts[label + 1]
            task, position = uses // num_way, uses % num_way
            classifiers = weights.index_select(0, task).view(-1, num_features)
            logits = product(classifiers, self.of_rows(first, last)).view(len(uses), num_way, -1)
            correct, loss = correct_and_loss(logits, position)
            for of_image, total in ((correct, num_correct), (loss, loss_sum)):
                of_image.scatter_(1, support[task, position] - first, 0)
                total.index_add_(0, task, of_image.sum(1))
        num_queries = (self.table.class_sizes[tasks.classes] - self.num_shot).sum(1).to(weights)
        loss = loss_sum / num_queries
        diverged = ~(weights.isfinite().all(2).all(1) & loss.isfinite())
        accuracy = (num_correct / num_queries).masked_fill(diverged, 0.0)
        return Scores(accuracy, loss.masked_fill(diverged, torch.nan), diverged)

    def of_rows(self, first: int, last: int) -> Float[Tensor, "n E"]:
        """Images ``first`` to ``last - 1`` of the table, in the space of the classifiers."""
        if self.embedded is not None:
            return self.embedded[first:last]
        return self.learner.embed(self.table.take(torch.arange(first, last, device=self.table.device)))

    def adapted(self, support: Int[Tensor, "B N K"]) -> Float[Tensor, "B N E"]:
        """The classifiers of the tasks whose support is these rows of the table."""
        num_tasks = min(TASKS_PER_ADAPTATION, max(1, PAIRS_PER_ADAPTATION // support[0].numel() ** 2))
        parts = [
            self.learner.adapt(self.table.take(part.flatten()).unflatten(0, part.shape))
            for part in support.split(num_tasks)
        ]
        return torch.cat(parts)


def correct_and_loss(
    logits: Float[Tensor, "U N n"], position: Int[Tensor, " U"]
) -> tuple[Float[Tensor, "U n"], Float[Tensor, "U n"]]:
    """Of each image of row u, whose class is ``position[u]``: 1 where that scores best, else 0; and cross-entropy.

    Of classes that score the same, the first is the best. ``logits`` are overwritten. Every pass over them is one that
    the processor does many numbers at a time: ``max`` with its indices and ``logsumexp`` over classes are not.
    """
    num_rows, num_way, num_images = logits.shape
    rows = logits.view(-1, num_images)
    true = torch.arange(num_rows, device=logits.device) * num_way + position
    loss = logits.log_softmax(1).view_as(rows).index_select(0, true).neg_()
    score = rows.index_select(0, true)
    rivals = rows.index_fill_(0, true, -torch.inf).view_as(logits)
    best = rivals.amax(1)
    correct = (score > best).to(loss.dtype)
    is_tied = score == best
    if is_tied.any():
        row, image = is_tied.nonzero(as_tuple=True)
        first = (rivals[row, :, image] == best[row, image].unsqueeze(1)).to(torch.uint8).argmax(1)  # of the rivals
        correct[row, image] = (position[row] < first).to(loss.dtype)
    return correct, loss


def fixed_tasks(table: Classes, num_tasks: int, num_way: int, num_shot: int, seed: int) -> list[TaskIndices]:
    """A fixed set of tasks, in chunks: the same for every run with the same ``seed``."""
    generator = torch.Generator(table.offsets.device).manual_seed(seed)
    return [
        sample_tasks(table, min(TASKS_PER_CHUNK, num_tasks - start), num_way, num_shot, generator)
        for start in range(0, num_tasks, TASKS_PER_CHUNK)
    ]


def evaluate(learner: Learner, table: AnyTable, chunks: list[TaskIndices], num_shot: int) -> Scores:
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
