"""The few-shot curve of the extractor's training, against a loop over tasks in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.centroid import CentroidAccuracy
from pretrain.store import ImageStore


def build_store() -> ImageStore:
    """Four classes of 10, 12, 11 and 10 images; pixel 0 is the image's number, pixel 1 its class's."""
    offsets = torch.tensor([0, 10, 22, 33, 43])
    labels = torch.arange(4).repeat_interleave(offsets.diff())
    images = torch.stack([torch.arange(43), labels], dim=1).byte().reshape(43, 1, 2, 1)
    return ImageStore(images, offsets, ["a", "b", "c", "d"], "val", "numbers", {})


def build(**changes: Any) -> CentroidAccuracy:
    settings = {"num_tasks": 20, "num_way": 3, "num_shot": 2, "num_query": 4, "batch_size": 7} | changes
    return CentroidAccuracy(build_store(), **settings)


def test_equals_a_loop_over_tasks() -> None:
    table = np.random.default_rng(0).normal(size=(43, 6)) + 2 * np.eye(6)[build_store().labels]

    def represent(images: Tensor) -> Tensor:
        return torch.from_numpy(table)[images[:, 0, 0, 0].long()]

    accuracy = build()
    starts, correct = build_store().offsets, []
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    for classes, images in accuracy.tasks:
        rows = [[int(starts[label]) + int(image) for image in row] for label, row in zip(classes, images, strict=True)]
        assert len({row for of_class in rows for row in of_class}) == 3 * 6
        centroids = [units[of_class[:2]].mean(axis=0) for of_class in rows]
        for label, of_class in enumerate(rows):
            for query in of_class[2:]:
                cosines = [units[query] @ centroid / np.linalg.norm(centroid) for centroid in centroids]
                correct.append(np.argmax(cosines) == label)
    assert 0.4 < np.mean(correct) < 0.95
    assert accuracy(represent) == pytest.approx(np.mean(correct))
    assert accuracy(represent) == build()(represent)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"num_shot \+ num_query = 11 exceeds the 10 images"):
        build(num_query=9)
    with pytest.raises(ValueError, match=r"num_way=5 exceeds the 4 classes of the val split"):
        build(num_way=5)
