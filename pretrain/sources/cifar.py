"""CIFAR-FS (Bertinetto et al., 2019) and FC100 (Oreshkin et al., 2018): CIFAR-100 with its classes split anew."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100

from pretrain.sources.unpickle import by_text, load, text
from pretrain.sources.writing import Split, Splits, split_rows, write_store
from pretrain.store import SPLITS
from runner.errors import InputError

log = logging.getLogger(__name__)

FOLDER = "cifar-100-python"


def build(folder: Path, *, path: str, data: str, split_file: str, images_per_class: int) -> None:
    """Write the splits of the classes, or superclasses, that ``split_file`` names, from training and test images.

    Where ``path`` has no ``cifar-100-python/``, torchvision downloads it there first.
    """
    write_store(
        folder,
        data=data,
        image_shape=(32, 32, 3),
        source={"split_file": split_file},
        root=Path(path, FOLDER),
        list_files=lambda root: dict.fromkeys(SPLITS, ("train", "test", "meta")),
        open_source=partial(_open, Path(path), split_file, images_per_class),
    )


def _open(path: Path, split_file: str, images_per_class: int) -> tuple[str, Splits]:
    root = path / FOLDER
    if not root.is_dir():
        log.info("downloading CIFAR-100 to %s", path)
        try:
            CIFAR100(path, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"CIFAR-100 could not be downloaded to {path} ({error}); fetch {CIFAR100.url}, unpack it, and add "
                f"data.source.path=PATH, the folder with cifar-100-python/"
            ) from error
    parts = [_load(root / name, "data", "fine_labels", "coarse_labels") for name in ("train", "test")]
    meta = _load(root / "meta", "fine_label_names", "coarse_label_names")
    images = np.concatenate([np.asarray(part["data"], np.uint8).reshape(-1, 3, 32, 32) for part in parts])
    images = images.transpose(0, 2, 3, 1)
    fine, coarse = (
        np.concatenate([np.asarray(part[key], np.int64) for part in parts]) for key in ("fine_labels", "coarse_labels")
    )
    if not len(images) == len(fine) == len(coarse):
        raise InputError(f"{root}: {len(images)} images have {len(fine)} fine and {len(coarse)} coarse labels")
    classes = {name: np.flatnonzero(fine == i) for i, name in enumerate(map(text, meta["fine_label_names"]))}
    for name, members in classes.items():
        if len(members) != images_per_class:
            raise InputError(f"{root}: class {name} has {len(members)} images, expected {images_per_class}")
    superclasses = [text(name) for name in meta["coarse_label_names"]]
    groups = {
        "class": {name: name for name in classes},
        "superclass": {name: superclasses[coarse[members[0]]] for name, members in classes.items()},
    }
    listed = {}
    for split, rows in split_rows(split_file).items():
        kind = "class" if "class" in rows[0] else "superclass"
        wanted = {row[kind] for row in rows}
        if absent := sorted(wanted - set(groups[kind].values())):
            raise InputError(f"{root} lacks the {kind}(es) {', '.join(absent)} of {split_file}")
        listed[split] = {name: classes[name].tolist() for name in sorted(classes) if groups[kind][name] in wanted}
    return FOLDER, {split: partial(Split, members, lambda index: images[index]) for split, members in listed.items()}


def _load(file: Path, *keys: str) -> dict[str, Any]:
    content = by_text(load(file), file)
    if absent := set(keys) - content.keys():
        raise InputError(f"{file} lacks {', '.join(sorted(absent))}; fetch CIFAR-100 for Python again")
    return content
