"""Any images in folders: ``train/``, ``val/`` and ``test/`` with a folder a class, or the class folders alone."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.sources.images import decode
from pretrain.sources.writing import Split, Splits, existing, write_store
from pretrain.store import SPLITS
from runner.errors import InputError


def build(
    folder: Path, *, path: str | None, data: str, image_size: int, seed: int, val_fraction: float, test_fraction: float
) -> None:
    """Write the images below ``path``; class folders alone are split by class, drawn with ``seed`` and recorded."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise InputError(f"data.source.{name}={fraction} must be between 0 and 1")
    drawn = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    write_store(
        folder,
        data=data,
        image_shape=(image_size, image_size, 3),
        source={"image_size": image_size, **drawn},
        open_source=partial(_open, path, image_size, seed, val_fraction, test_fraction),
    )


def _open(
    path: str | None, image_size: int, seed: int, val_fraction: float, test_fraction: float
) -> tuple[str, Splits]:
    root = existing(path, "data.source.path", "<split>/<class>/<image> (train, val, test), or <class>/<image>")
    folders = _folders(root)
    given = [name for name in SPLITS if name in folders]
    if 0 < len(given) < len(SPLITS):
        raise InputError(
            f"data.source.path={path} has {' and '.join(given)}, but not "
            f"{' and '.join(split for split in SPLITS if split not in given)}; give all three, or class folders alone"
        )
    if given:
        format_name = "split folders"
        names = {split: [f"{split}/{name}" for name in _folders(root / split)] for split in SPLITS}
    else:
        format_name = "class folders, split by seed"
        names = _draw(folders, root, seed, val_fraction, test_fraction)
    owner: dict[str, str] = {}
    listed: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for split, members in names.items():
        if not members:
            raise InputError(f"{root / split} has no class folders")
        for member in members:
            name = Path(member).name
            if name in owner:
                raise InputError(f"class {name} is in {owner[name]} and in {split} of {root}; splits share no class")
            owner[name] = split
            listed[split][name] = _files(root, member)
    read = partial(_read, root, image_size)
    return format_name, {split: partial(Split, classes, read) for split, classes in listed.items()}


def _draw(names: list[str], root: Path, seed: int, val_fraction: float, test_fraction: float) -> dict[str, list[str]]:
    num_val, num_test = (max(1, round(fraction * len(names))) for fraction in (val_fraction, test_fraction))
    if num_val + num_test >= len(names):
        raise InputError(
            f"data.source.path={root} has {len(names)} class folders: none is left to train on after {num_val} for "
            f"validation and {num_test} for test; add classes, or lower data.source.val_fraction or test_fraction"
        )
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    return {
        "train": sorted(shuffled[num_val + num_test :]),
        "val": sorted(shuffled[:num_val]),
        "test": sorted(shuffled[num_val : num_val + num_test]),
    }


def _folders(root: Path) -> list[str]:
    return sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(root: Path, member: str) -> list[str]:
    """The files of a class folder, less the hidden ones; that they are images shows when they are read."""
    files = sorted(f"{member}/{child.name}" for child in (root / member).iterdir() if not child.name.startswith("."))
    if not files:
        raise InputError(f"class folder {root / member} has no images")
    return files


def _read(root: Path, image_size: int, name: str) -> NDArray[np.uint8]:
    if (root / name).is_dir():
        raise InputError(f"{root / name} is a folder; a class folder holds images only")
    return decode((root / name).read_bytes(), root / name, image_size, "RGB", is_photograph=True)
