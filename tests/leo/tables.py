"""Feature tables and files made on the spot."""

import json

import torch
from safetensors.torch import save_file

from leo.features import FeatureTable

ORIGIN = {"data": "toy", "extractor": "WRN-10-1", "layer": "9", "crop": "full", "checkpoint": "abc"}


def make_table(sizes, num_features=6, seed=0, spread=0.7):
    """Clusters of different sizes: each class around a random unit vector."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    centres = torch.nn.functional.normalize(torch.randn(len(sizes), num_features, generator=generator), dim=1)
    noise = spread * torch.randn(int(offsets[-1]), num_features, generator=generator) / num_features**0.5
    features = centres.repeat_interleave(torch.tensor(sizes), 0) + noise
    return FeatureTable(features, offsets, [f"class{seed}-{i}" for i in range(len(sizes))], ORIGIN | {"config": {}})


def write_features(folder, split, table, metadata=()):
    """A feature file as stage 1 writes it; ``metadata`` replaces entries."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        "format": "leo-features-1",
        "split": split,
        "class_names": json.dumps(table.class_names),
        "config": "{}",
        **ORIGIN,
        **dict(metadata),
    }
    path = folder / f"{split}.safetensors"
    save_file({"features": table.features, "offsets": table.offsets}, path, metadata=entries)
    return path


def write_splits(folder, num_classes=(12, 6, 6), num_images=30, num_features=8):
    """The three files of a toy data set."""
    for seed, (split, classes) in enumerate(zip(("train", "val", "test"), num_classes, strict=True)):
        write_features(folder, split, make_table([num_images] * classes, num_features, seed))
