"""The loggers beside the CSV file, closed at the end of a run whatever ends it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger


@contextmanager
def open_loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """The configured loggers. A W&B run left open would take what the next run of this process logs."""
    exit_code = 1
    try:
        yield list(instantiate(config).values())
        exit_code = 0
    finally:
        if "wandb" in sys.modules:  # it takes a second to import, and only its logger does that
            sys.modules["wandb"].finish(exit_code)
