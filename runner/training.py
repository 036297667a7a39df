"""One training, resumable: checkpoints, early stopping, progress, signals. Both stages train through it."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn

from runner.checkpoints import load_checkpoint
from runner.csv_log import CSVLog
from runner.errors import InputError
from runner.files import read_json, remove_partials, whole_file
from runner.folder import differences, write_json
from runner.terminal import shares_terminal
from runner.trainer import DirectCheckpointIO, new_trainer, silent_about_srun

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What a finished training leaves: its best checkpoint, that one's score, its cost, and what else it counted."""

    checkpoint: Path
    score: float
    num_steps: int
    seconds: float
    totals: dict[str, int] = {}  # noqa: RUF012 (never changed; older trained.json files lack it)


class RunCheckpoints(Checkpoint):
    """``last.ckpt`` after each validation and on SIGTERM, ``best.ckpt`` where ``monitor`` is highest.

    Files appear whole. Also adds up the seconds of training over interruptions, and adds ``config`` to checkpoints.
    """

    def __init__(self, folder: Path, monitor: str, config: dict[str, Any]) -> None:
        self.folder, self.monitor, self.config = folder, monitor, config
        self.best_score, self.seconds, self.since = float("-inf"), 0.0, 0.0
        self.validated_step: int | None = None

    def save(self, trainer: pl.Trainer, name: str) -> None:
        """Write ``name`` in the run folder; all processes collect the state, the first one writes."""
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.folder / name)
            return
        with whole_file(self.folder / name) as partial:
            trainer.save_checkpoint(partial)

    def add_seconds(self) -> None:
        """Count the time since the last call, or since the start."""
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since = time.perf_counter()
        # Killed after its last checkpoint: early stopping had ended it.
        trainer.should_stop |= any(has_lost_patience(callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, partial(end_at_once, trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.add_seconds()
        score = trainer.callback_metrics[self.monitor].item()
        if score > self.best_score:  # never so of NaN
            self.best_score = score
            self.save(trainer, "best.ckpt")
        self.save(trainer, "last.ckpt")
        self.validated_step = trainer.global_step

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Half a validation or half a step cannot be resumed: then the checkpoint of the last validation stays. It stays
        # right after that validation, too: of one made there, Lightning leaves out an epoch when it resumes.
        within_step = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches
        is_new = not trainer.validating and trainer.global_step != self.validated_step
        if isinstance(exception, SIGTERMException) and is_new and not within_step:
            self.add_seconds()
            self.save(trainer, "last.ckpt")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.seconds = state_dict["best_score"], state_dict["seconds"]


def end_at_once(trainer: pl.Trainer, signum: int, frame: FrameType | None) -> None:
    """End all processes of a distributed training with 143; the checkpoint of the last validation stands.

    Lightning's own handler waits for the other processes in an operation that they never reach.
    """
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)
    os._exit(143)


class RunProgressBar(RichProgressBar):
    """Lightning's bar to the next validation, counted in updates, with the time ``left`` to the end of the run."""

    def __init__(self, updates_per_step: int) -> None:
        super().__init__(refresh_rate=20, theme=RichProgressBarTheme(metrics_format=".4g"))
        self.updates_per_step = updates_per_step  # that one training step makes
        self.start, self.first_step = 0.0, 0

    @property
    def total_train_batches(self) -> int | float:
        """Updates in an epoch."""
        return super().total_train_batches * self.updates_per_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, (batch_idx + 1) * self.updates_per_step - 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.start, self.first_step = time.perf_counter(), trainer.global_step

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """What leaves room for ``get_metrics`` in a terminal of 80 columns."""
        return [TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()]

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The time ``left`` and the last validation; before the first one the loss. The log has all that is logged."""
        found, metrics = super().get_metrics(trainer, pl_module), {}
        num_steps = trainer.global_step - self.first_step
        if num_steps:
            per_step = (time.perf_counter() - self.start) / num_steps
            metrics["left"] = str(timedelta(seconds=round(per_step * (trainer.max_steps - trainer.global_step))))
        shown = [name for name in found if name.startswith("val/") and name not in ("val/loss", "val/diverged")]
        return metrics | {name: found[name] for name in shown or ["train/loss"] if name in found}


def has_lost_patience(callback: pl.Callback) -> bool:
    """Whether ``callback`` has ended the training already."""
    return isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience


class ValidationLines(pl.Callback):
    """A line for each validation, where a bar would be drawn over by those of other processes."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = ", ".join(
            f"{name} {value:.4g}" for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        )
        log.info("%s: step %d of %d, %s", trainer.default_root_dir, trainer.global_step, trainer.max_steps, values)


def make_trainer(
    partial_trainer: Callable[..., pl.Trainer],
    folder: Path,
    *,
    config: dict[str, Any],
    monitor: str,
    patience: int | None,
    max_steps: int,
    val_every: int,
    updates_per_step: int,
    loggers: list[Logger],
    more_callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """A run folder's trainer. It stops after ``patience`` validations without a better ``monitor`` (None: never)."""
    if max_steps % val_every:
        raise InputError(
            f"max_steps={max_steps} is not a multiple of the {val_every} steps between validations, so its last steps "
            f"would be lost; try {max_steps - max_steps % val_every or val_every}"
        )
    callbacks: list[pl.Callback] = [
        RunCheckpoints(folder, monitor, config),
        ValidationLines() if shares_terminal() else RunProgressBar(updates_per_step),
    ]
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=patience, check_on_train_epoch_end=False))
    for logger in loggers:
        logger.log_hyperparams(config)
    trainer = new_trainer(
        partial_trainer,
        callbacks=[*more_callbacks, *callbacks],
        logger=[CSVLog(folder), *loggers],
        max_steps=max_steps,
        max_epochs=max_steps // val_every,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        inference_mode=False,  # in which inner loops could not take gradients
        enable_model_summary=False,
        enable_progress_bar=not shares_terminal(),
        enable_checkpointing=True,
    )
    trainer.strategy.checkpoint_io = DirectCheckpointIO()
    return trainer


