"""Meta-learning of whole models on any distribution of tasks: a kind of tasks that needs no features."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from leo.evaluate import interval95
from leo.functions import ModelTasks
from leo.module import MetaLearning, TaskData
from leo.regression import ModelLearner
from leo.run import TEST_SEED, VAL_SEED, check_numbers, make_module, stream_settings
from leo.stream import BatchStream
from runner.config import check_whole_numbers
from runner.errors import InputError
from runner.terminal import shares_terminal

TASKS_PER_CHUNK = 20  # adapted at once, each as often as it is sampled: few, for the processor's cache


class Sampled(NamedTuple):
    """Models adapted to each of B tasks, S to each, and what they say of the queries."""

    parameters: Float[Tensor, "S B P"]
    predictions: Float[Tensor, "S B Q Y"]


Extra = Callable[[ModelTasks, ModelLearner, Sampled], dict[str, Tensor]]


@runtime_checkable
class Distribution(Protocol):
    """Where tasks come from: the one thing that a new kind of tasks must write."""

    def sample(self, num_tasks: int, num_shot: int, num_query: int, generator: torch.Generator) -> ModelTasks:
        """``num_tasks`` tasks by ``generator``, on its device."""


class DistributionStream(BatchStream):
    """Training batches from a distribution."""

    def __init__(self, distribution: Distribution, *, num_shot: int, num_query: int, **kwargs: Any) -> None:
        self.distribution, self.num_shot, self.num_query = distribution, num_shot, num_query
        super().__init__(**kwargs)

    def draw(self, num_tasks: int) -> ModelTasks:
        """``num_tasks`` tasks of the distribution."""
        return self.distribution.sample(num_tasks, self.num_shot, self.num_query, self.generator)

    def gather(self, batch: ModelTasks) -> ModelTasks:
        """The batch: its tensors are all there is."""
        return batch


def sample_models(
    learner: ModelLearner, tasks: ModelTasks, num_samples: int, generator: torch.Generator
) -> Float[Tensor, "S B P"]:
    """Parameters of ``num_samples`` models adapted to each task."""
    x, y = (part.repeat(num_samples, 1, 1) for part in (tasks.support_x, tasks.support_y))
    return learner.sample(x, y, generator).unflatten(0, (num_samples, -1))


def predict(
    learner: ModelLearner, parameters: Float[Tensor, "S B P"], x: Float[Tensor, "B Q X"]
) -> Float[Tensor, "S B Q Y"]:
    """What each sampled model says of its task's x."""
    num_samples = len(parameters)
    return learner.model(parameters.flatten(0, 1), x.repeat(num_samples, 1, 1)).unflatten(0, (num_samples, -1))


@torch.no_grad()
def sample_answers(learner: ModelLearner, tasks: ModelTasks, num_samples: int, generator: torch.Generator) -> Sampled:
    """``num_samples`` models adapted to each task, and what they say of its queries."""
    parameters = sample_models(learner, tasks, num_samples, generator)
    return Sampled(parameters, predict(learner, parameters, tasks.query_x))


def check_model(learner: ModelLearner, tasks: ModelTasks) -> None:
    """Raise where ``learner`` cannot be adapted to ``tasks``, or its model predicts targets of another size."""
    num_inputs, num_targets = tasks.support_x.shape[2], tasks.support_y.shape[2]
    generator = torch.Generator().manual_seed(0)
    try:
        fresh = learner.model.scale * torch.randn(len(tasks.support_x), len(learner.model.scale), generator=generator)
        found = learner.model(fresh, tasks.support_x).shape[2]
        if found == num_targets:
            sample_answers(learner, tasks, 1, generator)
    except RuntimeError as error:
        raise InputError(
            f"{learner.model} or its learner does not fit tasks whose x has {num_inputs} numbers and whose y has "
            f"{num_targets}: {' '.join(str(error).split())}"
        ) from error
    if found != num_targets:
        raise InputError(
            f"{learner.model} predicts {found} numbers of each example, and its target has {num_targets}; set the "
            f"size of its output to that"
        )


