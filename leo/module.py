"""Meta-training as a Lightning module: optimiser, clipping, logging. The arithmetic is the learner's."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from leo.captured_update import CapturedUpdate
from leo.diverged import DivergedTasks
from leo.features import Normalizer
from leo.learner import MetaLearner
from leo.stream import BatchStream
from leo.update import MetaUpdate

NOISE = 1 << 31  # keeps the seed of the noise apart from that of the tasks


class MetaLearning(pl.LightningModule):
    """Trains ``learner`` on the tasks of a ``TaskData``, a number of updates in each training step.

    Logs ``train/loss``, each of its terms and the mean of each vector of learned rates, of the last update of each
    training step, and ``train/diverged``, the number of tasks that diverged so far; the means of what the data's scorer
    gives, ``val/...``, at each validation. The logged step is the number of the update, from 0.

    Args:
        learner: what is trained.
        normalizer: fitted to the training features; kept here so that the checkpoint carries it. None: tasks have none.
        optimizer, schedule: called with the parameters, and with the optimiser (None: a constant rate).
        clip_value, clip_norm: see ``leo.clipping``. As the optimiser, None only for a learner that is not trained.
        diverged, max_diverged: what is done about tasks that diverge, and their largest share (``leo.diverged``).
        seed: of all noise of training; its generator lies on the device of training.
        captured: an update is one CUDA graph, replayed.
    """

    def __init__(
        self,
        learner: MetaLearner,
        normalizer: Normalizer | None,
        *,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None,
        schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None,
        clip_value: float | None,
        clip_norm: float | None,
        diverged: str,
        max_diverged: float,
        seed: int,
        captured: bool,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner, self.normalizer = learner, normalizer
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.clip_value, self.clip_norm, self.seed = clip_value, clip_norm, seed
        self.diverged, self.max_diverged = diverged, max_diverged
        self.update_kind = CapturedUpdate if captured else MetaUpdate
        self.generator: torch.Generator | None = None

    def on_train_start(self) -> None:
        """Make the update, now that the optimiser and the schedule are where the checkpoint left them."""
        assert self.generator is not None
        assert self.clip_value is not None
        assert self.clip_norm is not None
        schedules = self.trainer.lr_scheduler_configs
        stream = self.trainer.datamodule.stream  # type: ignore[attr-defined]  # Trainer does not declare it
        self.update = self.update_kind(
            self.trained(),
            self.optimizers(use_pl_optimizer=False),  # type: ignore[arg-type]  # there is one
            schedules[0].scheduler if schedules else None,
            stream=stream,
            clip_value=self.clip_value,
            clip_norm=self.clip_norm,
            generator=self.generator,
            diverged=self.diverged,
            num_updates=self.global_step,
        )

    def training_step(self, batch: list[Any], batch_idx: int) -> None:
        """An update for each entry of ``batch``."""
        outcomes = self.update(batch)
        for i, outcome in enumerate(outcomes):
            self.diverged_tasks.add(outcome.num_diverged, self.global_step + i)
        # What Lightning counts as steps, and so takes for the place in training, are updates.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        progress.ready += len(batch)
        progress.completed += len(batch)
        rates = {
            name: parameter.detach().mean()
            for name, parameter in self.learner.named_parameters()
            if name.endswith("_lr")
        }
        terms = outcomes[-1].terms or {}
        values = {f"train/{name}": value.item() for name, value in (terms | rates).items()}
        values["train/diverged"] = float(self.diverged_tasks.total)
        for logger in self.loggers:
            logger.log_metrics(values, self.global_step - 1)
        self.log_dict(values, prog_bar=True, logger=False)

    def totals(self) -> dict[str, int]:
        """What a finished training reports, next to its score: the number of training tasks that diverged."""
        return {"train_diverged": self.diverged_tasks.total}

    def trained(self) -> MetaLearner:
        """What an update improves: here, the learner."""
        return self.learner

    def parameter_groups(self) -> Any:
        """What the optimiser is called with: the parameters of ``trained``, or groups of them with their own rates."""
        return self.learner.parameters()

    def configure_optimizers(self) -> Any:
        """The optimiser, with its schedule stepped at every update."""
        assert self.make_optimizer is not None
        optimizer = self.make_optimizer(self.parameter_groups())
        if self.make_schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        """Make the generator of the training noise, now that the device is known, and the count of diverged tasks."""
        self.generator = torch.Generator(self.trainer.strategy.root_device).manual_seed(self.seed + NOISE)
        if stage == "fit":
            stream = self.trainer.datamodule.stream  # type: ignore[attr-defined]  # Trainer does not declare it
            self.diverged_tasks = DivergedTasks(self.max_diverged, stream.batch_size)

    def on_validation_epoch_start(self) -> None:
        """Make the scorer of the weights of now."""
        self.scorer = self.trainer.datamodule.make_scorer(self.learner)  # type: ignore[attr-defined]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Mean scores over a fixed set of tasks; those that diverged have no loss, and are counted."""
        scores = self.scorer(batch)._asdict()
        diverged = scores.pop("diverged")
        num_tasks, num_diverged = len(diverged), int(diverged.sum())
        for name, score in scores.items():
            if name != "loss":
                self.log(f"val/{name}", score.mean(), batch_size=num_tasks, prog_bar=True)
            elif num_diverged < num_tasks:
                finite = score if not num_diverged else score[~diverged]
                self.log("val/loss", finite.mean(), batch_size=len(finite), prog_bar=True)
        self.log("val/diverged", float(num_diverged), batch_size=num_tasks, reduce_fx="sum")
        self.log("step", float(self.global_step - 1), batch_size=1)  # which Lightning takes for the logged step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the noise, and the count of diverged tasks."""
        assert self.generator is not None
        checkpoint["noise_generator"] = self.generator.get_state()
        checkpoint["diverged"] = self.diverged_tasks.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the noise where the checkpoint was taken."""
        assert self.generator is not None
        self.generator.set_state(checkpoint["noise_generator"].cpu())
        if "diverged" in checkpoint:  # which those made before tasks were counted lack
            self.diverged_tasks.load_state_dict(checkpoint["diverged"])


class TaskData(pl.LightningDataModule):
    """The stream of training tasks and the fixed validation tasks, all on the device already.

    ``make_scorer`` turns a learner into a function from a chunk of ``val_tasks`` to scores: a NamedTuple of one number
    a task each, with ``diverged`` among them.
    """

    def __init__(
        self,
        stream: BatchStream,
        val_tasks: Sequence[Any],
        make_scorer: Callable[[Any], Callable[[Any], NamedTuple]],
    ) -> None:
        super().__init__()
        self.stream, self.val_tasks, self.make_scorer = stream, val_tasks, make_scorer

    def train_dataloader(self) -> BatchStream:
        """Endless, in epochs of one validation interval; Lightning keeps its place in the checkpoint."""
        return self.stream

    def val_dataloader(self) -> DataLoader[Any]:
        """The same tasks at each validation, a chunk at a time."""
        return DataLoader(self.val_tasks, batch_size=None)  # type: ignore[arg-type]
