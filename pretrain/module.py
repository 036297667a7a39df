"""Training of the feature extractor: classification of all training classes at once (Appendix B.2)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric

from pretrain.augment import to_float
from pretrain.centroid import CentroidAccuracy
from pretrain.data import ImageBatch
from pretrain.wide_resnet import WideResNet
from runner.errors import InputError


def warmup_cosine(optimizer: Optimizer, *, num_warmup: int, num_steps: int) -> LambdaLR:
    """The optimizer's rate reached linearly over ``num_warmup`` steps, then a half cosine to 0 at ``num_steps``."""
    if not 0 <= num_warmup < num_steps:
        raise InputError(f"num_warmup={num_warmup} must be at least 0 and less than num_steps={num_steps}")

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup))

    return LambdaLR(optimizer, factor)


class Pretraining(LightningModule):
    """Classification with cross-entropy (nats); ``schedule`` advances the learning rate after every step.

    Training sees images through ``augment``, validation through ``crop``. ``mean`` and ``std`` hold one value per
    channel, in units of the full range, 0 to 1. The checkpoint carries them and the state of torch's random
    generators, so that a resumed run draws what the uninterrupted one would have. ``centroid_accuracy``, where it is
    given, is logged after each validation.
    """

    def __init__(
        self,
        *,
        network: WideResNet,
        augment: nn.Module,
        crop: nn.Module,
        centroid_accuracy: CentroidAccuracy | None,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        label_smoothing: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # a fifth less CPU time per step
        self.augment, self.crop, self.centroid_accuracy = augment, crop, centroid_accuracy
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.label_smoothing = label_smoothing
        # Lightning's own mean over processes of unequal shares rounds the number of images.
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.random_state: dict[str, Tensor] = {}

    def to_input(self, images: Tensor, view: nn.Module) -> Tensor:
        """The network's input, float [B, C, H, W], of uint8 images [B, H, W, C] seen through ``view``."""
        with torch.autocast(images.device.type, enabled=False):  # bf16 is too coarse for coordinates
            return to_float(view(images), self.mean, self.std)

    def classify(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """The loss and the logits of a training batch."""
        logits = self.network(self.to_input(batch.images, self.augment))
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing), logits

    def training_step(self, batch: ImageBatch, batch_index: int) -> Tensor:
        loss, logits = self.classify(batch)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            if not loss.isfinite():
                raise InputError(f"train/loss is {loss.item()} at step {self.global_step + 1}; lower the learning rate")
            self.log("train/loss", loss, sync_dist=True)
            self.log("train/accuracy", accuracy(logits, batch.labels), sync_dist=True)
        return loss

    def validation_step(self, batch: ImageBatch, batch_index: int) -> None:
        """Plain cross-entropy, without label smoothing, and accuracy over the held-out images."""
        logits = self.network(self.to_input(batch.images, self.crop))
        size = len(batch.labels)
        self.val_loss.update(F.cross_entropy(logits, batch.labels), size)
        self.val_accuracy.update(accuracy(logits, batch.labels), size)
        self.log("val/loss", self.val_loss, batch_size=size)
        self.log("val/accuracy", self.val_accuracy, batch_size=size)

    def on_validation_epoch_end(self) -> None:
        """All processes compute the same."""
        if self.centroid_accuracy is not None:
            self.log("val/centroid_accuracy", self.centroid_accuracy(self.represent), sync_dist=True)

    def represent(self, images: Tensor) -> Tensor:
        """The last features, float [B, D], of uint8 images [B, H, W, C]."""
        layer = self.network.penultimate
        return self.network.features(self.to_input(images.to(self.device), self.crop), [layer])[layer]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["random_state"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.random_state = checkpoint["random_state"]

    def on_train_start(self) -> None:
        """Here, as nothing draws from the generators between this hook and the first batch."""
        if "cpu" in self.random_state:
            torch.set_rng_state(self.random_state["cpu"].cpu())
        if "cuda" in self.random_state and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random_state["cuda"].cpu(), self.device)
        if self.global_rank:  # the state is that of process 0, and the others must not draw the same
            torch.manual_seed(int(torch.randint(2**62, ())) + self.global_rank)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The fraction of rows whose largest logit is the label's."""
    return (logits.argmax(dim=1) == labels).float().mean()
