"""N-way K-shot classification by learners that generate a whole classifier, from pixels or any features."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from leo.episodes import gather, sample_tasks
from leo.evaluate import Scores
from leo.features import AnyTable
from leo.functions import ModelTasks
from leo.model_problem import DistributionStream, ModelScorer, ModelScores, Sampled, check_model
from leo.module import MetaLearning, TaskData
from leo.regression import ModelLearner
from leo.run import TEST_SEED, VAL_SEED, Classification, fitted, make_module, stream_settings, tested
from runner.config import check_whole_numbers
from runner.terminal import shares_terminal

QUERIES_PER_CHUNK = 2000  # predicted at once, of all samples and tasks: few, for the processor's cache


class ClassTasks:
    """N-way tasks from the classes of ``table`` for learners of whole models: y is 1 at the example's class, else 0.

    Args:
        table: the features of each image.
        num_way: N. Numbers of examples are of each class; a task's examples are in the order of its classes.
    """

    def __init__(self, table: AnyTable, num_way: int) -> None:
        self.table, self.num_way = table, num_way

    def sample(self, num_tasks: int, num_shot: int, num_query: int, generator: torch.Generator) -> ModelTasks:
        """``num_tasks`` tasks by ``generator``, on its device."""
        drawn = sample_tasks(self.table, num_tasks, self.num_way, num_shot + num_query, generator)
        support, query = (part.flatten(1, 2) for part in gather(self.table, drawn, num_shot))
        classes = torch.eye(self.num_way, dtype=support.dtype, device=support.device)
        support_y, query_y = (
            classes.repeat_interleave(number, 0).expand(num_tasks, -1, -1) for number in (num_shot, num_query)
        )
        return ModelTasks(support, support_y, query, query_y, query_y)


def cross_entropy(prediction: Float[Tensor, "B n N"], y: Float[Tensor, "B n N"]) -> Float[Tensor, " B"]:
    """Mean cross-entropy of each task, in nats; ``prediction`` are logits."""
    return -(prediction.log_softmax(2) * y).sum(2).mean(1)


def judge(learner: ModelLearner, tasks: ModelTasks, sampled: Sampled) -> ModelScores:
    """Accuracy, as ``score``, and loss, by the mean of the samples' probabilities. A diverged task has accuracy 0."""
    probabilities = sampled.predictions.softmax(3).mean(0)
    loss = learner.loss(probabilities.log(), tasks.truth)
    diverged = ~(sampled.parameters.isfinite().all(2).all(0) & sampled.predictions.isfinite().all(3).all(2).all(0))
    correct = probabilities.argmax(2) == tasks.truth.argmax(2)
    accuracy = correct.to(loss.dtype).mean(1).masked_fill(diverged, 0.0)
    return ModelScores(loss.masked_fill(diverged, torch.nan), accuracy, diverged)


class ClassScorer:
    """The scores of chunks of tasks under the names of classification."""

    def __init__(self, learner: ModelLearner, num_samples: int) -> None:
        self.scorer = ModelScorer(learner, num_samples, judge)

    def __call__(self, tasks: ModelTasks) -> Scores:
        """The scores of ``tasks``."""
        scores = self.scorer(tasks)
        return Scores(accuracy=scores.score, loss=scores.loss, diverged=scores.diverged)


class WholeClassifiers(Classification):
    """Classification as ``leo.run.Classification``, for learners that generate all parameters of a classifier.

    Args:
        cfg: the configuration.
        num_samples: models drawn for each validation and test task.
    """

    def __init__(self, cfg: DictConfig, *, num_samples: int) -> None:
        super().__init__(cfg)
        check_whole_numbers(cfg, {"tasks.num_samples": 1})
        self.num_samples = num_samples

    def build(self) -> MetaLearning:
        """The learner, tried on two tasks, and the normaliser of its inputs."""
        module = make_module(
            self.cfg, fitted(self.cfg, [self.tables[split].features for split in self.cfg.train_splits])
        )
        assert isinstance(module.learner, ModelLearner)
        tasks = ClassTasks(self.tables["train"], self.cfg.num_way)
        check_model(module.learner, tasks.sample(2, self.cfg.num_shot, 1, torch.Generator().manual_seed(VAL_SEED)))
        return module

    def data(self, module: MetaLearning, device: torch.device) -> TaskData:
        """Tasks of scaled inputs."""
        cfg = self.cfg
        stream = DistributionStream(
            ClassTasks(self.scaled(module, cfg.train_splits, device), cfg.num_way),
            device=device,
            **stream_settings(cfg, device),
        )
        val_tasks = self.fixed_tasks(module, "val", cfg.val.num_tasks, VAL_SEED, device)
        return TaskData(stream, val_tasks, partial(ClassScorer, num_samples=self.num_samples))

    def fixed_tasks(
        self, module: MetaLearning, split: str, num_tasks: int, seed: int, device: torch.device
    ) -> Sequence[ModelTasks]:
        """The same tasks of ``split`` for every run, in chunks; the queries are all that the smallest class allows."""
        table = self.scaled(module, [split], device)
        num_query = int(table.class_sizes.min()) - self.cfg.num_shot
        at_a_time = max(1, QUERIES_PER_CHUNK // (self.num_samples * self.cfg.num_way * num_query))
        generator = torch.Generator(device).manual_seed(seed)
        distribution = ClassTasks(table, self.cfg.num_way)
        return [
            distribution.sample(min(at_a_time, num_tasks - start), self.cfg.num_shot, num_query, generator)
            for start in range(0, num_tasks, at_a_time)
        ]

    def scores(self, module: MetaLearning, split: str, num_tasks: int, seed: int) -> Scores:
        """The scores of the fixed tasks of ``split``, with a progress bar."""
        assert isinstance(module.learner, ModelLearner)
        scorer = ClassScorer(module.learner.eval(), self.num_samples)
        chunks = self.fixed_tasks(module, split, num_tasks, seed, module.device)
        scores = [scorer(chunk) for chunk in track(chunks, description=split, disable=shares_terminal())]
        return Scores(*(torch.cat(parts) for parts in zip(*scores, strict=True)))

    def val_accuracy(self, module: MetaLearning) -> Tensor:
        """The accuracy on each validation task [T], fractions."""
        return self.scores(module, "val", self.cfg.val.num_tasks, VAL_SEED).accuracy

    def test(self, module: MetaLearning, device: torch.device) -> dict[str, Any]:
        """Accuracy, its interval and the loss on the test tasks."""
        scores = self.scores(module, "test", self.cfg.test.num_tasks, TEST_SEED)
        return tested(self.cfg, self.tables["test"].origin, scores) | {"num_samples": self.num_samples}
