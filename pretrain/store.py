"""Image store: one safetensors file per meta-split, the same for every data set."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runner.files import whole_file

SPLITS = ("train", "val", "test")
_FORMAT = "leo-images-1"


class ImageStore(NamedTuple):
    """The images of one meta-split, sorted by class."""

    images: Tensor  # uint8 [n, H, W, C], grey (C = 1) or RGB (C = 3)
    offsets: Tensor  # int64 [classes + 1]; class c owns rows offsets[c]:offsets[c + 1]
    class_names: list[str]
    split: str  # one of SPLITS
    data: str  # name of the data set
    source: dict[str, Any]  # the settings that made it

    @property
    def labels(self) -> Tensor:
        """Class number of every image, int64 [n]."""
        return torch.arange(len(self.class_names)).repeat_interleave(self.offsets.diff())


def split_path(folder: Path, split: str) -> Path:
    """The file of ``split`` in ``folder``."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    return folder / f"{split}.safetensors"


def write_split(
    folder: Path,
    split: str,
    images: Tensor,
    offsets: Tensor,
    class_names: list[str],
    data: str,
    source: dict[str, Any],
) -> None:
    """Write one split, whole or not at all; shapes as in :class:`ImageStore`."""
    path = split_path(folder, split)
    if problem := _problem(images, offsets, class_names):
        raise ValueError(f"{path} was not written: {problem}")
    metadata = {
        "format": _FORMAT,
        "split": split,
        "data": data,
        "class_names": json.dumps(class_names),
        "source": json.dumps(source, sort_keys=True),
    }
    with whole_file(path) as partial:
        save_file({"images": images.contiguous(), "offsets": offsets.contiguous()}, partial, metadata)


def read_split(folder: Path, split: str) -> ImageStore:
    """The checked split; ``images`` is a private memory map, so only the rows in use are read."""
    path = split_path(folder, split)
    command = f"python train.py stage=pretrain data={folder.name}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; make it with `{command}`")
    remedy = f"delete it and make it again with `{command}`"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found != _FORMAT:
                raise ValueError(f"{path} has format {found!r}, an image store has {_FORMAT!r}; {remedy}")
            images, offsets = file.get_tensor("images"), file.get_tensor("offsets")
        class_names, source = json.loads(metadata["class_names"]), json.loads(metadata["source"])
        recorded_split, data = metadata["split"], metadata["data"]
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); {remedy}") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} has broken metadata ({error!r}); {remedy}") from error
    if recorded_split != split:
        raise ValueError(f"{path} holds the {recorded_split!r} split, not {split!r}; {remedy}")
    if not isinstance(source, dict):
        raise ValueError(f"{path}: source is not a JSON object; {remedy}")
    if problem := _problem(images, offsets, class_names):
        raise ValueError(f"{path}: {problem}; {remedy}")
    return ImageStore(images, offsets, class_names, split, data, source)


def _problem(images: Tensor, offsets: Tensor, class_names: list[str]) -> str | None:
    """What keeps the parts from being a split, if anything does."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        return f"images are {images.dtype} {list(images.shape)}, they must be torch.uint8 [n, H, W, 1 or 3]"
    if offsets.dtype != torch.int64 or offsets.ndim != 1 or len(offsets) < 2:
        return f"offsets are {offsets.dtype} {list(offsets.shape)}, they must be torch.int64 [classes + 1]"
    if (ends := (int(offsets[0]), int(offsets[-1]))) != (0, len(images)):
        return f"offsets run from {ends[0]} to {ends[1]}, they must run from 0 to {len(images)}, the images"
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        return "class_names is not a list of strings"
    if len(class_names) != len(offsets) - 1:
        return f"{len(class_names)} class names for the {len(offsets) - 1} classes of the offsets"
    if duplicates := sorted({name for name in class_names if class_names.count(name) > 1}):
        return f"class names {duplicates} occur more than once"
    counts = offsets.diff()
    if (smallest := int(counts.min())) < 1:
        return f"class {class_names[int(counts.argmin())]!r} has {smallest} images, it must have at least 1"
    return None
