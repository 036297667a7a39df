"""From listed images to the store: which format lies at the path, what it must hold, and the writing of it."""

import base64
import csv
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from pretrain.fingerprint import changes, digest, few, read_records, record, shown, write_records
from pretrain.sources.images import AGAIN
from pretrain.store import SPLITS, missing_splits, read_split, stream_split
from runner.errors import InputError, MissingFileError
from runner.folder import taking_turns
from runner.terminal import image_columns

log = logging.getLogger(__name__)

_CHUNK = 256  # images decoded before they are written
_SHOWN = 100  # bad files named in a message


class Split(NamedTuple):
    """The images of one meta-split, listed before any is decoded; ``read`` makes uint8 [H, W, C] of an item."""

    classes: Mapping[str, Sequence[Any]]
    read: Callable[[Any], NDArray[np.uint8]]


Splits = Mapping[str, Callable[[], Split]]  # by name; each is opened when its turn comes
Files = Mapping[str, Sequence[str]]  # by split: the files that it is made of, relative to the source


class Expected(NamedTuple):
    """What a split must hold: its classes, each with its places in the ILSVRC-2012 class, from 1 (None: all)."""

    classes: dict[str, list[int] | None]
    num_images: int


class Format(NamedTuple):
    """One way in which a data set circulates."""

    layout: str  # what lies at the path, for messages
    matches: Callable[[Path], bool]
    splits: Callable[[Path, dict[str, Expected], int], Splits]  # of path, what they must hold, image size
    files: Callable[[Path, dict[str, Expected]], Files]  # of path, what they must hold


def write_store(
    folder: Path,
    *,
    data: str,
    image_shape: tuple[int, int, int],
    source: dict[str, Any],
    root: Path | None,
    list_files: Callable[[Path], Files],
    open_source: Callable[[], tuple[str, Splits]],
) -> None:
    """Write the splits that ``folder`` lacks; splits made by other settings, or of other files, are an error.

    ``open_source`` gives the format's name and its splits; it is called only where one is missing. ``list_files``
    lists the files below ``root`` that they are made of: a store that is complete is compared with them, where they
    are still there. Safe to call from several processes at once: one writes, the others wait and find the work done.
    Memory: the list of the images (about 600 bytes each), what a format keeps open, and ``_CHUNK`` decoded images.
    """
    data = str(data)  # a name such as 2024 arrives as a number
    if Path(data).name != data or data == "None":
        raise InputError(f"data.name={data} is not the name of a folder; give one without slashes, like birds")
    if not missing_splits(folder, data, source):
        check_files(folder, SPLITS, root, list_files)
        return
    with taking_turns(folder / ".build.lock", f"the images in {folder}"):
        if not missing_splits(folder, data, source):
            check_files(folder, SPLITS, root, list_files)
            return
        format_name, splits = open_source()
        source = source | {"format": format_name}
        missing = missing_splits(folder, data, source)
        check_files(folder, [split for split in SPLITS if split not in missing], root, list_files)
        log.info("%s: making the images from %s", folder, format_name)
        assert root is not None
        files = list_files(root)
        for split in missing:
            _write(folder, data, split, splits[split](), image_shape, source, root, files[split])


def check_files(folder: Path, splits: Sequence[str], root: Path | None, list_files: Callable[[Path], Files]) -> None:
    """Raise where ``splits`` of the store ``folder`` were made of other files than those below ``root``.

    Accepted: a copy of the files, a source that is gone, and a store that was made before its files were recorded.
    """
    if root is None or not root.is_dir() or not splits:
        return
    recorded = {split: read_records(_records_path(folder, split)) for split in splits}
    for split, records in recorded.items():
        if read_split(folder, split).files != digest(records.values()):
            log.info("%s: what its %s split was made of is not recorded, and not compared", folder, split)
            return
    files = list_files(root) if any(root.iterdir()) else {}
    names = [name for split in splits for name in files.get(split, ())]
    if not names:
        log.info("%s: no file is left in %s; the store is used", folder, root)
        return
    found = changes(root, names, {name: one for records in recorded.values() for name, one in records.items()})
    if found:
        classes = [name for split in splits for name in read_split(folder, split).class_names]
        fingerprint = digest(one for records in recorded.values() for one in records.values())
        raise InputError(
            f"{shown(root)} is not what {folder} was made of: {found}. The store holds {len(classes):,} classes "
            f"({few(classes)}) of files with the fingerprint {fingerprint[:12]}. Delete {folder} and what was made of "
            f"it (features, runs), or keep both: give the images of now another data.name"
        )
    now = {one.name: one for one in found.records}
    for split, records in recorded.items():
        fresh = [now[name] for name in records]
        if fresh != list(records.values()):
            with suppress(OSError):  # a store that may only be read: the files are read again each time
                write_records(_records_path(folder, split), fresh)


def _records_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.files.csv"


def _write(
    folder: Path,
    data: str,
    split: str,
    images: Split,
    image_shape: tuple[int, int, int],
    source: dict[str, Any],
    root: Path,
    files: Sequence[str],
) -> None:
    items = list(chain.from_iterable(images.classes.values()))
    before = read_records(_records_path(folder, split))  # of an attempt that did not come to its end
    records = record(root, files, before)
    same = [before.get(one.name, one).sha256 == one.sha256 for one in records]
    # Where each image is a file, those before the first changed one are kept.
    num_kept = len(items) if all(same) else same.index(False) if len(files) == len(items) else 0
    bad: list[InputError] = []

    def attempt(item: Any) -> NDArray[np.uint8] | InputError:
        try:
            return images.read(item)
        except InputError as error:
            return error

    console = Console(stderr=True)
    with Progress(*image_columns(), console=console) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:

        def images_after(done: int) -> Iterator[NDArray[np.uint8]]:
            write_records(_records_path(folder, split), records)  # when images of other files have been cut off
            bar = progress.add_task(f"{data}: {split}", total=len(items), completed=done)
            for start in range(done, len(items), _CHUNK):
                for image in pool.map(attempt, items[start : start + _CHUNK]):
                    if isinstance(image, InputError):
                        bad.append(image)
                    elif not bad:  # what follows a bad image is read, to find all of them, but not written
                        yield image
                    progress.advance(bar)
            refuse(bad, len(items), "images")

        stream_split(
            folder,
            split,
            images_after,
            image_shape=image_shape,
            class_sizes={name: len(members) for name, members in images.classes.items()},
            data=data,
            source=source,
            content="\n".join(map(repr, items)),
            files=digest(records),
            num_kept=num_kept,
        )


def refuse(bad: Sequence[object], total: int, what: str) -> None:
    """Raise where something is ``bad``: all of it in one message, a line each."""
    if not bad:
        return
    said = [str(one).removesuffix(AGAIN) for one in bad]
    if len(said) == 1:
        raise InputError(said[0] + AGAIN)
    lines = "".join(f"\n  {one}" for one in said[:_SHOWN])
    more = f"\n  and {len(said) - _SHOWN:,} more" if len(said) > _SHOWN else ""
    raise InputError(
        f"{len(said):,} of {total:,} {what} cannot be used; replace or remove them and start again, which goes on from "
        f"there:{lines}{more}"
    )


def detect(path: str | None, formats: Mapping[str, Format]) -> tuple[str, Path]:
    """The name of the first of ``formats`` that lies at ``path``, the value of data.source.path; and the path."""
    looked_for = "; ".join(f"({i}) {format.layout}" for i, format in enumerate(formats.values(), start=1))
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
            + (f"; it lacks {few(absent)}" if absent else "")
            + (f"; it should not have {few(surplus)}" if surplus else "")
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
