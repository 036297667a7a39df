"""The journal: a file of lines of JSON, one an event, each on disk before anybody is told."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot.labelling.labels import Event
from runner.errors import InputError
from runner.files import writable

FORMAT = "labels-1"
KEYS: dict[str, dict[str, type]] = {
    "new": {"class": int, "name": str}, "rename": {"class": int, "name": str}, "remove": {"class": int},
    "label": {"labels": dict}, "undo": {},
}  # fmt: skip


class Journal:
    """An open journal, made where there is none. ``events`` are those of the file when it was opened.

    A last line without its end was being written when the process was killed, so nobody was told of it: it is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writable(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        content = path.read_bytes()
        self._size = content.rfind(b"\n") + 1  # of whole lines
        os.ftruncate(self._file, self._size)
        lines = content[: self._size].splitlines()
        self.events = [read_line(line, number, path) for number, line in enumerate(lines, 1)][1:]
        if not lines:
            self.append({"format": FORMAT})
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the file's name
            os.close(folder)

    def append(self, event: Mapping[str, Any]) -> None:
        """Write ``event`` as a line and wait until it is on disk; nothing of it stays where that fails."""
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._size + written)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise InputError(
                f"this was not kept, as {self.path} cannot be written ({error.strerror}); make room there, then do it "
                f"again"
            ) from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_line(line: bytes, number: int, path: Path) -> Event:
    """The event of a line; raises where it is none."""
    try:
        event = json.loads(line)
        if number == 1:
            is_good = event["format"] == FORMAT
        else:
            keys = KEYS[event["kind"]]
            is_good = all(isinstance(event[key], kind) for key, kind in keys.items())
            if event["kind"] == "label":
                is_good &= all(isinstance(n, int | None) for n in event["labels"].values())
    except (ValueError, KeyError, TypeError):
        is_good = False
    if not is_good:
        raise InputError(
            f"{path}, line {number} is damaged or of another version; put a copy of the file back, or delete this line "
            f"and all after it: the labels of the lines before are kept"
        )
    return dict(event)
