"""Whole stage-1 trainings on a processor: images per second of ours and of torchvision's reference loop, in turns.

    python -m benchmarks.stage_1 --threads 1 2 --json stage_1.json

Ours is what ``stage=pretrain`` runs: the image store, augmentation of whole batches, Lightning. The other is a plain
loop as in torchvision's ``references/classification``: a ``DataLoader`` of single images and their transforms, then
forward, backward, SGD step and logged metrics. Both train the network of the recipe with its optimiser and batch size
on the same random images. With one thread the loop loads its images itself, with two it has a worker for that.

``files`` reads PNG files and changes images as the recipe does; ``stored`` finds them decoded in memory, and crops and
mirrors only. Each contestant has a process of its own, and they take turns. Figures are medians of repeats.
"""

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torchvision.transforms.v2 as T
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from benchmarks.meta_training import hush_lightning, show
from benchmarks.pretraining import recipe
from pretrain.augment import InceptionAugment, RandomShift
from pretrain.data import ImageBatch, TrainImages
from pretrain.module import Pretraining
from pretrain.run import make_network
from pretrain.store import ImageStore
from runner.folder import write_json
from runner.process import hide_absent_gpus, keep_freed_memory

NUM_CLASSES = 64
WARM_UP = 3  # steps before the clock starts
LOG_EVERY = 10  # steps between the loop's printed lines, as in torchvision's


class Side(NamedTuple):
    """The size of a recipe's stored images."""

    size: int
    channels: int


STORED = {"glyphs": Side(32, 1), "mini_imagenet_small": Side(44, 3)}
CONTESTANTS = ("ours", "ours, bf16", "files", "stored")


class Job(NamedTuple):
    """What a contestant's process needs to know."""

    contestant: str
    data: str
    folder: Path  # of PNG files, a folder for each class
    num_images: int  # of each class
    threads: int
    steps: int
    batch_size: int | None  # None: the recipe's


class Timing(NamedTuple):
    """Seconds of the timed steps, and those of them that loading and augmentation took."""

    total: float
    data: float


class Stopwatch:
    """Counts the steps, and the seconds spent in what it times; after ``WARM_UP`` steps it begins anew."""

    def __init__(self) -> None:
        self.steps, self.data = 0, 0.0

    def timed(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of ``function``, whose seconds are counted."""
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.data += time.perf_counter() - start

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of ``loader``; waiting for them is counted."""
        iterator = self.timed(iter, loader)
        while (batch := self.timed(next, iterator, None)) is not None:
            yield batch

    def step(self) -> None:
        """Called after each step."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.data, self.start = 0.0, time.perf_counter()

    def timing(self) -> Timing:
        """Of the steps since the warm-up."""
        return Timing(time.perf_counter() - self.start, self.data)


def random_images(side: Side, num_classes: int, num_images: int) -> Tensor:
    """Smooth random images, uint8 [classes * images, H, W, C]; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_classes * num_images, side.channels, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=side.size, mode="bicubic")
    return (255 * smooth).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def make_store(side: Side, num_images: int) -> ImageStore:
    """The random images as stage 1 keeps them."""
    return ImageStore(
        images=random_images(side, NUM_CLASSES, num_images),
        offsets=torch.arange(NUM_CLASSES + 1) * num_images,
        class_names=[f"{label:02}" for label in range(NUM_CLASSES)],
        split="train",
        data="random",
        source={},
    )


def write_files(store: ImageStore, folder: Path) -> None:
    """The images of ``store`` as PNG files, a folder for each class."""
    for name in store.class_names:
        (folder / name).mkdir()
    for i, (image, label) in enumerate(zip(store.images, store.labels.tolist(), strict=True)):
        Image.fromarray(image.squeeze(-1).numpy()).save(folder / store.class_names[label] / f"{i:05}.png")


class TimedPretraining(Pretraining):
    """Stage 1's training; its augmentation is timed."""

    stopwatch: Stopwatch

    def to_input(self, images: Tensor, view: nn.Module) -> Tensor:
        return self.stopwatch.timed(super().to_input, images, view)


class TimedImages(TrainImages):
    """Stage 1's images; reading them is timed."""

    stopwatch: Stopwatch

    def train_dataloader(self) -> Any:
        return TimedBatches(super().train_dataloader(), self.stopwatch)


