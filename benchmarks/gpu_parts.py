"""What ``benchmarks.gpu`` measures. Each part is a function of a device; its result can be written as JSON."""

import gc
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType

from benchmarks import pretraining
from benchmarks.meta_training import UPDATES_PER_STEP, fit, make_leo, make_stream, make_table, make_update, wait
from leo.captured_update import EAGER_UPDATES, CapturedUpdate, OptimisticUpdate
from leo.evaluate import Scorer, evaluate, fixed_tasks
from leo.features import FeatureTable
from leo.module import TaskData
from leo.update import MetaUpdate
from pretrain.data import ImageBatch, ShuffledBatches
from pretrain.module import Pretraining
from pretrain.store import ImageStore
from runner.files import read_json

ROOT = Path(__file__).parent.parent
SHOTS = (1, 5)
NUM_CLASSES = 64
ALL_UPDATES = 100_000


class Sizes(NamedTuple):
    """Of the tasks that are trained on: those of the paper."""

    device: str
    num_way: int = 5
    num_query: int = 15
    tasks_per_batch: int = 12
    num_features: int = 640
    num_images: int = 600  # of each class


def card(device: str) -> dict[str, Any]:
    """The card, its driver, and the versions of what runs on it."""
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver_version(),
    }
    if device != "cuda":
        return about | {"name": "CPU"}
    properties = torch.cuda.get_device_properties(0)
    return about | {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }


