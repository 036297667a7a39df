"""Any images in folders: ``train/``, ``val/`` and ``test/`` with a folder a class, or the class folders alone."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.fingerprint import few, shown
from pretrain.sources.images import Framing, decode, no_image
from pretrain.sources.walk import look
from pretrain.sources.writing import Files, Split, Splits, existing, refuse, write_store
from pretrain.store import SPLITS
from runner.errors import InputError

log = logging.getLogger(__name__)

# How the folders of splits are called, in lower case.
_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_LAYOUTS = "<split>/<class>/<image> (train, val, test), or <class>/<image>"


class Draw(NamedTuple):
    """How class folders without splits are split: by class, drawn with ``seed``; fractions of the classes."""

    seed: int
    val_fraction: float
    test_fraction: float


class Listed(NamedTuple):
    """The files of each class of each split, relative to the source; the format's name; what is no file, and why."""

    classes: dict[str, dict[str, list[str]]]
    format_name: str
    bad: list[str]


def build(
    folder: Path,
    *,
    path: str | None,
    data: str,
    image_size: int,
    framing: Mapping[str, Any] | None,
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> None:
    """Write the images below ``path``; class folders alone are split by class, drawn with ``seed`` and recorded.

    ``framing`` is a ``pretrain.sources.images.Framing``; None: both sides are resized at once.
    """
    draw = Draw(seed, val_fraction, test_fraction)
    for name in ("val_fraction", "test_fraction"):
        if not 0 < getattr(draw, name) < 1:
            raise InputError(f"data.source.{name}={getattr(draw, name)} must be between 0 and 1")
    framed = None if framing is None else Framing(**framing)
    made = {"image_size": image_size, "framing": None if framed is None else framed._asdict(), **draw._asdict()}
    write_store(
        folder,
        data=data,
        image_shape=(image_size, image_size, 3),
        source=made,
        root=None if path is None else Path(path),
        list_files=partial(_list_files, draw=draw),
        open_source=partial(_open, path, image_size, framed, draw),
    )


def list_classes(root: Path, draw: Draw) -> Listed:
    """The classes of each split, with their files by name: hidden files and known litter are passed over."""
    found = look(root)
    bad = [one.reason for one in found.others]
    if given := _split_folders(root, found.folders):
        format_name, loose = "split folders", found.files
        folders = {}
        for split, split_folder in given.items():
            inside = look(split_folder)
            folders[split], loose = inside.folders, [*loose, *inside.files]
            bad += [one.reason for one in inside.others]
    else:
        format_name, loose = "class folders, split by seed", found.files
        folders = _drawn(found.folders, root, draw)
    if loose:
        names = few([str(path) for path in loose])
        log.warning("%s: %d file(s) outside the class folders are passed over: %s", shown(root), len(loose), names)
    owner: dict[str, str] = {}
    classes: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for split, members in folders.items():
        if not members:
            raise InputError(f"{shown(given.get(split, root))} has no class folders")
        for member in members:
            name = shown(member.name)
            if name in owner:
                raise InputError(
                    f"class {name} is in {owner[name]} and in {split} of {shown(root)}; splits share no class"
                )
            owner[name] = split
            inside = look(member)
            bad += [one.reason for one in inside.others]
            bad += [f"{shown(path)} is a folder; a class folder holds images only" for path in inside.folders]
            bad += [] if inside.files else [f"class folder {shown(member)} has no images"]
            classes[split][name] = [path.relative_to(root).as_posix() for path in inside.files]
    return Listed(classes, format_name, bad)


def _list_files(root: Path, draw: Draw) -> Files:
    found = list_classes(root, draw)
    return {split: list(chain.from_iterable(members.values())) for split, members in found.classes.items()}


def _open(path: str | None, image_size: int, framing: Framing | None, draw: Draw) -> tuple[str, Splits]:
    root = existing(path, "data.source.path", _LAYOUTS)
    found = list_classes(root, draw)
    files = [name for members in found.classes.values() for name in chain.from_iterable(members.values())]
    with ThreadPoolExecutor() as pool:
        problems = pool.map(lambda name: no_image(root / name), files)
        bad = [f"image {shown(root / n)} {why}" for n, why in zip(files, problems, strict=True) if why]
    refuse(found.bad + bad, len(files) + len(found.bad), f"files of {shown(root)}")
    read = partial(_read, root, image_size, framing)
    return found.format_name, {split: partial(Split, classes, read) for split, classes in found.classes.items()}


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """The folders of the splits; none where ``folders`` are the classes, which may be called like splits."""
    named: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for folder in folders:
        if folder.name.lower() in _NAMES and look(folder).folders:
            named[_NAMES[folder.name.lower()]].append(folder)
    given = [split for split in SPLITS if named[split]]
    if not given:
        return {}
    said = ", ".join(folder.name for split in given for folder in named[split])
    if len(given) < len(SPLITS) or any(len(members) > 1 for members in named.values()):
        lacking = " and ".join(split for split in SPLITS if split not in given)
        raise InputError(
            f"data.source.path={shown(root)} has folders of class folders called {said}, "
            f"{f'but none for {lacking}' if lacking else 'two of them for one split'}; give one folder each for train, "
            f"val (or valid, validation, dev) and test, or class folders alone"
        )
    others = [folder.name for folder in folders if folder not in chain.from_iterable(named.values())]
    if others:
        log.warning("%s: folders other than those of the splits are passed over: %s", shown(root), few(others))
    return {split: members[0] for split, members in named.items()}


def _drawn(folders: list[Path], root: Path, draw: Draw) -> dict[str, list[Path]]:
    num_val, num_test = (max(1, round(part * len(folders))) for part in (draw.val_fraction, draw.test_fraction))
    if num_val + num_test >= len(folders):
        raise InputError(
            f"data.source.path={shown(root)} has {len(folders)} class folders: none is left to train on after "
            f"{num_val} for validation and {num_test} for test; add classes, or lower data.source.val_fraction or "
            f"test_fraction"
        )
    shuffled = [folders[i] for i in np.random.default_rng(draw.seed).permutation(len(folders))]
    return {
        "train": sorted(shuffled[num_val + num_test :]),
        "val": sorted(shuffled[:num_val]),
        "test": sorted(shuffled[num_val : num_val + num_test]),
    }


def _read(root: Path, image_size: int, framing: Framing | None, name: str) -> NDArray[np.uint8]:
    return decode(root / name, shown(root / name), image_size, "RGB", is_photograph=True, framing=framing)
