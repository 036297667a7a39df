"""Hydra's sweeper ``basic``, except that the error at the end is of all runs that failed, not of the first."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from runner.errors import InputError, users_message

# A file conf/hydra/sweeper/basic.yaml would be checked against Hydra's own, with a warning; another name, chosen in
# conf/train.yaml, would win over the sweepers that files of conf/sweep choose.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node=BasicSweeperConf(_target_="hydra_plugins.leo_runs_sweeper.RunsSweeper"),
    provider="leo",
)


class RunsSweeper(BasicSweeper):
    """Starts a run for each combination of the values on the command line."""

    def setup(self, **context: Any) -> None:
        """Keep what the launcher needs."""
        super().setup(**context)
        assert self.launcher is not None
        self.launcher = CheckedLauncher(self.launcher)  # type: ignore[assignment]


class CheckedLauncher:
    """``launcher``, where failures of runs are raised by ``returned``, before Hydra's sweeper asks for the values."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The runs of ``batch``."""
        results = self.launcher.launch(batch, initial_job_idx=initial_job_idx)
        returned(results)
        return results


def returned(results: Sequence[JobReturn]) -> list[Any]:
    """What each run has returned.

    Raises:
        InputError: some runs have failed, all by users' mistakes; the message has those of each run.
        Exception: the first other error of a run, if there is one.
    """
    # Hydra's own `return_value` of a run that failed prints all overrides of the run.
    errors = [result._return_value for result in results if result.status == JobStatus.FAILED]
    messages = [users_message(error) for error in errors]
    if None in messages:
        raise errors[messages.index(None)]
    if messages:
        said = "; ".join(dict.fromkeys(map(str, messages)))
        is_one = len(set(messages)) == 1 and len(messages) == len(results)
        raise InputError(said if is_one else f"{len(messages)} of {len(results)} runs failed: {said}")
    return [result.return_value for result in results]
