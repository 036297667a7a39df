"""From a trained extractor to the feature files that meta-training reads: ``<features>/<name>/<split>.safetensors``.

A file holds ``features`` float32 [n, D] in the store's order, grouped by class, and ``offsets`` int64 [C + 1]: class c
is rows offsets[c] to offsets[c + 1]. Everything else is string metadata.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from pretrain.store import ImageStore
from runner.errors import InputError
from runner.files import whole_file
from runner.terminal import image_columns

FORMAT = "leo-features-1"
PIXELS = "pixels"


class Origin(NamedTuple):
    """Where features come from: SHA-256 of images and of the extractor's checkpoint, how images were cropped, settings.

    ``images`` is None where the store does not record it.
    """

    images: str | None
    checkpoint: str
    crop: str
    config: Mapping[str, Any]


def export(
    network: Any,
    stores: Iterable[ImageStore],
    folders: Mapping[int | str, Path],
    *,
    to_inputs: Sequence[Callable[[Tensor], Tensor]],
    batch_size: int,
    origin: Origin,
) -> None:
    """Writes ``<split>.safetensors`` of every store into the folder of every layer, from one pass over the images.

    ``network`` is one as ``pretrain.network`` describes it. ``folders`` is keyed by its layers and by "pixels": the
    images themselves, scaled to [0, 1] and flattened.
    Each of ``to_inputs`` makes the network's input, float [B, C, H, W], of uint8 images [B, H, W, C]; the features
    are the mean over them.
    """
    network.eval()
    for store in stores:
        for layer, features in extract(network, store, list(folders), to_inputs, batch_size).items():
            write(
                folders[layer] / f"{store.split}.safetensors",
                features,
                store.offsets,
                store.class_names,
                {"split": store.split, "data": store.data} | metadata(network.name, layer, origin),
            )


@torch.inference_mode()
def extract(
    network: Any,
    store: ImageStore,
    layers: list[int | str],
    to_inputs: Sequence[Callable[[Tensor], Tensor]],
    batch_size: int,
) -> dict[int | str, Tensor]:
    """The features [n, D] of all images of ``store`` at each of ``layers``."""
    device = next(network.parameters()).device
    of_network = [layer for layer in layers if layer != PIXELS]
    parts: dict[int | str, list[Tensor]] = {layer: [] for layer in layers}
    with Progress(*image_columns(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"features of {store.split}", total=len(store.images))
        for start, images in enumerate(store.images.split(batch_size)):
            on_device = images.to(device)
            views = [network.features(to_input(on_device), of_network) for to_input in to_inputs] if of_network else []
            for layer in layers:
                if layer != PIXELS:
                    if layer not in views[0]:
                        raise InputError(f"layer {layer!r} is neither in {network.name} nor {PIXELS!r}")
                    features = torch.stack([view[layer] for view in views]).mean(dim=0).cpu()
                else:
                    features = images.flatten(1) / 255
                check_finite(features, layer, start * batch_size, store)
                parts[layer].append(features)
            progress.advance(bar, len(images))
    return {layer: torch.cat(rows) for layer, rows in parts.items()}


def check_finite(features: Tensor, layer: int | str, start: int, store: ImageStore) -> None:
    bad = (~features.isfinite().all(dim=1)).nonzero()
    if len(bad):
        image = start + int(bad[0])
        name = store.class_names[int(store.labels[image])]
        raise InputError(
            f"the features of image {image} of split {store.split!r} (class {name!r}) at layer {layer} are not "
            f"finite; train the extractor again with a lower learning rate"
        )


def metadata(name: str, layer: int | str, origin: Origin) -> dict[str, str]:
    return {
        "images": origin.images or "",
        "layer": str(layer),
        "extractor": "" if layer == PIXELS else name,
        "checkpoint": "" if layer == PIXELS else origin.checkpoint,
        "crop": origin.crop,
        "config": json.dumps(origin.config),
    }


def write(path: Path, features: Tensor, offsets: Tensor, class_names: Sequence[str], metadata: dict[str, str]) -> None:
    """One feature file, whole or not at all."""
    about = {"format": FORMAT, "class_names": json.dumps(class_names)} | metadata
    with whole_file(path) as partial:
        save_file({"features": features, "offsets": offsets}, partial, metadata=about)