def train(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule | Any,
    folder: Path,
    totals: Callable[[], dict[str, int]] = dict,
) -> Trained:
    """Train to the end, from ``last.ckpt`` where there is one; exit with 143 after SIGTERM, its checkpoint saved.

    A training that has ended is not run again: its outcome is read from ``trained.json``. ``totals`` is asked at the
    end.
    """
    done, last, checkpoints = folder / "trained.json", folder / "last.ckpt", trainer.checkpoint_callback
    assert isinstance(checkpoints, RunCheckpoints)
    if not done.exists():
        if trainer.is_global_zero:
            remove_partials(folder)
            csv_log = trainer.loggers[0]
            assert isinstance(csv_log, CSVLog)
            csv_log.keep_steps_before(first_step(folder, checkpoints.config))
        try:
            with silent_about_srun():
                trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
        except SIGTERMException:
            sys.exit(143)
        if not trainer.is_global_zero:
            sys.exit()  # what comes after training is for one process
        if not (folder / "best.ckpt").exists():
            raise InputError(f"{folder}: no validation had a finite {checkpoints.monitor}, so there is no best.ckpt")
        write_json(
            done,
            {
                "score": checkpoints.best_score,
                "num_steps": trainer.global_step,
                "seconds": checkpoints.seconds,
                "totals": totals(),
            },
        )
    remedy = "delete it: the same command makes it again"
    return Trained(folder / "best.ckpt", **read_json(done, ("score", "num_steps", "seconds"), remedy))


def first_step(folder: Path, config: dict[str, Any]) -> int:
    """The update from which the run in ``folder`` goes on, after a check of what it goes on from."""
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    if not last.exists():
        return 0
    start_again = f"delete {last}: the same command then starts from the first update"
    remedy = f"put {best} in its place to go on from there, or {start_again}" if best.exists() else start_again
    checkpoint = load_checkpoint(last, remedy)
    if "global_step" not in checkpoint:
        raise InputError(f"{last} is not a checkpoint of a training; {remedy}")
    changed = differences(checkpoint.get("config", config), config)
    if changed:
        raise InputError(f"{last} belongs to a run with other settings ({'; '.join(changed)}); {start_again}")
    if best.exists():
        load_checkpoint(best, start_again)
    elif checkpoint["callbacks"]["RunCheckpoints"]["best_score"] > float("-inf"):
        raise InputError(f"{best}, which {last} builds on, is missing; {start_again}")
    return int(checkpoint["global_step"])
