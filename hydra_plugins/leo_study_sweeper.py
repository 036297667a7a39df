"""Hydra's sweeper ``optuna``: the ranges of the command line as the space of a search, run by ``stage=search``."""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.leo_runs_sweeper import returned

INSTEAD = {
    "study_name": "search.name=... with stage=search",
    "storage": "search/storage=... with stage=search",
    "direction": "nothing: scores are maximised",
    "n_jobs": "search.worker=0,1,2 for three workers",
    "max_failure_rate": "search.max_failures=... with stage=search",
    "search_space": "hydra.sweeper.params",
}


class StudySweeper(Sweeper):
    """Starts a search, or its workers, with the launcher that the configuration chooses.

    Args:
        n_trials: of the search; None: as ``search.n_trials``.
        params: ranges by their dotted keys, nested or not; those of the command line come first.
        others: settings of Optuna's own plugin, refused with what to use instead.
    """

    def __init__(self, n_trials: int | None, params: DictConfig | None, **others: Any) -> None:
        self.n_trials, self.params, self.others = n_trials, params, others

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the launcher needs."""
        self.context, self.function, self.composed = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Search what ``arguments`` and the parameters give as ranges; what each worker returned."""
        from sweeps.handover import jobs  # only now: Hydra imports this file at each start

        for name, value in self.others.items():
            if value is not None:
                raise ConfigCompositionException(f"hydra.sweeper.{name} is not known here; use {INSTEAD[name]}")
        loader = self.context.config_loader
        try:
            workers = jobs(arguments, self.params, self.n_trials, self.composed, loader)
        except ValueError as error:
            raise ConfigCompositionException(str(error)) from error
        if len(workers) == 1 and "n_jobs" in self.composed.hydra.launcher:
            OmegaConf.update(self.composed, "hydra.launcher.n_jobs", 1)  # in this process: a kill ends it
        launcher = Plugins.instance().instantiate_launcher(self.context, self.function, self.composed)
        return returned(launcher.launch(workers, initial_job_idx=0))
