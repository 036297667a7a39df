"""Figures of learners of whole models: their learned rates, and their error by the number of inner steps."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from leo.analysis import drawing
from leo.analysis.figures import Outcome, learned_rates
from leo.analysis.inner_steps import LOOPS, trained_steps
from leo.checkpoint import load_weights
from leo.evaluate import interval95
from leo.functions import ModelTasks
from leo.model_problem import ModelProblem, ModelScorer
from leo.regression import ModelLearner
from leo.run import TEST_SEED, make_problem
from runner.errors import InputError
from runner.names import trained_file


class ModelMethod(NamedTuple):
    """A trained learner of whole models."""

    name: str
    learner: ModelLearner
    checkpoint: Path


class ModelQuestion(NamedTuple):
    """What is looked at: one trained learner, test tasks in chunks, and the numbers of ``conf/stage/analyze.yaml``."""

    methods: list[ModelMethod]
    tasks: list[ModelTasks]
    settings: DictConfig


def model_question(cfg: DictConfig) -> ModelQuestion:
    """The learner that ``cfg`` composes, with the weights of its checkpoint."""
    problem = make_problem(cfg)
    if not isinstance(problem, ModelProblem):
        raise InputError(f"stage=analyze knows classification and leo.model_problem, not {type(problem).__name__}")
    if cfg.stage.compare:
        raise InputError("stage.compare is for classifiers; look into one learner of whole models at a time")
    module, path = problem.build(), trained_file(Path(cfg.checkpoint))
    load_weights(module, path, cfg)
    assert isinstance(module.learner, ModelLearner)
    method = ModelMethod(cfg.names.experiment, module.learner.eval().requires_grad_(False), path)
    tasks = problem.fixed_tasks(cfg.stage.num_tasks, cfg.num_shot, TEST_SEED, torch.device("cpu"))
    return ModelQuestion([method], tasks, cfg.stage)


def error_after(learner: ModelLearner, loop: str, num_steps: int, tasks: list[ModelTasks]) -> Float[Tensor, " B"]:
    """The loss of one sample a task to the truth after ``num_steps`` of ``loop``, the other loop as trained.

    A task that diverged counts as a model whose parameters are all zero.
    """
    varied = copy.copy(learner)
    setattr(varied, loop, num_steps)
    scorer = ModelScorer(varied, num_samples=1)
    return -torch.cat([scorer(chunk).score for chunk in tasks])


def inner_steps(question: ModelQuestion) -> Outcome:
    """Test loss to the truth against the number of steps of each loop, the other loop as trained."""
    rows: list[tuple[Any, ...]] = []
    summary: dict[str, Any] = {}
    for method in question.methods:
        for name, num_trained in trained_steps(method.learner).items():
            losses = []
            for num_steps in range(question.settings.max_inner_steps + 1):
                loss = error_after(method.learner, name, num_steps, question.tasks)
                losses.append(loss.mean().item())
                rows.append((method.name, LOOPS[name], num_trained, num_steps, losses[-1], interval95(loss)))
            summary[f"{method.name}, {LOOPS[name]} steps"] = {
                "none": losses[0], "trained": num_trained, "best": losses.index(min(losses)), "best_loss": min(losses),
            }  # fmt: skip
    columns = ("method", "loop", "trained_steps", "steps", "loss", "interval95")
    return Outcome(columns, rows, summary, drawing.inner_steps(rows, "test loss of one sample", 1))


MODEL_FIGURES: dict[str, Callable[[Any], Outcome | None]] = {"learned_rates": learned_rates, "inner_steps": inner_steps}
