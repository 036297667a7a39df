"""Meta-training as a Lightning module: optimiser, clipping, logging. The arithmetic is the learner's."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from leo.clipping import clip_gradients
from leo.episodes import TaskIndices, Tasks, TaskStream
from leo.evaluate import Scorer
from leo.features import FeatureTable, Normalizer
from leo.learner import Learner

NOISE = 1 << 31  # keeps the seed of the noise apart from that of the tasks


class MetaLearning(pl.LightningModule):
    """Trains ``learner`` on tasks of normalised features.

    Logs ``train/loss``, each of its terms, ``train/accuracy`` (on dropped-out queries) and the mean of each vector
    of learned rates every ``log_every_n_steps``; ``val/accuracy`` and ``val/loss`` at each validation.

    Args:
        learner: what is trained.
        normalizer: fitted to the training features; kept here so that the checkpoint carries it.
        optimizer, schedule: called with the parameters, and with the optimiser (None: a constant rate).
        clip_value, clip_norm: see ``leo.clipping``. As the optimiser, None only for a learner that is not trained.
        seed: of all noise of training; its generator lies on the device of training.
    """

    def __init__(
        self,
        learner: Learner,
        normalizer: Normalizer,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None,
        schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None,
        clip_value: float | None,
        clip_norm: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.learner, self.normalizer = learner, normalizer
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.clip_value, self.clip_norm, self.seed = clip_value, clip_norm, seed
        self.generator: torch.Generator | None = None
        self.last_finite_loss: float | None = None

    def training_step(self, batch: Tasks, batch_idx: int) -> Tensor:
        """Eq. 6 on a batch of tasks."""
        assert self.generator is not None
        terms = self.learner.meta_loss(batch, self.generator)
        if not terms["loss"].isfinite():
            shown = ", ".join(f"{name} {value.item():.6g}" for name, value in terms.items())
            raise ValueError(
                f"the training loss is not finite at step {self.global_step} ({shown}; last finite loss "
                f"{self.last_finite_loss}); lower the learning rate or the initial inner rates"
            )
        self.last_finite_loss = terms["loss"].item()
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rates = {
                name: parameter.detach().mean()
                for name, parameter in self.learner.named_parameters()
                if name.endswith("_lr")
            }
            self.log_dict({f"train/{name}": value.detach() for name, value in (terms | rates).items()}, prog_bar=True)
        return terms["loss"]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip as the released code does; Lightning's own clipping is not used."""
        assert self.clip_value is not None
        assert self.clip_norm is not None
        clip_gradients(self.learner.parameters(), self.clip_value, self.clip_norm)

    def configure_optimizers(self) -> Any:
        """The optimiser, with its schedule stepped at every update."""
        assert self.make_optimizer is not None
        optimizer = self.make_optimizer(self.learner.parameters())
        if self.make_schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        """Make the generator of the training noise, now that the device is known."""
        self.generator = torch.Generator(self.trainer.strategy.root_device).manual_seed(self.seed + NOISE)

    def on_validation_epoch_start(self) -> None:
        """Embed the validation images with the weights of now."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.scorer = Scorer(self.learner, data.val_table, data.num_shot)

    def validation_step(self, batch: TaskIndices, batch_idx: int) -> None:
        """Mean accuracy and loss over a fixed set of tasks."""
        scores = self.scorer(batch)
        values = {"val/accuracy": scores.accuracy.mean(), "val/loss": scores.loss.mean()}
        self.log_dict(values, batch_size=len(scores.accuracy), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the noise."""
        assert self.generator is not None
        checkpoint["noise_generator"] = self.generator.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the noise where the checkpoint was taken."""
        assert self.generator is not None
        self.generator.set_state(checkpoint["noise_generator"].cpu())


class TaskData(pl.LightningDataModule):
    """The stream of training tasks and the fixed validation tasks, on tables that lie on the device already."""

    def __init__(self, stream: TaskStream, val_table: FeatureTable, val_tasks: list[TaskIndices]) -> None:
        super().__init__()
        self.stream, self.val_table, self.val_tasks = stream, val_table, val_tasks
        self.num_shot = stream.num_shot

    def train_dataloader(self) -> TaskStream:
        """Endless, in epochs of one validation interval; Lightning keeps its place in the checkpoint."""
        return self.stream

    def val_dataloader(self) -> DataLoader[TaskIndices]:
        """The same tasks at each validation, a chunk at a time."""
        return DataLoader(self.val_tasks, batch_size=None)  # type: ignore[arg-type]
