"""From listed images to the store: which format lies at the path, what it must hold, and the writing of it."""

import base64
import csv
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from pretrain.store import SPLITS, missing_splits, stream_split
from runner.errors import InputError, MissingFileError
from runner.folder import taking_turns

log = logging.getLogger(__name__)

_CHUNK = 256  # images decoded before they are written


class Split(NamedTuple):
    """The images of one meta-split, listed before any is decoded; ``read`` makes uint8 [H, W, C] of an item."""

    classes: Mapping[str, Sequence[Any]]
    read: Callable[[Any], NDArray[np.uint8]]


Splits = Mapping[str, Callable[[], Split]]  # by name; each is opened when its turn comes


class Expected(NamedTuple):
    """What a split must hold: its classes, each with its places in the ILSVRC-2012 class, from 1 (None: all)."""

    classes: dict[str, list[int] | None]
    num_images: int


class Format(NamedTuple):
    """One way in which a data set circulates."""

    files: str  # what lies at the path, for messages
    matches: Callable[[Path], bool]
    splits: Callable[[Path, dict[str, Expected], int], Splits]  # of path, what they must hold, image size


def write_store(
    folder: Path,
    *,
    data: str,
    image_shape: tuple[int, int, int],
    source: dict[str, Any],
    open_source: Callable[[], tuple[str, Splits]],
) -> None:
    """Write the splits that ``folder`` lacks; splits made by other settings are an error.

    ``open_source`` gives the format's name and its splits; it is called only where one is missing. Safe to call from
    several processes at once: one writes, the others wait and find the work done. Memory: the list of the images
    (about 200 bytes each), what a format keeps open, and ``_CHUNK`` decoded images.
    """
    if not missing_splits(folder, data, source):
        return
    with taking_turns(folder / ".build.lock", f"the images in {folder}"):
        if not missing_splits(folder, data, source):
            return
        format_name, splits = open_source()
        source = source | {"format": format_name}
        log.info("%s: making the images from %s", folder, format_name)
        for split in missing_splits(folder, data, source):
            _write(folder, data, split, splits[split](), image_shape, source)


def _write(
    folder: Path, data: str, split: str, images: Split, image_shape: tuple[int, int, int], source: dict[str, Any]
) -> None:
    items = list(chain.from_iterable(images.classes.values()))
    with Progress(console=Console(stderr=True)) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:

        def images_after(done: int) -> Iterator[NDArray[np.uint8]]:
            bar = progress.add_task(f"{data}: {split}", total=len(items), completed=done)
            for start in range(done, len(items), _CHUNK):
                for image in pool.map(images.read, items[start : start + _CHUNK]):
                    yield image
                    progress.advance(bar)

        stream_split(
            folder,
            split,
            images_after,
            image_shape=image_shape,
            class_sizes={name: len(members) for name, members in images.classes.items()},
            data=data,
            source=source,
            content="\n".join(map(repr, items)),
        )


def detect(path: str | None, formats: Mapping[str, Format]) -> tuple[str, Path]:
    """The name of the first of ``formats`` that lies at ``path``, the value of data.source.path; and the path."""
    looked_for = "; ".join(f"({i}) {format.files}" for i, format in enumerate(formats.values(), start=1))
    root = existing(path, "data.source.path", looked_for)
    for name, format in formats.items():
        if format.matches(root):
            return name, root
    raise InputError(f"data.source.path={path} holds none of what is looked for: {looked_for}")


def existing(path: str | None, key: str, looked_for: str) -> Path:
    """The folder ``path``, after checking that it is one."""
    if path is None:
        raise InputError(f"{key} is not set; add {key}=PATH, a folder with {looked_for}")
    if not Path(path).is_dir():
        raise MissingFileError(f"{key}={path} is not a folder; it must be one with {looked_for}")
    return Path(path)


def split_rows(split_file: str) -> dict[str, list[dict[str, str]]]:
    """The rows of a split file, by split; a relative path is one of this package."""
    path = Path(__file__).parent / split_file
    if not path.is_file():
        raise MissingFileError(f"split file {path} does not exist")
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] not in rows:
                raise InputError(f"{path}: split {row['split']!r} is not one of {', '.join(SPLITS)}")
            rows[row["split"]].append(row)
    return rows


def ilsvrc_classes(split_file: str, num_images: Mapping[str, int] | None) -> dict[str, Expected]:
    """What a split file of ILSVRC-2012 classes asks for.

    Its column ``images`` holds a bit mask in base64, whose first bit is the first image of the class. Where it has
    none, all images of a class belong to it, and ``num_images`` says how many the split must have.
    """
    expected = {}
    for split, rows in split_rows(split_file).items():
        places = {row["class"]: _places(row["images"]) if "images" in row else None for row in rows}
        if num_images is None:
            total = sum(len(chosen) for chosen in places.values() if chosen is not None)
        else:
            total = num_images[split]
        expected[split] = Expected(places, total)
    return expected


def _places(mask: str) -> list[int]:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8))
    return [int(place) + 1 for place in bits.nonzero()[0]]


def check_counts(where: Path, split: str, sizes: Mapping[str, int], expected: Expected) -> None:
    """Raise where the classes found, with their numbers of images, are not those expected."""
    absent, surplus = sorted(expected.classes.keys() - sizes.keys()), sorted(sizes.keys() - expected.classes.keys())
    if absent or surplus:
        raise InputError(
            f"{where}: the {split} split has {len(sizes)} classes, expected {len(expected.classes)}"
            + (f"; it lacks {_few(absent)}" if absent else "")
            + (f"; it should not have {_few(surplus)}" if surplus else "")
        )
    for name, places in expected.classes.items():
        if places is not None and sizes[name] != len(places):
            raise InputError(
                f"{where}: class {name} of the {split} split has {sizes[name]} images, expected {len(places)}"
            )
    check_total(where, split, sum(sizes.values()), expected.num_images)


def check_total(where: Path, split: str, found: int, expected: int) -> None:
    """Raise where a split has another number of images than it should."""
    if found != expected:
        raise InputError(f"{where}: the {split} split has {found:,} images, expected {expected:,}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
