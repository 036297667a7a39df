"""Stage 1 of the paper as a Hydra task: images, extractor, features."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import nn

from pretrain import contact_sheet
from pretrain.centroid import CentroidAccuracy
from pretrain.data import TrainImages
from pretrain.export import Origin, export
from pretrain.module import Pretraining
from pretrain.store import SPLITS, ImageStore, read_split
from pretrain.wide_resnet import WideResNet
from runner.checkpoints import load_checkpoint
from runner.config import without_paths
from runner.errors import InputError
from runner.files import read_json, sha256
from runner.folder import differences, run_folder, taking_turns, write_json
from runner.loggers import open_loggers
from runner.names import cut
from runner.process import is_first_process
from runner.record import group, made_by, scored
from runner.training import make_trainer, train

log = logging.getLogger(__name__)


def ensure_features(cfg: DictConfig) -> None:
    """Run stage 1 where the features of ``cfg`` are missing and its images can be made; take features from outside.

    Features made by other settings of stage 1 are an error.
    """
    if cfg.features.source is not None:
        instantiate(cfg.features.source, folder=Path(cfg.features.folder))
        return
    if cfg.data.source is None:
        return  # what is missing is for the user to provide, and meta-training says so
    paths = [Path(cfg.features.folder) / f"{split}.safetensors" for split in SPLITS]
    if not all(path.exists() for path in paths):  # what is complete may lie where nothing can be written
        run = Path(cfg.data.pretrain.run).name
        with taking_turns(Path(cfg.dirs.features, cut(f".{run}.lock")), f"the features of {run}"):
            # Of runs that start together, one makes them for all.
            if not all(path.exists() for path in paths):
                log.info("no features in %s yet: stage 1 makes them first", cfg.features.folder)
                pretrain(cfg)
                return
    try:
        with safe_open(paths[0], framework="pt") as file:
            recorded = json.loads((file.metadata() or {}).get("config", "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"feature file {paths[0]} is damaged ({error}); delete it: the same command makes it again"
        ) from error
    changed = differences(recorded, stage_config(cfg))
    if changed:
        raise InputError(
            f"{cfg.features.folder} was made with other settings of stage 1 ({'; '.join(changed)}); "
            f"delete it, or keep both by giving the data or the backbone another name"
        )


def pretrain(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> float:
    """Build the images, train the extractor, export its features; its best validation accuracy, a fraction.

    The same call again goes on from the last checkpoint, and repeats nothing that is finished.
    """
    recipe, images, config = cfg.data.pretrain, Path(cfg.data.folder), stage_config(cfg)
    multiview = cfg.views.name == "multiview"
    if multiview and cfg.data.crop == "full":
        raise InputError(f"views=multiview needs crops, and data={cfg.data.name} uses full images; use views=single")
    if cfg.data.source is not None:
        instantiate(cfg.data.source, folder=images)
    stores = [read_split(images, split) for split in SPLITS]
    folder = Path(cfg.dirs.runs, recipe.run)
    with run_folder(folder, config), open_loggers(cfg.logger, folder) as loggers:
        if (folder / "result.json").exists() and folders_complete(cfg):
            remedy = "delete it: the same command makes it again"
            accuracy = float(read_json(folder / "result.json", ("val_accuracy",), remedy)["val_accuracy"])
            log.info("%s is finished: validation accuracy %.2f %%", folder, 100 * accuracy)
            return accuracy
        if is_first_process():
            contact_sheet.draw(stores[0], folder / "contact_sheet.png", num_classes=12, num_images=12)
        pl.seed_everything(recipe.seed, verbose=False)
        crop: Any = nn.Identity() if cfg.data.crop == "full" else instantiate(cfg.data.crop)
        module = Pretraining(
            network=make_network(cfg.backbone, stores[0]),
            crop=crop,
            centroid_accuracy=centroid_accuracy(cfg, stores[1]) if cfg.centroid_tasks else None,
            **{key: instantiate(recipe[key]) for key in ("augment", "optimizer", "schedule")},
            **{key: recipe[key] for key in ("label_smoothing", "mean", "std")},
        )
        if cfg.compile:
            module.network.compile()
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
            updates_per_step=1,
            loggers=loggers,
            more_callbacks=callbacks,
        )
        outcome = train(trainer, module, data, folder)
        remedy = f"delete {folder} and train again"
        module.load_state_dict(load_checkpoint(outcome.checkpoint, remedy)["state_dict"])
        module.to(trainer.strategy.root_device)
        views = crop.multiview() if multiview else [crop]
        export(
            module.network,
            stores,
            {layer: layer_folder(cfg, layer) for layer in cfg.data.export},
            to_inputs=[partial(module.to_input, view=view) for view in views],
            batch_size=recipe.batch_size,
            origin=Origin(sha256(outcome.checkpoint), crop_name(cfg), config),
        )
        summary = f"validation accuracy {100 * outcome.score:.2f} % on held-out training images"
        write_json(
            folder / "result.json",
            {
                **made_by(),
                "stage": "pretrain",
                "data": cfg.data.name,
                "backbone": cfg.backbone.name,
                "val_accuracy": outcome.score,
                "num_steps": outcome.num_steps,
                "seconds": outcome.seconds,
                "checkpoint": str(outcome.checkpoint),
                "config": config,
                **scored("val_accuracy", outcome.score),
                "group": group(config),
                "inputs": {"images": stores[0].source},
                "summary": summary,
            },
        )
        log.info("%s: %s", folder, summary)
        return outcome.score


def make_network(backbone: DictConfig, store: ImageStore) -> WideResNet:
    """The extractor for the classes of ``store``: a WideResNet, or what the ``_target_`` of ``backbone`` names."""
    settings = {str(key): value for key, value in backbone.items() if key not in ("name", "mid_level")}
    network: WideResNet = instantiate(
        {"_target_": "pretrain.wide_resnet.WideResNet"} | settings,
        in_channels=store.images.shape[-1],
        num_classes=len(store.class_names),
    )
    return network


def stage_config(cfg: DictConfig) -> dict[str, Any]:
    """What the features follow from."""
    return without_paths({key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("data", "backbone")})


def crop_name(cfg: DictConfig) -> str:
    """How images were cropped for their features, as the feature files say it."""
    if cfg.data.crop == "full":
        return "full"
    return "centre" if cfg.views.name == "single" else str(cfg.views.name)


def centroid_accuracy(cfg: DictConfig, store: ImageStore) -> CentroidAccuracy:
    return CentroidAccuracy(
        store,
        num_tasks=cfg.centroid_tasks,
        **{key: cfg[key] for key in ("num_way", "num_shot", "num_query")},
        batch_size=cfg.data.pretrain.batch_size,
    )


def layer_folder(cfg: DictConfig, layer: int | str) -> Path:
    """Where the features of ``layer`` go: the folder that conf/features names for it."""
    if layer == "pixels":
        return Path(cfg.dirs.features, f"{cfg.data.name}-pixels")
    name = f"{cfg.data.name}-{cfg.backbone.name}-layer{layer}{cfg.views.suffix}"
    return Path(cfg.dirs.features, name)


def folders_complete(cfg: DictConfig) -> bool:
    """Whether every feature file of stage 1 is there."""
    return all(
        (layer_folder(cfg, layer) / f"{split}.safetensors").exists() for layer in cfg.data.export for split in SPLITS
    )
