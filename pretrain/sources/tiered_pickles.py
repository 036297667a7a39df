"""tieredImageNet as pickles: ``{split}_images_png.pkl``, a list of PNG files, and ``{split}_labels.pkl``."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.sources.images import decode
from pretrain.sources.unpickle import by_text, load, text
from pretrain.sources.writing import Expected, Files, Format, Split, Splits, check_total
from runner.errors import InputError, MissingFileError


def matches(path: Path) -> bool:
    """Whether one of the image pickles is there."""
    return any(path.glob("*_images_png.pkl"))


def splits(path: Path, expected: dict[str, Expected], image_size: int) -> Splits:
    """Two pickles a split, opened when its turn comes; memory as for miniImageNet's."""
    for split in expected:
        for name in _names(split):
            if not (path / name).is_file():
                raise MissingFileError(f"{name} is missing in {path}")
    return {split: partial(_open, path, split, wanted, image_size) for split, wanted in expected.items()}


def files(path: Path, expected: dict[str, Expected]) -> Files:
    """The two pickles of each split."""
    return {split: _names(split) for split in expected}


def _names(split: str) -> list[str]:
    return [f"{split}_images_png.pkl", f"{split}_labels.pkl"]


FORMAT = Format("{train,val,test}_images_png.pkl and {train,val,test}_labels.pkl", matches, splits, files)


def _open(path: Path, split: str, expected: Expected, image_size: int) -> Split:
    file = path / f"{split}_labels.pkl"
    content = by_text(load(file), file)
    if "label_specific" not in content:
        raise InputError(f"{file} lacks label_specific; it has {', '.join(sorted(content))}")
    labels = np.asarray(content["label_specific"])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{file}: label_specific is {labels.dtype} {list(labels.shape)}, expected whole numbers [N]")
    numbers = np.unique(labels)
    num_classes = len(expected.classes)
    if not np.array_equal(numbers, np.arange(num_classes)):
        raise InputError(f"{file}: the {split} split has {len(numbers)} classes, expected {num_classes}, from 0 on")
    names = [text(name) for name in content.get("label_specific_str", [])] or [""] * num_classes
    if len(names) != num_classes:
        raise InputError(f"{file}: label_specific_str has {len(names)} names for {num_classes} classes")
    check_total(file, split, len(labels), expected.num_images)

    file = path / f"{split}_images_png.pkl"
    images = load(file)
    if not isinstance(images, list):
        raise InputError(f"{file} holds a {type(images).__name__}, expected a list of PNG files")
    check_total(file, split, len(images), expected.num_images)
    # English names repeat ("crane" is a bird and a machine), so the split and the number stand before them.
    classes = {
        f"{split}/{number:03d} {name}".rstrip(): np.flatnonzero(labels == number).tolist()
        for number, name in enumerate(names)
    }
    return Split(classes, partial(_read, file, images, image_size))


def _read(file: Path, images: list[NDArray[np.uint8]], image_size: int, index: int) -> NDArray[np.uint8]:
    content = images[index]
    if not isinstance(content, np.ndarray) or content.dtype != np.uint8:
        raise InputError(f"{file}: image {index} is not an array of bytes")
    return decode(content.tobytes(), f"{index} of {file}", image_size, "RGB")
