"""Feature tables: what stage 1 wrote, checked on load, and scaled for use."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from runner.errors import InputError, MissingFileError

FORMAT = "leo-features-1"
NORMALIZATIONS = ("l2", "standardize", "centred_l2")
COPIED = 10**8  # bytes of features of which each run makes a scaled copy: 64 classes of 600 images, 640-d
ROWS_AT_A_TIME = 4096  # of a table that is looked through: what is computed of them takes some 10 MB
COLUMNS_AT_A_TIME = 16  # the same, where each column is needed as a whole: a line of the processor's cache
ORIGIN = ("data", "extractor", "layer", "crop", "checkpoint")  # that every feature file records


class FeatureTable(NamedTuple):
    """Features of one or more splits, grouped by class.

    ``features`` [n, D]; class c owns the rows ``offsets[c]:offsets[c + 1]``; ``origin`` is where they came from
    (data, images' fingerprint, extractor, layer, crop, checkpoint hash, configuration).
    """

    features: Float[Tensor, "n D"]
    offsets: Int[Tensor, " C_plus_1"]
    class_names: list[str]
    origin: dict[str, Any]

    @property
    def class_sizes(self) -> Int[Tensor, " C"]:
        """Number of images of each class."""
        return self.offsets.diff()

    @property
    def identity(self) -> dict[str, Any]:
        """Identifies the features: their origin without the settings of stage 1."""
        return {key: value for key, value in self.origin.items() if key != "config"}

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.offsets.device

    def take(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m D"]:
        """The features of some images, copied; ``index_select`` takes a quarter of the time of indexing."""
        return self.features.index_select(0, rows)

    def to(self, device: torch.device | str) -> "FeatureTable":
        """The same table with its tensors on ``device``."""
        return self._replace(features=self.features.to(device), offsets=self.offsets.to(device))


def load_features(folder: Path, split: str) -> FeatureTable:
    """The table of ``split`` in ``folder``, after every check that a file can fail.

    The file is mapped, not read: runs side by side share its pages, and a row takes memory once it is used.
    """
    path = folder / f"{split}.safetensors"
    with opened(path) as file:
        metadata = file.metadata() or {}
        class_names, origin = _described(path, split, metadata)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if lacking := {"features", "offsets"} - tensors.keys():
        raise InputError(f"{path} lacks {' and '.join(sorted(lacking))}; export it again")
    features, offsets = tensors["features"], tensors["offsets"]
    if features.dtype != torch.float32 or features.ndim != 2 or offsets.dtype != torch.int64 or offsets.ndim != 1:
        raise InputError(
            f"{path} holds features {features.dtype} {list(features.shape)} and offsets {offsets.dtype} "
            f"{list(offsets.shape)}; expected float32 [n, D] and int64 [C + 1]; export it again"
        )
    if offsets[0] != 0 or offsets[-1] != len(features) or (offsets.diff() < 1).any():
        raise InputError(
            f"the class offsets of {path} must rise from 0 to its {len(features)} images without an empty class; "
            f"export it again"
        )
    if len(class_names) != len(offsets) - 1 or len(set(class_names)) != len(class_names):
        raise InputError(
            f"{path} names {len(set(class_names))} different classes for {len(offsets) - 1} groups of images; "
            f"export it again"
        )
    finite = torch.empty(len(features), dtype=torch.bool)  # made first: between larger tensors results leave gaps
    for rows, of_rows in zip(features.split(ROWS_AT_A_TIME), finite.split(ROWS_AT_A_TIME), strict=True):
        torch.all(rows.isfinite(), dim=1, out=of_rows)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        name = class_names[int(torch.searchsorted(offsets, row, right=True)) - 1]
        raise InputError(
            f"{path} has NaN or infinite features in {int((~finite).sum())} of {len(features)} images, first in "
            f"image {row} (class {name!r}); export it again from a sound extractor"
        )
    return FeatureTable(features, offsets, class_names, origin)


def read_origin(folder: Path) -> dict[str, Any]:
    """The origin of the features in ``folder``, as ``FeatureTable.identity`` has it, without reading them."""
    path = folder / "train.safetensors"
    with opened(path) as file:
        _, origin = _described(path, "train", file.metadata() or {})
    return {key: value for key, value in origin.items() if key != "config"}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The feature file at ``path``, opened; what cannot be read is an error."""
    if not path.is_file():
        raise MissingFileError(
            f"feature file {path} is missing; `python train.py stage=pretrain` with the same data, backbone and "
            f"features writes it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"feature file {path} is truncated or not a safetensors file ({error}); delete it and export it again: "
            f"`python train.py stage=pretrain` with the same data, backbone and features"
        ) from error


def _described(path: Path, split: str, metadata: dict[str, str]) -> tuple[list[str], dict[str, Any]]:
    """The class names and the origin that the feature file of ``split`` at ``path`` gives."""
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a feature file: its format is {metadata.get('format')!r}, expected {FORMAT!r}; "
            f"export it with `python train.py stage=pretrain`"
        )
    try:
        origin: dict[str, Any] = {key: metadata[key] for key in ORIGIN}
        origin |= {"images": metadata.get("images") or None, "config": json.loads(metadata["config"])}
        class_names, found = json.loads(metadata["class_names"]), metadata["split"]
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} has broken metadata ({error!r}); export it again") from error
    if found != split:
        raise InputError(f"{path} holds the split {found!r}, not {split!r}; was the file renamed?")
    return class_names, origin


