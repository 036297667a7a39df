"""The images of the extractor's training: shuffled batches, and held-out images of the same classes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain.store import ImageStore


class ImageBatch(NamedTuple):
    """Images uint8 [B, H, W, C] and their class numbers int64 [B]."""

    images: Tensor
    labels: Tensor


class ShuffledBatches:
    """Endless batches of ``rows`` in shuffled passes, served ``length`` at a time.

    The batch of step s is a function of ``seed`` and s alone, so a resumed run sees what the straight one
    would have seen. ``step`` tells the step at which an iteration begins; it ends at the next multiple of ``length``.
    """

    def __init__(
        self, store: ImageStore, rows: Tensor, *, batch_size: int, seed: int, length: int, step: Callable[[], int]
    ) -> None:
        self.store, self.rows, self.labels = store, rows, store.labels
        self.batch_size, self.seed, self.length, self.step = batch_size, seed, length, step
        self.batches_per_pass = len(rows) // batch_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[ImageBatch]:
        first, order, shuffled = self.step(), torch.empty(0), -1
        for step in range(first, (first // self.length + 1) * self.length):
            number, place = divmod(step, self.batches_per_pass)
            if number != shuffled:
                permutation = np.random.default_rng([self.seed, number]).permutation(len(self.rows))
                order, shuffled = self.rows[torch.from_numpy(permutation)], number
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield ImageBatch(self.store.images[batch], self.labels[batch])


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
            raise ValueError(
                f"num_val_per_class={num_val_per_class} must be at least 1 and less than the {counts[smallest]} "
                f"images of class {store.class_names[smallest]!r}"
            )
        held_out = torch.arange(len(store.labels)) >= (store.offsets[1:] - num_val_per_class)[store.labels]
        self.train_rows = (~held_out).nonzero().squeeze(1)
        self.val_rows = held_out.nonzero().squeeze(1)
        if batch_size > len(self.train_rows):
            raise ValueError(f"batch_size={batch_size} is more than the {len(self.train_rows)} training images")
        self.store = store
        self.batch_size = batch_size
        self.val_every = val_every
        self.seed = seed

    def train_dataloader(self) -> ShuffledBatches:
        return ShuffledBatches(
            self.store,
            self.train_rows,
            batch_size=self.batch_size,
            seed=self.seed,
            length=self.val_every,
            step=lambda: self.trainer.global_step,  # type: ignore[union-attr]
        )

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        batches = (
            ImageBatch(self.store.images[rows], self.store.labels[rows])
            for rows in self.val_rows.split(self.batch_size)
        )
        return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]
