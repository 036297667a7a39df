"""A model as one folder that travels: weights, configuration, and the SHA-256 of every file. Nothing in it is run.

``config.json`` names the learner and holds its settings and those of the extractor, preprocessing included;
``learner.safetensors`` and ``extractor.safetensors`` hold the weights; ``manifest.json`` the hash of each file. Weights
of a network that others have trained may be left out: they are then known by name and hash (``extractor_by_name``).
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fewshot.model import Model
from leo.trained import rebuild
from pretrain.extractor import Extractor, pretrained_extractor
from pretrain.network import state_sha256
from runner.errors import InputError
from runner.files import sha256, whole_file
from runner.folder import write_json

FORMAT = "few-shot-package-1"
MANIFEST, CONFIG, LEARNER, EXTRACTOR = "manifest.json", "config.json", "learner.safetensors", "extractor.safetensors"


def write_pieces(model: Model, folder: Path, more: dict[str, Any], *, by_name: bool) -> None:
    """The configuration, with ``more`` in it, and the weights; with ``by_name`` not those of the extractor."""
    extractor = model.needed_extractor()
    if by_name and ("extractor_start" in model.config or not model.config["backbone"].get("pretrained")):
        raise InputError(
            f"the extractor of {model.source} was trained here, so its weights have no other name; leave out "
            f"stage.extractor_weights=by_name"
        )
    learner = nn.ModuleDict({"learner": model.learner, "normalizer": model.normalizer})
    about = {"extractor": extractor.settings, "extractor_by_name": by_name}
    write_json(folder / CONFIG, {"format": FORMAT, **model.config, **about, **more})
    for name, part in ((LEARNER, learner), *([] if by_name else [(EXTRACTOR, extractor)])):
        with whole_file(folder / name) as partial:
            save_file({key: value.contiguous() for key, value in part.state_dict().items()}, partial)


def write_manifest(folder: Path) -> None:
    """The SHA-256 of every file of ``folder``."""
    write_json(folder / MANIFEST, {path.name: sha256(path) for path in sorted(folder.iterdir())})


def check_manifest(folder: Path) -> None:
    """Raise where a file that the manifest names is missing or changed, or a piece is not named by it."""
    remedy = "get the package again, or make it with `python train.py stage=package`"
    try:
        hashes = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{folder / MANIFEST} is not a manifest ({error}); {remedy}") from error
    for name in (CONFIG, LEARNER, *hashes):
        if name not in hashes:
            raise InputError(f"{folder / MANIFEST} does not name {name}; {remedy}")
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}, which its manifest names; {remedy}")
        if (found := sha256(folder / name)) != hashes[name]:
            raise InputError(
                f"{folder / name} is changed or damaged: its SHA-256 is {found[:12]}..., the manifest says "
                f"{str(hashes[name])[:12]}...; {remedy}"
            )


def read_package(folder: Path, own: Collection[str] = ()) -> Model:
    """The model of the package ``folder``, after a check of all hashes.

    ``own`` are networks of the user's own that may be called.
    """
    check_manifest(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise InputError(f"its format is {config['format']!r}, expected {FORMAT!r}")
        trained = rebuild(config["learner"], config["normalize"], load_file(folder / LEARNER), "it")
        if config.get("extractor_by_name"):
            extractor = named_extractor(config, own)
        else:
            extractor = Extractor(**config["extractor"], own=own, source=folder)
            check_named(folder)
            extractor.load_state_dict(load_file(folder / EXTRACTOR))
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"package {folder} cannot be used: {error}") from error
    return Model(*trained, extractor, config, str(folder))


def check_named(folder: Path) -> None:
    """Raise where the manifest does not name the extractor's weights."""
    if EXTRACTOR not in json.loads((folder / MANIFEST).read_text(encoding="utf-8")):
        raise InputError(f"{folder / MANIFEST} does not name {EXTRACTOR}")


def named_extractor(config: dict[str, Any], own: Collection[str]) -> Extractor:
    """The extractor whose weights are known by name and hash, from where they are installed or can be fetched."""
    settings, expected = config["extractor"], config["features_origin"]["checkpoint"]
    extractor = pretrained_extractor(
        config["backbone"],
        own=own,
        layer=settings["layer"],
        image_size=settings["image_size"],
        framing=settings["framing"],
    )
    if (found := state_sha256(extractor.state_dict())) != expected:
        raise InputError(
            f"the weights {config['backbone']['pretrained']['weights']} found here are not those it was made with: "
            f"their SHA-256 is {found[:12]}..., expected {expected[:12]}..."
        )
    return extractor
