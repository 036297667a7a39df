"""The extractor of stage 1 in use: from images of any origin to the features that one layer gives of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.augment import Crop, to_float
from pretrain.store import read_split
from pretrain.wide_resnet import WideResNet
from runner.checkpoints import load_checkpoint
from runner.errors import InputError, MissingFileError
from runner.files import sha256


class Extractor(nn.Module):
    """Features [B, D] of uint8 images [B, S, S, C], as ``pretrain.export`` writes them. Nothing of it knows a class.

    Args:
        network: depth, width, strides and in_channels of the ``WideResNet``.
        layer: whose features are taken.
        image_size: S, the side of the stored images.
        crop: area and size of a ``Crop``; None: the full image.
        multiview: whether features are means over the ten views of the crop.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        layer: int,
        image_size: int,
        crop: Mapping[str, Any] | None,
        multiview: bool,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "network": dict(network), "layer": layer, "image_size": image_size, "crop": crop, "multiview": multiview,
        }  # fmt: skip
        self.layer, self.image_size = layer, image_size
        self.network = WideResNet(**network, num_classes=1, dropout=0.0)
        self.network.classifier = nn.Identity()  # type: ignore[assignment]  # of stage 1's classes
        self.network.to(memory_format=torch.channels_last)
        one = None if crop is None else Crop(area=crop["area"], size=crop["size"])
        self.views = nn.ModuleList([nn.Identity()] if one is None else one.multiview() if multiview else [one])
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(network["in_channels"]))
        self.register_buffer("std", torch.ones(network["in_channels"]))
        self.eval().requires_grad_(False)

    @property
    def mode(self) -> str:
        """Of the images, as Pillow names it."""
        return "L" if len(self.mean) == 1 else "RGB"

    def forward(self, images: Tensor) -> Tensor:
        """The mean over the views."""
        inputs = [to_float(view(images), self.mean, self.std) for view in self.views]
        return torch.stack([self.network.features(x, [self.layer])[self.layer] for x in inputs]).mean(0)


def read_extractor(path: Path, origin: Mapping[str, str]) -> Extractor:
    """The extractor of the checkpoint at ``path`` (or of a run folder), which must be the one that ``origin`` names.

    ``origin`` is what feature files say of themselves: data, extractor, layer, crop, and the checkpoint's SHA-256.
    """
    path = path / "best.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(
            f"extractor {path} is missing; give the run folder of stage 1 (python train.py stage=pretrain) or its "
            f"best.ckpt"
        )
    if (found := sha256(path)) != origin["checkpoint"]:
        raise InputError(
            f"extractor {path} is not the one that the learner was trained on: its SHA-256 is {found[:12]}..., the "
            f"learner's features come from {origin['checkpoint'][:12]}... ({origin['extractor']} trained on "
            f"{origin['data']}); give that one, or train the learner on features of this one"
        )
    checkpoint = load_checkpoint(path, "give the best.ckpt of a run of stage 1")
    if not {"config", "state_dict"} <= set(checkpoint):
        raise InputError(f"{path} is not a checkpoint of stage 1; give the best.ckpt of one of its runs")
    config, weights = checkpoint["config"], checkpoint["state_dict"]
    if "_target_" in config["backbone"]:
        raise InputError(
            f"extractor {path} is a {config['backbone']['_target_']}, a network of your own, which is not built from a "
            f"checkpoint; make features with it, and give those to FewShotClassifier in place of images"
        )
    network = {key: config["backbone"][key] for key in ("depth", "width", "strides")}
    extractor = Extractor(
        network=network | {"in_channels": weights["network.stem.weight"].shape[1]},
        layer=int(origin["layer"]),
        image_size=stored_size(config["data"]),
        crop=None if origin["crop"] == "full" else crop_settings(config["data"]["crop"]),
        multiview=origin["crop"] == "multiview",
    )
    names = extractor.state_dict().keys()
    extractor.load_state_dict({name: weights[name].expand_as(extractor.state_dict()[name]) for name in names})
    return extractor


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
