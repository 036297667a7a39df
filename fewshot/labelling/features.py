"""Features of images, computed once: by their content, in files of some images each, so that a killed run goes on."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fewshot.folders import read
from fewshot.labelling.pictures import Picture
from pretrain.extractor import Extractor
from pretrain.sources.walk import Unreadable
from runner.files import whole_file
from runner.terminal import image_columns

log = logging.getLogger(__name__)

PER_FILE = 256  # images; a kill loses no more than these


def known(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The features of all images that files in ``folder`` hold, by the images' keys. A damaged file is passed over."""
    found: dict[str, NDArray[np.float32]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                keys = json.loads((file.metadata() or {})["images"])
                found.update(zip(keys, file.get_tensor("features"), strict=True))
        except (SafetensorError, KeyError, ValueError) as error:
            log.warning("%s is damaged (%s); what it held is computed again", path, error)
    return found


def compute(
    folder: Path, pictures: Sequence[Picture], extractor: Extractor, store: Path
) -> tuple[list[Picture], NDArray[np.float32], list[Unreadable]]:
    """The pictures that can be read, their features float32 [n, D], and the others; kept in ``store``, with a bar."""
    features, unreadable = known(store), []
    missing = [one for one in pictures if one.key not in features]
    device = extractor.mean.device
    with Progress(*image_columns(), console=Console(stderr=True), disable=not missing) as progress:
        bar = progress.add_task("features", total=len(missing))
        for start in range(0, len(missing), PER_FILE):
            done: dict[str, NDArray[np.float32]] = {}
            part = missing[start : start + PER_FILE]
            for begin in range(0, len(part), extractor.at_a_time()):
                some = {folder / one.names[0]: one for one in part[begin : begin + extractor.at_a_time()]}
                found = read(list(some), extractor)
                unreadable += found.unreadable
                if found.paths:
                    rows = extractor.in_parts(found.pixels.to(device)).cpu().numpy()
                    done |= {some[path].key: row for path, row in zip(found.paths, rows, strict=True)}
                progress.advance(bar, len(some))
            if done:
                with whole_file(store / f"{part[0].key}.safetensors") as partial:
                    save_file({"features": np.stack(list(done.values()))}, partial,
                              metadata={"images": json.dumps(list(done))})  # fmt: skip
            features |= done
    readable = [one for one in pictures if one.key in features]
    rows = np.stack([features[one.key] for one in readable]) if readable else np.empty((0, 0), np.float32)
    return readable, rows, unreadable
