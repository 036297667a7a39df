"""Lightning's trainer as the keys of ``trainer`` describe it, on one machine."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.plugins.io import TorchCheckpointIO

from runner.checkpoints import save_checkpoint
from runner.errors import InputError


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint straight to its path.

    Lightning's own writes to the system's temporary folder first, which may be full, and a kill leaves the file there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        save_checkpoint(checkpoint, Path(path))


def new_trainer(partial_trainer: Callable[..., pl.Trainer], **settings: Any) -> pl.Trainer:
    """The trainer. Raises where the keys of ``trainer``, which are the user's, make none on this machine.

    It starts its processes itself: what SLURM or torchrun have left in the environment, or a command ``srun`` on the
    PATH, changes nothing. From then on Lightning leaves out what is of no use here.
    """
    hide_advice()
    given = getattr(partial_trainer, "keywords", {}).get("plugins") or []
    plugins = [LightningEnvironment(), *(given if isinstance(given, list) else [given])]
    try:
        return partial_trainer(**settings, plugins=plugins)
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the keys of trainer make no trainer: {reason}; trainer=auto takes what this machine has"
        ) from error


def hide_advice() -> None:
    """Show no more of Lightning's messages that are advertisement, or about what no user can change."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its INFO lines are advertisement
    # Lightning 2.6 uses a call that torch 2.11 deprecated.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # An extractor that is trained with the learner stays in evaluation mode.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    # Meta-training logs by itself; what Lightning would log by its own interval is shown, not logged.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")


@contextmanager
def silent_about_srun() -> Iterator[None]:
    """Within, Lightning does not ask why SLURM's ``srun`` is on the PATH and not used: nothing here needs it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        yield
