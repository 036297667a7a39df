"""Nearest-centroid accuracy of an extractor on tasks of classes it was not trained on: a curve to watch in training."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data import OrderedBatches
from pretrain.store import ImageStore
from runner.errors import InputError

IMAGES_PER_CLASS = 100  # enough for a curve; tieredImageNet's validation classes have 1,300


class CentroidAccuracy:
    """Accuracy over ``num_tasks`` tasks of ``store``, the same at every call, by cosine to the mean of the support."""

    def __init__(
        self, store: ImageStore, *, num_tasks: int, num_way: int, num_shot: int, num_query: int, batch_size: int
    ) -> None:
        per_class = min(int(store.offsets.diff().min()), IMAGES_PER_CLASS)
        if num_shot + num_query > per_class:
            raise InputError(
                f"num_shot + num_query = {num_shot + num_query} exceeds the {per_class} images of a class that "
                f"centroid_tasks draws from; lower one of them"
            )
        if num_way > len(store.class_names):
            raise InputError(
                f"num_way={num_way} exceeds the {len(store.class_names)} classes of the {store.split} split; "
                f"lower num_way"
            )
        rows = store.offsets[:-1, None] + torch.arange(per_class)
        self.batches = OrderedBatches(store, rows.flatten(), batch_size=batch_size)
        self.shape = rows.shape
        generator = torch.Generator().manual_seed(0)
        self.tasks = [
            (
                torch.randperm(self.shape[0], generator=generator)[:num_way, None],
                torch.rand(num_way, per_class, generator=generator).argsort(dim=1)[:, : num_shot + num_query],
            )
            for _ in range(num_tasks)
        ]
        self.num_shot = num_shot

    def __call__(self, represent: Callable[[Tensor], Tensor]) -> float:
        """A fraction; ``represent`` makes features [B, D] of uint8 images [B, H, W, C]."""
        features = torch.cat([represent(self.batches[index].images) for index in range(len(self.batches))])
        features = F.normalize(features, dim=1).unflatten(0, self.shape)
        correct = [self.correct(features[classes, images]) for classes, images in self.tasks]
        return torch.stack(correct).mean().item()

    def correct(self, task: Tensor) -> Tensor:
        """The fraction of queries of ``task`` [N, K + Q, D] that are nearest to their own class's centroid."""
        support, query = task[:, : self.num_shot], task[:, self.num_shot :]
        cosines = query @ F.normalize(support.mean(dim=1), dim=1).T  # [N, Q, N]
        return (cosines.argmax(dim=2) == torch.arange(len(task), device=task.device)[:, None]).float().mean()
