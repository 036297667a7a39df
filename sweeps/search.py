"""Stage 2 of the paper: Optuna's loop over runs of one experiment, by any number of workers, resumable."""

import copy
import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from leo.features import read_origin
from leo.run import meta_train
from pretrain.store import SPLITS, images_fingerprint, is_complete, read_split
from runner.config import key_paths, search_path
from runner.errors import FolderInUseError, InputError, MissingFileError
from runner.files import write_text
from runner.folder import differences
from runner.record import made_by
from runner.training import RunCheckpoints
from sweeps import pictures
from sweeps.space import holds, limits, space, suggest
from sweeps.study import (
    ERROR,
    SURPLUS,
    PlacedSampler,
    Progress,
    is_lost,
    is_surplus,
    open_storage,
    place,
    progress,
    retry_dead,
)

log = logging.getLogger(__name__)

POLL = 2  # seconds between two looks at the trials of other workers


class ReportToTrial(pl.Callback):
    """Report each validation to ``trial``, and end the run where the study's pruner says so.

    The score is the one that the run keeps its best checkpoint by.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, RunCheckpoints)
        score = trainer.callback_metrics[checkpoints.monitor].item()
        with warnings.catch_warnings():  # a resumed run may repeat the validation at which it was killed
            warnings.filterwarnings("ignore", message=".*is already reported")
            self.trial.report(score, trainer.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"{checkpoints.monitor}={score:.4f} at step {trainer.global_step}")


def search(cfg: DictConfig) -> float:
    """Run the trials that are missing of ``cfg.search.n_trials``; the best validation score (accuracy: a fraction).

    Returns when every trial is finished, those of other workers too. A trial whose process died is marked as failed
    once its heartbeat is stale, and run again in its folder, from its last checkpoint.
    """
    settings, drawn = cfg.search, dict(space(cfg.search.space))
    check_space(cfg, drawn)
    queued = [values_of(cfg, source) for source in settings.enqueue]
    study = open_study(cfg, queued)
    started: list[Trial] = []

    def objective(trial: Trial) -> float:
        started.append(trial)
        trials = study.get_trials(deepcopy=False)
        frozen = trials[trial.number]
        if is_surplus(frozen, trials, settings.n_trials):
            trial.set_user_attr(SURPLUS, True)
            raise InputError(f"other workers have started all {settings.n_trials} trials")
        folder = Path(settings.folder) / f"trial-{place(frozen, trials):03d}"
        trial.set_user_attr("folder", str(folder))
        values = {name: suggest(trial, name, drawn_from) for name, drawn_from in drawn.items()}
        try:
            return run_once_free(settings.objective, trial_config(cfg, folder, values), trial)
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # Optuna would call the trial failed
        except Exception as error:
            trial.set_user_attr(ERROR, str(error.__cause__ or error))
            raise

    is_waiting = False
    while True:
        retry_dead(study, timedelta(seconds=settings.storage.grace_period))
        state = progress(study, settings.n_trials)
        if len(state.failed) > settings.max_failures:
            raise InputError(too_many_failures(settings, state))
        if state.can_start:
            is_waiting = False
            started.clear()
            try:
                study.optimize(objective, n_trials=1, catch=(Exception,), callbacks=[log_trial(settings.n_trials)])
            except Exception:  # not of the objective: those are caught
                if not started or not is_lost(study, started[-1].number):
                    raise
                log.info("this process was stopped for so long that trial %d went to another one", started[-1].number)
        elif state.running:
            if not is_waiting:
                log.info("waiting for %d trials that run in other processes, or have died", len(state.running))
            is_waiting = True
            time.sleep(POLL)
        else:
            break
    if not state.complete:
        raise InputError(f"no trial of {settings.name} was completed; {too_many_failures(settings, state)}")
    pictures.draw(study, Path(settings.folder))
    log.info(
        "%s: best validation score %.4f in %s; %d trials complete, %d pruned, %d failed; pictures in %s",
        settings.name, study.best_value, study.best_trial.user_attrs["folder"],
        len(state.complete), len(state.pruned), len(state.failed), settings.folder,
    )  # fmt: skip
    return study.best_value


def run_once_free(objective: str, cfg: DictConfig, trial: Trial) -> float:
    """Run ``trial`` as soon as no other process holds its folder.

    The first process of a trial that is run again may have been stopped, not killed: it ends the run when it goes on.
    """
    is_waiting = False
    while True:
        try:
            return float(get_method(objective)(cfg, callbacks=[ReportToTrial(trial)]))
        except FolderInUseError as error:
            if not is_waiting:
                log.info("%s; this worker waits", error)
            is_waiting = True
            time.sleep(POLL)


def check_space(cfg: DictConfig, drawn: Iterable[str]) -> None:
    """Raise where the space is empty, has a key that the configuration has not, or one that the command line sets."""
    names = set(drawn)
    if not names:
        raise InputError("search.space is empty, so there is nothing to search; choose search/space=... or add ranges")
    for name in names:
        try:
            trial_config(cfg, Path("trial"), {name: 0.5})
        except OmegaConfBaseException as error:
            close = get_close_matches(name, list(key_paths(cfg)), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"search.space: no configuration has the key {name}{hint}") from error
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        if override.key_or_group in names:
            raise InputError(
                f"{override.input_line} has no effect, because the search draws this value; leave it out, or take it "
                f"out of the space with ~search.space.{override.key_or_group}"
            )


def write_best(cfg: DictConfig) -> None:
    """Write the best trial so far as a file of ``conf/hparams`` on top of the one that the search started from."""
    best, state = best_trial(cfg), progress(load_study(cfg), cfg.search.n_trials)
    assert best.value is not None
    values = OmegaConf.create({})
    for name, value in best.params.items():
        OmegaConf.update(values, name, value)
    text = (
        "# @package _global_\n"
        f"# Found by search: study {cfg.search.name},\n"
        f"# {Path(best.user_attrs['folder']).name}, validation score {best.value:.4f}.\n"
        f"# Trials: {len(state.complete)} complete, {len(state.pruned)} pruned, {len(state.failed)} failed.\n"
        f"defaults: [/hparams/{cfg.names.hparams}, _self_]\n"
    )
    path = Path(cfg.search.best)
    try:
        write_text(path, text + OmegaConf.to_yaml(values))
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); choose another file with search.best="
        ) from error
    log.info("wrote %s: %s", path, how_to_choose(path))


def how_to_choose(path: Path) -> str:
    """The override that chooses the file ``path`` of hyperparameters, where configurations are looked for."""
    for source in HydraConfig.get().runtime.config_sources:
        hparams = Path(source.path, "hparams").resolve()
        if source.schema == "file" and path.resolve().is_relative_to(hparams):
            return f"hparams={path.resolve().relative_to(hparams).with_suffix('').as_posix()}"
    return (
        "no configuration is looked for there; to choose it, name the folder that holds hparams/ in "
        "hydra.searchpath=[file://FOLDER]"
    )


def train_best(cfg: DictConfig) -> float:
    """Meta-train with the best values found: the same run as with ``hparams=search/...``."""
    found = f"search/{Path(cfg.search.best).stem}"
    return meta_train(changed(cfg, Path(cfg.run_dir), best_trial(cfg).params | {"names.hparams": found}))


def open_study(cfg: DictConfig, queued: list[dict[str, Any]]) -> Study:
    """The study of ``cfg``, made where it is missing; refuses one that was made with other settings."""
    settings = cfg.search
    Path(settings.folder).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=open_storage(settings.storage),
        sampler=PlacedSampler(instantiate(settings.sampler), settings.seed, queued),
        pruner=instantiate(settings.pruner) or optuna.pruners.NopPruner(),
        study_name=settings.name,
        direction="maximize",
        load_if_exists=True,
    )
    config = identity(cfg) | {"inputs": inputs(cfg)}
    recorded = study.user_attrs.get("config")
    if recorded is None:
        study.set_user_attr("config", config)
        study.set_user_attr("overrides", made_by()["overrides"])
        recorded = config
    recorded.setdefault("inputs", config["inputs"])  # a study of before they were recorded
    unlike = differences(recorded, config)
    if unlike:
        raise InputError(
            f"the study {settings.name} was started with other settings ({'; '.join(unlike)}); "
            f"give this one another name with search.name=..."
        )
    return study


def load_study(cfg: DictConfig) -> Study:
    """The study of ``cfg``, which must be there."""
    folder = Path(cfg.search.folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing; stage=search makes it, with the same experiment and ablation")
    try:
        return optuna.load_study(study_name=cfg.search.name, storage=open_storage(cfg.search.storage))
    except KeyError:
        raise MissingFileError(f"the storage holds no study {cfg.search.name}; stage=search makes it") from None


def best_trial(cfg: DictConfig) -> FrozenTrial:
    """The complete trial with the highest validation score."""
    study = load_study(cfg)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise InputError(f"the study {cfg.search.name} has no complete trial yet; run stage=search first")
    return study.best_trial


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What the trials of a search follow from: the configuration less what only places, shows or ends it."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(config, dict)
    for key in ("stage", "logger", "run_dir", "checkpoint", "threads", "captured", "seed", "dirs"):
        del config[key]
    if cfg.extractor.problem is None:
        del config["extractor"]  # so that a study of before there was a choice goes on
    free = ("n_trials", "worker", "max_failures", "storage", "folder", "name", "best")
    config["search"] = {key: value for key, value in config["search"].items() if key not in free}
    content: dict[str, Any] = json.loads(json.dumps(config))  # as the storage gives it back
    return content


def inputs(cfg: DictConfig) -> dict[str, Any] | None:
    """What the features of ``cfg`` were made of, or the fingerprint of the images of a search of stage 1."""
    if cfg.search.objective == "pretrain.run.pretrain":
        folder = Path(cfg.data.folder)
        return {"images": images_fingerprint(read_split(folder, s) for s in SPLITS)} if is_complete(folder) else None
    folder = cfg.features.folder and Path(cfg.features.folder)
    return read_origin(folder) if folder and (folder / "train.safetensors").exists() else None


def trial_config(cfg: DictConfig, folder: Path, values: dict[str, Any]) -> DictConfig:
    """A copy of ``cfg`` for a trial with ``values`` in ``folder``."""
    settings = cfg.search
    merged = OmegaConf.merge(cfg, settings.set)
    assert isinstance(merged, DictConfig)
    return changed(merged, folder, values | {"seed": settings.seed, settings.run_dir: str(folder)})


def changed(cfg: DictConfig, folder: Path, values: dict[str, Any]) -> DictConfig:
    """A copy of ``cfg`` for a single run in ``folder``, with ``values`` at their dotted keys, and no search."""
    run = copy.deepcopy(cfg)
    for name, value in (values | {"run_dir": str(folder), "stage.folder": folder.name}).items():
        OmegaConf.update(run, name, value)
    with open_dict(run):
        del run["search"]
    return run


def values_of(cfg: DictConfig, source: str) -> dict[str, Any]:
    """What a file of ``conf/hparams`` says of the values to search; they must lie within their ranges.

    ``source`` is a folder, whose file has the experiment's name (paper), or a file (paper/mini_1shot).
    """
    hydra = HydraConfig.get()
    file = source if "/" in source else f"{source}/{cfg.names.experiment}"
    kept = [override for override in hydra.overrides.task if not override.startswith(("hparams=", "search.enqueue="))]
    composed = compose(hydra.job.config_name, [*search_path(), *kept, f"hparams={file}"])
    values = {}
    for name, drawn_from in space(cfg.search.space):
        values[name] = OmegaConf.select(composed, name)
        if not holds(drawn_from, values[name]):
            raise InputError(
                f"search.enqueue: {name}={values[name]} of hparams/{file}.yaml is outside {limits(drawn_from)}; "
                f"change search.space.{name}"
            )
    return values


def log_trial(num_trials: int) -> Callable[[Study, FrozenTrial], None]:
    """A callback that says how a trial ended and where the search stands."""

    def callback(study: Study, trial: FrozenTrial) -> None:
        state = progress(study, num_trials)
        outcome = f"{trial.value:.4f}" if trial.state == TrialState.COMPLETE and trial.value is not None else ""
        best = f"best {study.best_value:.4f}, " if state.complete else ""
        log.info(
            "%s %s %s(%s%d of %d trials finished: %d pruned, %d failed)",
            Path(trial.user_attrs.get("folder", "surplus trial")).name, trial.state.name.lower(),
            f"{outcome or trial.user_attrs.get(ERROR, '')} ".lstrip(), best,
            state.num_finished, num_trials, len(state.pruned), len(state.failed),
        )  # fmt: skip

    return callback


def too_many_failures(settings: DictConfig, state: Progress) -> str:
    """The reasons of the failed trials."""
    reasons = Counter(trial.user_attrs.get(ERROR, "its process died, again and again") for trial in state.failed)
    listed = "".join(f"\n  {count} x {reason}" for reason, count in reasons.most_common())
    return (
        f"{len(state.failed)} trials of {settings.name} failed, search.max_failures={settings.max_failures}; narrow "
        f"search.space, or raise the limit to go on. The reasons:{listed}"
    )
