"""Stage 1 of the paper as a Hydra task: images, extractor, features."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import nn

from pretrain import contact_sheet
from pretrain.augment import to_float
from pretrain.centroid import CentroidAccuracy
from pretrain.data import TrainImages
from pretrain.export import PIXELS, Origin, export
from pretrain.extractor import PRETRAINED, network_settings, pretrained_extractor, write_extractor
from pretrain.module import Pretraining
from pretrain.network import WIDE_RESNET, state_sha256
from pretrain.sources import array, image_folder
from pretrain.store import SPLITS, ImageStore, images_fingerprint, is_complete, read_split
from pretrain.wide_resnet import WideResNet
from runner.checkpoints import load_checkpoint
from runner.config import check_whole_numbers, without_paths
from runner.errors import InputError
from runner.files import read_json, sha256
from runner.folder import differences, run_folder, taking_turns, write_json
from runner.loggers import open_loggers
from runner.names import cut
from runner.process import hide_absent_gpus, is_first_process, keep_freed_memory
from runner.record import group, made_by, scored
from runner.training import make_trainer, train

log = logging.getLogger(__name__)


def ensure_features(cfg: DictConfig) -> None:
    """Run stage 1 where the features of ``cfg`` are missing and its images can be made; take features from outside.

    Features made by other settings of stage 1 are an error.
    """
    if cfg.features.source is not None:
        check_experiment(cfg)
        instantiate(cfg.features.source, folder=Path(cfg.features.folder))
        return
    if cfg.data.source is None:
        return  # what is missing is for the user to provide, and meta-training says so
    check_experiment(cfg)
    if cfg.extractor.problem is not None and cfg.extractor.start == "random":
        make_images(cfg)  # the extractor is not that of stage 1
        return
    paths = [Path(cfg.features.folder) / f"{split}.safetensors" for split in SPLITS]
    if not all(path.exists() for path in paths):  # what is complete may lie where nothing can be written
        run = Path(cfg.data.pretrain.run).name
        with taking_turns(Path(cfg.dirs.features, cut(f".{run}.lock")), f"the features of {run}"):
            # Of runs that start together, one makes them for all.
            if not all(path.exists() for path in paths):
                make_images(cfg)
                log.info("no features in %s yet: stage 1 makes them first", cfg.features.folder)
                pretrain(cfg)
                return
    recorded = json.loads(feature_metadata(cfg).get("config", "{}"))
    changed = differences(recorded | {"images": None}, stage_config(cfg))
    if changed:
        raise InputError(
            f"{cfg.features.folder} was made with other settings of stage 1 ({'; '.join(changed)}); "
            f"delete it, or keep both by giving the data or the backbone another name"
        )
    check_images(cfg)
    check_weights(cfg)


def check_weights(cfg: DictConfig) -> None:
    """Raise where the features of ``cfg`` were made with other weights than those of ``backbone.pretrained.file``."""
    about = cfg.backbone.get("pretrained")
    recorded = feature_metadata(cfg).get("checkpoint")
    if not about or about.file is None or not recorded:
        return
    found = state_sha256(pretrained_extractor(plain_backbone(cfg), own=[cfg.backbone._target_]).state_dict())
    if found != recorded:
        raise InputError(
            f"{cfg.features.folder} was made with other weights than those in {about.file}: with {recorded[:12]}, the "
            f"file has {found[:12]}. {remedy(cfg)}"
        )


def plain_backbone(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration of the network."""
    return {str(key): value for key, value in OmegaConf.to_container(cfg.backbone, resolve=True).items()}  # type: ignore[union-attr]


def check_images(cfg: DictConfig) -> None:
    """Raise where the features of ``cfg`` are not of its images: its store, or the source that the store is made of.

    Images that are gone are not compared; neither are files that do not record what they were made of.
    """
    if cfg.data.source is None or cfg.features.source is not None or cfg.features.folder is None:
        return
    folder, path = Path(cfg.data.folder), cfg.data.source.get("path")
    if path is not None and Path(path).is_dir():
        instantiate(cfg.data.source, folder=folder)
    if not is_complete(folder):
        return
    stores = [read_split(folder, split) for split in SPLITS]
    expected, found = feature_metadata(cfg).get("images"), images_fingerprint(stores)
    if expected and found and expected != found:
        raise InputError(
            f"{cfg.features.folder} was made of other images than those in {folder}: of {expected[:12]}, there are "
            f"{found[:12]} ({cfg.data.name}, {sum(len(store.class_names) for store in stores):,} classes, "
            f"{sum(len(store.images) for store in stores):,} images). {remedy(cfg)}"
        )


