"""Names of folders: by everything that changes what is in them, and no longer than file systems take."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_method
from omegaconf import OmegaConf

from runner.conf_folder import own_conf
from runner.files import sha256

MAX_BYTES = 255  # of a name, on the usual file systems
MAX_VARIANT = 151  # bytes of what a folder's name says of the command line, with its hyphen
NUM_DIGITS = 12
# The choice of a group has no look-alike: no group has two files whose names differ in / and _ alone.
_GROUP_CHOICE = re.compile(r"(^|,)(hparams=[^,=]*|[^,=]+=)")


def digest(text: str) -> str:
    """The first hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:NUM_DIGITS]


def cut(name: str, max_bytes: int = MAX_BYTES) -> str:
    """``name``, or where it is too long its beginning and a digest of all of it."""
    if len(os.fsencode(name)) <= max_bytes:
        return name
    kept = os.fsencode(name)[: max_bytes - NUM_DIGITS - 1].decode(errors="ignore")
    return f"{kept}-{digest(name)}"


def variant(overrides: str) -> str:
    """What a folder's name says of the command line: ``overrides`` with ``_`` for ``/``.

    It ends in a digest where it was cut, or where a value with ``_`` in place of ``/`` would have the same name.
    """
    if not overrides:
        return ""
    name = "-" + overrides.replace("/", "_")
    if "/" in _GROUP_CHOICE.sub("", overrides):
        name = f"{name}-{digest(overrides)}"
    if len(os.fsencode(name)) <= MAX_VARIANT:
        return name
    kept = os.fsencode("-" + overrides.replace("/", "_"))[: MAX_VARIANT - NUM_DIGITS - 1].decode(errors="ignore")
    return f"{kept}-{digest(overrides)}"


def variant_of_run(overrides: str) -> str:
    """What the name of the run says of the command line of a stage that works on it: without that stage's settings."""
    return variant(re.sub(r"(^|,)stage\.[^=]+=[^,]*", "", overrides).strip(","))


def plain(name: str) -> str:
    """``name`` with ``_`` for what shells read as their own, and then a digest of it as it was."""
    cleaned = re.sub(r"[^\w.,=-]+", "_", name)
    return name if cleaned == name else f"{cleaned}-{digest(name)}"


def first(*paths: Any) -> str | None:
    """The first path that is set."""
    return next((str(path) for path in paths if path is not None), None)


def all_paths(values: Any) -> Iterator[str | None]:
    """The paths of nested lists."""
    for value in values:
        if OmegaConf.is_list(value) or isinstance(value, list | tuple):
            yield from all_paths(value)
        else:
            yield None if value is None else str(value)


def trained_file(path: Path) -> Path:
    """The file that a trained model is known by: in a run folder its best checkpoint, in a package its manifest."""
    inside = [path / name for name in ("manifest.json", "best.ckpt")]
    return next((file for file in inside if file.is_file()), path)


def fingerprint(path: Path) -> str | None:
    """The SHA-256 of a file or of a model's folder; of another folder that of its files' names, sizes and times.

    None where nothing is there. Costs a look at each file of a folder, about a second for 100,000.
    """
    path = trained_file(path)
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return None
    hashed = hashlib.sha256()
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(folder, name)
            if not name.startswith(".") and file.exists():
                status = file.stat()
                line = f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
                hashed.update(os.fsencode(line))
    return hashed.hexdigest()


def identity(path: Path) -> dict[str, str | None]:
    """What a configuration says of a file or folder that it is made of: where it is, and the SHA-256 of its content."""
    return {"path": str(path), "sha256": fingerprint(path)}


def content(*paths: Any) -> str:
    """A digest of where ``paths`` are and of what they hold; lists of paths count as their paths."""
    files = [None if path is None else trained_file(Path(path)) for path in all_paths(paths)]
    return digest("\n".join("" if file is None else f"{file.resolve()} {fingerprint(file)}" for file in files))


def place(path: Any) -> str:
    """The name of the folder ``path``, and a digest of where it is, whatever is in it."""
    if path is None:
        return ""
    place = Path(str(path)).resolve()
    name = re.sub(r"[^\w.-]+", "_", place.name)[:40]
    return f"{name}-{digest(str(place))}"


def start(checkpoint: Any) -> str:
    """What the name of a run says of the checkpoint that it starts from."""
    return "" if checkpoint is None else f"-from-{content(checkpoint)}"


def transforms(key: str, module: str, *network: Any) -> Any:
    """One of the values that ``module`` gives, by its function of this name, of a network that others have trained."""
    return get_method(f"{module}.transforms")(*network)[key]


def unless(condition: Any, value: Any) -> Any:
    """``value``, or None where ``condition`` is set."""
    return None if condition else value


def model_name(path: Any) -> str:
    """What the model at ``path`` is called: its run folder or package; without a path, the method that needs none."""
    if path is None:
        return "centroid"
    place = Path(str(path)).absolute()
    return place.parent.name if place.suffix else place.name


def named_by(experiment: str) -> str:
    """The key that an experiment's runs are named by anyway: those of your own data carry its name."""
    return "data.name" if experiment.startswith("own_") else ""


def register() -> None:
    """Make these functions known to the configuration. Contents are looked at once for each configuration."""
    OmegaConf.register_new_resolver("variant", variant, replace=True)
    OmegaConf.register_new_resolver("variant_of_run", variant_of_run, replace=True)
    OmegaConf.register_new_resolver("own_conf", own_conf, replace=True)
    OmegaConf.register_new_resolver("cut", cut, replace=True)
    OmegaConf.register_new_resolver("plain", plain, replace=True)
    OmegaConf.register_new_resolver("first", first, replace=True)
    OmegaConf.register_new_resolver("content", content, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("start", start, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("place", place, replace=True)
    OmegaConf.register_new_resolver("unless", unless, replace=True)
    OmegaConf.register_new_resolver("transforms", transforms, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("model_name", model_name, replace=True)
    OmegaConf.register_new_resolver("named_by", named_by, replace=True)
