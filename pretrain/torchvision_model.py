"""Any classification model of torchvision with the weights, and the transforms, that torchvision has for it."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pretrain.network import POOLED, read_state, renamed_state
from runner.errors import InputError, MissingFileError

# What weights of these two were trained with, and is part of their definition.
MORE = {name: {"transform_input": True, "init_weights": False} for name in ("googlenet", "inception_v3")}


class TorchvisionModel(nn.Module):
    """The model called ``network``. Layers are "pooled", what its last linear layer reads, and the nodes of its graph.

    Nodes are those of ``torchvision.models.feature_extraction``, such as "layer3" of a ResNet.
    """

    penultimate = POOLED

    def __init__(self, *, network: str) -> None:
        super().__init__()
        check_name(network)
        self.name = f"{network} of torchvision"
        self.model = get_model(network, weights=None, **MORE.get(network, {}))
        linear = [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(
                f"{network} of torchvision has no linear layer, so no features that it reads; take another"
            )
        parent, _, name = linear[-1].rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.Identity())
        self.graphs: dict[tuple[str, ...], nn.Module] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, which are made again."""
        return self.__dict__ | {"graphs": {}}

    def features(self, images: Tensor, layers: Sequence[int | str]) -> dict[int | str, Tensor]:
        """Each layer's output averaged over the image, float32 [B, D], of float images [B, 3, H, W]."""
        nodes = tuple(str(layer) for layer in layers if layer != POOLED)
        found: dict[int | str, Tensor] = {}
        if POOLED in layers:
            found[POOLED] = self.model(images).float()
        if nodes:
            if nodes not in self.graphs:
                self.graphs[nodes] = self.graph(nodes)
            found |= {node: averaged(output, node) for node, output in self.graphs[nodes](images).items()}
        return found

    def graph(self, nodes: Sequence[str]) -> nn.Module:
        """The model as far as ``nodes``, with the same parameters."""
        known = get_graph_node_names(self.model)[1]
        for node in nodes:
            if not any(name == node or name.startswith(f"{node}.") for name in known):
                modules = [name for name, _ in self.model.named_modules() if name]
                close = get_close_matches(node, dict.fromkeys([POOLED, *modules, *known]), n=3)
                hint = f"; did you mean {' or '.join(close)}?" if close else ""
                raise InputError(f"layer {node!r} is neither {POOLED!r} nor a node of {self.name}{hint}")
        graph: nn.Module = create_feature_extractor(self.model, list(nodes)).eval()
        return graph

    def pretrained_state(self, weights: str, file: Path | None) -> dict[str, Tensor]:
        """The weights by the names of this network: of ``file``, or of torch's cache, or downloaded into it."""
        name = self.name.partition(" ")[0]
        path = file or cached(name, weights)
        own = {key.removeprefix("model."): value for key, value in self.state_dict().items()}
        counts = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
        # Files of before torch counted batches have no counts.
        state = counts | {renamed(key): value for key, value in read_state(path).items()}
        return renamed_state(state, {f"model.{key}": key for key in own}, path, self.name)


def averaged(output: Tensor, node: str) -> Tensor:
    """[B, D] of the output [B, D, H, W], [B, T, D] or [B, D] of ``node``."""
    if output.ndim not in (2, 3, 4):
        raise InputError(
            f"layer {node!r} has an output of the shape {list(output.shape)}, not that of images; take another"
        )
    return output.float().mean(dim={2: (), 3: (1,), 4: (2, 3)}[output.ndim]) if output.ndim > 2 else output.float()


def check_name(network: str) -> None:
    """Raise where torchvision has no classification model called ``network``."""
    names = list_models(module=torchvision.models)
    if network not in names:
        close = get_close_matches(network, names, n=3)
        raise InputError(
            f"backbone.network={network} is no classification model of torchvision"
            + (f"; did you mean {' or '.join(close)}?" if close else "; torchvision.models.list_models() lists them")
        )


def weights_of(network: str, weights: str) -> Any:
    """The entry of torchvision's enumeration."""
    check_name(network)
    known = get_model_weights(network)
    if weights not in known.__members__:
        raise InputError(
            f"backbone.pretrained.weights={weights} are none of {network} of torchvision; it has "
            f"{', '.join(known.__members__)}"
        )
    return known[weights]


def transforms(network: str, weights: str) -> dict[str, Any]:
    """How torchvision shows an image to the network: size, framing, scaling; and what the weights are called."""
    found = weights_of(network, weights)
    preset = found.transforms()
    crop, resized = preset.crop_size[0], preset.resize_size[0]
    return {
        "weights": found.name,
        "image_size": crop,
        "framing": {"crop_fraction": crop / resized, "filter": preset.interpolation.value},
        "mean": list(preset.mean),
        "std": list(preset.std),
    }


def cached(network: str, weights: str) -> Path:
    """The file of the weights in torch's cache; downloaded where it is not there yet."""
    url = weights_of(network, weights).url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if path.is_file():
        return path
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest and digest[1])
    except (OSError, RuntimeError) as error:
        raise MissingFileError(
            f"the weights of {network} are not on this machine, and {url} cannot be fetched ({error}): put that file "
            f"there as {path}, or anywhere and give backbone.pretrained.file=PATH"
        ) from error
    return path


def renamed(name: str) -> str:
    """Names in the old files of DenseNets have a dot more."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
