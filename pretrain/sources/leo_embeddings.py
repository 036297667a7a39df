"""The features that the paper's authors published, as the feature files that meta-training reads."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pretrain.export import write
from pretrain.fingerprint import changes, digest, read_records, record, write_records
from pretrain.sources.unpickle import by_text, load, text
from pretrain.sources.writing import check_total, existing, ilsvrc_classes
from pretrain.store import SPLITS
from runner.errors import InputError, MissingFileError
from runner.folder import taking_turns

log = logging.getLogger(__name__)

DATA = {"mini_imagenet": "miniImageNet", "tiered_imagenet": "tieredImageNet"}  # our name: theirs
RECORDS = "files.csv"  # of the pickles, next to the features
KEYS = {"keys", "embeddings"}


def build(
    folder: Path,
    *,
    path: str | None,
    data: str,
    crop: str,
    layer: int,
    split_file: str | None,
    num_images: Mapping[str, int] | None,
) -> None:
    """Write the feature files that ``folder`` lacks, the number of classes and of images of each split checked.

    Complete ones are compared with the pickles at ``path`` that they were made of, where those are there.
    """
    missing = [split for split in SPLITS if not (folder / f"{split}.safetensors").exists()]
    if not missing:
        check_files(folder, path, data, crop)
        return
    if data not in DATA or split_file is None:
        raise InputError(f"the authors published no features of data={data}; use data={' or data='.join(DATA)}")
    inner, names = _names(data, crop)
    root = existing(
        path, "features.source.path", f"{inner}/{{train,val,test}}_embeddings.pkl, the authors' embeddings/"
    )
    files = {split: root / name for split, name in zip(SPLITS, names, strict=True)}
    for file in files.values():
        if not file.is_file():
            raise MissingFileError(f"{file} does not exist; features.source.path is the folder with {inner}/")
    expected = ilsvrc_classes(split_file, num_images)
    with taking_turns(folder / ".build.lock", f"the features in {folder}"):
        records = record(root, names, {})
        write_records(folder / RECORDS, records)
        for split, file in files.items():
            features, offsets, names = _read(file, split, len(expected[split].classes), expected[split].num_images)
            config = {"source": "leo_embeddings", "crop": crop, "split_file": split_file}
            write(
                folder / f"{split}.safetensors",
                features,
                offsets,
                names,
                {
                    "split": split,
                    "data": data,
                    "images": digest(records),  # of what stands for them
                    "layer": str(layer),
                    "extractor": "WRN-28-10 of the authors",
                    "checkpoint": "",
                    "crop": crop,
                    "config": json.dumps(config),
                },
            )
            log.info("%s: %s, %d classes, %d images", folder, split, len(names), len(features))


def _names(data: str, crop: str) -> tuple[Path, list[str]]:
    """The folder of the authors' files of ``data``, and a file for each split, relative to embeddings/."""
    inner = Path(DATA[data], crop)
    return inner, [(inner / f"{split}_embeddings.pkl").as_posix() for split in SPLITS]


def check_files(folder: Path, path: str | None, data: str, crop: str) -> None:
    """Raise where the features in ``folder`` were made of other pickles than those at ``path``."""
    recorded = read_records(folder / RECORDS)
    if path is None or data not in DATA or not recorded or not Path(path, _names(data, crop)[0]).is_dir():
        return
    if found := changes(Path(path), _names(data, crop)[1], recorded):
        raise InputError(
            f"{path} is not what {folder} was made of (fingerprint {digest(recorded.values())[:12]}): {found}. Delete "
            f"{folder}, or give another features.folder"
        )


def _read(file: Path, split: str, num_classes: int, num_images: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Features float32 [N, D] sorted by class, offsets [C + 1], class names."""
    content = by_text(load(file), file)
    if absent := KEYS - content.keys():
        raise InputError(f"{file} lacks {', '.join(sorted(absent))}; it has {', '.join(sorted(content))}")
    keys, embeddings = [text(key) for key in content["keys"]], np.asarray(content["embeddings"])
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or len(embeddings) != len(keys):
        raise InputError(
            f"{file}: embeddings are {embeddings.dtype} {list(embeddings.shape)} for {len(keys)} keys, expected one "
            f"row of floats a key"
        )
    check_total(file, split, len(keys), num_images)
    by_class: dict[str, list[int]] = {}
    seen: set[str] = set()
    for row, key in enumerate(keys):
        parts = key.split("-")
        if len(parts) != 3 or parts[2].partition("_")[0] != parts[1]:
            raise InputError(f"{file}: key {key!r} is not of the form <x>-<class>-<class>_<image>")
        if parts[2] in seen:
            raise InputError(f"{file}: image {parts[2]!r} occurs twice")
        seen.add(parts[2])
        by_class.setdefault(parts[1], []).append(row)
    if len(by_class) != num_classes:
        raise InputError(f"{file}: the {split} split has {len(by_class)} classes, expected {num_classes}")
    names = sorted(by_class)
    rows = np.concatenate([by_class[name] for name in names])
    features = torch.from_numpy(embeddings[rows].astype(np.float32))
    offsets = torch.tensor([0, *(len(by_class[name]) for name in names)]).cumsum(0)
    return features, offsets, names
