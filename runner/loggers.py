"""The loggers in addition to the CSV file, closed at the end of a run whatever ends it."""

import hashlib
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from runner.files import write_text

WANDB = "pytorch_lightning.loggers.WandbLogger"
TAG_LENGTH, NAME_LENGTH = 64, 128  # what W&B takes


@contextmanager
def open_loggers(config: DictConfig, folder: Path) -> Iterator[list[Logger]]:
    """The configured loggers of the run in ``folder``. W&B goes on with the run that the folder began.

    A W&B run left open would take what the next run of this process logs.
    """
    exit_code = 1
    try:
        yield [instantiate(logger, **changes(logger, folder)) for logger in config.values()]
        exit_code = 0
    finally:
        if "wandb" in sys.modules:  # it takes a second to import, and only its logger does that
            sys.modules["wandb"].finish(exit_code)


def changes(logger: DictConfig, folder: Path) -> dict[str, Any]:
    """What W&B needs differently: an id that lasts, and names that are short enough."""
    if logger.get("_target_") != WANDB:
        return {}
    settings = OmegaConf.to_container(logger, resolve=True)
    assert isinstance(settings, dict)
    names = {key: shortened(settings[key], NAME_LENGTH) for key in ("name", "group", "job_type") if settings.get(key)}
    tags = [shortened(tag, TAG_LENGTH) for tag in settings.get("tags") or []]
    return {"id": settings.get("id") or wandb_id(folder), "tags": tags, **names}


def wandb_id(folder: Path) -> str:
    """The id of the W&B run of ``folder``, kept in ``wandb_id.txt``."""
    path = folder / "wandb_id.txt"
    kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not kept:
        kept = uuid.uuid4().hex[:16]
        write_text(path, f"{kept}\n")
    return kept


def shortened(text: str, length: int) -> str:
    """``text`` in at most ``length`` characters: its end, which says most, and a digest of the whole."""
    if len(text) <= length:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[len(digest) + 1 - length :]}-{digest}"
