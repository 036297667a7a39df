"""The images of the extractor's training: shuffled batches, and held-out images of the same classes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.store import ImageStore
from runner.errors import InputError


class ImageBatch(NamedTuple):
    """Images uint8 [B, H, W, C] and their class numbers int64 [B]."""

    images: Tensor
    labels: Tensor


def read(store: ImageStore, labels: Tensor, rows: Tensor) -> ImageBatch:
    """A copy of ``rows`` of the memory map, in page-locked memory where a GPU can fetch it while it computes."""
    batch = ImageBatch(store.images.index_select(0, rows), labels[rows])
    return ImageBatch(*(part.pin_memory() for part in batch)) if torch.cuda.is_available() else batch


class ShuffledBatches:
    """Endless batches of ``rows`` in shuffled passes, those of ``length`` steps at a time.

    The batch of step s is a function of ``seed`` and s alone, so a resumed run sees what the straight one
    would have seen. ``step`` tells the step at which an iteration begins; it ends at the next multiple of ``length``.
    Each batch is cut into ``num_parts`` equal parts, of which ``parts`` are served, one after another: the share of
    one of several processes, or what a step accumulates its gradient from.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: Tensor,
        *,
        batch_size: int,
        num_parts: int,
        parts: range,
        seed: int,
        length: int,
        step: Callable[[], int],
    ) -> None:
        if batch_size % num_parts:
            raise InputError(
                f"batch_size={batch_size} cannot be cut into {num_parts} equal parts, the number of processes times "
                f"accumulate_grad_batches"
            )
        self.store, self.rows, self.labels = store, rows, store.labels
        self.batch_size, self.num_parts, self.parts = batch_size, num_parts, parts
        self.seed, self.length, self.step = seed, length, step
        self.batches_per_pass = len(rows) // batch_size

    def __len__(self) -> int:
        return self.length * len(self.parts)

    def __iter__(self) -> Iterator[ImageBatch]:
        first, order, shuffled = self.step(), torch.empty(0), -1
        for step in range(first, (first // self.length + 1) * self.length):
            number, place = divmod(step, self.batches_per_pass)
            if number != shuffled:
                permutation = np.random.default_rng([self.seed, number]).permutation(len(self.rows))
                order, shuffled = self.rows[torch.from_numpy(permutation)], number
            batch = order[place * self.batch_size : (place + 1) * self.batch_size].view(self.num_parts, -1)
            for part in self.parts:
                yield read(self.store, self.labels, batch[part])


class OrderedBatches(Dataset[ImageBatch]):
    """The images of ``rows`` in this order, at most ``batch_size`` at a time, read when they are asked for."""

    def __init__(self, store: ImageStore, rows: Tensor, *, batch_size: int) -> None:
        self.store, self.labels, self.batches = store, store.labels, rows.split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ImageBatch:
        return read(self.store, self.labels, self.batches[index])


class TrainImages(LightningDataModule):
    """The train split's images, the last ``num_val_per_class`` of each class held out for validation.

    An epoch, after which validation follows, is ``val_every`` batches.
    """

    def __init__(
        self, store: ImageStore, *, batch_size: int, num_val_per_class: int, val_every: int, seed: int
    ) -> None:
        super().__init__()
        counts = store.offsets.diff()
        smallest = int(counts.argmin())
        if not 1 <= num_val_per_class < counts[smallest]:
            raise InputError(
                f"num_val_per_class={num_val_per_class} must be at least 1 and less than the {counts[smallest]} "
                f"images of class {store.class_names[smallest]!r}"
            )
        held_out = torch.arange(len(store.labels)) >= (store.offsets[1:] - num_val_per_class)[store.labels]
        self.train_rows = (~held_out).nonzero().squeeze(1)
        self.val_rows = held_out.nonzero().squeeze(1)
        if batch_size > len(self.train_rows):
            raise InputError(f"batch_size={batch_size} is more than the {len(self.train_rows)} training images")
        self.store = store
        self.batch_size = batch_size
        self.val_every = val_every
        self.seed = seed

    def train_dataloader(self) -> ShuffledBatches:
        """This process's share of the batches."""
        trainer = self.trainer
        assert trainer is not None
        per_step = trainer.accumulate_grad_batches
        return ShuffledBatches(
            self.store,
            self.train_rows,
            batch_size=self.batch_size,
            num_parts=trainer.world_size * per_step,
            parts=range(trainer.global_rank * per_step, (trainer.global_rank + 1) * per_step),
            seed=self.seed,
            length=self.val_every,
            step=lambda: trainer.global_step,
        )

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        """This process's share of the held-out images, in the parts that training has them in."""
        trainer = self.trainer
        assert trainer is not None
        num_parts = trainer.world_size * trainer.accumulate_grad_batches
        batches = OrderedBatches(
            self.store,
            self.val_rows[trainer.global_rank :: trainer.world_size],
            batch_size=self.batch_size // num_parts,
        )
        return DataLoader(batches, batch_size=None)
