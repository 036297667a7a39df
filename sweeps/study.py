"""A study that any number of processes work on: its storage, whose draw a trial is, and what is left to do.

A trial keeps its *place* for life: the place counts the trials before it, retries of dead ones left out, so that the
trials of a search have places 0, 1, 2, ... however often its processes die. A retry has the place of its original.
"""

import logging
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import optuna
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from runner.errors import InputError

log = logging.getLogger(__name__)

SURPLUS, ERROR = "surplus", "error"  # user attributes of trials
ATTEMPTS = 10


def quiet_optuna() -> None:
    """Show no more of what Optuna says of its own accord."""
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats and pictures, for years
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search logs its trials itself


def open_storage(config: DictConfig) -> BaseStorage:
    """The configured storage. Workers that make its tables at the same moment get in each other's way: try again."""
    quiet_optuna()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            changes = {"url": literal(config.url)} if "url" in config else {}
            storage: BaseStorage = instantiate(config, **changes)
            return storage
        except InstantiationException as error:
            cause = error.__cause__
            file = storage_file(config)
            is_broken_journal = "path" in config and isinstance(cause, ValueError)
            if is_broken_journal or "not a database" in str(cause) or "malformed" in str(cause):
                raise InputError(
                    f"{file} is damaged ({str(cause).splitlines()[0][:200]}); put a copy in its place, or delete it: "
                    f"the same command then makes it anew, with what the folders of its trials hold"
                ) from error
            if not isinstance(cause, SQLAlchemyError):
                raise
            if attempt == ATTEMPTS:
                reason = str(cause).splitlines()[0]
                raise InputError(f"the storage {file} cannot be opened: {reason}") from error
            time.sleep(np.random.default_rng().uniform(0.1, 0.5))
    raise AssertionError


def storage_file(config: DictConfig) -> str:
    """The file of a storage, or the URL of a server without its password."""
    if "url" not in config:
        return str(config.get("path", config._target_))
    url = make_url(config.url)
    is_file = url.drivername.startswith("sqlite") and url.database is not None
    return str(url.database) if is_file else url.render_as_string(hide_password=True)


def literal(url: str) -> str:
    """``url`` as Optuna, which fills in what stands in braces, takes it unchanged: folders are named by overrides."""
    return url.replace("{", "{{").replace("}", "}}")


def is_retry(trial: FrozenTrial) -> bool:
    """Whether the trial repeats one whose process died."""
    return RetryHeartbeatStaleTrialCallback.retried_trial_number(trial) is not None


def place(trial: FrozenTrial, trials: list[FrozenTrial]) -> int:
    """The place of ``trial`` among all ``trials`` of its study."""
    retried = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    number = trial.number if retried is None else retried
    return number - sum(is_retry(other) for other in trials[:number])


def is_surplus(trial: FrozenTrial, trials: list[FrozenTrial], num_trials: int) -> bool:
    """Whether workers that started trials at the same moment have started this one too many."""
    counted = [other for other in trials[: trial.number] if not is_retry(other) and SURPLUS not in other.user_attrs]
    return not is_retry(trial) and len(counted) >= num_trials


def is_lost(study: Study, number: int) -> bool:
    """Whether another process has declared the trial dead: failed, without the reason that its own process gives."""
    trial = study.get_trials(deepcopy=False)[number]
    return trial.state == TrialState.FAIL and ERROR not in trial.user_attrs


class PlacedSampler(BaseSampler):
    """Draws each trial from (seed, place) alone, whichever process runs it, and however often processes start.

    Args:
        make_sampler: called with ``seed`` for each trial. What else the sampler knows must come from the study.
        seed: of the search.
        queued: the values of the first places.
    """

    def __init__(self, make_sampler: Callable[..., BaseSampler], seed: int, queued: list[dict[str, Any]]) -> None:
        self.make_sampler, self.seed, self.queued = make_sampler, seed, queued

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Find the trial's place and make its sampler."""
        number = place(trial, study.get_trials(deepcopy=False))
        self.values = self.queued[number] if number < len(self.queued) else {}
        self.sampler = self.make_sampler(seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What the sampler draws at once: nothing where the values are given."""
        return {} if self.values else self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The sampler's draws."""
        return self.sampler.sample_relative(study, trial, space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """The given value, or the sampler's draw."""
        return self.values[name] if self.values else self.sampler.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tell the sampler."""
        self.sampler.after_trial(study, trial, state, values)


class Progress(NamedTuple):
    """Where a search stands. A trial that is retried counts by its last attempt."""

    complete: list[FrozenTrial]
    pruned: list[FrozenTrial]
    failed: list[FrozenTrial]
    running: list[FrozenTrial]
    can_start: bool

    @property
    def num_finished(self) -> int:
        """Trials that need no more work."""
        return len(self.complete) + len(self.pruned) + len(self.failed)


def progress(study: Study, num_trials: int) -> Progress:
    """Where the study stands on its way to ``num_trials``."""
    trials = study.get_trials(deepcopy=False)
    retried = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    by_state = {state: [trial for trial in trials if trial.state == state] for state in TrialState}
    num_started = sum(not is_retry(trial) and SURPLUS not in trial.user_attrs for trial in trials)
    failed = by_state[TrialState.FAIL]
    return Progress(
        complete=by_state[TrialState.COMPLETE],
        pruned=by_state[TrialState.PRUNED],
        failed=[trial for trial in failed if trial.number not in retried and SURPLUS not in trial.user_attrs],
        running=by_state[TrialState.RUNNING],
        can_start=bool(by_state[TrialState.WAITING]) or num_started < num_trials,
    )


def retry_dead(study: Study, grace: timedelta) -> None:
    """Mark trials as failed whose process died, and queue them again."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Killed between its start and its first heartbeat: its values are drawn right after that.
        assert trial.datetime_start is not None
        if not trial.params and datetime.now() - trial.datetime_start > grace:
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except ValueError:
                continue  # another worker was first
            study._storage.get_heartbeat_stale_trial_callback()(study, trial)  # type: ignore[attr-defined]
