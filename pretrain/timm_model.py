"""Any model of timm (the extra "timm") with its own data configuration, and weights of the hub or of a local file."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pretrain.network import POOLED, read_state, renamed_state
from runner.errors import InputError, MissingFileError

try:
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from timm.data.config import resolve_data_config
except ImportError:  # the extra "timm"
    timm = None  # type: ignore[assignment]

WEIGHTS = "model.safetensors"


class TimmModel(nn.Module):
    """The model called ``network`` without its classifier. Its one layer, "pooled", is what the classifier reads."""

    penultimate = POOLED

    def __init__(self, *, network: str) -> None:
        super().__init__()
        configuration(network)
        self.name = f"{network} of timm"
        self.model = timm.create_model(network, pretrained=False, num_classes=0)

    def features(self, images: Tensor, layers: Sequence[int | str]) -> dict[int | str, Tensor]:
        """float32 [B, D] of float images [B, 3, H, W]."""
        for layer in layers:
            if layer != POOLED:
                raise InputError(f"layer {layer!r} is not in {self.name}; its one layer is {POOLED!r}")
        return {POOLED: self.model(images).float()} if layers else {}

    def pretrained_state(self, weights: str, file: Path | None) -> dict[str, Tensor]:
        """The weights by the names of this network: of ``file``, or of ``weights``, a repository of the hub."""
        path = file or fetched(weights)
        names = {name: name.removeprefix("model.") for name in self.state_dict()}
        return renamed_state(read_state(path), names, path, self.name)


def configuration(network: str) -> Any:
    """timm's own configuration of ``network``; raises where timm or the model is not there."""
    if timm is None:
        raise MissingFileError("backbone=timm needs the extra \"timm\": pip install -e '.[timm]', or pip install timm")
    name = network.partition(".")[0]
    if not timm.is_model(name) or timm.get_pretrained_cfg(network) is None:
        names = timm.list_models() if not timm.is_model(name) else timm.list_pretrained(f"{name}.*")
        close = get_close_matches(network, names, n=3)
        raise InputError(
            f"backbone.network={network} is no model of timm"
            + (f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists them")
        )
    return timm.get_pretrained_cfg(network)


def transforms(network: str) -> dict[str, Any]:
    """How timm shows an image to the network: size, framing, scaling; and where its weights are."""
    found = configuration(network)
    data = resolve_data_config(args={}, pretrained_cfg=found.to_dict())
    channels, height, width = data["input_size"]
    if (channels, height) != (3, width) or data["crop_mode"] != "center":
        raise InputError(
            f"{network} of timm takes {data['input_size']}, {data['crop_mode']}; only squares of RGB are known"
        )
    return {
        "weights": found.hf_hub_id or "none",
        "image_size": height,
        "framing": {"crop_fraction": height / math.floor(height / data["crop_pct"]), "filter": data["interpolation"]},
        "mean": list(data["mean"]),
        "std": list(data["std"]),
    }


def fetched(repository: str) -> Path:
    """The weights of a repository of the hub, from its cache on this machine or fetched into it."""
    try:
        return Path(hf_hub_download(repository, WEIGHTS))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise MissingFileError(
            f"the weights {repository} are not on this machine and cannot be fetched: put the file {WEIGHTS} of that "
            f"repository of the Hugging Face hub here and give backbone.pretrained.file=PATH "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
