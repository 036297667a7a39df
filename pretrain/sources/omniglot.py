"""Omniglot at 28x28, in the split that Vinyals et al. (2016) made and Snell et al. (2017) published."""

import logging
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import Omniglot

from pretrain.sources.images import decode
from pretrain.sources.writing import Files, Split, Splits, split_rows, write_store
from runner.errors import InputError, MissingFileError

log = logging.getLogger(__name__)

FOLDER = "omniglot-py"
PARTS = {"images_background": True, "images_evaluation": False}  # folder: torchvision's ``background``


class Drawing(NamedTuple):
    """One drawing, turned anticlockwise by ``quarters`` of a full turn."""

    file: str
    quarters: int


def build(
    folder: Path, *, path: str, data: str, image_size: int, split_file: str, images_per_class: int, rotations: bool
) -> None:
    """Write the characters of ``split_file``; with ``rotations``, each of train is four classes, one a quarter turn.

    What of ``omniglot-py/`` is missing in ``path``, torchvision downloads there first.
    """
    write_store(
        folder,
        data=data,
        image_shape=(image_size, image_size, 1),
        source={"image_size": image_size, "split_file": split_file, "rotations": rotations},
        root=Path(path, FOLDER),
        list_files=partial(_list_files, split_file, images_per_class),
        open_source=partial(_open, Path(path), image_size, split_file, images_per_class, rotations),
    )


def _open(path: Path, image_size: int, split_file: str, images_per_class: int, rotations: bool) -> tuple[str, Splits]:
    root = path / FOLDER
    for part, background in PARTS.items():
        if (root / part).is_dir():
            continue
        log.info("downloading Omniglot's %s to %s", part, path)
        try:
            Omniglot(path, background=background, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Omniglot could not be downloaded to {path} ({error}); fetch {Omniglot.download_url_prefix}/"
                f"images_background.zip and images_evaluation.zip, unpack both into omniglot-py/, and add "
                f"data.source.path=PATH, the folder with omniglot-py/"
            ) from error
    listed: dict[str, dict[str, list[Drawing]]] = {}
    for split, characters in _characters(root, split_file, images_per_class).items():
        listed[split] = {}
        for name, files in characters.items():
            for quarters in range(4) if rotations and split == "train" else range(1):
                turned = f"{name}/rot{90 * quarters:03d}" if quarters else name
                listed[split][turned] = [Drawing(file, quarters) for file in files]
    read = partial(_read, root, image_size)
    return FOLDER, {split: partial(Split, classes, read) for split, classes in listed.items()}


def _list_files(split_file: str, images_per_class: int, root: Path) -> Files:
    listed = _characters(root, split_file, images_per_class)
    return {split: list(chain.from_iterable(characters.values())) for split, characters in listed.items()}


def _characters(root: Path, split_file: str, images_per_class: int) -> dict[str, dict[str, list[str]]]:
    """The drawings of each character of each split."""
    alphabets = {alphabet.name: alphabet for part in PARTS for alphabet in (root / part).glob("*")}
    return {
        split: {
            name: _files(root, alphabets.get(row["alphabet"]), name, images_per_class)
            for row in rows
            for number in range(int(row["first"]), int(row["last"]) + 1)
            for name in [f"{row['alphabet']}/character{number:02d}"]
        }
        for split, rows in split_rows(split_file).items()
    }


def _files(root: Path, alphabet: Path | None, name: str, images_per_class: int) -> list[str]:
    folder = alphabet / Path(name).name if alphabet is not None else None
    if folder is None or not folder.is_dir():
        raise MissingFileError(f"character {name} is missing in {root}/images_background and images_evaluation")
    files = sorted(file.relative_to(root).as_posix() for file in folder.glob("*.png"))
    if len(files) != images_per_class:
        raise InputError(f"{folder} has {len(files)} drawings, expected {images_per_class}")
    return files


def _read(root: Path, image_size: int, drawing: Drawing) -> NDArray[np.uint8]:
    file = root / drawing.file
    return np.rot90(decode(file.read_bytes(), file, image_size, "L"), drawing.quarters)
