"""How fast meta-training and testing are, as ratios to a plain loop over tasks measured in the same run.

    python -m benchmarks.meta_training update test scaling --threads 1 2 --json timings.json

Features are random: 64 classes of 600 images to train, 20 of 600 to test, 640-d. ``update`` is a whole meta-update
(sampling, gather, forward, both inner loops, backward, clipping, Adam); ``lightning`` the same through the trainer;
``test`` scores tasks on all remaining images; ``scaling`` varies one size at a time, and shows time, memory and how
both grow. Figures are medians of repeats,
and contestants take turns, so that a busy machine slows all of them.
"""

import argparse
import json
import logging
import math
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import reference
from leo import kernels
from leo.captured_update import CapturedUpdate
from leo.episodes import TaskIndices, TaskStream, sample_tasks
from leo.evaluate import Scorer, evaluate, fixed_tasks
from leo.features import AnyTable, FeatureTable, Normalizer
from leo.leo import LEO
from leo.module import MetaLearning, TaskData
from leo.update import MetaUpdate
from runner.process import hide_absent_gpus, keep_freed_memory

console = Console()
UPDATES_PER_STEP = 50


def make_table(num_classes: int, num_images: int, num_features: int, device: str) -> FeatureTable:
    """Random features of unit length."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_classes * num_images, num_features, generator=generator)
    return FeatureTable(
        features=torch.nn.functional.normalize(features, dim=1),
        offsets=torch.arange(num_classes + 1) * num_images,
        class_names=[str(label) for label in range(num_classes)],
        origin={},
    ).to(device)


def make_leo(
    num_features: int,
    device: str,
    inner_loops: Literal["closed_form", "autograd"] = "closed_form",
    num_latents: int = 64,
) -> LEO:
    """LEO with the settings of the paper (miniImageNet, 1-shot), without the searched rates, which cost nothing."""
    torch.manual_seed(0)
    return LEO(
        num_features=num_features, num_latents=num_latents, latents="class", initial_code="encoder", stochastic=True,
        num_latent_steps=5, num_finetune_steps=5, latent_lr=1.0, finetune_lr=0.001, dropout=0.3,
        kl_weight=0.001, encoder_penalty_weight=1e-9, l2_weight=1e-8, orthogonality_weight=0.1,
        inner_loops=inner_loops,
    ).to(device)  # fmt: skip


def make_stream(table: AnyTable, args: argparse.Namespace, num_shot: int, **changes: int) -> TaskStream:
    """The training stream at the sizes of ``args``."""
    sizes = {"num_way": args.num_way, "num_query": args.num_query, "batch_size": args.tasks_per_batch} | changes
    return TaskStream(
        table,
        num_shot=num_shot,
        **sizes,
        batches_per_epoch=UPDATES_PER_STEP,
        batches_per_step=UPDATES_PER_STEP,
        generator=torch.Generator(table.device).manual_seed(0),
    )


def our_update(
    table: FeatureTable,
    stream: TaskStream,
    inner_loops: Literal["closed_form", "autograd"] = "closed_form",
    num_latents: int = 64,
) -> Callable[[], Any]:
    """One call is one update."""
    kind = CapturedUpdate if stream.device.type == "cuda" else MetaUpdate
    leo = make_leo(table.features.shape[1], str(table.features.device), inner_loops, num_latents)
    update = make_update(kind, leo, stream)
    return lambda: update([stream.next_batch()])


def make_update(kind: type[MetaUpdate], leo: LEO, stream: TaskStream) -> MetaUpdate:
    """The update of ``leo`` on the tasks of ``stream``, with the settings of the paper."""
    return kind(
        leo, torch.optim.Adam(leo.parameters(), lr=1e-3, fused=True), None, stream=stream, clip_value=0.1,
        clip_norm=0.1, generator=torch.Generator(stream.device).manual_seed(1), diverged="skip",
    )  # fmt: skip


def in_torch_alone(call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` without the C kernels."""

    def called() -> None:
        kernels.use(False)
        call()
        kernels.use(True)

    return called


def plain_update(table: FeatureTable, args: argparse.Namespace, num_shot: int) -> Callable[[], Any]:
    """The same by the reference."""
    return reference.Update(
        make_leo(table.features.shape[1], str(table.features.device)), table,
        num_way=args.num_way, num_shot=num_shot, num_query=args.num_query, tasks_per_batch=args.tasks_per_batch,
        lr=1e-3, clip=0.1, seed=1,
    )  # fmt: skip


