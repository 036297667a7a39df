"""The files that an image store was made of: their names, sizes and SHA-256, and what has changed since.

A check is cheap: the content of a file is read again only where its size or its times are not those recorded.
"""

import csv
import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from runner.files import sha256, whole_file

_SETTLED = 2 * 10**9  # ns: a younger file may change again without another time, as some file systems count seconds
_COLUMNS = ("file", "size", "modified", "changed", "sha256")


class FileRecord(NamedTuple):
    """One file. ``name`` is relative to the source, with forward slashes; times are ns, 0 where not to be trusted."""

    name: str
    size: int
    modified: int
    changed: int  # of the file's entry (ctime on Linux, which no program can set)
    sha256: str


class Changes(NamedTuple):
    """Names of classes and files that differ. Where none does, ``records`` has all files with their times of now."""

    added_classes: list[str]
    removed_classes: list[str]
    added: list[str]
    removed: list[str]
    changed: list[str]
    records: list[FileRecord]

    def __bool__(self) -> bool:
        return any(self[:-1])

    def __str__(self) -> str:
        """How many classes and files differ, with the first names."""
        kinds = ("class(es) added", "class(es) removed", "file(s) added", "file(s) removed", "file(s) changed")
        names = (self.added_classes, self.removed_classes, self.added, self.removed, self.changed)
        return "; ".join(f"{len(of):,} {kind}: {few(of)}" for kind, of in zip(kinds, names, strict=True) if of)


def record(root: Path, names: Sequence[str], known: Mapping[str, FileRecord]) -> list[FileRecord]:
    """The records of ``names`` below ``root``; the SHA-256 of a file with the size and times of ``known`` is its.

    Raises OSError where a file cannot be read.
    """
    with ThreadPoolExecutor() as pool, Progress(console=Console(stderr=True), transient=True) as progress:
        found = pool.map(partial(_record, root), names, map(known.get, names))
        return list(progress.track(found, total=len(names), description="Fingerprint of the files"))


def changes(root: Path, names: Sequence[str], recorded: Mapping[str, FileRecord]) -> Changes:
    """How the files ``names`` below ``root`` differ from those ``recorded``.

    Contents are compared only where names and sizes are equal: else it is settled that they are others.
    """
    now, before = set(names), recorded.keys()
    classes, classes_before = _folders(now), _folders(before)
    states = {name: _state(root, name) for name in recorded if name in now}
    gone = {name for name, state in states.items() if state[0] < 0}
    found = Changes(
        sorted(classes - classes_before),
        sorted(classes_before - classes),
        sorted(now - before),
        sorted(before - now | gone),
        sorted(name for name, state in states.items() if state[0] != recorded[name].size and name not in gone),
        [],
    )
    if found:
        return found
    doubtful = [name for name, state in states.items() if state != recorded[name][1:4]]
    fresh = {one.name: one for one in record(root, doubtful, {})}
    return found._replace(
        changed=[name for name in doubtful if fresh[name].sha256 != recorded[name].sha256],
        records=[fresh.get(name, one) for name, one in recorded.items()],
    )


def digest(records: Iterable[FileRecord]) -> str:
    """SHA-256 of names, sizes and contents: equal for a copy of the files with other times."""
    rows = sorted(f"{one.name}\0{one.size}\0{one.sha256}\n" for one in records)
    return hashlib.sha256("".join(rows).encode("utf-8", "surrogateescape")).hexdigest()


def write_records(path: Path, records: Iterable[FileRecord]) -> None:
    """Write a CSV file with a row for each record."""
    # A file's name need not be UTF-8.
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(records)


def read_records(path: Path) -> dict[str, FileRecord]:
    """The records of ``path`` by name; none where the file is missing or no record."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = iter(csv.reader(file))
            if tuple(next(rows, ())) != _COLUMNS:
                return {}
            return {row[0]: FileRecord(row[0], int(row[1]), int(row[2]), int(row[3]), row[4]) for row in rows}
    except (FileNotFoundError, IndexError, ValueError, csv.Error):
        return {}


def shown(name: str | os.PathLike[str]) -> str:
    """The name as text that can be printed and written: what is not UTF-8 in it is replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def few(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _state(root: Path, name: str) -> tuple[int, int, int]:
    """Size, mtime and ctime; a size of -1 where there is no such file."""
    try:
        found = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 (a third of the time, 100,000 times)
    except OSError:
        return -1, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _record(root: Path, name: str, known: FileRecord | None) -> FileRecord:
    size, modified, changed = _state(root, name)  # before the content is read: a change in between shows
    if known is not None and known[1:4] == (size, modified, changed):
        return known
    if time.time_ns() - max(modified, changed) < _SETTLED:
        modified = changed = 0
    return FileRecord(name, size, modified, changed, sha256(root / name))


def _folders(names: Iterable[str]) -> set[str]:
    """The folders that hold the files ``names``, but not the source itself."""
    return {name.rpartition("/")[0] for name in names} - {""}
