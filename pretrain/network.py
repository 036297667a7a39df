"""The networks of extractors: what they must offer, which are built by name, and the SHA-256 of their weights.

A network is a module with

- ``name``: for feature files and pages;
- ``features(images, layers)``: for each of ``layers``, float32 [B, D] of float images [B, C, H, W];
- ``penultimate``: the layer that its classifier reads.

One that stage 1 trains also has ``forward`` (logits) and ``classifier``, and takes ``in_channels`` and ``num_classes``.
One that others have trained has no such two, and has ``pretrained_state(weights, file)``: its weights by name, of
``file``, or where that is None of the place where those called ``weights`` are.
"""

import hashlib
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from runner.errors import InputError, MissingFileError

POOLED = "pooled"  # the layer that the classifier of a network of others reads
WIDE_RESNET = "pretrain.wide_resnet.WideResNet"
NETWORKS = (  # any other one is the user's own
    WIDE_RESNET,
    "pretrain.efficientnet_lite0.EfficientNetLite0",
    "pretrain.torchvision_model.TorchvisionModel",
    "pretrain.timm_model.TimmModel",
)


def build_network(settings: Mapping[str, Any], own: Collection[str], source: object) -> nn.Module:
    """The network of ``settings``, with its class as ``_target_``, without weights and without a classifier.

    Settings may come from elsewhere: only the networks of this project and those of ``own`` are called. ``source`` is
    for messages.
    """
    target = str(settings.get("_target_", WIDE_RESNET))
    if not is_known(target, own):
        raise InputError(
            f"{source} has the network {target}, which is not of this project and is not called unasked: give "
            f"backbone=..., the configuration that names it (with hydra.searchpath=...), or its class to "
            f"FewShotClassifier.load(..., networks=[...])"
        )
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    if target == WIDE_RESNET:
        arguments["dropout"] = 0.0
    if "in_channels" in arguments:
        arguments["num_classes"] = 1
    network: nn.Module = get_class(target)(**arguments)
    if "in_channels" in arguments:
        if not hasattr(network, "classifier"):
            raise InputError(
                f"{target} has no attribute classifier; call its last layer, from features to logits, so: an extractor "
                f"goes without it"
            )
        network.classifier = nn.Identity()  # of stage 1's classes
    return network


def is_known(target: str, own: Collection[str]) -> bool:
    """Whether the network ``target`` may be called."""
    return target in NETWORKS or target in own


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights by name of a file of safetensors or of torch; nothing in it is run."""
    if not path.is_file():
        raise MissingFileError(f"weights {path} are missing; give a file of safetensors or a state_dict of torch")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except (SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} holds no weights that can be read without running it ({str(error).splitlines()[0]}); give a file "
            f"of safetensors or a state_dict of torch"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state_dict: it must map names to tensors")
    return {str(name): value for name, value in state.items()}


def renamed_state(
    state: Mapping[str, Tensor], theirs: Mapping[str, str], source: object, network: str
) -> dict[str, Tensor]:
    """The weights by our names, the keys of ``theirs``, whose values are their names in ``state``.

    Raises where one is missing; ``source`` and ``network`` are for the message.
    """
    if absent := [name for name in theirs.values() if name not in state]:
        raise InputError(f"{source} does not hold the weights of {network}: it lacks {absent[0]}")
    return {ours: state[name] for ours, name in theirs.items()}


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Put ``state`` into ``network``, all of it; ``source`` is for messages."""
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise InputError(f"{source} does not fit its network: {' '.join(str(error).split())[:500]}") from error


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values, whatever file they lie in."""
    hashed = hashlib.sha256()
    for name, value in sorted(state.items()):
        array = value.detach().cpu().contiguous()
        hashed.update(f"{name}\0{array.dtype}\0{list(array.shape)}\n".encode())
        hashed.update(array.view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