class TimedBatches:
    """The batches of ``loader``, timed."""

    def __init__(self, loader: Any, stopwatch: Stopwatch) -> None:
        self.loader, self.stopwatch = loader, stopwatch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[ImageBatch]:
        return self.stopwatch.batches(self.loader)


class CountSteps(pl.Callback):
    """Tells the stopwatch of each step; ``timing`` is that of the training."""

    def __init__(self, stopwatch: Stopwatch, num_steps: int) -> None:
        self.stopwatch, self.num_steps = stopwatch, num_steps

    def on_train_batch_end(self, *args: Any) -> None:
        self.stopwatch.step()
        if self.stopwatch.steps == self.num_steps:
            self.timing = self.stopwatch.timing()


def build(cfg: DictConfig, store: ImageStore) -> TimedPretraining:
    """The training of the recipe ``cfg``."""
    settings = cfg.data.pretrain
    return TimedPretraining(
        network=make_network(cfg.backbone, store),
        crop=nn.Identity(),
        centroid_accuracy=None,
        **{key: instantiate(settings[key]) for key in ("augment", "optimizer", "schedule")},
        **{key: settings[key] for key in ("label_smoothing", "mean", "std")},
    )


def our_training(job: Job, cfg: DictConfig, store: ImageStore) -> Callable[[], Timing]:
    """One call trains on, through Lightning, and times its steps after the first few."""
    keep_freed_memory()
    hide_absent_gpus()
    module, batch_size = build(cfg, store), job.batch_size or cfg.data.pretrain.batch_size
    num_steps = WARM_UP + job.steps

    def train() -> Timing:
        data = TimedImages(store, batch_size=batch_size, num_val_per_class=2, val_every=num_steps, seed=0)
        module.stopwatch = data.stopwatch = Stopwatch()
        counter = CountSteps(module.stopwatch, num_steps)
        pl.Trainer(
            accelerator="cpu", precision="bf16-mixed" if "bf16" in job.contestant else "32-true", max_steps=num_steps,
            callbacks=[counter], limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tempfile.gettempdir(),
        ).fit(module, datamodule=data)  # fmt: skip
        return counter.timing

    return train


def preset(augment: nn.Module, mean: list[float], std: list[float], *, colours: bool) -> T.Compose:
    """torchvision's transforms of one image, in the ranges of ``augment``."""
    if isinstance(augment, RandomShift):
        # The shift alone: an image of which as much as that was added at each edge, cut to its size.
        changes = [T.RandomCrop(STORED["glyphs"].size, padding=augment.max_shift, padding_mode="reflect")]
    else:
        assert isinstance(augment, InceptionAugment)
        changes = [
            T.RandomResizedCrop(augment.size, tuple(augment.area), tuple(augment.aspect)),
            T.RandomHorizontalFlip(),
        ]
        if colours:
            changes += [T.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)]
    return T.Compose([*changes, T.PILToTensor(), T.ToDtype(torch.float32, scale=True), T.Normalize(mean, std)])


def open_image(path: str, mode: str) -> Image.Image:
    """The decoded image."""
    with Image.open(path) as image:
        return image.convert(mode)


