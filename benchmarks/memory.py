"""What runs side by side take of memory, on features as large as those of tieredImageNet.

    python -m benchmarks.memory                      # 608 classes of 1,282 images, 640-d: 2 GB; four runs at once

Each is `python train.py`: a training on train + val, and its test, on random features in a temporary folder. First the
same runs on few images, which show what Python and its libraries take. Largest values over a run, as Linux counts them:
`own` is what this process alone needs (anonymous pages), `share` its share of all that it uses (PSS: a page that four
processes use counts a quarter in each). Pages of a mapped file are the system's, which may drop them at any time.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.meta_training import show
from leo.features import FORMAT, ORIGIN
from runner.files import synchronise

ROOT = Path(__file__).parent.parent
CLASSES = {"train": 351, "val": 97, "test": 160}  # of tieredImageNet
LIMIT = 300  # MB that a run may add to what its libraries take


def main(arguments: list[str] | None = None) -> None:
    """Measure runs on few images, then on many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1282, help="of each class")
    parser.add_argument("--num-features", type=int, default=640)
    parser.add_argument("--runs", type=int, default=4, help="at the same time")
    parser.add_argument("--normalize", default="centred_l2")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("more", nargs="*", help="overrides of each run")
    args = parser.parse_args(arguments)
    rows, without = [], None
    for num_images in (20, args.images):
        with tempfile.TemporaryDirectory() as folder:
            num_bytes = write_features(Path(folder), num_images, args.num_features)
            overrides = [f"features.normalize={args.normalize}", *args.more]
            peaks = watch([start(Path(folder), seed, overrides) for seed in range(args.runs)])
        means = {name: sum(peak[name] for peak in peaks) / len(peaks) for name in peaks[0]}
        without = without or means
        for seed, peak in enumerate(peaks):
            added = {f"{name} adds": peak[name] - without[name] for name in peak}
            rows.append({"features MB": num_bytes / 1e6, "run": seed} | peak | added | {"limit of own": LIMIT})
    show(f"MB of memory of {args.runs} runs at once", rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def write_features(folder: Path, num_images: int, num_features: int) -> int:
    """Random features of the classes of tieredImageNet in ``folder``; their number of bytes."""
    num_bytes = 0
    for split, num_classes in CLASSES.items():
        features = torch.randn(num_classes * num_images, num_features)
        about = {"format": FORMAT, "split": split, "config": "{}", **dict.fromkeys(ORIGIN, "random")}
        about["class_names"] = json.dumps([f"{split} {label}" for label in range(num_classes)])
        tensors = {"features": features, "offsets": torch.arange(num_classes + 1) * num_images}
        save_file(tensors, folder / f"{split}.safetensors", metadata=about)
        synchronise(folder / f"{split}.safetensors")  # else its pages are this process's to write
        num_bytes += features.nbytes
    return num_bytes


def start(folder: Path, seed: int, overrides: list[str]) -> subprocess.Popen[bytes]:
    """A training of the paper's size on the features in ``folder``, a few validations long."""
    command = [
        sys.executable, "train.py", "experiment=tiered_1shot", "data.source=null", f"seed={seed}", "threads=1",
        f"features.folder={folder}", f"run_dir={folder / 'runs' / str(seed)}",
        "max_steps=400", "val.every=200", "val.num_tasks=500", "test.num_tasks=1000",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *overrides], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def watch(runs: list[subprocess.Popen[bytes]]) -> list[dict[str, float]]:
    """The largest memory of each of ``runs`` until it ends, in MB."""
    peaks = [{"own": 0.0, "share": 0.0} for _ in runs]
    for count in itertools.count():
        if all(run.poll() is not None for run in runs):
            break
        for run, peak in zip(runs, peaks, strict=True):
            peak["own"] = max(peak["own"], megabytes(run.pid, "status", "RssAnon"))
            if count % 20 == 0:  # the system looks through all pages, which takes it a while
                peak["share"] = max(peak["share"], megabytes(run.pid, "smaps_rollup", "Pss"))
        time.sleep(0.05)
    if any(run.returncode for run in runs):
        raise SystemExit("a run failed; it says above why")
    return peaks


def megabytes(process: int, file: str, key: str) -> float:
    """What Linux says of ``process`` now; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