def remedy(cfg: DictConfig) -> str:
    """The two ways on where something was made of other images."""
    return (
        f"Delete it and {Path(cfg.dirs.runs, cfg.data.pretrain.run)} to make both anew, or keep both: give the images "
        f"of now another data.name"
    )


def feature_metadata(cfg: DictConfig) -> dict[str, str]:
    """What the features of ``cfg`` say of themselves; nothing where they are missing."""
    path = Path(cfg.features.folder, "train.safetensors")
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}); delete it") from error


def check_experiment(cfg: DictConfig) -> None:
    """Raise where data of the user's own would be trained on with values, and under a name, of other data."""
    experiment, source = HydraConfig.get().runtime.choices["experiment"], cfg.features.source
    is_array = source is not None and source.get("_target_") == f"{array.__name__}.build"
    if (is_array or is_own(cfg)) and experiment.startswith(("glyphs_", "mini_", "tiered_")):
        own = "features=array" if is_array else "data=image_folder"
        raise InputError(
            f"experiment={experiment} is made for other images than {own}: it has their values, and its "
            f"runs have their name. Add experiment=own_1shot or own_5shot (or the same with _meta_sgd, _prototypes, "
            f"_centroid_mid_level, _centroid_penultimate, _centroid_pixels){' and data.name=NAME' * is_array}"
        )


def is_own(cfg: DictConfig) -> bool:
    """Whether the images are the user's own."""
    return cfg.data.source is not None and cfg.data.source.get("_target_") == f"{image_folder.__name__}.build"


