"""The images of the extractor's training: shuffled batches, and held-out images of the same classes."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from pretrain.store import ImageStore


class ImageBatch(NamedTuple):
    """Images uint8 [B, H, W, C] and their class numbers int64 [B]."""

    images: Tensor
    labels: Tensor


class Shuffle(Sampler[int]):
    """``rows`` in an order that ``seed`` and the number of the epoch, asked for at the start, alone decide."""

    def __init__(self, rows: Tensor, seed: int, epoch: Callable[[], int]) -> None:
        self.rows = rows
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch()]).permutation(len(self.rows))
        return iter(self.rows[torch.from_numpy(order)].tolist())


class Batches:
    """The images and labels of the rows that ``sampler`` names, ``batch_size`` at a time, read in this process."""

    def __init__(self, store: ImageStore, sampler: Iterable[int], batch_size: int, *, drop_last: bool) -> None:
        self.images, self.labels = store.images, store.labels
        self.rows = BatchSampler(sampler, batch_size, drop_last)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ImageBatch]:
        for rows in self.rows:
            yield ImageBatch(self.images[rows], self.labels[rows])


class TrainImages(LightningDataModule):
    """The train split's images, the last ``num_val_per_class`` of each class held out for validation.

    A resumed run sees the batches that the uninterrupted run would have seen.
    """

    def __init__(self, store: ImageStore, *, batch_size: int, num_val_per_class: int, seed: int) -> None:
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
        self.seed = seed

    def train_dataloader(self) -> Batches:
        def epoch() -> int:
            # By steps: trainer.current_epoch can be one too high in a resumed run with max_steps (Lightning 2.6).
            assert self.trainer is not None
            return self.trainer.global_step // len(batches)

        batches = Batches(self.store, Shuffle(self.train_rows, self.seed, epoch), self.batch_size, drop_last=True)
        return batches

    def val_dataloader(self) -> Batches:
        return Batches(self.store, self.val_rows.tolist(), self.batch_size, drop_last=False)