def check_origin(expected: Mapping[str, Any], found: Mapping[str, Any], path: object, folder: object) -> None:
    """Raise where ``path``, trained on features of origin ``expected``, is used with those in ``folder``.

    What one of the two does not record (files of before it was) is not compared.
    """
    keys = [key for key in expected if None not in (expected[key], found.get(key)) and expected[key] != found[key]]
    if keys:
        raise InputError(
            f"{path} was trained on other features than those in {folder}: on {described(expected)}; there are "
            f"{described(found)}. They differ in {', '.join(keys)}: choose data=, backbone= and features= as it was "
            f"trained with, or train again on these"
        )


def described(origin: Mapping[str, Any]) -> str:
    """An origin in words: data, images, extractor, layer, crop; hashes as their first 12 digits."""
    images, checkpoint = str(origin.get("images") or "unknown")[:12], str(origin.get("checkpoint") or "none")[:12]
    return (
        f"{origin.get('data')} (images {images}), extractor {origin.get('extractor') or 'none'} ({checkpoint}), layer "
        f"{origin.get('layer')}, crop {origin.get('crop')}"
    )


def load_splits(folder: Path, splits: tuple[str, ...] = ("train", "val", "test")) -> dict[str, FeatureTable]:
    """The tables of all ``splits``, which must come from one extractor and share no class."""
    tables = {split: load_features(folder, split) for split in splits}
    first, *others = splits
    for split in others:
        for key, value in tables[first].origin.items():
            if tables[split].origin[key] != value:
                raise InputError(
                    f"{folder}: {first} and {split} differ in {key} ({value!r}, {tables[split].origin[key]!r}); "
                    f"export the splits again from one extractor"
                )
    owner: dict[str, str] = {}
    for split, table in tables.items():
        for name in table.class_names:
            if name in owner:
                raise InputError(
                    f"{folder}: class {name!r} is in {owner[name]} and in {split}; splits must be disjoint"
                )
            owner[name] = split
    return tables


def concatenate(tables: list[FeatureTable]) -> FeatureTable:
    """One table with the classes of all ``tables``, in order (training on train + val, Appendix B.5 and B.7)."""
    features = torch.cat([table.features for table in tables])
    return FeatureTable(features, *joined_classes(tables), tables[0].origin)


def joined_classes(tables: Sequence[Any]) -> tuple[Int[Tensor, " C_plus_1"], list[str]]:
    """Offsets and names of the classes of all ``tables``, in order."""
    sizes = torch.cat([table.class_sizes for table in tables])
    return nn.functional.pad(sizes.cumsum(0), (1, 0)), [name for table in tables for name in table.class_names]


