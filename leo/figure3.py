"""Figure 3 of the paper as a Hydra task: functions that a trained learner samples for certain and ambiguous tasks."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from leo.checkpoint import load_weights
from leo.families import FamilyShares
from leo.functions import ModelTasks, fit, nearest_family, values
from leo.model_problem import ModelProblem, predict, sample_models
from leo.regression import ModelLearner
from leo.run import TEST_SEED, make_problem, run_config
from runner.config import check_whole_numbers
from runner.errors import InputError
from runner.files import whole_file
from runner.folder import run_folder, write_json
from runner.names import fingerprint, identity, trained_file
from runner.record import made_by

log = logging.getLogger(__name__)

NUM_CURVE = 201  # points of each drawn function
NUM_FUNCTIONS = 1_000_000  # that make a probability: many, as the nearest to 1/2 is looked for
PANELS = ("certain: sinusoid", "certain: line", "ambiguous: truly a sinusoid", "ambiguous: truly a line")
COLOURS = ("tab:blue", "tab:orange")  # of samples, by their family


def draw(cfg: DictConfig) -> None:
    """Write ``figure3.png``, ``figure3.svg`` and the numbers behind them, ``figure3.json``, in a folder of their own.

    The learner is ``cfg.checkpoint``, or the best of the run that the configuration names.
    """
    problem = make_problem(cfg)
    if not isinstance(problem, ModelProblem) or not isinstance(problem.extra, FamilyShares):
        raise InputError("stage=figure3 compares two families of functions; choose experiment=sines_and_lines")
    check_whole_numbers(cfg, {"stage.num_samples": 1})
    path, folder = trained_file(Path(cfg.checkpoint or cfg.stage.trained)), Path(cfg.run_dir)
    module = problem.build()
    assert isinstance(module.learner, ModelLearner)
    load_weights(module, path, cfg)
    config = run_config(cfg, problem.origin) | {"checkpoint": identity(path), "num_samples": cfg.stage.num_samples}
    with run_folder(folder, config):
        draw_learner(cfg, problem, module.learner, path, folder)
    log.info("wrote figure3.png, figure3.svg and figure3.json in %s", folder)


def draw_learner(cfg: DictConfig, problem: ModelProblem, learner: ModelLearner, path: Path, folder: Path) -> None:
    """Draw ``learner``, of the checkpoint at ``path``."""
    assert isinstance(problem.extra, FamilyShares)
    tasks = problem.fixed_tasks(cfg.test.num_tasks, cfg.num_shot, TEST_SEED, torch.device("cpu"))
    panels = choose(ModelTasks(*map(torch.cat, zip(*tasks, strict=True))), problem.extra)
    low, high = problem.extra.inputs
    x = torch.linspace(low, high, NUM_CURVE)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(TEST_SEED)
        parameters = sample_models(learner, panels, cfg.stage.num_samples, generator)
        curves = predict(learner, parameters, x.view(1, -1, 1).expand(len(PANELS), -1, -1)).squeeze(-1)
        families = problem.extra.of_samples(learner, parameters)
    names = [family.name for family in problem.extra.families]
    figure = picture(panels, x, curves, families, names)
    for suffix in ("png", "svg"):
        with whole_file(folder / f"figure3.{suffix}") as partial:
            figure.savefig(partial, format=suffix, dpi=150)
    shares = {title: [names[family] for family in families[:, i]] for i, title in enumerate(PANELS)}
    write_json(
        folder / "figure3.json",
        {
            **made_by(),
            "checkpoint": str(path),
            "checkpoint_sha256": fingerprint(path),
            "families_of_samples": shares,
            "tasks": {name: part.tolist() for name, part in panels._asdict().items()},
            "x": x.tolist(),
            "samples": curves.tolist(),
        },
    )


def picture(
    tasks: ModelTasks,
    x: Float[Tensor, " n"],
    curves: Float[Tensor, "S B n"],
    families: Int[Tensor, "S B"],
    names: Sequence[str],
) -> Figure:
    """A panel for each of the tasks of ``PANELS``: its truth, its support, and its samples at ``x``, coloured by their
    families of ``names``."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for i, (axes, title) in enumerate(zip(panels, PANELS, strict=True)):
        for name, colour in zip(names, COLOURS, strict=True):
            axes.plot([], [], color=colour, alpha=0.7, label=f"sample, nearer a {name}")
        for curve, family in zip(curves[:, i], families[:, i], strict=True):
            axes.plot(x, curve, color=COLOURS[family], alpha=0.45, linewidth=1)
        order = tasks.query_x[i, :, 0].argsort()
        axes.plot(tasks.query_x[i, order, 0], tasks.truth[i, order, 0], color="black", linestyle="--", label="truth")
        axes.plot(tasks.support_x[i, :, 0], tasks.support_y[i, :, 0], "k^", markersize=8, label="support")
        axes.set(title=title, xlabel="x", xlim=(x.min().item(), x.max().item()))
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names) + 2)
    return figure


def choose(tasks: ModelTasks, shares: FamilyShares) -> ModelTasks:
    """A task for each of ``PANELS``. Certain: the first whose own family alone explains the points. Ambiguous: of those
    that both families explain, with best fits that lie visibly apart (three times the noise, root of the mean square
    over the inputs), the one whose family is least known: whose probability given the points is nearest to 1/2.

    Only the points decide, never what a learner makes of them.
    """
    explained = shares.explained(tasks.support_x, tasks.support_y)
    best = fit(shares.families, tasks.support_x, tasks.support_y)
    low, high = shares.inputs
    x = torch.linspace(low, high, NUM_CURVE).view(-1, 1)
    first, second = (values(family, x, best.coefficients[:, i]) for i, family in enumerate(shares.families))
    is_apart = (first - second).square().mean((1, 2)).sqrt() > 3 * shares.noise
    own = nearest_family(shares.families, tasks.query_x, tasks.truth)
    chosen: list[Tensor] = []
    for ambiguous in (False, True):
        for family in range(2):
            is_other = explained[:, 1 - family]
            fits = is_other & is_apart if ambiguous else ~is_other
            found = ((own == family) & explained[:, family] & fits).nonzero()[:, 0]
            if not len(found):
                raise InputError(
                    f"none of the {len(own)} test tasks is {PANELS[len(chosen)]!r}; give test.num_tasks more of them"
                )
            if ambiguous:
                points = zip(tasks.support_x[found].split(1), tasks.support_y[found].split(1), strict=True)
                probability = torch.cat([shares.probability(x, y, NUM_FUNCTIONS) for x, y in points])
                found = found[(probability[:, 0] - 0.5).abs().argsort()]
            chosen.append(found[0])
    return ModelTasks(*(part[torch.stack(chosen)] for part in tasks))