def check_tasks(cfg: DictConfig, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Raise where tasks of ``cfg`` cannot be drawn from classes of ``sizes`` images, by split and name."""
    check_whole_numbers(cfg, {"num_way": 2, "num_shot": 1, "num_query": 1})
    for split, classes in sizes.items():
        if cfg.num_way > len(classes):
            more = f", or raise data.source.{split}_fraction" if is_own(cfg) and split != "train" else ""
            raise InputError(
                f"num_way={cfg.num_way} exceeds the {len(classes)} classes of the {split} split of {cfg.data.name} "
                f"({sum(map(len, sizes.values()))} classes in all); lower num_way, add classes{more}"
            )
    for split, classes in sizes.items():
        name, smallest = min(classes.items(), key=itemgetter(1))
        needed = cfg.num_shot + (cfg.num_query if split in cfg.train_splits else 1)  # else all that remain are queries
        if smallest < needed:
            raise InputError(
                f"class {name!r} of the {split} split of {cfg.data.name} has {smallest} images, a task needs {needed} "
                f"(num_shot={cfg.num_shot} and {needed - cfg.num_shot} to classify); lower num_shot or num_query, or "
                f"drop the class"
            )


def make_images(cfg: DictConfig) -> list[ImageStore]:
    """The images of ``cfg``, made first where their source is given; they are enough for its tasks."""
    folder, source = Path(cfg.data.folder), cfg.data.source
    if is_own(cfg) and not is_complete(folder) and source.path is not None and Path(source.path).is_dir():
        settings = {key: source[key] for key in image_folder.Draw._fields}
        listed = image_folder.list_classes(Path(source.path), image_folder.Draw(**settings)).classes
        counts = {split: {name: len(files) for name, files in listed[split].items()} for split in SPLITS}
        check_tasks(cfg, counts)  # before any image is read
    instantiate(source, folder=folder)
    stores = [read_split(folder, split) for split in SPLITS]
    check_tasks(
        cfg,
        {one.split: dict(zip(one.class_names, one.offsets.diff().tolist(), strict=True)) for one in stores},
    )
    return stores


def pretrain(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> float:
    """Build the images, train the extractor, export its features; its best validation accuracy, a fraction.

    The same call again goes on from the last checkpoint, and repeats nothing that is finished. An extractor that others
    have trained is taken as it is, and the accuracy is NaN.
    """
    recipe, images = cfg.data.pretrain, Path(cfg.data.folder)
    multiview = cfg.views.name == "multiview"
    if cfg.backbone.get("pretrained") and (multiview or callbacks):
        raise InputError(
            f"backbone={cfg.backbone.name} is trained already, and sees an image once: it takes neither "
            f"views=multiview nor a search; leave them out"
        )
    if multiview and cfg.data.crop == "full":
        raise InputError(f"views=multiview needs crops, and data={cfg.data.name} uses full images; use views=single")
    if cfg.data.source is not None:
        instantiate(cfg.data.source, folder=images)
    stores = [read_split(images, split) for split in SPLITS]
    if cfg.backbone.get("pretrained"):
        check_size(cfg, stores[0])
    folder = Path(cfg.dirs.runs, recipe.run)
    fingerprint = images_fingerprint(stores)
    config = stage_config(cfg) | {"images": known_images(folder, fingerprint, cfg)}
    with run_folder(folder, config), open_loggers(cfg.logger, folder) as loggers:
        if (folder / "result.json").exists() and folders_complete(cfg):
            check_images(cfg)
            check_weights(cfg)
            remedy = "delete it: the same command makes it again"
            accuracy = read_json(folder / "result.json", ("val_accuracy",), remedy)["val_accuracy"]
            if accuracy is None:
                log.info("%s is finished: features of an extractor that others have trained", folder)
                return math.nan
            accuracy = float(accuracy)
            log.info("%s is finished: validation accuracy %.2f %%", folder, 100 * accuracy)
            return accuracy
        if is_first_process():
            contact_sheet.draw(stores[0], folder / "contact_sheet.png", num_classes=12, num_images=12)
        keep_freed_memory()
        hide_absent_gpus()
        if cfg.backbone.get("pretrained"):
            use_pretrained(cfg, stores, folder, fingerprint, config)
            return math.nan
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
            {layer: layer_folder(cfg, layer) for layer in exported(cfg)},
            to_inputs=[partial(module.to_input, view=view) for view in views],
            batch_size=recipe.batch_size,
            origin=Origin(fingerprint, sha256(outcome.checkpoint), crop_name(cfg), config),
        )
        summary = f"validation accuracy {100 * outcome.score:.2f} % on held-out training images"
        write_result(
            cfg, folder, config, fingerprint, outcome.checkpoint, outcome.score, summary,
            {"num_steps": outcome.num_steps, "seconds": outcome.seconds, "inputs": {"images": stores[0].source}},
        )  # fmt: skip
        return outcome.score


def check_size(cfg: DictConfig, store: ImageStore) -> None:
    """Raise where the images of ``store`` do not have the size that the network of ``cfg`` is set to."""
    (height, width), size = store.images.shape[1:3], cfg.backbone.pretrained.image_size
    if (height, width) != (size, size):
        raise InputError(
            f"the images in {cfg.data.folder} are {height}x{width}, and backbone={cfg.backbone.name} is to see "
            f"squares of {size}: give backbone.pretrained.image_size={height}, or make the images anew with "
            f"data.source.image_size={size} and another data.name"
        )


def use_pretrained(
    cfg: DictConfig, stores: list[ImageStore], folder: Path, fingerprint: str | None, config: dict[str, Any]
) -> None:
    """Write the extractor that others have trained into ``folder``, and its features of ``stores``; trains nothing."""
    start, backbone = time.perf_counter(), plain_backbone(cfg)
    about, height = backbone["pretrained"], stores[0].images.shape[1]
    layers = exported(cfg)
    framing = cfg.data.source and cfg.data.source.get("framing")
    extractor = pretrained_extractor(
        backbone,
        own=[cfg.backbone._target_],
        layer=next((layer for layer in layers if layer != PIXELS), None),
        image_size=height,
        framing=None if framing is None else OmegaConf.to_container(framing, resolve=True),  # type: ignore[arg-type]
    )
    sha256_of_state = write_extractor(folder / PRETRAINED, extractor)
    is_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    extractor.to("cuda" if is_gpu else "cpu")
    export(
        extractor.network,
        stores,
        {layer: layer_folder(cfg, layer) for layer in layers},
        to_inputs=[partial(to_float, mean=extractor.mean, std=extractor.std)],
        batch_size=extractor.at_a_time(),
        origin=Origin(fingerprint, sha256_of_state, crop_name(cfg), config),
    )
    num_images = sum(len(store.images) for store in stores)
    summary = f"features of {num_images:,} images by {extractor.network.name}, trained by others; trained nothing"
    more = {
        "num_images": num_images,
        "num_steps": 0,
        "seconds": time.perf_counter() - start,
        "checkpoint_sha256": sha256_of_state,
        "extractor": {
            "name": extractor.network.name, "weights": about["weights"], "sha256": sha256_of_state,
            "settings": extractor.settings, "mean": about["mean"], "std": about["std"],
        },
        "inputs": {"images": stores[0].source, "extractor": sha256_of_state},
    }  # fmt: skip
    write_result(cfg, folder, config, fingerprint, folder / PRETRAINED, None, summary, more)


def write_result(
    cfg: DictConfig,
    folder: Path,
    config: dict[str, Any],
    fingerprint: str | None,
    checkpoint: Path,
    score: float | None,
    summary: str,
    more: dict[str, Any],
) -> None:
    """Write ``result.json`` of stage 1 in ``folder``, with ``more``, and log ``summary``."""
    result = {
        **made_by(),
        "stage": "pretrain",
        "data": cfg.data.name,
        "backbone": cfg.backbone.name,
        "images": fingerprint,
        "val_accuracy": score,
        "checkpoint": str(checkpoint),
        "config": config,
        **scored("val_accuracy", score),
        "group": group(config),
        "summary": summary,
    }
    write_json(folder / "result.json", result | more)
    log.info("%s: %s", folder, summary)


def known_images(folder: Path, fingerprint: str | None, cfg: DictConfig) -> str | None:
    """``fingerprint``, which must be that of the images that the extractor in ``folder`` was trained on.

    None, for unknown, where an extractor is there and does not record it.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return fingerprint
    recorded = OmegaConf.to_container(OmegaConf.load(path))
    expected = recorded.get("images") if isinstance(recorded, dict) else None
    if expected and fingerprint and expected != fingerprint:
        raise InputError(
            f"the extractor in {folder} was trained on other images than those in {cfg.data.folder}: on "
            f"{expected[:12]}, there are {fingerprint[:12]}. Delete {folder} and the features of {cfg.data.name} in "
            f"{cfg.dirs.features} to make both anew, or keep both: give the images of now another data.name"
        )
    return expected


def make_network(backbone: DictConfig, store: ImageStore) -> WideResNet:
    """The extractor for the classes of ``store``: a WideResNet, or what the ``_target_`` of ``backbone`` names."""
    network: WideResNet = instantiate(
        {"_target_": WIDE_RESNET} | network_settings(backbone),
        in_channels=store.images.shape[-1],
        num_classes=len(store.class_names),
    )
    return network


def stage_config(cfg: DictConfig) -> dict[str, Any]:
    """What the features follow from."""
    return without_paths({key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("data", "backbone")})


def crop_name(cfg: DictConfig) -> str:
    """How images were cropped for their features, as the feature files say it."""
    if cfg.backbone.get("pretrained"):
        framing = cfg.data.source and cfg.data.source.get("framing")
        return f"centre {framing.crop_fraction:.4g} of the shorter side, {framing.filter}" if framing else "full"
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
        (layer_folder(cfg, layer) / f"{split}.safetensors").exists() for layer in exported(cfg) for split in SPLITS
    )


def exported(cfg: DictConfig) -> list[int | str]:
    """The layers that features are written of.

    With an extractor of others also the one that ``cfg`` asks for, and pixels only where that is it: its images are
    large.
    """
    if not cfg.backbone.get("pretrained"):
        return list(cfg.data.export)
    asked = cfg.features.layer
    layers = dict.fromkeys([*cfg.data.export, asked])
    return [layer for layer in layers if layer is not None and (layer != PIXELS or asked == PIXELS)]
