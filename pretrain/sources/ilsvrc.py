"""ILSVRC-2012 training images: a folder a class, or the class's tar, which is read where it lies."""

import re
import tarfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from pretrain.sources.images import decode
from pretrain.sources.walk import is_litter
from pretrain.sources.writing import Expected, Files, Format, Split, Splits, check_counts
from runner.errors import InputError, MissingFileError

_CLASS = re.compile(r"(n\d{8})(\.tar)?")
_IMAGE = re.compile(r"(n\d{8})_(\d+)\.JPEG")


class Part(NamedTuple):
    """One image: a whole file, or the ``size`` bytes from ``start`` on of an archive; ``member`` is its name there."""

    file: str
    member: str
    start: int
    size: int  # -1: to the end


def matches(path: Path) -> bool:
    """Whether ``path`` holds a folder or a tar that is named as a class is."""
    return any(_CLASS.fullmatch(child.name) for child in path.iterdir())


def splits(path: Path, expected: dict[str, Expected], image_size: int) -> Splits:
    """All splits, listed and counted; an index counts a class's images in the order of their numbers."""
    listed: dict[str, dict[str, list[Part]]] = {split: {} for split in expected}
    names = [(split, name) for split, wanted in expected.items() for name in wanted.classes]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for split, name in progress.track(names, description="Listing the classes"):
            listed[split][name] = _chosen(path, name, expected[split].classes[name])
    for split, wanted in expected.items():
        check_counts(path, split, {name: len(parts) for name, parts in listed[split].items()}, wanted)
    read = partial(_read, path, image_size)
    return {split: partial(Split, classes, read) for split, classes in listed.items()}


def files(path: Path, expected: dict[str, Expected]) -> Files:
    """The images of class folders; class archives as a whole, so that they need not be listed."""
    return {
        split: [file for name, places in wanted.classes.items() for file in _files(path, name, places)]
        for split, wanted in expected.items()
    }


def _files(path: Path, name: str, places: list[int] | None) -> list[str]:
    is_folder = (path / name).is_dir()
    return [part.file for part in _chosen(path, name, places)] if is_folder else [f"{name}.tar"]


FORMAT = Format(
    "the class folders or class archives of the ILSVRC-2012 training images (n01440764/ or n01440764.tar, ...; "
    "ILSVRC2012_img_train.tar is the archive of these archives: unpack it once)",
    matches,
    splits,
    files,
)


def _chosen(path: Path, name: str, places: list[int] | None) -> list[Part]:
    numbered: dict[int, Part] = {}
    for part in _parts(path, name):
        match = _IMAGE.fullmatch(part.member or part.file.rpartition("/")[2])
        if match is None or match[1] != name:
            raise InputError(f"{_label(path, part)} is not an image of class {name}, {name}_<number>.JPEG; remove it")
        if int(match[2]) in numbered:
            raise InputError(f"{_label(path, part)} is there twice; remove one")
        numbered[int(match[2])] = part
    parts = [numbered[number] for number in sorted(numbered)]
    if places is None:
        return parts
    if len(parts) < places[-1]:
        raise InputError(
            f"{path}: class {name} has {len(parts)} images, expected at least {places[-1]}, the last of the split; "
            f"fetch or unpack it again"
        )
    return [parts[place - 1] for place in places]


def _parts(path: Path, name: str) -> list[Part]:
    folder, archive = path / name, path / f"{name}.tar"
    if folder.is_dir():
        visible = (child.name for child in folder.iterdir() if not is_litter(child.name))
        return [Part(f"{name}/{file}", "", 0, -1) for file in visible]
    if not archive.is_file():
        raise MissingFileError(f"class {name} is missing in {path}: neither {name}/ nor {name}.tar is there")
    parts = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    raise InputError(f"{archive} holds {member.name!r}, which is not a plain file")
                parts.append(Part(archive.name, member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise InputError(f"{archive} is truncated or not a plain tar archive ({error}); fetch it again") from error
    return parts


def _read(path: Path, image_size: int, part: Part) -> NDArray[np.uint8]:
    with (path / part.file).open("rb") as file:
        file.seek(part.start)
        content = file.read(part.size)
    return decode(content, _label(path, part), image_size, "RGB")


def _label(path: Path, part: Part) -> str:
    return f"{path / part.file}" + (f" ({part.member})" if part.member else "")
