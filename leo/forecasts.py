"""What a trained learner samples of sequences, as a Hydra task: forecasts beside the truth, and their calibration."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from leo.checkpoint import load_weights
from leo.functions import ModelTasks
from leo.model_problem import ModelProblem, Sampled, sample_answers
from leo.oscillators import Coverage, Oscillators
from leo.regression import ModelLearner
from leo.run import TEST_SEED, make_problem, run_config
from runner.config import check_whole_numbers
from runner.errors import InputError
from runner.files import whole_file
from runner.folder import run_folder, write_json
from runner.names import fingerprint, identity, trained_file
from runner.record import made_by

log = logging.getLogger(__name__)

NUM_PANELS = 3  # the first test tasks: they are not chosen
NUM_SAMPLES = 19  # whose bands of 10, 20, ..., 90 % are exact
LEVELS = [i / 10 for i in range(1, 10)]


def draw(cfg: DictConfig) -> None:
    """Write ``forecasts.png``, ``forecasts.svg`` and their numbers, ``forecasts.json``, in a folder of their own.

    The learner is ``cfg.checkpoint``, or the best of the run that the configuration names.
    """
    problem = make_problem(cfg)
    if not isinstance(problem, ModelProblem) or not isinstance(problem.distribution, Oscillators):
        raise InputError("stage=forecasts draws sequences; choose experiment=oscillators")
    check_whole_numbers(cfg, {"test.num_tasks": NUM_PANELS})
    path, folder = trained_file(Path(cfg.checkpoint or cfg.stage.trained)), Path(cfg.run_dir)
    module = problem.build()
    assert isinstance(module.learner, ModelLearner)
    load_weights(module, path, cfg)
    config = run_config(cfg, problem.origin) | {"checkpoint": identity(path)}
    with run_folder(folder, config):
        most = max(problem.num_shots)
        tasks = problem.fixed_tasks(cfg.test.num_tasks, most, TEST_SEED, torch.device("cpu"))
        by_shots = {k: answers(tasks, module.learner, k) for k in problem.num_shots}
        coverage = {k: covered(module.learner, chunks) for k, chunks in by_shots.items()}
        figure = picture({k: chunks[0] for k, chunks in by_shots.items()}, coverage)
        for suffix in ("png", "svg"):
            with whole_file(folder / f"forecasts.{suffix}") as partial:
                figure.savefig(partial, format=suffix, dpi=150)
        write_json(
            folder / "forecasts.json",
            {
                **made_by(),
                "checkpoint": str(path),
                "checkpoint_sha256": fingerprint(path),
                "num_tasks": cfg.test.num_tasks,
                "num_samples": NUM_SAMPLES,
                "coverage": {str(k): dict(zip(map(str, LEVELS), found, strict=True)) for k, found in coverage.items()},
                "spread": {str(k): spread(chunks) for k, chunks in by_shots.items()},
            },
        )
    log.info("wrote forecasts.png, forecasts.svg and forecasts.json in %s", folder)


Answers = tuple[ModelTasks, Sampled]


def answers(chunks: Sequence[ModelTasks], learner: ModelLearner, num_shot: int) -> list[Answers]:
    """The tasks of ``chunks`` with the first ``num_shot`` sequences of each seen, and the models sampled of them."""
    seen = [
        chunk._replace(support_x=chunk.support_x[:, :num_shot], support_y=chunk.support_y[:, :num_shot])
        for chunk in chunks
    ]
    generator = torch.Generator().manual_seed(TEST_SEED)
    return [(tasks, sample_answers(learner, tasks, NUM_SAMPLES, generator)) for tasks in seen]


def covered(learner: ModelLearner, chunks: Sequence[Answers]) -> list[float]:
    """The share of the true numbers within the band of each of ``LEVELS``, over all tasks."""
    coverage = Coverage(levels=LEVELS, num_samples=NUM_SAMPLES)
    found = [coverage(tasks, learner, sampled) for tasks, sampled in chunks]
    return [torch.cat([part[name] for part in found]).mean().item() for name in found[0]]


def spread(chunks: Sequence[Answers]) -> float:
    """The standard deviation of the samples, root of the mean square over tasks, queries and steps."""
    return torch.cat([sampled.predictions.var(0).flatten() for _, sampled in chunks]).mean().sqrt().item()


def picture(first: dict[int, Answers], coverage: dict[int, list[float]]) -> Figure:
    """A row for each number of sequences seen: a query of the first tasks, and how often bands hold the truth."""
    figure = Figure(figsize=(16, 3.2 * len(first)), layout="constrained")
    panels = figure.subplots(len(first), NUM_PANELS + 1, squeeze=False)
    for row, (num_shot, (tasks, sampled)) in zip(panels, first.items(), strict=True):
        for i, axes in enumerate(row[:-1]):
            forecast(axes, tasks.query_x[i, 0], tasks.truth[i, 0], sampled.predictions[:, i, 0])
            axes.set(title=f"oscillator {i + 1}, {num_shot} seen", xlabel="step")
        axes = row[-1]
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
        axes.plot(LEVELS, coverage[num_shot], "o-", label="samples")
        axes.set(title=f"{num_shot} seen: truth within the band", xlabel="nominal share", xlim=(0, 1), ylim=(0, 1))
        axes.grid(alpha=0.2)
        row[0].set_ylabel("displacement")
    for i in range(NUM_PANELS):
        limits = [row[i].get_ylim() for row in panels]
        for row in panels:
            row[i].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    panels[0][-1].legend(loc="upper left")
    return figure


def forecast(axes: Axes, seen: Float[Tensor, " X"], truth: Float[Tensor, " Y"], samples: Float[Tensor, "S Y"]) -> None:
    """What is seen of a sequence, how it truly goes on, the samples, and their bands of 50 and 90 %."""
    steps = range(len(seen), len(seen) + len(truth))
    ordered = samples.sort(0).values
    for level, shade in ((0.9, 0.15), (0.5, 0.3)):
        rank = round((len(samples) + 1) * (1 - level) / 2)
        axes.fill_between(
            steps, ordered[rank - 1], ordered[-rank], color="tab:blue", alpha=shade, label=f"{100 * level:.0f} %"
        )
    for i, sample in enumerate(samples):
        axes.plot(steps, sample, color="tab:blue", alpha=0.4, linewidth=0.7, label=None if i else "sample")
    axes.plot(steps, truth, color="black", linestyle="--", label="truth")
    axes.plot(range(len(seen)), seen, "k^", markersize=4, label="seen")
    axes.grid(alpha=0.2)
