"""miniImageNet as three pickles, ``mini-imagenet-cache-{train,val,test}.pkl``: arrays of images, indices by class."""

from functools import partial
from pathlib import Path

import numpy as np

from pretrain.sources.images import resize
from pretrain.sources.unpickle import by_text, load
from pretrain.sources.writing import Expected, Files, Format, Split, Splits, check_counts
from runner.errors import InputError, MissingFileError


def matches(path: Path) -> bool:
    """Whether one of the pickles is there."""
    return any(path.glob("mini-imagenet-cache-*.pkl"))


def splits(path: Path, expected: dict[str, Expected], image_size: int) -> Splits:
    """A pickle a split, opened when its turn comes; it takes its size in memory, up to twice that to open."""
    files = {split: _file(path, split) for split in expected}
    return {split: partial(_open, files[split], split, wanted, image_size) for split, wanted in expected.items()}


def files(path: Path, expected: dict[str, Expected]) -> Files:
    """The pickle of each split."""
    return {split: [_file(path, split).name] for split in expected}


FORMAT = Format("mini-imagenet-cache-train.pkl, -val.pkl (or -validation.pkl) and -test.pkl", matches, splits, files)


def _file(path: Path, split: str) -> Path:
    names = [f"mini-imagenet-cache-{name}.pkl" for name in ([split, "validation"] if split == "val" else [split])]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise MissingFileError(f"{' or '.join(names)} is missing in {path}")


def _open(file: Path, split: str, expected: Expected, image_size: int) -> Split:
    content = by_text(load(file), file)
    if lacking := {"image_data", "class_dict"} - content.keys():
        raise InputError(f"{file} lacks {', '.join(sorted(lacking))}; it has {', '.join(sorted(content))}")
    images, by_class = content["image_data"], by_text(content["class_dict"], file)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f"{file}: image_data is {found}, expected uint8 [N, 84, 84, 3]")
    if len(by_class) != len(content["class_dict"]):
        raise InputError(f"{file}: a class occurs twice, as text and as bytes")
    classes = {name: [int(index) for index in by_class[name]] for name in sorted(by_class)}
    check_counts(file, split, {name: len(indices) for name, indices in classes.items()}, expected)
    owner: dict[int, str] = {}
    for name, indices in classes.items():
        for index in indices:
            if not 0 <= index < len(images):
                raise InputError(f"{file}: class {name} names image {index}, image_data has {len(images)}")
            if index in owner:
                raise InputError(f"{file}: image {index} is in class {owner[index]} and in class {name}")
            owner[index] = name
    return Split(classes, lambda index: resize(images[index], image_size))
