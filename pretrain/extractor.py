"""An extractor: a network, one of its layers, how it is shown an image. From images of any origin to features.

Stage 1 trains one (``best.ckpt`` of its run folder), or takes one that others have trained (``extractor.safetensors``
there, as ``write_extractor`` makes it). Either is known by a SHA-256: that of the checkpoint, or of the state.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pretrain.augment import Crop, to_float
from pretrain.network import build_network, is_known, load_state, state_sha256
from pretrain.sources.images import Framing
from pretrain.store import read_split
from runner.checkpoints import load_checkpoint
from runner.errors import InputError, MissingFileError
from runner.files import sha256, whole_file

CHECKPOINT, PRETRAINED = "best.ckpt", "extractor.safetensors"
PIXELS_AT_A_TIME = 2**20  # that a processor's caches hold: parts of 16 images of 224x224 are faster than parts of 128
# Keys of conf/backbone that say of a network how it is used, and are no arguments of its class.
ABOUT = ("name", "mid_level", "pretrained")


class Extractor(nn.Module):
    """Features [B, D] of uint8 images [B, S, S, C], as ``pretrain.export`` writes them. Nothing of it knows a class.

    Args:
        network: the arguments of a network with its class as ``_target_``; none: a ``WideResNet``. ``in_channels``
            where stage 1 trains it; networks of others take RGB.
        layer: whose features are taken.
        image_size: S, the side of the stored images.
        framing: how images come to that size, as ``pretrain.sources.images.Framing``; None: both sides at once.
        crop: area and size of a ``Crop``; None: the full image.
        multiview: whether features are means over the ten views of the crop.
        own: networks of the user's own that may be called.
        source: for messages.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        layer: int | str,
        image_size: int,
        crop: Mapping[str, Any] | None = None,
        multiview: bool = False,
        framing: Mapping[str, Any] | None = None,
        own: Collection[str] = (),
        source: object = "the extractor",
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "network": dict(network), "layer": layer, "image_size": image_size, "framing": framing, "crop": crop,
            "multiview": multiview,
        }  # fmt: skip
        self.layer, self.image_size = layer, image_size
        self.framing = None if framing is None else Framing(**framing)
        self.network: Any = build_network(network, own, source).to(memory_format=torch.channels_last)
        one = None if crop is None else Crop(area=crop["area"], size=crop["size"])
        self.views = nn.ModuleList([nn.Identity()] if one is None else one.multiview() if multiview else [one])
        self.mean: Tensor
        self.std: Tensor
        channels = network.get("in_channels", 3)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.eval().requires_grad_(False)

    @property
    def mode(self) -> str:
        """Of the images, as Pillow names it."""
        return "L" if len(self.mean) == 1 else "RGB"

    def forward(self, images: Tensor) -> Tensor:
        """The mean over the views."""
        return torch.stack([self.of_view(view(images)) for view in self.views]).mean(0)

    def of_view(self, images: Tensor) -> Tensor:
        """Features of uint8 images that are cropped, or augmented, already."""
        features: Tensor = self.network.features(to_float(images, self.mean, self.std), [self.layer])[self.layer]
        return features

    def at_a_time(self) -> int:
        """As many images as are fastest: on a processor few large ones, on a GPU all that are given."""
        return max(1, PIXELS_AT_A_TIME // self.image_size**2) if self.mean.device.type == "cpu" else 256

    @torch.no_grad()
    def in_parts(self, images: Tensor) -> Tensor:
        """``forward``, some images at a time; they may lie elsewhere, the features lie with the network."""
        return torch.cat([self(part.to(self.mean.device)) for part in images.split(self.at_a_time())])


def network_settings(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration of conf/backbone the network is built from."""
    about = (*ABOUT, "depth") if backbone.get("pretrained") else ABOUT
    return {str(key): value for key, value in backbone.items() if key not in about}


def pretrained_extractor(
    backbone: Mapping[str, Any],
    *,
    own: Collection[str],
    layer: int | str | None = None,
    image_size: int | None = None,
    framing: Mapping[str, Any] | None = None,
) -> Extractor:
    """The extractor that others have trained, of a configuration of conf/backbone.

    ``own`` are networks of the user's own that may be called. ``framing`` counts where ``image_size`` is given; else
    both are the network's own.
    """
    about, settings = backbone["pretrained"], network_settings(backbone)
    extractor = Extractor(
        network=settings,
        layer=backbone["mid_level"] if layer is None else layer,
        image_size=about["image_size"] if image_size is None else image_size,
        framing=about["framing"] if image_size is None else framing,
        own=own,
        source=f"backbone={backbone['name']}",
    )
    file = None if about.get("file") is None else Path(about["file"])
    state = extractor.network.pretrained_state(about["weights"], file)
    load_state(extractor.network, state, file or f"{about['weights']} of {backbone['name']}")
    extractor.mean.copy_(torch.tensor(about["mean"]))
    extractor.std.copy_(torch.tensor(about["std"]))
    return extractor


def write_extractor(path: Path, extractor: Extractor) -> str:
    """Write ``extractor`` as one file: its settings in JSON, its weights. Returns the SHA-256 of its state."""
    state = {name: value.contiguous() for name, value in extractor.state_dict().items()}
    with whole_file(path) as partial:
        save_file(state, partial, metadata={"extractor": json.dumps(extractor.settings)})
    return state_sha256(state)


def extractor_file(path: Path) -> Path:
    """The file of the extractor at ``path``, a file or a run folder of stage 1; it need not be there."""
    if not path.is_dir():
        return path
    return path / PRETRAINED if (path / PRETRAINED).is_file() else path / CHECKPOINT


def found_sha256(path: Path) -> str:
    """The SHA-256 that the extractor in the file ``path`` is known by."""
    return sha256(path) if path.suffix != ".safetensors" else state_sha256(_read(path)[1])


def read_extractor(path: Path, origin: Mapping[str, str], own: Collection[str] = ()) -> Extractor:
    """The extractor at ``path`` (a file or a run folder of stage 1), which must be the one that ``origin`` names.

    ``origin`` is what feature files say of themselves: data, extractor, layer, crop, and the checkpoint's SHA-256.
    ``own`` are networks of the user's own that may be called.
    """
    path = extractor_file(path)
    if not path.is_file():
        raise MissingFileError(
            f"extractor {path} is missing; give the run folder of stage 1 (python train.py stage=pretrain) or its "
            f"best.ckpt"
        )
    if (found := found_sha256(path)) != origin["checkpoint"]:
        raise InputError(
            f"extractor {path} is not the one that the learner was trained on: its SHA-256 is {found[:12]}..., the "
            f"learner's features come from {origin['checkpoint'][:12]}... ({origin['extractor']} trained on "
            f"{origin['data']}); give that one, or train the learner on features of this one"
        )
    layer = layer_of(origin["layer"])
    if path.suffix == ".safetensors":
        settings, state = _read(path)
        extractor = Extractor(**settings | {"layer": layer}, own=own, source=path)
        load_state(extractor, state, path)
        return extractor
    checkpoint = load_checkpoint(path, "give the best.ckpt of a run of stage 1")
    if not {"config", "state_dict"} <= set(checkpoint):
        raise InputError(f"{path} is not a checkpoint of stage 1; give the best.ckpt of one of its runs")
    config, weights = checkpoint["config"], checkpoint["state_dict"]
    network = network_settings(config["backbone"])
    if "_target_" not in network:
        network.pop("dropout")
    convolutions = (value for name, value in weights.items() if name.startswith("network.") and value.ndim == 4)
    first = next(convolutions, None)  # of the stem
    extractor = Extractor(
        network=network | {"in_channels": len(weights["mean"]) if first is None else first.shape[1]},
        layer=layer,
        image_size=stored_size(config["data"]),
        framing=(config["data"]["source"] or {}).get("framing"),
        crop=None if origin["crop"] == "full" else crop_settings(config["data"]["crop"]),
        multiview=origin["crop"] == "multiview",
        own=own,
        source=path,
    )
    state = extractor.state_dict()
    kept = {name: weights[name] for name in state if name in weights}
    kept |= {name: weights[name].expand_as(state[name]) for name in ("mean", "std")}  # one value serves all channels
    load_state(extractor, kept, path)
    return extractor


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the state that ``write_extractor`` wrote."""
    remedy = "give the extractor.safetensors of a run folder of stage 1"
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["extractor"])
            return dict(settings), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged, or not an extractor ({error}); {remedy}") from error


def layer_of(name: str) -> int | str:
    """The layer that feature files call ``name``: a number, or a name."""
    return int(name) if name.isdecimal() else name


def crop_settings(crop: Mapping[str, Any]) -> dict[str, Any]:
    """Area and size of the configured ``Crop``."""
    if crop["_target_"] != "pretrain.augment.Crop":
        raise InputError(
            f"images of the extractor were cropped by {crop['_target_']}; only pretrain.augment.Crop is known"
        )
    return {"area": crop["area"], "size": crop["size"]}


def stored_size(data: Mapping[str, Any]) -> int:
    """The side of the images that the extractor was trained on: the configured one, or that of their store."""
    configured = (data["source"] or {}).get("image_size")
    if configured is not None:
        return int(configured)
    _, height, width, _ = read_split(Path(data["folder"]), "train").images.shape
    if height != width:
        raise InputError(f"the images of {data['folder']} are {height}x{width}; only square ones can be made of others")
    return int(height)


def network_of(backbone: Mapping[str, Any]) -> str | None:
    """The class of the network of ``backbone`` where that is the user's own; None for those of this project."""
    target = backbone.get("_target_")
    return None if target is None or is_known(target, ()) else str(target)
