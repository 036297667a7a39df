"""The images of a folder, known by their content; their thumbnails. Nothing of the folder is changed.

A file that was moved or renamed keeps its label, and copies of a file are one image. What is given out is only what
had that content when the folder was read: not another file that has taken its place, nor one outside the folder.
"""

import hashlib
import logging
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fewshot.folders import no_images, query_files
from pretrain.fingerprint import read_records, record, shown, write_records
from pretrain.sources.images import to_mode, upright
from pretrain.sources.walk import Unreadable
from runner.errors import InputError
from runner.files import whole_file

log = logging.getLogger(__name__)

NUM_DIGITS = 32  # of the SHA-256 that an image is known by
SMALL, LARGE = 256, 1600  # sides of a thumbnail and of a large image, in pixels


class GoneError(InputError):
    """An image is no longer what it was when the folder was read."""


class Picture(NamedTuple):
    """An image: its key, made of its content, and the names of its files, relative to the folder."""

    key: str
    names: list[str]


def find(folder: Path, records: Path) -> tuple[list[Picture], list[Unreadable]]:
    """The files below ``folder`` as images, in order of their names, and what cannot be used.

    Contents are read again only where size or times of a file are not those in the file ``records``.
    """
    files, unreadable = query_files(folder, "folder")
    root, inside, before = folder.resolve(), [], read_records(records)
    bad = no_images([path for path in files if str(path.relative_to(folder)) not in before])  # films are not read whole
    unreadable += bad
    skipped = {one.path for one in bad}
    for path in files:
        if path in skipped:
            continue
        if path.resolve().is_relative_to(root):
            inside.append(str(path.relative_to(folder)))
        else:
            unreadable.append(Unreadable(path, f"{shown(path)} is a link that leads out of the folder"))
    found = record(folder, inside, before)
    write_records(records, found)
    pictures: dict[str, Picture] = {}
    for one in found:
        key = one.sha256[:NUM_DIGITS]
        pictures.setdefault(key, Picture(key, [])).names.append(one.name)
    return list(pictures.values()), unreadable


def content(folder: Path, picture: Picture) -> bytes:
    """The bytes of ``picture``; raises GoneError where no file of the folder has them any more."""
    root = folder.resolve()
    for name in picture.names:
        path = (folder / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            continue
        found = path.read_bytes()
        if hashlib.sha256(found).hexdigest()[:NUM_DIGITS] == picture.key:
            return found
    raise GoneError(f"{shown(picture.names[0])} was deleted, moved or changed since the start")


def jpeg(encoded: bytes, side: int) -> bytes:
    """The encoded image as a JPEG file of at most ``side`` pixels each way, upright, without what a camera noted."""
    with Image.open(BytesIO(encoded)) as image:
        image.draft("RGB", (2 * side, 2 * side))  # photographs are decoded no larger than needed
        small = to_mode(upright(image), "RGB")
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def thumbnail(folder: Path, picture: Picture, cache: Path) -> bytes:
    """The small JPEG file of ``picture``, kept in the folder ``cache``."""
    path = cache / picture.key[:2] / f"{picture.key}.jpg"
    if path.is_file():
        if not any((folder / name).is_file() for name in picture.names):
            raise GoneError(f"{shown(picture.names[0])} was deleted or moved since the start")
        return path.read_bytes()
    small = jpeg(content(folder, picture), SMALL)
    try:
        with whole_file(path) as partial:
            partial.write_bytes(small)
    except InputError as error:  # the disk is full: the page can do without the copy
        log.warning("%s", error)
    return small
