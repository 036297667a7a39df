"""The searches whose folders are found, as the page shows them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from sweeps import commands
from sweeps.chart import Chart, Line, Points, chart
from sweeps.collect import key
from sweeps.pictures import PLOTS
from sweeps.study import SURPLUS, Progress, is_retry, literal, progress, quiet_optuna

log = logging.getLogger(__name__)


class Search(NamedTuple):
    """A study, its folder, and the command that started it, as far as the study knows."""

    name: str
    folder: Path
    state: Progress
    best: FrozenTrial | None
    charts: list[Chart]
    command: str | None

    @property
    def best_file(self) -> Path:
        """What the best trial left, or else the folder."""
        assert self.best is not None
        path = self.folder / Path(self.best.user_attrs["folder"]).name / "trained.json"
        return path if path.exists() else self.folder

    @property
    def pictures(self) -> list[Path]:
        """Optuna's pictures, where the search has been finished."""
        return [path for path in (self.folder / name for name in PLOTS) if path.exists()]


def searches(runs: Path, unreadable: dict[Path, str]) -> Iterator[Search]:
    """The studies that are files of folders in ``runs``; one on a server is not looked for.

    Files that cannot be read are added to ``unreadable``, with the reason.
    """
    for path in sorted([*runs.glob("*/study.db"), *runs.glob("*/study.journal")]):
        try:
            found = list(in_file(path))
        except (SQLAlchemyError, StorageInternalError, RuntimeError, ValueError, KeyError) as error:
            unreadable[path] = str(error).partition("\n")[0] or type(error).__name__
            log.warning("%s is left out: %s", path, unreadable[path])
            continue
        yield from found


def in_file(path: Path) -> Iterator[Search]:
    """The studies in one file."""
    with opened(path) as storage:
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            state = progress(study, len(study.trials))
            best = study.best_trial if state.complete else None
            charts = [chart for chart in (history(state), validations(state)) if chart is not None]
            yield Search(name, path.parent, state, best, charts, command(study))


@contextmanager
def opened(path: Path) -> Iterator[BaseStorage]:
    """The storage in a file of ours, for reading."""
    quiet_optuna()
    if path.suffix == ".journal":
        yield JournalStorage(JournalFileBackend(str(path)))
        return
    storage = RDBStorage(literal(URL.create("sqlite", database=str(path)).render_as_string()))
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def history(state: Progress) -> Chart | None:
    """Validation score by trial: complete ones, pruned ones by their last validation, and the best so far."""
    best: Points = []
    for trial in state.complete:
        assert trial.value is not None
        before = best[-1][1] if best else trial.value
        best += [(trial.number, before), (trial.number, max(before, trial.value))]
    pruned = [(trial, list(trial.intermediate_values.values())) for trial in state.pruned]
    lines = [
        Line("best", "the best so far", best),
        *(dot("pruned", trial, values[-1]) for trial, values in pruned if values),
        *(dot("complete", trial, trial.value) for trial in state.complete if trial.value is not None),
    ]
    return chart("best validation score by trial", lines)


def validations(state: Progress) -> Chart | None:
    """Validation score by meta-updates, a line for each trial."""
    lines = [
        Line(
            kind,
            f"trial {trial.number}, {kind}",
            list(trial.intermediate_values.items()),
        )
        for kind, trials in (("pruned", state.pruned), ("complete", state.complete))
        for trial in trials
    ]
    return chart("validation score by updates, a line for each trial", lines)


def dot(kind: str, trial: FrozenTrial, value: float) -> Line:
    """A trial as a point."""
    return Line(kind, f"trial {trial.number}, {kind}: {value:.4f}", [(trial.number, value)])


def command(study: Study) -> str | None:
    """What starts the search again, with all of its trials; None where an earlier version did not write it down."""
    overrides: list[str] | None = study.user_attrs.get("overrides")
    if overrides is None:
        return None
    rest = [override for override in overrides if key(override) not in ("search.n_trials", "search.worker")]
    num_trials = sum(not is_retry(trial) and SURPLUS not in trial.user_attrs for trial in study.trials)
    return commands.line(*rest, f"search.n_trials={num_trials}")
