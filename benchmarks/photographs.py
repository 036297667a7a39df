"""Images a second from files to features, the share of the network in it, and what reduced decoding gains.

    python -m benchmarks.photographs --threads 2 --json timings.json

The photographs are drawn: noise over a smooth picture, saved as JPEG, 12 megapixels as of a camera and 0.2 as of the
web. ``decoding`` is reading and framing alone, ``full`` the same without reduced decoding.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, JpegImagePlugin

from benchmarks.meta_training import show
from fewshot.folders import read
from fewshot.loading import backbone_config
from pretrain.extractor import Extractor, pretrained_extractor
from runner.process import keep_freed_memory

SIZES = {"12 MP": (4000, 3000), "0.2 MP": (500, 375)}


def main() -> None:
    """Measure both kinds of photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--settings", nargs="*", default=[], help="as backbone.pretrained.image_size=160")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    extractor, rows = pretrained_extractor(backbone_config(args.backbone, args.settings), own=[]), []
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            paths = draw(Path(folder), size, args.num_images)
            rows.append({"photographs": name} | measured(paths, extractor, args.repeats))
    show(f"{args.num_images} photographs, {args.backbone}, {args.threads} threads", rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def draw(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """``count`` JPEG files of one picture."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, 6, (size[1], size[0], 3))
    content = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    paths = [folder / f"{size[0]}-{i}.jpg" for i in range(count)]
    for path in paths:
        path.write_bytes(content.getvalue())
    return paths


def measured(paths: list[Path], extractor: Extractor, repeats: int) -> dict[str, float]:
    """Images a second of each part, the network's share of the time, the gain of reduced decoding."""
    pixels = read(paths, extractor).pixels
    decoding = best(lambda: read(paths, extractor), repeats)
    network = best(lambda: extractor.in_parts(pixels), repeats)
    both = best(lambda: extractor.in_parts(read(paths, extractor).pixels), repeats)
    with patch.object(JpegImagePlugin.JpegImageFile, "draft", lambda *_: None):
        full = best(lambda: read(paths, extractor), repeats)
    count = len(paths)
    return {"images/s": count / both, "decoding /s": count / decoding, "network /s": count / network,
            "network %": 100 * network / both, "full /s": count / full, "gain": full / decoding}  # fmt: skip


def best(call: Callable[[], object], repeats: int) -> float:
    """The seconds of the fastest of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
