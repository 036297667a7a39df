"""miniImageNet as ``{train,val,test}.csv`` (a header line, then image,class) and the folder ``images/``."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.sources.images import decode
from pretrain.sources.writing import Expected, Files, Format, Split, Splits, check_counts
from runner.errors import InputError, MissingFileError


def matches(path: Path) -> bool:
    """Whether one of the CSV files is there."""
    return any((path / f"{split}.csv").is_file() for split in ("train", "val", "test"))


def splits(path: Path, expected: dict[str, Expected], image_size: int) -> Splits:
    """All splits, listed and counted; every image that a row names must be there."""
    if not (path / "images").is_dir():
        raise MissingFileError(f"{path / 'images'} does not exist; the CSV files name the images in it")
    present = {child.name for child in (path / "images").iterdir()}
    read = partial(_read, path / "images", image_size)
    owner: dict[str, Path] = {}
    listed = {}
    for split, wanted in expected.items():
        file = path / f"{split}.csv"
        classes: dict[str, list[str]] = {}
        for line, image, name in _rows(file):
            if image not in present:
                raise MissingFileError(f"{file}, line {line}: {path / 'images' / image} does not exist")
            if image in owner:
                raise InputError(f"{file}, line {line}: image {image} is listed before, in {owner[image]}")
            owner[image] = file
            classes.setdefault(name, []).append(image)
        check_counts(file, split, {name: len(images) for name, images in classes.items()}, wanted)
        listed[split] = partial(Split, {name: classes[name] for name in sorted(classes)}, read)
    return listed


def files(path: Path, expected: dict[str, Expected]) -> Files:
    """The CSV file of each split, and the images that its rows name."""
    return {
        split: [f"{split}.csv", *(f"images/{image}" for _, image, _ in _rows(path / f"{split}.csv"))]
        for split in expected
    }


FORMAT = Format("train.csv, val.csv, test.csv (one header line, rows image,class) and images/", matches, splits, files)


def _rows(file: Path) -> list[tuple[int, str, str]]:
    """Line number, image and class of each row after the header."""
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist")
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(enumerate(csv.reader(text), start=1))[1:]
    for line, row in rows:
        if len(row) != 2:
            raise InputError(f"{file}, line {line}: {','.join(row)!r} is not a row image,class")
    return [(line, row[0], row[1]) for line, row in rows]


def _read(images: Path, image_size: int, name: str) -> NDArray[np.uint8]:
    return decode((images / name).read_bytes(), images / name, image_size, "RGB")
