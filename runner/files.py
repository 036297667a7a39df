"""Files that appear whole or not at all, their fingerprints, and JSON files that may be damaged."""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import InputError

NOT_WRITABLE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
}


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Say in one line why ``path`` cannot be written: a full disk, a folder that may only be read."""
    try:
        yield
    except Exception as error:
        code = error_number(error)
        if code not in NOT_WRITABLE:
            raise
        raise InputError(
            f"{path} cannot be written: {os.strerror(code)}; {NOT_WRITABLE[code]}, and give the same command again"
        ) from error


def error_number(error: Exception) -> int:
    """The number of a system's error, also where a library written in Rust has put it into its message; 0 for none."""
    if isinstance(error, OSError):
        return error.errno or 0
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else 0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path`` that takes its name on success and is removed on failure.

    What is on disk survives a loss of power: the content is there before the name. Who may read it is as of any file
    that this process makes; some writers make files that only their owner can read.
    """
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            partial.touch()
            mode = stat.S_IMODE(partial.stat().st_mode)
            yield partial
            partial.chmod(mode)
            synchronise(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to ``path`` that takes its name on success and is removed on failure."""
    if path.exists():
        raise InputError(f"{path} exists already; delete it or choose another folder")
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        partial.mkdir()
        try:
            yield partial
            for written in partial.rglob("*"):
                if written.is_file() and not written.is_symlink():
                    synchronise(written)
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """A hidden name for what becomes ``path``, different on each machine, in each process and at each call.

    Removes what processes of this machine left behind when they were killed while they wrote ``path``.
    """
    start = f".{path.name[:40]}.{platform.node()[:40]}."  # names have up to 255 bytes, letters up to four
    for left in path.parent.glob(f"{glob.escape(start)}*.partial"):
        process = left.name.removeprefix(start).partition(".")[0]
        if process.isdigit() and not is_running(int(process)):
            remove(left)
    return path.with_name(f"{start}{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half written in ``folder``, which nobody else may be writing to."""
    for left in folder.glob(".*.partial"):
        remove(left)


def remove(path: Path) -> None:
    """Delete the file or folder at ``path``; another process may be faster."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def synchronise(path: Path) -> None:
    """Wait until the content of the file at ``path`` is on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as the whole of ``path``, in UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, keys: tuple[str, ...], remedy: str) -> dict[str, Any]:
    """The JSON object at ``path``, which must have ``keys``; ``remedy`` is what to do where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, not JSON
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else ["{}"]
    if missing:
        raise InputError(f"{path} is damaged or of another version (it lacks {', '.join(missing)}); {remedy}")
    result: dict[str, Any] = content
    return result


def sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
