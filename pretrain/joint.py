"""What joint training starts from: the extractor of stage 1, or a fresh one; its images, their augmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

from pretrain.export import PIXELS
from pretrain.extractor import Extractor, crop_settings, extractor_file, network_settings, read_extractor
from pretrain.network import WIDE_RESNET, state_sha256
from pretrain.run import check_images, crop_name, feature_metadata, plain_backbone
from pretrain.store import SPLITS, images_fingerprint, read_split
from runner.errors import InputError, MissingFileError

STARTS = ("stage_1", "random")
NUM_FIRST_IMAGES = 2048  # of which a fresh network's statistics are taken, in batches of
BATCH_SIZE = 256


class TrainedExtractor(Extractor):
    """An extractor whose network has gradients. Batch norm stays in evaluation mode, with the statistics of the start.

    So the features of an image do not depend on the others of its batch: chunks are exact, tasks cannot be told by
    their statistics, and training, validation and use see one function.
    """

    @classmethod
    def copied(cls, extractor: Extractor, own: Sequence[str]) -> Self:
        """One with the settings and weights of ``extractor``."""
        trained = cls(**extractor.settings, own=own)
        trained.load_state_dict(extractor.state_dict())
        trained.network.requires_grad_(True)
        return trained

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)


class JointParts:
    """Extractor, images, augmentation, and where the first features come from; see ``leo.joint.Parts``."""

    def __init__(self, cfg: DictConfig) -> None:
        settings = cfg.extractor
        if settings.start not in STARTS:
            raise InputError(f"extractor.start={settings.start} is unknown; choose one of {', '.join(STARTS)}")
        if cfg.features.source is not None or cfg.features.layer == PIXELS:
            what = "pixels" if cfg.features.source is None else "features that were made elsewhere"
            raise InputError(f"extractor=joint needs an extractor, and features has {what}; choose features=mid_level")
        self.cfg, self.own = cfg, [cfg.backbone._target_] if cfg.backbone.get("_target_") else []
        self.stores = {split: read_split(Path(cfg.data.folder), split) for split in SPLITS}
        self.augment: nn.Module | None = instantiate(cfg.data.pretrain.augment) if settings.augment else None
        start, self.origin = self.stage_1() if settings.start == "stage_1" else self.random()
        self.extractor = TrainedExtractor.copied(start, self.own)

    def stage_1(self) -> tuple[Extractor, dict[str, Any]]:
        """The extractor that made the features, and what these say of themselves."""
        check_images(self.cfg)
        metadata = feature_metadata(self.cfg)
        path = extractor_file(Path(self.cfg.dirs.runs, self.cfg.data.pretrain.run))
        for needed, there in ((path, path.is_file()), (self.cfg.features.folder, bool(metadata))):
            if not there:
                raise MissingFileError(
                    f"{needed} is missing, from which extractor=joint goes on: `python train.py stage=pretrain` with "
                    f"the same data and backbone makes it; or start from nothing, with extractor.start=random"
                )
        origin = {key: metadata[key] for key in ("data", "extractor", "layer", "crop", "checkpoint")}
        return read_extractor(path, origin, self.own), origin | {"images": metadata.get("images") or None}

    def random(self) -> tuple[Extractor, dict[str, Any]]:
        """A network of fresh weights, drawn from the run's seed; batch norm has its statistics of training images."""
        cfg, first = self.cfg, self.stores["train"]
        if cfg.backbone.get("pretrained"):
            raise InputError(
                f"backbone={cfg.backbone.name} is trained already, and has no fresh weights; choose "
                f"extractor.start=stage_1"
            )
        framing = cfg.data.source and cfg.data.source.get("framing")
        crop = None if cfg.data.crop == "full" else crop_settings(cfg.data.crop)
        network = network_settings(plain_backbone(cfg))
        if network.get("_target_", WIDE_RESNET) == WIDE_RESNET:
            network.pop("dropout")
        height, width = first.images.shape[1:3]
        if height != width:
            raise InputError(
                f"the images of {cfg.data.folder} are {height}x{width}; only square ones can be made of others"
            )
        with torch.random.fork_rng([]):
            torch.manual_seed(cfg.seed)
            extractor = Extractor(
                network=network | {"in_channels": first.images.shape[-1]},
                layer=cfg.features.layer,
                image_size=height,
                framing=None if framing is None else OmegaConf.to_container(framing, resolve=True),  # type: ignore[arg-type]
                crop=crop,
                multiview=crop_name(cfg) == "multiview",
                own=self.own,
            )
        extractor.mean.copy_(torch.tensor(list(cfg.data.pretrain.mean)).expand_as(extractor.mean))
        extractor.std.copy_(torch.tensor(list(cfg.data.pretrain.std)).expand_as(extractor.std))
        set_statistics(extractor, self.first_images(["train"])[0])
        return extractor, {
            "data": first.data,
            "images": images_fingerprint(self.stores.values()),
            "extractor": extractor.network.name,
            "layer": str(extractor.layer),
            "crop": crop_name(cfg),
            "checkpoint": state_sha256(extractor.state_dict()),
        }

    def first_images(self, splits: Sequence[str]) -> list[Tensor]:
        """Evenly spread images of ``splits``."""
        images = [self.stores[split].images for split in splits]
        places = [torch.linspace(0, len(part) - 1, min(len(part), NUM_FIRST_IMAGES)).long() for part in images]
        return [part.index_select(0, rows) for part, rows in zip(images, places, strict=True)]

    def first_features(self, splits: Sequence[str]) -> list[Tensor]:
        """Those of the feature files of stage 1; of a fresh network those of some images."""
        if self.cfg.extractor.start == "random":
            return [self.extractor.in_parts(images) for images in self.first_images(splits)]
        return [read_features(Path(self.cfg.features.folder, f"{split}.safetensors")) for split in splits]


def read_features(path: Path) -> Tensor:
    """The features of a file that stage 1 wrote."""
    with safe_open(path, framework="pt") as file:
        features: Tensor = file.get_tensor("features")
    return features


@torch.no_grad()
def set_statistics(extractor: Extractor, images: Tensor) -> None:
    """Give the batch norms of ``extractor`` the mean statistics of batches of ``images``, as one view shows them."""
    norms = [module for module in extractor.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    for part in images.split(BATCH_SIZE):
        extractor.of_view(extractor.views[0](part))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
