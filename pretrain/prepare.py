"""Images or features from outside as a Hydra task: whatever a researcher holds becomes files of this project."""

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from pretrain.store import SPLITS, read_split

log = logging.getLogger(__name__)


def prepare(cfg: DictConfig) -> None:
    """Write the image store of ``cfg.data``; of features that come from outside, the feature files instead.

    The same call again goes on where the last one stopped, and repeats nothing that is finished.
    """
    if cfg.features.source is not None:
        instantiate(cfg.features.source, folder=Path(cfg.features.folder))
        log.info("%s is complete", cfg.features.folder)
        return
    folder = Path(cfg.data.folder)
    if cfg.data.source is not None:
        instantiate(cfg.data.source, folder=folder)
    for split in SPLITS:
        store = read_split(folder, split)
        log.info("%s: %s, %d classes, %d images", folder, split, len(store.class_names), len(store.images))