class ModelScores(NamedTuple):
    """Per task: the loss of the samples' average prediction to the truth of the queries, minus it, and divergence.

    A task diverges where a sampled model or the loss is not finite. It has no loss: NaN, to be left out of means; in
    ``score`` it counts as a model whose parameters are all zero, which knows nothing of the task.
    """

    loss: Float[Tensor, " B"]
    score: Float[Tensor, " B"]
    diverged: Bool[Tensor, " B"]


Judge = Callable[[ModelLearner, ModelTasks, Sampled], ModelScores]


@torch.no_grad()
def score_models(learner: ModelLearner, tasks: ModelTasks, sampled: Sampled) -> ModelScores:
    """The scores of ``tasks`` by sampled models: how far their average prediction is from the truth."""
    loss = learner.loss(sampled.predictions.mean(0), tasks.truth)
    diverged = ~(sampled.parameters.isfinite().all(2).all(0) & loss.isfinite())
    if not diverged.any():
        return ModelScores(loss, -loss, diverged)
    ignorant = learner.loss(learner.model(torch.zeros_like(sampled.parameters[0]), tasks.query_x), tasks.truth)
    return ModelScores(loss.masked_fill(diverged, torch.nan), -torch.where(diverged, ignorant, loss), diverged)


class ModelScorer:
    """The scores of ``learner`` by ``num_samples`` samples a task; each call draws the same noise."""

    def __init__(self, learner: ModelLearner, num_samples: int, judge: Judge = score_models) -> None:
        self.learner, self.num_samples, self.judge = learner, num_samples, judge

    def __call__(self, tasks: ModelTasks) -> ModelScores:
        """The scores of ``tasks``."""
        generator = torch.Generator(tasks.support_x.device).manual_seed(VAL_SEED)
        return self.judge(self.learner, tasks, sample_answers(self.learner, tasks, self.num_samples, generator))


