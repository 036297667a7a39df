"""Features of the user's own in one file, as the feature files that meta-training reads.

- ``.npz``: ``features`` [n, D], ``labels`` [n] (text or whole numbers), and ``splits`` [n] (train, val, test) or none;
- ``.npy``: features [n, D], with a CSV file of the same rows: the column ``label``, and ``split`` or none;
- ``.safetensors``: as ``.npz``, with whole numbers: ``labels``, and ``splits`` (0 train, 1 val, 2 test) or none.
"""

import csv
import json
import logging
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pretrain.export import write
from pretrain.fingerprint import changes, digest, few, read_records, record, shown, write_records
from pretrain.store import SPLITS
from runner.errors import InputError, MissingFileError
from runner.folder import differences, read_config, taking_turns, write_json

log = logging.getLogger(__name__)

RECORDS, SETTINGS = "files.csv", "source.json"  # next to the features: what they were made of, and how


class Array(NamedTuple):
    """``features`` [n, D], the class of each row, and its split; no splits where the file gives none."""

    features: NDArray[Any]
    labels: NDArray[Any]
    splits: NDArray[Any] | None


def build(
    folder: Path,
    *,
    path: str | None,
    labels: str | None,
    data: str,
    layer: str,
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> None:
    """Write the feature files of ``folder`` from the file at ``path``; complete ones are compared with it.

    Without splits in the file the classes are drawn with ``seed``; fractions of the classes are for val and test.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise InputError(f"features.source.{name}={fraction} must be between 0 and 1")
    settings = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    with taking_turns(folder / ".build.lock", f"the features in {folder}"):
        if all((folder / f"{split}.safetensors").exists() for split in SPLITS):
            check(folder, path, labels, settings)
            return
        if path is None or not Path(path).is_file():
            raise MissingFileError(
                f"features.source.path={path} is no file; give an .npz, an .npy with a CSV file, or a .safetensors"
            )
        file = Path(path)
        table = file_of_labels(file, labels)
        array = read(file, table)
        check_array(array, file)
        splits = drawn(array, file, settings) if array.splits is None else array.splits.astype(str)
        records = record(Path(), [str(one) for one in (file, table) if one is not None], {})
        config = {"source": "array", **(settings if array.splits is None else {})}
        about = {
            "data": data,
            "images": digest(one._replace(name=str(number)) for number, one in enumerate(records)),
            "layer": layer,
            **dict.fromkeys(("extractor", "checkpoint", "crop"), ""),
            "config": json.dumps(config),
        }
        for split in SPLITS:
            rows = np.flatnonzero(splits == split)
            names, numbers = np.unique(array.labels[rows].astype(str), return_inverse=True)
            rows = rows[np.argsort(numbers, kind="stable")]
            offsets = torch.from_numpy(np.concatenate([[0], np.bincount(numbers).cumsum()]).astype(np.int64))
            features = torch.from_numpy(array.features[rows].astype(np.float32))
            write(folder / f"{split}.safetensors", features, offsets, names.tolist(), {"split": split, **about})
            log.info("%s: %s, %d classes, %d rows of width %d", folder, split, len(names), *features.shape)
        write_records(folder / RECORDS, records)
        write_json(folder / SETTINGS, {"drawn": array.splits is None, **settings})


def read(file: Path, table: Path | None) -> Array:
    """What ``file`` holds, and ``table`` for an .npy; nothing is unpickled."""
    try:
        if file.suffix == ".safetensors":
            found = load_file(file)
        elif file.suffix == ".npz":
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as parts:
                found = {name: parts[name] for name in ("features", "labels", "splits") if name in parts}
        elif file.suffix == ".npy":
            assert table is not None
            found = {"features": np.load(file, allow_pickle=False), **read_labels(table)}
        else:
            raise InputError(
                f"features.source.path={shown(file)} ends in {file.suffix or 'nothing'}; .npz, .npy and .safetensors "
                f"are read"
            )
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise InputError(
            f"{shown(file)} cannot be read without running it, or is damaged ({str(error).splitlines()[0]}); write "
            f"labels as text or whole numbers, not as objects"
        ) from error
    if absent := [name for name in ("features", "labels") if name not in found]:
        raise InputError(f"{shown(file)} lacks {' and '.join(absent)}; it holds {', '.join(found) or 'nothing'}")
    splits = found.get("splits")
    if splits is not None and splits.dtype.kind in "iu":
        if not np.isin(splits, range(len(SPLITS))).all():
            raise InputError(f"splits of {shown(file)} must be 0 (train), 1 (val) or 2 (test)")
        splits = np.array(SPLITS)[splits]
    return Array(found["features"], found["labels"], splits)


def file_of_labels(file: Path, labels: str | None) -> Path | None:
    """The CSV file of an .npy; None for what has its labels inside."""
    if file.suffix != ".npy":
        if labels is not None:
            raise InputError(f"features.source.labels={labels}: {shown(file)} has its labels inside; leave it out")
        return None
    table = file.with_suffix(".csv") if labels is None else Path(labels)
    if not table.is_file():
        raise MissingFileError(
            f"{shown(table)} is missing: an .npy needs a CSV file with the column label, a row for each of its rows; "
            f"give features.source.labels=FILE"
        )
    return table


def read_labels(table: Path) -> dict[str, NDArray[Any]]:
    """``labels`` and, where there are any, ``splits`` of a CSV file."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown(table)} is not a CSV file in UTF-8 ({error})") from error
    if "label" not in columns:
        given = ", ".join(columns) or "none"
        raise InputError(f"{shown(table)} has the columns {given}; it needs label (and may have split)")
    found = {"labels": np.array([row["label"] or "" for row in rows], dtype=str)}
    return found | ({"splits": np.array([row["split"] or "" for row in rows], dtype=str)} if "split" in columns else {})


