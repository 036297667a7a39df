"""Folders as people have them: hidden files and what systems leave behind are passed over, links followed once."""

import os
import stat
from collections import deque
from pathlib import Path
from typing import NamedTuple

from pretrain.fingerprint import shown
from runner.errors import InputError

# What systems and programs leave in folders of images unasked; in lower case. Hidden files are passed over anyway.
LITTER = {
    "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini",
    "zbthumbnail.info", "icon\r", "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "__pycache__",
}  # fmt: skip


class Unreadable(NamedTuple):
    """A file that cannot be used, and why, with its name."""

    path: Path
    reason: str


class Found(NamedTuple):
    """What lies in a folder, or below it: plain files, folders, and what is neither, with the reason."""

    files: list[Path]
    folders: list[Path]
    others: list[Unreadable]


def is_litter(name: str) -> bool:
    """Whether people do not know that the file or folder ``name`` is there."""
    return name.startswith(".") or name.lower() in LITTER


def look(folder: Path) -> Found:
    """What lies in ``folder``, in order of the names; links are what they lead to. Raises where it cannot be opened."""
    found = Found([], [], [])
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (names, not paths)
    except OSError as error:
        raise InputError(f"{shown(folder)} cannot be opened: {error.strerror}") from error
    for name in names:
        path = folder / name
        if is_litter(name):
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            target = f"it leads to {shown(path.readlink())}, " if path.is_symlink() else ""
            found.others.append(Unreadable(path, f"{shown(path)} cannot be opened: {target}{error.strerror}"))
            continue
        if stat.S_ISREG(mode):
            found.files.append(path)
        elif stat.S_ISDIR(mode):
            found.folders.append(path)
        else:
            found.others.append(Unreadable(path, f"{shown(path)} is a pipe, a socket or a device, not a file"))
    return found


def look_below(root: Path) -> Found:
    """All below ``root``, in order of the paths. Each folder is entered once, however many links lead to it."""
    found, entered, waiting, links = Found([], [], []), set(), deque([root]), deque[Path]()
    while waiting or links:
        folder = waiting.popleft() if waiting else links.popleft()  # a folder has its own path where it has one
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            inside = look(folder)
        except (OSError, InputError) as error:
            found.others.append(Unreadable(folder, str(error)))
            continue
        found.files.extend(inside.files)
        found.folders.append(folder)
        found.others.extend(inside.others)
        for path in inside.folders:
            (links if path.is_symlink() else waiting).append(path)
    return Found(sorted(found.files), found.folders, found.others)