class ModelProblem:
    """Tasks of a distribution, learned by generating a whole model; judged by its loss to the truth.

    Args:
        cfg: the configuration.
        distribution: see ``Distribution``.
        num_shots: numbers of support examples to test with; the score is of ``cfg.num_shot``.
        num_samples: models drawn for each validation and test task.
        num_test_queries: of each validation and test task.
        extra: more numbers from the sampled models of a chunk of test tasks, one of each task; NaN: does not apply.
            None: none.
    """

    score = "score"

    def __init__(
        self,
        cfg: DictConfig,
        *,
        distribution: Distribution,
        num_shots: Sequence[int],
        num_samples: int,
        num_test_queries: int,
        extra: Extra | None,
    ) -> None:
        self.cfg, self.distribution = cfg, distribution
        self.origin: dict[str, Any] = {}
        self.num_shots, self.num_samples, self.extra = num_shots, num_samples, extra
        self.num_test_queries = num_test_queries
        check_numbers(cfg)
        if cfg.num_shot not in num_shots or min(num_shots) < 1:
            raise InputError(
                f"tasks.num_shots={list(num_shots)} must be positive and hold num_shot={cfg.num_shot}; add it"
            )
        check_whole_numbers(cfg, {"tasks.num_samples": 1, "tasks.num_test_queries": 1})

    def build(self) -> MetaLearning:
        """The learner, once it has been tried on a few tasks; there are no features to normalise."""
        module = make_module(self.cfg, None)
        assert isinstance(module.learner, ModelLearner)
        check_model(module.learner, self.fixed_tasks(2, self.cfg.num_shot, VAL_SEED, torch.device("cpu"))[0])
        return module

    def data(self, module: MetaLearning, device: torch.device) -> TaskData:
        """The stream, and fixed validation tasks."""
        cfg = self.cfg
        stream = DistributionStream(
            self.distribution,
            device=device,
            **stream_settings(cfg, device),
        )
        val_tasks = self.fixed_tasks(cfg.val.num_tasks, cfg.num_shot, VAL_SEED, device)
        return TaskData(stream, val_tasks, partial(ModelScorer, num_samples=self.num_samples))

    def fixed_tasks(self, num_tasks: int, num_shot: int, seed: int, device: torch.device) -> list[ModelTasks]:
        """The same tasks for every run, in chunks."""
        generator = torch.Generator(device).manual_seed(seed)
        tasks = self.distribution.sample(num_tasks, num_shot, self.num_test_queries, generator)
        return [ModelTasks(*parts) for parts in zip(*(part.split(TASKS_PER_CHUNK) for part in tasks), strict=True)]

    def validate(self, module: MetaLearning) -> float:
        """The mean validation score of a learner that is fitted to each task alone."""
        assert isinstance(module.learner, ModelLearner)
        scorer = ModelScorer(module.learner, self.num_samples)
        tasks = self.fixed_tasks(self.cfg.val.num_tasks, self.cfg.num_shot, VAL_SEED, module.device)
        return torch.cat([scorer(chunk).score for chunk in tasks]).mean().item()

    def test(self, module: MetaLearning, device: torch.device) -> dict[str, Any]:
        """By number of shots, means over the test tasks with their 95 % intervals."""
        assert isinstance(module.learner, ModelLearner)
        rows: list[dict[str, Any]] = []
        for num_shot in track(self.num_shots, description="test", disable=shares_terminal()):
            chunks = self.fixed_tasks(self.cfg.test.num_tasks, num_shot, TEST_SEED, device)
            tested = score_shots(module.learner, chunks, self.num_samples, self.extra)
            rows.append({"num_shot": num_shot} | tested.numbers | {"num_diverged": tested.num_diverged})
            if num_shot == self.cfg.num_shot:
                score, num_diverged = tested.score, tested.num_diverged
        return {
            "num_shot": self.cfg.num_shot,
            "num_tasks": self.cfg.test.num_tasks,
            "num_samples": self.num_samples,
            "num_diverged": num_diverged,
            "score": score,
            "by_num_shot": rows,
        }

    def summary(self, result: dict[str, Any]) -> str:
        """A table in Markdown: a row for each number of shots."""
        rows = result["by_num_shot"]
        names = [name for name in rows[0] if name != "num_shot" and not name.endswith("_interval95")]
        if not any(row.get("num_diverged") for row in rows):
            names = [name for name in names if name != "num_diverged"]
        lines = [["shots", *names], ["---:"] * (1 + len(names))]
        lines += [
            [str(row["num_shot"]), *(number(row[name], row.get(f"{name}_interval95")) for name in names)]
            for row in rows
        ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return (
            f"loss to the truth over {result['num_tasks']} test tasks, +- 95 % interval; mean: of the "
            f"{result['num_samples']} samples' average prediction, single: of one sample, best: of the best sample\n"
            f"{table}"
        )


def number(value: float | None, interval: float | None) -> str:
    """A cell of the table."""
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    return f"{value:.3f}" if interval is None else f"{value:.3f} +- {interval:.3f}"


class Tested(NamedTuple):
    """Of one number of shots: means over the tasks that did not diverge, how many did, and the mean score of all."""

    numbers: dict[str, float | None]
    num_diverged: int
    score: float


@torch.no_grad()
def score_shots(learner: ModelLearner, chunks: list[ModelTasks], num_samples: int, extra: Extra | None) -> Tested:
    """Means over the tasks of ``chunks``, and their intervals. None: of no task.

    mean: the loss of the samples' average prediction; single: of one sample; best: of the sample with the lowest loss,
    which only the truth can pick.
    """
    per_task: dict[str, list[Tensor]] = {}
    all_scores: list[ModelScores] = []
    for i, tasks in enumerate(chunks):
        generator = torch.Generator(tasks.support_x.device).manual_seed(TEST_SEED + i)
        sampled = sample_answers(learner, tasks, num_samples, generator)
        scores = score_models(learner, tasks, sampled)
        losses = torch.stack([learner.loss(prediction, tasks.truth) for prediction in sampled.predictions])
        numbers = {"mean": scores.loss, "single": losses.mean(0), "best": losses.min(0).values}
        if extra is not None:
            numbers |= extra(tasks, learner, sampled)
        for name, values in numbers.items():
            per_task.setdefault(name, []).append(values.masked_fill(scores.diverged, torch.nan))
        all_scores.append(scores)
    result: dict[str, float | None] = {}
    for name, parts in per_task.items():
        values = torch.cat(parts)
        values = values[~values.isnan()]
        result[name] = values.mean().item() if len(values) else None
        result[f"{name}_interval95"] = interval95(values) if len(values) > 1 else None
    of_all = ModelScores(*(torch.cat(parts) for parts in zip(*all_scores, strict=True)))
    return Tested(result, int(of_all.diverged.sum()), of_all.score.mean().item())
