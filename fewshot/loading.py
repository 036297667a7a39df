"""Reading a model from wherever it is: a package, a checkpoint of meta-training, a run folder, a network of others."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from fewshot.model import Model, nearest_centroid
from fewshot.package import MANIFEST, read_package
from leo.checkpoint import read_checkpoint
from leo.trained import rebuild
from pretrain.extractor import (
    Extractor,
    extractor_file,
    found_sha256,
    layer_of,
    network_of,
    pretrained_extractor,
    read_extractor,
)
from pretrain.network import load_state, state_sha256
from runner import names
from runner.conf_folder import CONF
from runner.errors import InputError, MissingFileError, users_message

JOINT = "extractor."  # of the weights of an extractor that was trained with its learner
CENTROID = "leo.prototypes.NearestCentroid"


def load(path: Path, extractor: Path | None, own: Collection[str] = ()) -> Model:
    """The model at ``path``. ``extractor`` is that of a checkpoint, where it is not beside its run folder.

    ``own`` are networks of the user's own that may be called.
    """
    if (path / MANIFEST).is_file():
        if extractor is not None:
            raise InputError(f"{path} is a package, which has its extractor; leave out extractor={extractor}")
        return read_package(path, own)
    return from_checkpoint(path / "best.ckpt" if path.is_dir() else path, extractor, own)


def chosen(cfg: DictConfig) -> Model:
    """The model that a command names: ``checkpoint``, a backbone that others have trained, or the experiment's run."""
    backbone, target = OmegaConf.to_container(cfg.backbone, resolve=True), cfg.backbone.get("_target_")
    assert isinstance(backbone, dict)
    path, extractor = cfg.checkpoint or cfg.stage.model, cfg.stage.extractor
    if path is None:
        if extractor is not None:
            raise InputError(f"backbone={cfg.backbone.name} is the extractor; leave out stage.extractor={extractor}")
        return untrained({str(key): value for key, value in backbone.items()})
    model = load(Path(path), extractor and Path(extractor), [] if target is None else [target])
    if target is not None and model.extractor is not None:
        found = model.extractor.settings["network"].get("_target_")
        if found != target:
            raise InputError(
                f"backbone={cfg.backbone.name} has no effect: the extractor of {path} is a {found or 'WideResNet'}; "
                f"leave it out"
            )
    return model


def from_checkpoint(path: Path, extractor: Path | None, own: Collection[str] = ()) -> Model:
    """The learner of a run's checkpoint, with its extractor: the given one, or that of the same folder of runs.

    A network of others is taken from where it came from, if it is not there. One that was trained with the learner is
    in the checkpoint.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["config"]
    state = checkpoint["state_dict"]
    weights = {name: value for name, value in state.items() if not name.startswith(JOINT)}
    trained = rebuild(config["model"]["learner"], config["features"]["normalize"], weights, path)
    origin, backbone = config["features_origin"], config["backbone"]
    known = {
        "learner": config["model"]["learner"],
        "normalize": config["features"]["normalize"],
        "num_way": config["num_way"],
        "num_shot": config["num_shot"],
        "features_origin": origin,
        "backbone": backbone,
    }
    needs = network_of(backbone)
    is_allowed = needs is None or needs in own
    if "extractor" in checkpoint:
        if extractor is not None:
            raise InputError(f"{path} has its own extractor, trained with the learner; leave out {extractor}")
        state = {name.removeprefix(JOINT): value for name, value in state.items() if name.startswith(JOINT)}
        known["features_origin"] = origin | {"checkpoint": state_sha256(state)}
        known["extractor_start"] = config["extractor"]["start"]
        jointly = trained_jointly(checkpoint["extractor"], state, own, path) if is_allowed else None
        return Model(*trained, jointly, known, str(path))
    beside = extractor_file(path.absolute().parent.parent / config["data"].get("pretrain", {}).get("run", "none"))
    if extractor is None and is_allowed and beside.is_file() and found_sha256(beside) == origin["checkpoint"]:
        extractor = beside
    of_images = None if extractor is None else read_extractor(extractor, origin, own)
    if of_images is None and is_allowed and backbone.get("pretrained"):
        of_images = from_its_source(config, own)
    return Model(*trained, of_images, known, str(path))


def trained_jointly(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], own: Collection[str], path: Path
) -> Extractor:
    """The extractor that the checkpoint at ``path`` holds, of its settings and its weights."""
    extractor = Extractor(**settings, own=own, source=path)
    load_state(extractor, state, path)
    return extractor


def from_its_source(config: Mapping[str, Any], own: Collection[str]) -> Extractor | None:
    """The extractor that others have trained and the run of ``config`` used; None where its weights are gone."""
    origin, source = config["features_origin"], config["data"].get("source") or {}
    if "image_size" not in source:
        return None
    with suppress(MissingFileError):
        extractor = pretrained_extractor(
            config["backbone"],
            own=own,
            layer=layer_of(origin["layer"]),
            image_size=source["image_size"],
            framing=source.get("framing"),
        )
        if state_sha256(extractor.state_dict()) == origin["checkpoint"]:
            return extractor
    return None


def untrained(backbone: Mapping[str, Any]) -> Model:
    """Nearest centroid on the features of ``backbone``, a configuration of a network that others have trained."""
    if not backbone.get("pretrained"):
        raise InputError(
            f"backbone={backbone['name']} has to be trained first (python train.py); others have trained "
            f"{', '.join(pretrained_backbones())}"
        )
    extractor = pretrained_extractor(backbone, own=[backbone["_target_"]])
    side = extractor.image_size
    with torch.no_grad():
        width = extractor(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1]
    centroid = nearest_centroid(width)
    known = {
        "num_way": 5,  # of the exported program; the method has no ways of training
        "num_shot": 1,
        "learner": {"_target_": CENTROID},
        "normalize": centroid.normalizer.kind,
        "features_origin": {
            "data": "", "images": None, "extractor": extractor.network.name, "layer": str(extractor.layer),
            "crop": "full", "checkpoint": state_sha256(extractor.state_dict()),
        },
        "backbone": dict(backbone),
    }  # fmt: skip
    return centroid._replace(extractor=extractor, config=known, source=str(backbone["name"]))


def backbone_config(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """The resolved file ``name`` of conf/backbone, changed by ``settings`` as the command line has them."""
    path = Path(CONF, "backbone", f"{name}.yaml")
    if not path.is_file():
        raise MissingFileError(
            f"there is no backbone {name!r}; those that others have trained are {', '.join(pretrained_backbones())}"
        )
    names.register()
    cfg = OmegaConf.create({"backbone": OmegaConf.load(path)})
    OmegaConf.set_struct(cfg, True)
    cfg.merge_with_dotlist(list(settings))
    try:
        resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:  # of a network that is not there
        raise InputError(users_message(error)) from error
    return dict(resolved["backbone"])


def pretrained_backbones() -> list[str]:
    """The files of conf/backbone of networks that others have trained."""
    return [path.stem for path in sorted(Path(CONF, "backbone").glob("*.yaml")) if "pretrained" in OmegaConf.load(path)]