class Normalizer(nn.Module):
    """Scales features before use; its statistics are buffers, so a checkpoint carries them.

    ``l2``: unit length (the paper). ``centred_l2``: the mean of the training features subtracted, then unit length
    (SimpleShot, Wang et al., 2019). ``standardize``: zero mean and unit variance in each dimension of the training
    features, then length sqrt(D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, num_features: int) -> None:
        super().__init__()
        if kind not in NORMALIZATIONS:
            raise InputError(f"features.normalize={kind!r} is unknown; choose one of {', '.join(NORMALIZATIONS)}")
        self.kind = kind
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def fit(self, *parts: Float[Tensor, "_ D"]) -> None:
        """Take the statistics of all rows of ``parts`` that the kind needs. Constant dimensions keep their scale."""
        if self.kind == "l2":
            return
        for columns in torch.arange(len(self.mean)).split(COLUMNS_AT_A_TIME):
            block = slice(int(columns[0]), int(columns[-1]) + 1)
            std, mean = torch.std_mean(torch.cat([part[:, block] for part in parts]), dim=0)
            self.mean[block] = mean
            if self.kind == "standardize":
                self.std[block] = torch.where(std > 0, std, torch.ones_like(std))

    def forward(self, features: Float[Tensor, "*any D"]) -> Float[Tensor, "*any D"]:
        """The scaled features."""
        if self.kind == "l2":
            return nn.functional.normalize(features, dim=-1)
        if self.kind == "centred_l2":
            return nn.functional.normalize(features - self.mean, dim=-1)
        return nn.functional.normalize((features - self.mean) / self.std, dim=-1) * features.shape[-1] ** 0.5

    def scale_(self, features: Float[Tensor, "*any D"]) -> Float[Tensor, "*any D"]:
        """The same to the bit, in place of ``features`` and about twice as fast: for data, without a gradient."""
        if self.kind != "l2":
            features.sub_(self.mean)
        if self.kind == "standardize":
            features.div_(self.std)
        nn.functional.normalize(features, dim=-1, out=features)
        return features.mul_(features.shape[-1] ** 0.5) if self.kind == "standardize" else features


class ScaledTable(NamedTuple):
    """The classes of ``tables``, one table after another, whose features are scaled when they are taken.

    For tables so large that neither a scaled nor a joined copy of them should be made; else as ``FeatureTable``.
    """

    tables: list[FeatureTable]
    normalizer: Normalizer
    offsets: Int[Tensor, " C_plus_1"]
    class_names: list[str]

    @property
    def class_sizes(self) -> Int[Tensor, " C"]:
        """Number of images of each class."""
        return self.offsets.diff()

    @property
    def origin(self) -> dict[str, Any]:
        """Where the features came from."""
        return self.tables[0].origin

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.offsets.device

    def take(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m D"]:
        """The scaled features of some images."""
        return self.normalizer.scale_(take_rows([table.features for table in self.tables], rows))


AnyTable = FeatureTable | ScaledTable


def take_rows(parts: Sequence[Tensor], rows: Int[Tensor, " m"]) -> Tensor:
    """Some rows of ``parts``, which are counted one part after another; copied."""
    first, *others = parts
    if not others:
        return first.index_select(0, rows)
    taken, start = first.new_empty(len(rows), *first.shape[1:]), 0
    for part in parts:
        end = start + len(part)
        places = ((rows >= start) & (rows < end)).nonzero().squeeze(1)
        taken.index_copy_(0, places, part.index_select(0, rows.index_select(0, places) - start))
        start = end
    return taken


def scaled(tables: list[FeatureTable], normalizer: Normalizer, device: torch.device | str) -> AnyTable:
    """``tables`` as one, with the features that a learner sees, on ``device``.

    Where that takes at most ``COPIED`` bytes, or another device needs a copy anyway, all of them are scaled now. Else
    each row is scaled when it is taken, which makes updates a few hundredths slower, and tests a tenth.
    """
    num_bytes = sum(table.features.nbytes for table in tables)
    if num_bytes > COPIED and torch.device(device).type == "cpu":
        return ScaledTable(tables, normalizer, *joined_classes(tables))
    joined = concatenate(tables).to(normalizer.mean.device)
    return joined._replace(features=normalizer.scale_(joined.features)).to(device)
