"""Stage 1 of the paper as a Hydra task: images, extractor, features."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from pretrain import contact_sheet
from pretrain.data import TrainImages
from pretrain.export import Origin, export
from pretrain.module import Pretraining
from pretrain.store import SPLITS, read_split
from pretrain.wide_resnet import WideResNet
from runner.files import sha256
from runner.folder import differences, run_folder, write_json
from runner.loggers import open_loggers
from runner.training import make_trainer, train

log = logging.getLogger(__name__)


def ensure_features(cfg: DictConfig) -> None:
    """Run stage 1 where the features of ``cfg`` are missing and its data set can be made from nothing.

    Features made by other settings of stage 1 are an error.
    """
    paths = [Path(cfg.features.folder) / f"{split}.safetensors" for split in SPLITS]
    if cfg.data.source is None:
        return  # what is missing is for the user to provide, and meta-training says so
    Path(cfg.dirs.features).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(cfg.dirs.features, ".lock")):  # of runs that start together, one makes them for all
        if not all(path.exists() for path in paths):
            log.info("no features in %s yet: stage 1 makes them first", cfg.features.folder)
            pretrain(cfg)
            return
    with safe_open(paths[0], framework="pt") as file:
        recorded = json.loads((file.metadata() or {}).get("config", "{}"))
    changed = differences(recorded, stage_config(cfg))
    if changed:
        raise ValueError(
            f"{cfg.features.folder} was made with other settings of stage 1 ({'; '.join(changed)}); "
            f"delete it, or keep both by giving the data or the backbone another name"
        )


def pretrain(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> float:
    """Build the images, train the extractor, export its features; its best validation accuracy, a fraction.

    The same call again goes on from the last checkpoint, and repeats nothing that is finished.
    """
    recipe, images, config = cfg.data.pretrain, Path(cfg.data.folder), stage_config(cfg)
    if cfg.data.source is None:
        raise ValueError(
            f"stage 1 on data={cfg.data.name} is not part of the project yet: put its feature files into "
            f"{cfg.features.folder}, or use data=glyphs"
        )
    instantiate(cfg.data.source, folder=images)
    stores = [read_split(images, split) for split in SPLITS]
    folder = Path(cfg.dirs.runs, recipe.run)
    with run_folder(folder, config), open_loggers(cfg.logger) as loggers:
        if (folder / "result.json").exists() and folders_complete(cfg):
            result = OmegaConf.load(folder / "result.json")
            log.info("%s is finished: validation accuracy %.2f %%", folder, 100 * result.val_accuracy)
            return float(result.val_accuracy)
        contact_sheet.draw(stores[0], folder / "contact_sheet.png", num_classes=12, num_images=12)
        pl.seed_everything(recipe.seed, verbose=False)
        module = Pretraining(
            network=WideResNet(
                **{key: cfg.backbone[key] for key in ("depth", "width", "strides", "dropout")},
                in_channels=stores[0].images.shape[-1],
                num_classes=len(stores[0].class_names),
            ),
            **{key: instantiate(recipe[key]) for key in ("augment", "optimizer", "schedule")},
            **{key: recipe[key] for key in ("label_smoothing", "mean", "std")},
        )
        data = TrainImages(
            stores[0], **{key: recipe[key] for key in ("batch_size", "num_val_per_class", "val_every", "seed")}
        )
        trainer = make_trainer(
            instantiate(cfg.trainer),
            folder,
            config=config,
            monitor="val/accuracy",
            patience=None,
            max_steps=recipe.max_steps,
            val_every=recipe.val_every,
            loggers=loggers,
            more_callbacks=callbacks,
        )
        outcome = train(trainer, module, data, folder)
        weights = torch.load(outcome.checkpoint, weights_only=True, map_location="cpu")["state_dict"]
        module.load_state_dict(weights)
        export(
            module.network,
            stores,
            {layer: layer_folder(cfg, layer) for layer in cfg.data.export},
            to_input=module.to_input,
            batch_size=recipe.batch_size,
            origin=Origin(sha256(outcome.checkpoint), cfg.data.crop, config),
        )
        write_json(
            folder / "result.json",
            {
                "stage": "pretrain",
                "data": cfg.data.name,
                "backbone": cfg.backbone.name,
                "val_accuracy": outcome.score,
                "num_steps": outcome.num_steps,
                "seconds": outcome.seconds,
                "checkpoint": str(outcome.checkpoint),
                "config": config,
            },
        )
        log.info("%s: validation accuracy %.2f %% on held-out training images", folder, 100 * outcome.score)
        return outcome.score


def stage_config(cfg: DictConfig) -> dict[str, Any]:
    """What the features follow from."""
    return {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("data", "backbone")}


def layer_folder(cfg: DictConfig, layer: int | str) -> Path:
    """Where the features of ``layer`` go: the folder that conf/features names for it."""
    name = f"{cfg.data.name}-pixels" if layer == "pixels" else f"{cfg.data.name}-{cfg.backbone.name}-layer{layer}"
    return Path(cfg.dirs.features, name)


def folders_complete(cfg: DictConfig) -> bool:
    """Whether every feature file of stage 1 is there."""
    return all(
        (layer_folder(cfg, layer) / f"{split}.safetensors").exists() for layer in cfg.data.export for split in SPLITS
    )
