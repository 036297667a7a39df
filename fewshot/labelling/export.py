"""What labelling leaves: a table, a folder of links or copies by class, a package. Images stay where they are."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from io import StringIO
from itertools import count
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fewshot.labelling.board import Board
from fewshot.package import write_manifest, write_pieces
from pretrain.fingerprint import shown
from runner.errors import InputError
from runner.files import whole_folder, write_text

WITHOUT = "without a class"
# Names that Windows keeps for itself.
RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10))}

CARD = """# Classes: {names}

Made by labelling the folder *{folder}*: {num_examples} images by hand. It holds the extractor and the learner
({method}), and the features of the examples, so that no image is needed:

```python
import json
from safetensors import safe_open
from fewshot import FewShotClassifier

with safe_open("THIS FOLDER/examples.safetensors", framework="np") as file:
    names = json.loads(file.metadata()["names"])
    features, classes = file.get_tensor("features"), file.get_tensor("classes")
classifier = FewShotClassifier.load("THIS FOLDER").fit(features, [names[i] for i in classes])
classifier.predict(image_paths)
```
"""


def table(board: Board) -> str:
    """labels.csv: path (relative to the folder), label, how (by hand or predicted), probability."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(("path", "label", "how", "probability"))
    for row in board.rows():
        how = "by hand" if row.by_hand else "predicted" if row.label else ""
        writer.writerow((shown(row.name), row.label, how, f"{row.probability:.4f}" if row.label else ""))
    return text.getvalue()


def write_table(board: Board, folder: Path) -> Path:
    """Write labels.csv in ``folder``, in place of an earlier one."""
    path = folder / "labels.csv"
    write_text(path, table(board))
    return path


def write_links(board: Board, folder: Path) -> Path:
    """A folder for each class with links to the images."""

    def link(source: Path, target: Path) -> None:
        try:
            target.symlink_to(source)
        except (NotImplementedError, PermissionError) as error:
            raise InputError(f"this file system takes no links ({error}); export copies instead") from error

    return write_classes(board, folder / "links", link)


def write_copies(board: Board, folder: Path) -> Path:
    """A folder for each class with copies of the images, which keep their times."""

    def copy(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        times = source.stat()
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))

    return write_classes(board, folder / "copies", copy)


def write_classes(board: Board, place: Path, put: Callable[[Path, Path], object]) -> Path:
    """A folder for each class in a new folder named as ``place`` with a number, whole or not at all."""
    rows = board.rows()
    folders = folder_names([row.label for row in rows if row.label])
    path = numbered(place)
    root = board.folder.resolve()
    with whole_folder(path) as partial:
        for row in rows:
            source = (root / row.name).resolve()
            if not source.is_relative_to(root):
                continue
            inside = partial / (folders[row.label] if row.label else WITHOUT)
            inside.mkdir(exist_ok=True)
            put(source, free_name(inside, Path(row.name).name))
    return path


def numbered(place: Path) -> Path:
    """The first of ``place``-1, -2, ... that is not there yet."""
    return next(path for i in count(1) if not (path := place.with_name(f"{place.name}-{i}")).exists())


def folder_names(labels: list[str]) -> dict[str, str]:
    """A name for the folder of each class, which every file system takes, and which no other class has."""
    found: dict[str, str] = {}
    taken = {WITHOUT}
    for label in dict.fromkeys(labels):
        name = re.sub(r'[\\/:*?"<>|]', "_", label).strip(" .") or "_"
        if name.casefold() in RESERVED:
            name += "_"
        base, i = name.encode()[:200].decode(errors="ignore"), 1
        name = base
        while name.casefold() in taken:
            i += 1
            name = f"{base}-{i}"
        taken.add(name.casefold())
        found[label] = name
    return found


def free_name(folder: Path, name: str) -> Path:
    """A path in ``folder`` that is not there yet: ``name``, or with a number before its ending."""
    path, i = folder / name, 1
    while path.exists() or path.is_symlink():
        i += 1
        path = folder / f"{Path(name).stem}-{i}{Path(name).suffix}"
    return path


def write_package(board: Board, folder: Path) -> Path:
    """A package as ``stage=package`` writes it, with the features of the examples."""
    rows, classes, names = board.examples()
    if len(np.unique(classes)) < 2:
        raise InputError("a package needs examples of at least two classes; give some first")
    model = board.model
    path = numbered(folder / "package")
    more = {"result": None, "versions": {name: version(name) for name in ("leo", "torch")}}
    with whole_folder(path) as partial:
        write_pieces(model, partial, more, by_name=False)
        save_file(
            {"features": board.features[rows], "classes": classes.astype(np.int64)},
            partial / "examples.safetensors",
            metadata={"names": json.dumps(names)},
        )
        card = CARD.format(
            names=", ".join(names), folder=board.folder.name, num_examples=len(rows), method=model.method
        )
        write_text(partial / "README.md", card)
        write_manifest(partial)
    return path


EXPORTS = {"labels": write_table, "links": write_links, "copies": write_copies, "package": write_package}
