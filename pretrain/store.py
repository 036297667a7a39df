"""Image store: one safetensors file per meta-split, the same for every data set."""

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.errors import InputError, MissingFileError
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
    files: str | None = (
        None  # digest of the files that it was made of (pretrain.fingerprint); None: of none, or not recorded
    )
    fingerprint: str | None = None  # SHA-256 of classes and images; None in a store made before it was recorded

    @property
    def labels(self) -> Tensor:
        """Class number of every image, int64 [n]."""
        return torch.arange(len(self.class_names)).repeat_interleave(self.offsets.diff())


def split_path(folder: Path, split: str) -> Path:
    """The file of ``split`` in ``folder``."""
    if split not in SPLITS:
        raise InputError(f"split {split!r} is not one of {', '.join(SPLITS)}")
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
        raise InputError(f"{path} was not written: {problem}")
    content = images.contiguous().numpy().data
    fingerprint = _begin(split, tuple(images.shape), offsets, class_names)
    fingerprint.update(content)
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(_head(split, tuple(images.shape), offsets, class_names, data, source, None))
        file.write(content)
        file.write(fingerprint.digest())


def stream_split(
    folder: Path,
    split: str,
    images_after: Callable[[int], Iterable[NDArray[np.uint8]]],
    *,
    image_shape: tuple[int, int, int],
    class_sizes: dict[str, int],
    data: str,
    source: dict[str, Any],
    content: str,
    files: str | None = None,
    num_kept: int | None = None,
) -> None:
    """Write one split image by image, so that one of any size fits into memory; after a kill, go on where it stopped.

    ``images_after(n)`` gives the images that follow the first n, uint8 [H, W, C], class after class. They are appended
    to a hidden file that takes the split's name when all ``class_sizes`` are filled. Writing resumes only if the digest
    in the hidden file's name matches: that of what it will hold, ``content`` (the images' names) included. At most the
    first ``num_kept`` images of the last attempt are kept (None: all).
    """
    path = split_path(folder, split)
    offsets = torch.tensor([0, *class_sizes.values()]).cumsum(0)
    shape = (int(offsets[-1]), *image_shape)
    if problem := _problem(torch.empty(shape, dtype=torch.uint8, device="meta"), offsets, list(class_sizes)):
        raise InputError(f"{path} was not written: {problem}")
    described = (split, shape, offsets, list(class_sizes), data, source)
    head, image_bytes = _head(*described, files), math.prod(image_shape)
    digest = hashlib.sha256(_head(*described, None) + content.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{path.name}.{digest}.partial"
    for other in folder.glob(f".{path.name}.*.partial"):
        if other != partial:
            other.unlink()
    partial.touch()
    with partial.open("r+b") as file:
        begun = file.seek(0, os.SEEK_END)
        needed, free = len(head) + math.prod(shape) - begun, shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{path} needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free on its disk; "
                f"make room, or choose another folder with dirs.images=..."
            )
        done = max(0, min((begun - len(head)) // image_bytes, shape[0] if num_kept is None else num_kept, shape[0]))
        file.truncate(len(head) + done * image_bytes)
        file.seek(0)
        file.write(head)
        fingerprint = _begin(split, shape, offsets, list(class_sizes))
        for _ in range(done):
            fingerprint.update(file.read(image_bytes))
        for image in images_after(done):
            assert image.dtype == np.uint8
            assert image.shape == image_shape
            pixels = np.ascontiguousarray(image).data
            fingerprint.update(pixels)
            file.write(pixels)
            done += 1
        file.write(fingerprint.digest())
    assert done == shape[0]
    partial.replace(path)


def missing_splits(folder: Path, data: str, source: dict[str, Any]) -> list[str]:
    """The splits that ``folder`` lacks; a split of other data, or made by other settings, is an error."""
    missing = []
    for split in SPLITS:
        path = split_path(folder, split)
        if not path.exists():
            missing.append(split)
            continue
        store = read_split(folder, split)
        made_by, wanted = {"data": store.data} | store.source, {"data": data} | source
        for key, value in wanted.items():
            if made_by.get(key) != value:
                raise InputError(
                    f"{path} was made with {key}={made_by.get(key)}, this run asks for {key}={value}; "
                    f"delete {folder} or give another data.name"
                )
    return missing


def read_split(folder: Path, split: str) -> ImageStore:
    """The checked split; ``images`` is a private memory map, so only the rows in use are read."""
    path = split_path(folder, split)
    command = "`python train.py stage=prepare` and the same data"
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; make it with {command}")
    remedy = f"delete it and make it again with {command}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found != _FORMAT:
                raise InputError(f"{path} has format {found!r}, an image store has {_FORMAT!r}; {remedy}")
            images, offsets = file.get_tensor("images"), file.get_tensor("offsets")
            has_fingerprint = "fingerprint" in file.keys()  # noqa: SIM118 (not a dict)
            fingerprint = bytes(file.get_tensor("fingerprint").tolist()).hex() if has_fingerprint else None
        class_names, source = json.loads(metadata["class_names"]), json.loads(metadata["source"])
        recorded_split, data = metadata["split"], metadata["data"]
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}); {remedy}") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} has broken metadata ({error!r}); {remedy}") from error
    if recorded_split != split:
        raise InputError(f"{path} holds the {recorded_split!r} split, not {split!r}; {remedy}")
    if not isinstance(source, dict):
        raise InputError(f"{path}: source is not a JSON object; {remedy}")
    if problem := _problem(images, offsets, class_names):
        raise InputError(f"{path}: {problem}; {remedy}")
    return ImageStore(
        images, offsets, class_names, split, data, source, metadata.get("files", "").strip() or None, fingerprint
    )


def images_fingerprint(stores: Iterable[ImageStore]) -> str | None:
    """SHA-256 of the fingerprints of ``stores``, all splits of one data set; None where one is not known."""
    fingerprints = [store.fingerprint for store in stores]
    return None if None in fingerprints else hashlib.sha256("".join(map(str, fingerprints)).encode()).hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` has a file for each split."""
    return all(split_path(folder, split).exists() for split in SPLITS)


def _begin(split: str, shape: tuple[int, ...], offsets: Tensor, class_names: list[str]) -> "hashlib._Hash":
    """The fingerprint of a split before its images."""
    return hashlib.sha256(json.dumps([split, shape, offsets.tolist(), class_names]).encode())


def _head(
    split: str,
    shape: tuple[int, ...],
    offsets: Tensor,
    class_names: list[str],
    data: str,
    source: dict[str, Any],
    files: str | None,
) -> bytes:
    """All of a safetensors file before its images. Their bytes, then the fingerprint's, come last: to be appended."""
    start = offsets.numel() * 8
    end = start + math.prod(shape)
    header = {
        "__metadata__": {
            "format": _FORMAT,
            "split": split,
            "data": data,
            "class_names": json.dumps(class_names),
            "source": json.dumps(source, sort_keys=True),
            "files": (files or "").ljust(64),  # of one length: the head of a file begun before is written over
        },
        "offsets": {"dtype": "I64", "shape": [offsets.numel()], "data_offsets": [0, start]},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": [start, end]},
        "fingerprint": {"dtype": "U8", "shape": [32], "data_offsets": [end, end + 32]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + offsets.numpy().astype("<i8").tobytes()


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
    if duplicates := sorted(name for name, count in Counter(class_names).items() if count > 1):
        return f"class names {duplicates} occur more than once"
    counts = offsets.diff()
    if (smallest := int(counts.min())) < 1:
        return f"class {class_names[int(counts.argmin())]!r} has {smallest} images, it must have at least 1"
    return None