def driver_version() -> str | None:
    """As ``nvidia-smi`` has it; None where there is no such program, or it fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=15)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


def tests(device: str) -> dict[str, Any]:
    """The golden tests computed on ``device``, by precision, and the tests that need a GPU."""
    golden = "tests/leo/test_golden.py"
    return {
        "golden, float64": outcome_of_tests([golden, "-k", "not float32"], device),
        "golden, float32": outcome_of_tests([golden, "-k", "float32"], device),
        "tests that need a GPU": outcome_of_tests(["tests/leo", "-m", "gpu"], device),
    }


def outcome_of_tests(selection: Sequence[str], device: str) -> dict[str, Any]:
    """How many of the selected tests ran and were skipped, and what failed: a line for each by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        surroundings = os.environ | {"LEO_TEST_DEVICE": device}
        done = subprocess.run(
            [*command, *selection], cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise RuntimeError(f"pytest made no report: {(done.stdout + done.stderr)[-2000:]}")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = {
        case.get("name", ""): problem.get("message", "").split("\n")[0]
        for case in cases
        for kind in ("failure", "error")
        for problem in case.findall(kind)
    }
    num_skipped = sum(case.find("skipped") is not None for case in cases)
    return {"run": len(cases) - num_skipped, "skipped": num_skipped, "failed": failed}


def fast_kind(device: str) -> type[MetaUpdate]:
    """The update that a GPU is to have; elsewhere, what of it needs no GPU."""
    return CapturedUpdate if device == "cuda" else OptimisticUpdate


def train_on(update: MetaUpdate, num_updates: int) -> None:
    """Make updates as the trainer does, ``UPDATES_PER_STEP`` at a time."""
    for start in range(0, num_updates, UPDATES_PER_STEP):
        update([update.stream.next_batch() for _ in range(min(UPDATES_PER_STEP, num_updates - start))])
    wait()


def captured(device: str, sizes: Sizes | None = None, points: Sequence[int] = (10, 100, 1000)) -> list[dict[str, Any]]:
    """How far the weights of captured updates are from those of eager ones, after ``points`` updates."""
    sizes, rows = sizes or Sizes(device), []
    table = make_table(NUM_CLASSES, sizes.num_images, sizes.num_features, device)
    for num_shot in SHOTS:
        updates = {
            name: make_update(kind, make_leo(sizes.num_features, device), make_stream(table, sizes, num_shot))
            for name, kind in (("eager", MetaUpdate), ("captured", fast_kind(device)))
        }
        done, seconds = 0, dict.fromkeys(updates, 0.0)
        for point in points:
            for name, update in updates.items():
                start = time.perf_counter()
                train_on(update, point - done)
                seconds[name] += time.perf_counter() - start
            done = point
            eager, other = (dict(updates[name].learner.named_parameters()) for name in ("eager", "captured"))
            name, difference = largest_difference(other, eager)
            row = {"shot": num_shot, "updates": point, "largest relative difference": difference, "of": name}
            rows.append(row | {f"{name}, s": value for name, value in seconds.items()})
    return rows


def largest_difference(actual: dict[str, Any], expected: dict[str, Any]) -> tuple[str, float]:
    """The tensor that differs most by the norm of the difference over its norm, and this ratio."""
    ratios = {}
    for name, value in expected.items():
        difference = (actual[name].detach().double() - value.detach().double()).norm()
        ratios[name] = (difference / value.detach().double().norm().clamp(min=1e-30)).item()
    name = max(ratios, key=lambda name: (ratios[name] != ratios[name], ratios[name]))  # NaN is the largest
    return name, ratios[name]


RESUMED = ("max_steps=2000", "val.every=500", "val.num_tasks=200", "test.num_tasks=200")


def resume(device: str, settings: Sequence[str] = RESUMED, kill_at: int = 700) -> dict[str, Any]:
    """Whether a training that is killed after ``kill_at`` updates ends as one that is not, by kind of update."""
    kinds = {"eager": f"trainer.accelerator={'gpu' if device == 'cuda' else device}"}
    if device == "cuda":
        kinds["captured"] = "captured=true"
    with tempfile.TemporaryDirectory() as folder:
        return {
            kind: compare_resumed(Path(folder), kind, [*settings, override], kill_at)
            for kind, override in kinds.items()
        }


def compare_resumed(folder: Path, name: str, overrides: Sequence[str], kill_at: int) -> dict[str, Any]:
    """What an uninterrupted run and a killed one leave, compared."""
    straight, resumed = folder / f"{name}-straight", folder / f"{name}-resumed"
    run_to_end(train_command(folder, straight, overrides))
    command = train_command(folder, resumed, overrides)
    logged = kill_after(command, resumed / "metrics.csv", kill_at)
    step = torch.load(resumed / "last.ckpt", weights_only=True)["global_step"]
    run_to_end(command)
    expected, actual = (torch.load(run / "last.ckpt", weights_only=True) for run in (straight, resumed))
    optimizers = [state_tensors(one["optimizer_states"][0]) for one in (actual, expected)]
    results = [read_json(run / "result.json", ("accuracy",), "") for run in (straight, resumed)]
    difference = largest_difference(actual["state_dict"], expected["state_dict"])
    return {
        "killed after update": logged,
        "went on after update": step,
        "same weights": all(
            torch.equal(actual["state_dict"][key], value) for key, value in expected["state_dict"].items()
        ),
        "same optimiser": all(torch.equal(one, other) for one, other in zip(*optimizers, strict=True)),
        "same log": (straight / "metrics.csv").read_bytes() == (resumed / "metrics.csv").read_bytes(),
        "same test accuracy": results[0]["accuracy"] == results[1]["accuracy"],
        "largest relative difference": difference[1],
    }


def state_tensors(state: dict[str, Any]) -> list[Tensor]:
    """The tensors of an optimiser's state, in order."""
    return [value for one in state["state"].values() for value in one.values() if torch.is_tensor(value)]


def train_command(folder: Path, run: Path, overrides: Sequence[str]) -> list[str]:
    """The command of a training on random features, which are made in ``folder``."""
    features = folder / "random.npz"
    if not features.exists():
        generator = np.random.default_rng(0)
        labels = np.arange(30).repeat(60)
        centres = generator.standard_normal((30, 32), dtype=np.float32)[labels]
        noise = generator.standard_normal((len(labels), 32), dtype=np.float32)
        np.savez(features, features=centres + noise, labels=labels)
    folders = [f"dirs.{name}={folder / name}" for name in ("images", "features", "runs")]
    return [
        sys.executable, str(ROOT / "train.py"), "experiment=own_1shot", "data.name=random", "features=array",
        f"features.source.path={features}", f"run_dir={run}", "patience=null", *folders, *overrides,
    ]  # fmt: skip


def run_to_end(command: Sequence[str]) -> None:
    """Run ``command``; raises with its last words where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr[-2000:]}")


def kill_after(command: Sequence[str], log: Path, step: int) -> int:
    """Start ``command`` and kill it once update ``step`` is logged in ``log``; the last update that was logged."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if (last := last_step(log)) >= step:
                process.send_signal(signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:
                    return last
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    raise RuntimeError(f"{' '.join(command[2:])} ended with {process.returncode} before it was killed")


def last_step(log: Path) -> int:
    """The largest step in a ``metrics.csv``; -1 where there is none yet."""
    lines = log.read_text().split("\n")[1:-1] if log.exists() else []
    return max((int(line.split(",")[0]) for line in lines if line[:1].isdigit()), default=-1)


def speed(
    device: str, sizes: Sizes | None = None, num_updates: int = 2000, num_tasks: int = 50_000
) -> list[dict[str, Any]]:
    """Seconds of 100,000 updates, extrapolated from ``num_updates``, and of a test of ``num_tasks`` tasks."""
    sizes, rows = sizes or Sizes(device), []
    table = make_table(NUM_CLASSES, sizes.num_images, sizes.num_features, device)
    tested = make_table(20, sizes.num_images, sizes.num_features, device)
    for num_shot in SHOTS:
        update = make_update(
            fast_kind(device), make_leo(sizes.num_features, device), make_stream(table, sizes, num_shot)
        )
        train_on(update, EAGER_UPDATES + 2)  # libraries make their buffers, and the graph is captured
        start = time.perf_counter()
        train_on(update, num_updates)
        seconds = time.perf_counter() - start
        leo = make_leo(sizes.num_features, device)
        stream = make_stream(table, sizes, num_shot)
        val_tasks = fixed_tasks(tested, 12, sizes.num_way, num_shot, seed=1)
        data = TaskData(stream, val_tasks, lambda learner, num_shot=num_shot: Scorer(learner, tested, num_shot))
        through_trainer = fit(sizes, leo, data)
        rows.append(
            {
                "shot": num_shot,
                "measured updates": num_updates,
                "measured, s": seconds,
                "100,000 updates, extrapolated, s": seconds / num_updates * ALL_UPDATES,
                "100,000 updates through the trainer, extrapolated from 150, s": through_trainer * ALL_UPDATES,
                "tested tasks": num_tasks,
                "test, s": seconds_of_test(sizes, tested, num_shot, num_tasks),
            }
        )
    return rows


def seconds_of_test(sizes: Sizes, table: FeatureTable, num_shot: int, num_tasks: int) -> float:
    """Of drawing ``num_tasks`` tasks and scoring them on all remaining images, after a first few."""
    leo = make_leo(sizes.num_features, sizes.device).eval()
    seconds = 0.0
    for number in (min(1000, num_tasks), num_tasks):
        start = time.perf_counter()
        evaluate(leo, table, fixed_tasks(table, number, sizes.num_way, num_shot, seed=2), num_shot)
        wait()
        seconds = time.perf_counter() - start
    return seconds


class Span(NamedTuple):
    """Something that ran on the device, in microseconds."""

    name: str
    start: float
    end: float


def profile(device: str, sizes: Sizes | None = None, num_updates: int = 50) -> list[dict[str, Any]]:
    """What an update's time on the device goes to, and the share of time in which nothing runs there."""
    sizes, rows = sizes or Sizes(device), []
    table = make_table(NUM_CLASSES, sizes.num_images, sizes.num_features, device)
    for num_shot in SHOTS:
        update = make_update(
            fast_kind(device), make_leo(sizes.num_features, device), make_stream(table, sizes, num_shot)
        )
        train_on(update, UPDATES_PER_STEP)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            train_on(update, num_updates)
        kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
        spans = [
            Span(event.name, event.time_range.start, event.time_range.end)
            for event in profiler.events() or []
            if event.device_type == kind and not event.is_user_annotation
        ]
        if not spans:
            raise RuntimeError("the profiler saw nothing that ran on the device")
        length = max(span.end for span in spans) - min(span.start for span in spans)
        rows.append(
            {
                "shot": num_shot,
                "updates": num_updates,
                "ms of an update": length / num_updates / 1000,
                "idle, share of time": 1 - busy(spans) / length,
                "kernels of an update": len(spans) / num_updates,
                "top": longest(spans, num_updates),
            }
        )
    return rows


def busy(spans: Iterable[Span]) -> float:
    """Microseconds in which at least one of ``spans`` ran."""
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total


def longest(spans: Iterable[Span], num_updates: int, number: int = 15) -> list[dict[str, Any]]:
    """The names with the longest times in all: calls and microseconds of one update."""
    times: dict[str, list[float]] = {}
    for span in spans:
        times.setdefault(span.name, []).append(span.end - span.start)
    names = sorted(times, key=lambda name: -sum(times[name]))[:number]
    return [
        {"name": name[:120], "calls": len(times[name]) / num_updates, "us": sum(times[name]) / num_updates}
        for name in names
    ]


class Network(NamedTuple):
    """A Wide-ResNet, its images, and how its steps are timed."""

    depth: int = 28
    width: int = 10
    size: int = 80
    batch_sizes: Sequence[int] = (1024, 512, 256, 128)  # the first that fits into memory
    steps: int = 10
    compiled: bool = True


def wide_resnet(device: str, network: Network | None = None) -> dict[str, Any]:
    """Images per second of stage 1's training step in bf16, and the share of the card's peak.

    ``step`` is the step on inputs that are ready. ``with data`` reads images from a store, in which they lie decoded
    as stage 1 keeps them, moves them to the device and augments them there.
    """
    network = network or Network()
    for batch_size in network.batch_sizes:
        with suppress(torch.OutOfMemoryError):
            return time_network(device, network, batch_size)
        gc.collect()  # the tensors that the error held
        torch.compiler.reset()
        torch.cuda.empty_cache()
    raise RuntimeError(f"batches of {network.batch_sizes[-1]} images do not fit into the memory of the card")


def wide_resnet_eager(device: str) -> dict[str, Any]:
    """The same without torch.compile."""
    return wide_resnet(device, Network(compiled=False))


def time_network(device: str, network: Network, batch_size: int) -> dict[str, Any]:
    """The figures of ``wide_resnet`` for one batch size."""
    options = Namespace(**network._asdict(), device=device)
    module = pretraining.build(options)
    if network.compiled:
        module.network.compile(dynamic=False)
    optimizer = module.make_optimizer(module.parameters())

    def learn(inputs: Tensor, labels: Tensor) -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = F.cross_entropy(module.network(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = endless_batches(batch_size, network.size)
    inputs, labels = on_device(module, next(batches), device)
    steps = {
        "step": lambda: learn(inputs, labels),
        "with data": lambda: learn(*on_device(module, next(batches), device)),
    }
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    operations, peak = pretraining.operations_per_image(options), pretraining.peak_of(name)
    result: dict[str, Any] = {
        "network": f"WRN-{network.depth}-{network.width}",
        "size": network.size,
        "batch": batch_size,
        "compiled": network.compiled,
        "gflop_per_image": operations / 1e9,
        "peak_tflop_per_second": None if peak is None else peak / 1e12,
    }
    for which, step in steps.items():
        start = time.perf_counter()
        step()
        step()
        first = time.perf_counter() - start
        rate = batch_size / pretraining.seconds(step, options)
        result[which] = {
            "images_per_second": rate,
            "tflop_per_second": rate * operations / 1e12,
            "share_of_peak": None if peak is None else rate * operations / peak,
            "first_two_steps_s": first,
        }
    if device == "cuda":
        result["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def endless_batches(batch_size: int, size: int) -> Iterator[ImageBatch]:
    """Batches of random images as stage 1 reads them, of the size that is cropped to ``size``."""
    stored = size * 84 // 80  # as 84 pixels are to 80
    num_images = 2 * batch_size // pretraining.NUM_CLASSES * pretraining.NUM_CLASSES or pretraining.NUM_CLASSES
    store = ImageStore(
        images=torch.randint(256, (num_images, stored, stored, 3), dtype=torch.uint8),
        offsets=torch.arange(pretraining.NUM_CLASSES + 1) * (num_images // pretraining.NUM_CLASSES),
        class_names=[str(label) for label in range(pretraining.NUM_CLASSES)],
        split="train",
        data="random",
        source={},
    )
    batches = ShuffledBatches(
        store, torch.arange(num_images), batch_size=batch_size, num_parts=1, parts=range(1), seed=0, length=10**6,
        step=lambda: 0,
    )  # fmt: skip
    return iter(batches)


def on_device(module: Pretraining, batch: ImageBatch, device: str) -> tuple[Tensor, Tensor]:
    """The augmented inputs and the labels of a batch."""
    images, labels = (part.to(device, non_blocking=True) for part in batch)
    return module.to_input(images, module.augment), labels