def seconds_of(call: Callable[[], Any], count: int) -> float:
    """Seconds of one call, the mean of ``count`` in a row."""
    wait()
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - start) / count


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(calls: dict[str, tuple[Callable[[], Any], int]], repeats: int) -> dict[str, float]:
    """Median seconds of a call of each contestant; ``calls`` gives each a function and how often to call it."""
    for call, count in calls.values():
        seconds_of(call, max(1, count // 10))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in track(range(repeats), description=", ".join(calls), console=console, transient=True):
        for name, (call, count) in calls.items():
            seconds[name].append(seconds_of(call, count))
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table, one column for each key."""
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        shown = (
            "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
            for value in row.values()
        )
        table.add_row(*shown)
    console.print(table)


def update(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Updates per second against the reference."""
    table, rows = make_table(64, 600, args.num_features, args.device), []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for num_shot in args.num_shot:
            ours = our_update(table, make_stream(table, args, num_shot))
            in_torch = our_update(table, make_stream(table, args, num_shot))
            by_autograd = our_update(table, make_stream(table, args, num_shot), "autograd")
            contestants = {
                "ours": (ours, args.updates),
                "torch": (in_torch_alone(in_torch), args.updates),
                "autograd": (by_autograd, args.updates // 2),
                "plain": (plain_update(table, args, num_shot), 4),
            }
            seconds = in_turns(contestants, args.repeats)
            rows.append(
                {
                    "threads": threads,
                    "shot": num_shot,
                    "plain /s": 1 / seconds["plain"],
                    "autograd /s": 1 / seconds["autograd"],
                    "torch alone /s": 1 / seconds["torch"],
                    "ours /s": 1 / seconds["ours"],
                    "ratio": seconds["plain"] / seconds["ours"],
                }
            )
    show("one meta-update", rows)
    return rows


def fit(args: argparse.Namespace, leo: LEO, data: TaskData) -> float:
    """Seconds of one update of ``leo`` inside the trainer, without logging to disk and validation."""
    module = MetaLearning(
        leo, Normalizer("l2", args.num_features),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
        schedule=None, clip_value=0.1, clip_norm=0.1, diverged="skip", max_diverged=0.1, seed=0,
        captured=args.device == "cuda",
    )  # fmt: skip
    clock = Clock()
    pl.Trainer(
        accelerator=args.device, devices=1, max_epochs=4, limit_val_batches=0, callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
    ).fit(module, datamodule=data)  # fmt: skip
    return clock.seconds / (3 * UPDATES_PER_STEP)


def lightning(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the trainer costs, and what a validation costs."""
    table = make_table(64, 600, args.num_features, args.device)
    val_table = make_table(16, 600, args.num_features, args.device)
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for num_shot in args.num_shot:
            bare = our_update(table, make_stream(table, args, num_shot))
            leo = make_leo(args.num_features, args.device)
            val_tasks = fixed_tasks(val_table, 2000, args.num_way, num_shot, seed=1)
            make_scorer = partial(Scorer, table=val_table, num_shot=num_shot)
            data = TaskData(make_stream(table, args, num_shot), val_tasks, make_scorer)
            seconds_of(bare, UPDATES_PER_STEP)
            alone, trained = [], []
            for _ in range(args.repeats):  # in turns
                alone.append(seconds_of(bare, 3 * UPDATES_PER_STEP))
                trained.append(fit(args, leo, data))
            scorer = Scorer(leo.eval(), val_table, num_shot)
            call = partial(score_all, scorer, val_tasks)
            validation = in_turns({"validation": (call, 1)}, args.repeats)["validation"]
            rows.append(
                {
                    "threads": threads,
                    "shot": num_shot,
                    "bare /s": 1 / statistics.median(alone),
                    "trainer /s": 1 / statistics.median(trained),
                    "share": statistics.median(alone) / statistics.median(trained),
                    "validation s": validation,
                    "1,000 updates / validation": 1000 * statistics.median(alone) / validation,
                }
            )
    show("Lightning, and a validation on 2,000 tasks", rows)
    return rows


def score_all(scorer: Scorer, chunks: list[TaskIndices]) -> None:
    """Score all tasks."""
    for tasks in chunks:
        scorer(tasks)


class Clock(pl.Callback):
    """Seconds of all epochs but the first."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        if trainer.current_epoch == 1:
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        self.seconds = time.perf_counter() - getattr(self, "start", time.perf_counter())


@torch.no_grad()
def gathered(leo: LEO, table: FeatureTable, tasks: TaskIndices) -> Tensor:
    """Accuracy of each task, by gathering all images of its classes: for classes of one size."""
    num_images = int(table.class_sizes[0])
    weights = leo.adapt(table.features[tasks.images])
    rows = table.offsets[tasks.classes].unsqueeze(2) + torch.arange(num_images, device=table.offsets.device)
    images = table.features[rows.flatten(1)]  # [B, N * images, D]
    labels = torch.arange(rows.shape[1], device=rows.device).repeat_interleave(num_images)
    correct = ((images @ weights.mT).argmax(-1) == labels).double()
    is_query = torch.ones_like(correct)
    position = tasks.images - table.offsets[tasks.classes].unsqueeze(2)
    position += torch.arange(rows.shape[1], device=rows.device).view(1, -1, 1) * num_images
    is_query.scatter_(1, position.flatten(1), 0)
    return (correct * is_query).sum(1) / is_query.sum(1)


def looped(leo: LEO, table: FeatureTable, tasks: TaskIndices) -> list[float]:
    """Accuracy of each task, one after another."""
    return [reference.test_task(leo, table, *task) for task in zip(*tasks, strict=True)]


def test(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a test on all remaining images, for ``--test-tasks``, against two plain ways on fewer tasks."""
    table, rows = make_table(20, 600, args.num_features, args.device), []
    leo = make_leo(args.num_features, args.device).eval()
    sizes = [(threads, num_shot) for threads in args.threads for num_shot in args.num_shot]
    for threads, num_shot in sizes:  # first, as the peak of memory is that of the process so far
        torch.set_num_threads(threads)
        start = time.perf_counter()
        evaluate(leo, table, fixed_tasks(table, args.test_tasks, args.num_way, num_shot, seed=2), num_shot)
        wait()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        row = {"threads": threads, "shot": num_shot, "tasks": args.test_tasks, "seconds": seconds, "peak GB": peak}
        rows.append(row | {"tasks /s": args.test_tasks / seconds})
    for (threads, num_shot), row in zip(sizes, rows, strict=True):
        torch.set_num_threads(threads)
        generator = torch.Generator(table.features.device).manual_seed(2)
        few = sample_tasks(table, 12, args.num_way, num_shot, generator)
        plain, batched = partial(looped, leo, table, few), partial(gathered, leo, table, few)
        ours = evaluate(leo, table, [few], num_shot).accuracy
        for other in (torch.tensor(plain(), dtype=torch.double), batched()):
            torch.testing.assert_close(ours.double().cpu(), other.cpu(), rtol=0, atol=1e-6)
        of_plain = in_turns({"loop": (plain, 1), "gather": (batched, 1)}, args.repeats)
        row |= {f"x {name}": seconds / 12 * row["tasks /s"] for name, seconds in of_plain.items()}
    show("test on all remaining images", rows)
    return rows


class Size(NamedTuple):
    """A size that ``scaling`` varies: of an update, or else of a test; the exponents expected of time and memory."""

    name: str
    of_test: bool
    values: tuple[int, ...]
    time: str
    memory: str
    why: str


SIZES = (
    Size("ways", False, (2, 5, 10, 20), "1 to 2", "1 to 2",
         "images and classifiers grow with N, the relation network's pairs and the logits with its square"),
    Size("shots", False, (1, 2, 5, 10), "towards 2", "towards 2",
         "the relation network sees (N K)^2 pairs; the queries do not grow"),
    Size("tasks a batch", False, (6, 12, 24, 48), "towards 1", "1",
         "all tensors have a row for each task; the cost of starting an operation does not grow"),
    Size("latents", False, (16, 32, 64, 128), "0 to 1", "0 to 1",
         "the decoder and the pairs grow with Z, most tensors are as wide as the features"),
    Size("features", False, (160, 320, 640, 1280), "towards 1", "towards 1",
         "images and weights have D numbers; the pairs of the relation network do not grow"),
    Size("images a class", False, (150, 300, 600, 1200), "0", "0", "a task draws as many, however many there are"),
    Size("classes", False, (16, 32, 64, 128), "0", "0", "a task draws as many, however many there are"),
    Size("images a class", True, (150, 300, 600, 1200), "towards 1", "0",
         "all of them are scored, a class at a time, which takes less memory than the adaptation, which does not grow"),
    Size("classes", True, (10, 20, 40, 80), "0", "0",
         "as many images are scored, a class at a time, each by the fewer tasks that have it"),
)  # fmt: skip


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and memory of an update, and of testing 500 tasks, where one size is varied; 1 shot where nothing is said.

    Each row has the exponents from the row before it: the slopes of the curve in a double logarithmic plot.
    """
    torch.set_num_threads(args.threads[0])
    rows = []
    for size in SIZES:
        of_size: list[dict[str, Any]] = []
        for value in size.values:
            make = testing if size.of_test else updating
            call, count = make(args, {size.name: value})
            ms = 1000 * in_turns({size.name: (call, count)}, args.repeats)[size.name]
            row = {size.name: value, "ms": ms, "slope": None, "expected": size.time}
            row |= {"MB": peak_memory(call) / 1e6, "slope of MB": None, "expected of MB": size.memory}
            if of_size:
                row |= {"slope": slope(of_size[-1], row, size.name, "ms")}
                row |= {"slope of MB": slope(of_size[-1], row, size.name, "MB")}
            of_size.append(row)
        what = "a test of 500 tasks" if size.of_test else "an update"
        show(f"{what} by {size.name}: {size.why}", of_size)
        rows += [{"of": what, "varied": size.name, "value": row.pop(size.name), **row} for row in of_size]
    return rows


def updating(args: argparse.Namespace, changes: dict[str, int]) -> tuple[Callable[[], Any], int]:
    """An update where ``changes`` replace sizes, and how often to call it."""
    num_features, num_shot = changes.get("features", args.num_features), changes.get("shots", 1)
    table = make_table(changes.get("classes", 64), changes.get("images a class", 600), num_features, args.device)
    sizes = {"num_way": changes.get("ways", args.num_way)}
    sizes |= {"batch_size": changes.get("tasks a batch", args.tasks_per_batch)}
    return our_update(table, make_stream(table, args, num_shot, **sizes), num_latents=changes.get("latents", 64)), 10


def testing(args: argparse.Namespace, changes: dict[str, int]) -> tuple[Callable[[], Any], int]:
    """A test of 500 tasks where ``changes`` replace sizes, and how often to call it."""
    table = make_table(changes.get("classes", 20), changes.get("images a class", 600), args.num_features, args.device)
    scorer = Scorer(make_leo(args.num_features, args.device).eval(), table, 1)
    (tasks,) = fixed_tasks(table, 500, args.num_way, 1, seed=2)
    return partial(scorer, tasks), 1


def slope(before: dict[str, Any], after: dict[str, Any], size: str, cost: str) -> float:
    """The exponent by which ``cost`` grows with ``size`` between two rows."""
    return math.log(after[cost] / before[cost]) / math.log(after[size] / before[size])


def peak_memory(call: Callable[[], Any]) -> int:
    """The most bytes of tensors that ``call`` holds at a time, beyond those that there were before it.

    By torch's own count of each tensor that is made and freed; what libraries take within a product is not in it.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]  # it has run
    changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes), default=0)


def prepare_process() -> None:
    """Have the process as a training has it, and Lightning say nothing between the figures."""
    keep_freed_memory()
    hide_absent_gpus()
    hush_lightning()


def hush_lightning() -> None:
    """Show none of its lines and warnings, which are about trainers without logs and validation."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


PARTS = {"update": update, "lightning": lightning, "test": test, "scaling": scaling}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--num-shot", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--num-way", type=int, default=5)
    parser.add_argument("--num-query", type=int, default=15)
    parser.add_argument("--tasks-per-batch", type=int, default=12)
    parser.add_argument("--num-features", type=int, default=640)
    parser.add_argument("--updates", type=int, default=30, help="updates of ours in one repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--test-tasks", type=int, default=50_000)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    prepare_process()
    results = {part: PARTS[part](args) for part in args.parts}
    if args.json:
        about = {
            "torch": torch.__version__,
            "device": args.device,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "c_kernels": kernels.serve(torch.empty(0, device=args.device)),
        }
        args.json.write_text(json.dumps(about | results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
