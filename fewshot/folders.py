"""Folders of images: what is listed, what can be read, and a clear word about the rest."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.images import pixels
from pretrain.extractor import Extractor
from runner.errors import InputError, MissingFileError


class Unreadable(NamedTuple):
    """A file that is skipped, and why, with its name."""

    path: Path
    reason: str


class Readable(NamedTuple):
    """The pixels [n, S, S, C] of the images that could be read, their paths, and the other files."""

    pixels: Tensor
    paths: list[Path]
    unreadable: list[Unreadable]


def files_below(folder: Path) -> list[Path]:
    """All files below ``folder`` but the hidden ones, in order of their names."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def class_folders(root: Path, key: str) -> dict[str, list[Path]]:
    """The files of each class folder of ``root``; raises where they are no support. ``key`` is for messages."""
    check_folder(root, key)
    folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    if len(folders) < 2:
        found = f"one class folder only ({folders[0].name})" if folders else "no class folders"
        raise InputError(f"{key}={root} has {found}; it needs at least two, one for each class, with images in them")
    members = {folder.name: files_below(folder) for folder in folders}
    if empty := [name for name, files in members.items() if not files]:
        raise InputError(f"class folder {root / empty[0]} is empty; put images into it, or remove it")
    return members


def loose_files(root: Path) -> list[Unreadable]:
    """What lies beside the class folders of ``root``, and so has no class."""
    files = sorted(child for child in root.iterdir() if child.is_file() and not child.name.startswith("."))
    return [Unreadable(path, f"{path} is not in a class folder") for path in files]


def query_files(root: Path, key: str) -> list[Path]:
    """The files below ``root``, of which there must be one."""
    check_folder(root, key)
    files = files_below(root)
    if not files:
        raise InputError(f"{key}={root} is empty; put images into it")
    return files


def check_folder(root: Path, key: str) -> None:
    """Raise where ``root`` is not a folder."""
    if not root.is_dir():
        raise MissingFileError(f"{key}={root} is not a folder; give one with images")


def read(paths: list[Path], extractor: Extractor) -> Readable:
    """What of ``paths`` can be read, in the size and mode of ``extractor``."""

    def one(path: Path) -> Tensor | Unreadable:
        try:
            return pixels(path, str(path), extractor.image_size, extractor.mode)
        except (ValueError, OSError) as error:
            return Unreadable(path, str(error).partition(";")[0])  # what follows is advice for the makers of stores

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, paths))
    images = [image for image in found if isinstance(image, Tensor)]
    size, channels = extractor.image_size, len(extractor.mean)
    return Readable(
        torch.stack(images) if images else torch.empty(0, size, size, channels, dtype=torch.uint8),
        [path for path, image in zip(paths, found, strict=True) if isinstance(image, Tensor)],
        [image for image in found if isinstance(image, Unreadable)],
    )