class Stored(Dataset[tuple[Tensor, int]]):
    """Images that are decoded already."""

    def __init__(self, store: ImageStore, transform: T.Compose) -> None:
        self.images, self.labels = store.images.permute(0, 3, 1, 2).contiguous(), store.labels.tolist()
        self.transform = T.Compose([one for one in transform.transforms if not isinstance(one, T.PILToTensor)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class Smoothed:
    """The running mean and median that the loop logs of a metric."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=20)
        self.total, self.count = 0.0, 0

    def update(self, value: float, size: int = 1) -> None:
        self.recent.append(value)
        self.total, self.count = self.total + value * size, self.count + size

    def __str__(self) -> str:
        return f"{statistics.median(self.recent):.4f} ({self.total / self.count:.4f})"


def top(logits: Tensor, labels: Tensor, numbers: tuple[int, ...]) -> list[Tensor]:
    """Percent of rows whose label is among the largest logits, for each number of these."""
    found = logits.topk(max(numbers), dim=1).indices == labels[:, None]
    return [100 * found[:, :number].any(dim=1).float().mean() for number in numbers]


def reference_loop(job: Job, cfg: DictConfig, store: ImageStore) -> Callable[[], Timing]:
    """One call trains on, one image's transforms after another, and times its steps after the first few."""
    settings, ours = cfg.data.pretrain, build(cfg, store)
    network = ours.network.to(memory_format=torch.contiguous_format)
    optimizer = ours.make_optimizer(network.parameters())
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    images: Dataset[Any]
    transform = partial(preset, ours.augment, list(settings.mean), list(settings.std))
    if job.contestant == "files":
        loader = partial(open_image, mode="L" if store.images.shape[-1] == 1 else "RGB")
        images = ImageFolder(str(job.folder), transform(colours=True), loader=loader)
    else:
        images = Stored(store, transform(colours=False))

    def train() -> Timing:
        stopwatch, log = Stopwatch(), io.StringIO()
        loader = DataLoader(
            images,
            batch_size=job.batch_size or settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=job.threads - 1,
            multiprocessing_context="fork" if job.threads > 1 else None,  # torch's own choice in a plain program
        )
        metrics = {name: Smoothed() for name in ("loss", "acc1", "acc5", "img/s")}
        network.train()
        while True:
            for inputs, labels in stopwatch.batches(loader):
                start = time.perf_counter()
                logits = network(inputs)
                loss = criterion(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                acc1, acc5 = top(logits, labels, (1, 5))
                metrics["loss"].update(loss.item())
                metrics["acc1"].update(acc1.item(), len(labels))
                metrics["acc5"].update(acc5.item(), len(labels))
                metrics["img/s"].update(len(labels) / (time.perf_counter() - start))
                if stopwatch.steps % LOG_EVERY == 0:
                    print(*(f"{name}: {metric}" for name, metric in metrics.items()), file=log)
                stopwatch.step()
                if stopwatch.steps == WARM_UP + job.steps:
                    return stopwatch.timing()

    return train


def begin(job: Job) -> None:
    """Make the contestant of this process."""
    global train
    hush_lightning()
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    kind = our_training if job.contestant.startswith("ours") else reference_loop
    train = kind(job, recipe(job.data), make_store(STORED[job.data], job.num_images))


def go_on() -> Timing:
    """A further stretch of this process's contestant."""
    return train()


def measure(jobs: list[Job], repeats: int) -> dict[str, list[Timing]]:
    """Timings of each job, in turns, each in a process of its own."""
    timings: dict[str, list[Timing]] = {job.contestant: [] for job in jobs}
    with ExitStack() as open_processes:
        spawn = multiprocessing.get_context("spawn")
        processes = {
            job.contestant: open_processes.enter_context(
                ProcessPoolExecutor(1, mp_context=spawn, initializer=begin, initargs=(job,))
            )
            for job in jobs
        }
        for _ in range(repeats):
            for contestant, process in processes.items():
                timings[contestant].append(process.submit(go_on).result())
    return timings


def row(job: Job, timings: list[Timing], ours: list[Timing], batch_size: int) -> dict[str, Any]:
    """Medians of a contestant: its speed, what loading and augmentation take of its time, how many times its seconds
    are ours, within one turn."""
    return {
        "images/s": job.steps * batch_size / statistics.median(one.total for one in timings),
        "loading %": 100 * statistics.median(one.data / one.total for one in timings),
        "x ours": statistics.median(theirs.total / one.total for theirs, one in zip(timings, ours, strict=True)),
    }


def compare(data: str, threads: int, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each contestant on one recipe."""
    cfg = recipe(data)
    jobs = [
        Job(contestant, data, folder, args.images_per_class, threads, args.steps, args.batch_size)
        for contestant in CONTESTANTS
    ]
    timings = measure(jobs, args.repeats)
    batch_size = args.batch_size or cfg.data.pretrain.batch_size
    about = {"network": cfg.backbone.name, "data": data, "threads": threads}
    return [
        about | {"contestant": job.contestant} | row(job, timings[job.contestant], timings["ours"], batch_size)
        for job in jobs
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(STORED), choices=STORED)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--images-per-class", type=int, default=40)
    parser.add_argument("--batch-size", type=int, help="images; the recipe's where it is not given")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args(arguments)
    about = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    rows: list[dict[str, Any]] = []
    for data in args.data:
        with tempfile.TemporaryDirectory() as folder:
            write_files(make_store(STORED[data], args.images_per_class), Path(folder))
            for threads in args.threads:
                compared = compare(data, threads, args, Path(folder))
                show("stage 1: whole training loops", compared)
                rows += compared
                if args.json:
                    write_json(args.json, about | {"rows": rows})
    return rows


if __name__ == "__main__":
    main()
