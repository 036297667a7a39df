"""Pictures of a study: its history, what its parameters matter, and its trials in parallel coordinates."""

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot as plt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from runner.files import whole_file

log = logging.getLogger(__name__)

PLOTS: dict[str, Callable[..., Any]] = {
    "history.png": plots.plot_optimization_history,
    "importance.png": plots.plot_param_importances,
    "parallel.png": plots.plot_parallel_coordinate,
}


def draw(study: Study, folder: Path) -> None:
    """Save the pictures of ``study`` in ``folder``; a study of one score has none to compare."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        log.info("no pictures: the complete trials have one and the same score")
        return
    matplotlib.use("Agg")  # no window, whatever the machine has
    shown = optuna.create_study(direction=study.direction)
    shown.add_trials(map(with_short_names, complete))
    for name, plot in PLOTS.items():
        with warnings.catch_warnings():  # a parameter that has one value
            warnings.filterwarnings("ignore", message="Attempting to set identical low and high")
            axes = plot(shown, target_name="best validation score")
        axes.figure.set_size_inches(13, 5)
        with whole_file(folder / name) as partial:
            axes.figure.savefig(partial, format="png", dpi=120, bbox_inches="tight")
        plt.close(axes.figure)


def with_short_names(trial: FrozenTrial) -> FrozenTrial:
    """A copy of ``trial`` whose parameters are named by the last part of their keys."""
    renamed = copy.deepcopy(trial)
    renamed.distributions = {name.rpartition(".")[2]: kind for name, kind in trial.distributions.items()}
    renamed.params = {name.rpartition(".")[2]: value for name, value in trial.params.items()}
    return renamed
