"""Folders of images: what is listed, what can be read, and a clear word about the rest."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.images import pixels
from pretrain.extractor import Extractor
from pretrain.fingerprint import shown
from pretrain.sources.images import AGAIN, no_image
from pretrain.sources.walk import Unreadable, look, look_below
from runner.errors import InputError, MissingFileError


class Readable(NamedTuple):
    """The pixels [n, S, S, C] of the images that could be read, their paths, and the other files."""

    pixels: Tensor
    paths: list[Path]
    unreadable: list[Unreadable]


class ClassFolders(NamedTuple):
    """The files of each class, and what lies among or next to them that cannot be used."""

    classes: dict[str, list[Path]]
    unreadable: list[Unreadable]


def class_folders(root: Path, key: str) -> ClassFolders:
    """The files of each class folder of ``root``; raises where they are no support. ``key`` is for messages."""
    check_folder(root, key)
    found = look(root)
    if len(found.folders) < 2:
        names = f"one class folder only ({shown(found.folders[0].name)})" if found.folders else "no class folders"
        raise InputError(
            f"{key}={shown(root)} has {names}; it needs at least two, one for each class, with images in them"
        )
    loose = [Unreadable(path, f"{shown(path)} is not in a class folder") for path in found.files]
    classes, unreadable = {}, [*found.others, *loose]
    for folder in found.folders:
        inside, name = look_below(folder), shown(folder.name)
        if not inside.files:
            raise InputError(f"class folder {shown(folder)} is empty; put images into it, or remove it")
        if name in classes:
            raise InputError(f"two class folders of {key}={shown(root)} are shown as {name!r}; rename one")
        classes[name] = inside.files
        unreadable.extend(inside.others)
    return ClassFolders(classes, unreadable)


def query_files(root: Path, key: str) -> tuple[list[Path], list[Unreadable]]:
    """The files below ``root``, of which there must be one, and what else is there that cannot be used."""
    check_folder(root, key)
    found = look_below(root)
    if not found.files:
        raise InputError(f"{key}={shown(root)} is empty; put images into it")
    return found.files, found.others


def check_folder(root: Path, key: str) -> None:
    """Raise where ``root`` is not a folder."""
    if not root.is_dir():
        raise MissingFileError(f"{key}={shown(root)} is not a folder; give one with images")


def no_images(paths: list[Path]) -> list[Unreadable]:
    """Those of ``paths`` that are no images by their first bytes."""
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(no_image, paths))
    return [Unreadable(p, f"image {shown(p)} {why}") for p, why in zip(paths, reasons, strict=True) if why]


def read(paths: list[Path], extractor: Extractor) -> Readable:
    """What of ``paths`` can be read, in the size and mode of ``extractor``."""

    def one(path: Path) -> Tensor | Unreadable:
        try:
            return pixels(path, shown(path), extractor.image_size, extractor.mode, extractor.framing)
        except InputError as error:
            return Unreadable(path, str(error).removesuffix(AGAIN))  # advice for the makers of stores

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, paths))
    images = [image for image in found if isinstance(image, Tensor)]
    size, channels = extractor.image_size, len(extractor.mean)
    return Readable(
        torch.stack(images) if images else torch.empty(0, size, size, channels, dtype=torch.uint8),
        [path for path, image in zip(paths, found, strict=True) if isinstance(image, Tensor)],
        [image for image in found if isinstance(image, Unreadable)],
    )
