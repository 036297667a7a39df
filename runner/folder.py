"""Run folders: one run has one folder, one configuration and one process at a time."""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.errors import FolderInUseError, InputError
from runner.files import writable, write_text
from runner.process import is_first_process

log = logging.getLogger(__name__)

CONFIG_REMEDY = "delete that file and give the command of this run again, which writes it anew"


def differences(recorded: Any, requested: Any, prefix: str = "") -> list[str]:
    """The keys in which two nested configurations differ, as ``key: recorded -> requested``."""
    if isinstance(recorded, dict) and isinstance(requested, dict):
        keys = list(recorded) + [key for key in requested if key not in recorded]
        parts = (differences(recorded.get(key), requested.get(key), f"{prefix}.{key}".lstrip(".")) for key in keys)
        return [line for part in parts for line in part]
    return [] if recorded == requested else [f"{prefix}: {recorded} -> {requested}"]


@contextmanager
def taking_turns(lock: Path, what: str) -> Iterator[None]:
    """Hold the file ``lock`` while ``what`` is made; where another process holds it, wait, and say for what."""
    held = FileLock(lock)
    try:
        with writable(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that makes %s (it holds %s)", what, lock)
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def run_folder(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """Hold ``folder`` for a run with ``config``; refuse one that another process holds or another config made.

    A run that ends with an error before it has written anything leaves nothing. The further processes of a distributed
    training share the folder that their first one holds.
    """
    if not is_first_process():
        yield folder
        return
    is_new, lock, path = not folder.exists(), folder / ".lock", folder / "config.yaml"
    try:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock, timeout=0).acquire()
        with held:
            text = OmegaConf.to_yaml(OmegaConf.create(config))
            if path.exists():
                changed = differences(read_config(path), config)
                if changed and text.startswith(path.read_text(encoding="utf-8")):
                    raise InputError(f"{path} is damaged (it is cut short); {CONFIG_REMEDY}")
                if changed:
                    raise InputError(
                        f"{folder} holds a run with other settings ({'; '.join(changed)}); "
                        f"delete it, or give this run another folder with run_dir=..."
                    )
            else:
                write_text(path, text)
            yield folder
    except Timeout:
        raise FolderInUseError(f"{folder} is in use by another process; wait for it or stop it") from None
    except Exception:
        if is_new and {child.name for child in folder.iterdir()} <= {lock.name, path.name}:
            shutil.rmtree(folder)
        raise


def finite(content: Any) -> Any:
    """``content`` with None for each number that is not finite, for which JSON has no word."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_config(path: Path) -> dict[str, Any]:
    """The configuration at ``path``, as ``run_folder`` wrote it."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({str(error).splitlines()[0]}); {CONFIG_REMEDY}") from error
    if not isinstance(config, dict) or not config:
        raise InputError(f"{path} is damaged (it holds no configuration); {CONFIG_REMEDY}")
    return {str(key): value for key, value in config.items()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as the whole of ``path``; null for numbers that are not finite."""
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