def check_array(array: Array, file: Path) -> None:
    """Raise where the parts do not fit, a number is not finite, or splits make no sense."""
    features, labels, splits = array
    if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.size:
        raise InputError(
            f"features of {shown(file)} are {features.dtype} {list(features.shape)}; they must be numbers [n, D]"
        )
    for name, part in (("labels", labels), ("splits", splits)):
        if part is not None and part.shape != (len(features),):
            raise InputError(f"{shown(file)} has {name} {list(part.shape)} for {len(features):,} rows of features")
    if labels.dtype.kind not in "USiu":
        raise InputError(f"labels of {shown(file)} are {labels.dtype}; they must be text or whole numbers")
    with np.errstate(over="ignore"):
        finite = np.isfinite(features.astype(np.float32)).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InputError(
            f"{shown(file)} has NaN or infinite features in {int((~finite).sum()):,} of {len(features):,} rows, first "
            f"in row {row} (class {str(labels[row])!r})"
        )
    if splits is None:
        return
    splits = splits.astype(str)
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise InputError(f"splits of {shown(file)} have {few(unknown)}; they must be {', '.join(SPLITS)}")
    if absent := [split for split in SPLITS if split not in splits]:
        raise InputError(f"{shown(file)} has no row of {' and '.join(absent)}; give all three splits, or none")
    owner: dict[str, str] = {}
    for name, split in sorted(set(zip(labels.astype(str).tolist(), splits.tolist(), strict=True))):
        if name in owner:
            raise InputError(
                f"class {name!r} of {shown(file)} is in {owner[name]} and in {split}; splits share no class"
            )
        owner[name] = split


def drawn(array: Array, file: Path, settings: dict[str, Any]) -> NDArray[np.str_]:
    """The split of each row: classes are drawn, sorted by name."""
    names, numbers = np.unique(array.labels.astype(str), return_inverse=True)
    num_val, num_test = (max(1, round(settings[f"{split}_fraction"] * len(names))) for split in ("val", "test"))
    if num_val + num_test >= len(names):
        raise InputError(
            f"{shown(file)} has {len(names)} class(es): none is left to train on after {num_val} for validation and "
            f"{num_test} for test; add classes, or lower features.source.val_fraction or test_fraction"
        )
    of_class = np.full(len(names), "train")
    order = np.random.default_rng(settings["seed"]).permutation(len(names))
    of_class[order[:num_val]], of_class[order[num_val : num_val + num_test]] = "val", "test"
    splits: NDArray[np.str_] = of_class[numbers]
    return splits


def check(folder: Path, path: str | None, labels: str | None, settings: dict[str, Any]) -> None:
    """Raise where the features in ``folder`` were drawn otherwise, or made of another file than the one at ``path``."""
    made = read_config(folder / SETTINGS) if (folder / SETTINGS).is_file() else {"drawn": False}
    if made.pop("drawn") and (changed := differences(made, settings)):
        raise InputError(
            f"{folder} was made with other settings ({'; '.join(changed)}); delete it, or give another data.name"
        )
    recorded = read_records(folder / RECORDS)
    if path is None or not Path(path).is_file() or not recorded:
        return
    table = file_of_labels(Path(path), labels)
    given = [str(one) for one in (Path(path), table) if one is not None]
    before = dict(zip(given, recorded.values(), strict=False))
    known = {name: one._replace(name=name) for name, one in before.items()}
    if len(given) != len(recorded) or changes(Path(), given, known):
        raise InputError(
            f"{path} is not what {folder} was made of ({few(list(recorded))}); delete {folder}, or keep both: give the "
            f"features of now another data.name"
        )
