"""Folders of images as a Hydra task: the classes of one folder, the images of another, predictions as files."""

import csv
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from fewshot.folders import class_folders, no_images, query_files, read
from fewshot.leave_one_out import leave_one_out
from fewshot.loading import chosen
from fewshot.model import Model, probabilities
from fewshot.outcome import Outcome, Prediction
from fewshot.page import page, shown_paths, thumbnail
from pretrain.extractor import Extractor
from pretrain.fingerprint import shown
from pretrain.sources.walk import Unreadable
from runner.config import check_whole_numbers
from runner.errors import InputError
from runner.files import whole_file, write_text
from runner.folder import run_folder, write_json
from runner.machine import device_of
from runner.names import identity
from runner.process import keep_freed_memory
from runner.record import group, made_by
from runner.terminal import image_columns

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> None:
    """Classify the images below ``cfg.query`` by those of ``cfg.support``; write predictions.csv and .html."""
    if cfg.support is None or cfg.query is None:
        raise InputError(
            "stage=predict needs support=DIR, with one folder of images for each class, and query=DIR, with the images "
            "to classify; the same folder twice tests by leave-one-out"
        )
    settings, support, query = cfg.stage, Path(cfg.support), Path(cfg.query)
    smallest = {"num_samples": 0, "batch_size": 1, "num_shown": 0, "num_thumbnails": 0}
    check_whole_numbers(cfg, {f"stage.{key}": limit for key, limit in smallest.items()})
    is_same = support.resolve() == query.resolve()
    members, unreadable = class_folders(support, "support")
    queries, others = ([], []) if is_same else query_files(query, "query")
    unreadable += others + no_images([*chain.from_iterable(members.values()), *queries])
    if unreadable:
        first, more = "; ".join(one.reason for one in unreadable[:3]), "; ..." if len(unreadable) > 3 else ""
        log.warning("%d files will be skipped: %s%s", len(unreadable), first, more)
    skipped = {one.path for one in unreadable}
    images = [path for path in queries if path not in skipped]
    if queries and not images:
        reason = next(one.reason for one in unreadable if one.path == queries[-1])
        raise InputError(f"none of the {len(queries)} files of query={shown(query)} can be read; {reason}")
    device = device_of("stage.device", settings.device)
    model, is_trained = chosen(cfg), (cfg.checkpoint or cfg.stage.model) is not None
    extractor = model.needed_extractor().to(device)
    if settings.num_samples:
        model.sampled_learner(settings.num_samples)  # raises before work where there is none
    config = {
        "checkpoint": identity(Path(model.source)) if is_trained else None,
        "extractor": model.config["features_origin"]["checkpoint"],
        "support": identity(support),
        "query": identity(query),
        "seed": cfg.seed,
        **{key: settings[key] for key in ("num_samples", "num_thumbnails")},
    }
    with run_folder(Path(cfg.run_dir), config):
        classify(cfg, model, extractor, members, None if is_same else images, unreadable, config)


def classify(
    cfg: DictConfig,
    model: Model,
    extractor: Extractor,
    members: dict[str, list[Path]],
    images: list[Path] | None,
    unreadable: list[Unreadable],
    config: dict[str, Any],
) -> None:
    """Classify ``images`` by ``members``, each class's files; where there are none, each of the members by the others.

    ``unreadable``: files that are known to be no images, some of ``members`` among them. ``config`` is that of the run.
    """
    settings, console, support, skipped = cfg.stage, Console(), Path(cfg.support), {one.path for one in unreadable}
    keep_freed_memory()
    start = time.perf_counter()
    with Progress(*image_columns(), console=console) as progress:
        paths = [path for path in chain.from_iterable(members.values()) if path not in skipped]
        parts = list(extracted(paths, extractor, settings.batch_size, progress, "features of examples"))
        readable = [path for part in parts for path in part.paths]
        unreadable = [*chain.from_iterable(part.unreadable for part in parts), *unreadable]
        classes = readable_classes(members, readable, unreadable, support, 2 if images is None else 1)
        labels = np.repeat(list(classes), [len(paths) for paths in classes.values()])
        features = np.concatenate([part.features for part in parts if part.paths])
        names, numbers = np.unique(labels, return_inverse=True)
        examples = Examples(names, *(torch.from_numpy(part).to(settings.device) for part in (features, numbers)))
        model = model.to(settings.device)
        if images is None:
            outcome = tested(model, examples, readable, classes, unreadable, cfg, progress)
        else:
            outcome = predicted(model, examples, images, extractor, classes, unreadable, cfg, progress)
        paths = shown_paths(outcome, settings.num_thumbnails)
        pictures = {path: thumbnail(path) for path in progress.track(paths, description="thumbnails")}
    folder = Path(cfg.run_dir)
    write_csv(folder / "predictions.csv", outcome.predictions)
    write_text(folder / "predictions.html", shown(page(outcome, method(model), settings.num_thumbnails, pictures)))
    write_json(folder / "result.json", result(outcome, model, config, time.perf_counter() - start))
    show(outcome, settings.num_shown, console)
    log.info("%s", method(model))
    log.info("%s holds predictions.csv, predictions.html and result.json", folder)


def method(model: Model) -> str:
    """Which method classified, on what features, and where it was read."""
    return f"{model.method}; {model.source}"


def result(outcome: Outcome, model: Model, config: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the predictions say of themselves: the command, their inputs by content, the method, how many there are."""
    right = [one.label == one.truth for one in outcome.predictions if one.truth is not None]
    score = sum(right) / len(right) if right else None
    counted = f"{len(outcome.predictions):,} images classified"
    return {
        **made_by(),
        "method": model.method,
        "num_predictions": len(outcome.predictions),
        "num_skipped": len(outcome.unreadable),
        "seconds": seconds,
        "config": config,
        "versions": {name: version(name) for name in ("leo", "torch")},
        "score_name": "leave_one_out_accuracy",
        "score_value": score,
        "better": "higher",
        "group": group(config),
        "inputs": {
            **{key: config[key] for key in ("support", "query", "checkpoint")},
            "extractor": model.config["features_origin"],
        },
        "summary": f"{counted}; {outcome.accuracy() or model.method}",
    }


class Extracted(NamedTuple):
    """The features [n, D] of the images that could be read, their paths, and the other files."""

    features: NDArray[np.float32]
    paths: list[Path]
    unreadable: list[Unreadable]


def extracted(
    paths: list[Path], extractor: Extractor, batch_size: int, progress: Progress, title: str
) -> Iterator[Extracted]:
    """The features of ``paths``, with a bar; some at a time, so that folders of any length fit into memory."""
    bar, device = progress.add_task(title, total=len(paths)), extractor.mean.device
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        found = read(part, extractor)
        if found.paths:
            yield Extracted(extractor.in_parts(found.pixels.to(device)).cpu().numpy(), found.paths, found.unreadable)
        else:
            yield Extracted(np.empty((0, 0), np.float32), [], found.unreadable)
        progress.advance(bar, len(part))


def readable_classes(
    members: dict[str, list[Path]], readable: list[Path], unreadable: list[Unreadable], support: Path, needed: int
) -> dict[str, list[Path]]:
    """The readable images of each class, of which each must have ``needed``."""
    known, reasons = set(readable), {one.path: one.reason for one in unreadable}
    classes = {name: [path for path in paths if path in known] for name, paths in members.items()}
    for name, paths in classes.items():
        if len(paths) >= needed:
            continue
        why = "".join(f"; {reasons[path]}" for path in members[name] if path in reasons)
        if needed == 1:
            raise InputError(f"class {name!r} of support={shown(support)} has no image that can be read{why}")
        raise InputError(
            f"class {name!r} of support={shown(support)} has {len(paths)} image(s) that can be read, and leave-one-out "
            f"(query is the same folder) needs two of each class: one to leave out, one to learn from{why}"
        )
    return classes


class Examples(NamedTuple):
    """The examples on the device of the model: the names of the classes, sorted, and features and class of each."""

    names: NDArray[np.str_]
    features: Tensor
    numbers: Tensor


def tested(
    model: Model,
    examples: Examples,
    paths: list[Path],
    classes: dict[str, list[Path]],
    unreadable: list[Unreadable],
    cfg: DictConfig,
    progress: Progress,
) -> Outcome:
    """Each example classified by the others."""
    names, features, numbers = examples
    generator = torch.Generator(cfg.stage.device).manual_seed(cfg.seed)
    bar, parts = progress.add_task("leave one out", total=len(paths)), []
    for part in leave_one_out(model, features, numbers, cfg.stage.num_samples, generator):
        parts.append(part.cpu().numpy())
        progress.advance(bar, len(part))
    predictions = best(names, np.concatenate(parts), paths, list(names[numbers.cpu()]))
    return Outcome(predictions, classes, unreadable)


def predicted(
    model: Model,
    examples: Examples,
    queries: list[Path],
    extractor: Extractor,
    classes: dict[str, list[Path]],
    unreadable: list[Unreadable],
    cfg: DictConfig,
    progress: Progress,
) -> Outcome:
    """Each readable image of ``queries``, classified; ``unreadable`` is what could not be read before."""
    seed = np.random.RandomState(cfg.seed).randint(2**31)  # as FewShotClassifier(random_state=cfg.seed) has it
    classifiers = model.fit(examples.features, examples.numbers, cfg.stage.num_samples, seed)
    predictions, skipped = [], list(unreadable)
    for part in extracted(queries, extractor, cfg.stage.batch_size, progress, "classifying"):
        if part.paths:
            embedded = model.embed(torch.from_numpy(part.features).to(cfg.stage.device))
            of_part = probabilities(embedded, classifiers).cpu().numpy()
            predictions += best(examples.names, of_part, part.paths, [None] * len(part.paths))
        skipped += part.unreadable
    if not predictions:
        raise InputError(
            f"none of the {len(queries)} files of query={shown(cfg.query)} can be read; {skipped[-1].reason}"
        )
    return Outcome(predictions, classes, skipped)


def best(
    names: NDArray[np.str_], probabilities: NDArray[np.float64], paths: list[Path], truths: Sequence[str | None]
) -> list[Prediction]:
    """The most probable class of each image."""
    return [
        Prediction(path, str(names[row.argmax()]), float(row.max()), None if truth is None else str(truth))
        for path, row, truth in zip(paths, probabilities, truths, strict=True)
    ]


def write_csv(path: Path, predictions: list[Prediction]) -> None:
    """One row for each image; the true class in a fourth column where it is known."""
    has_truth = predictions[0].truth is not None
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "class", "probability", *(["true_class"] if has_truth else [])))
        for one in predictions:
            cells = (str(one.path), one.label, f"{one.probability:.6f}", *([one.truth or ""] if has_truth else []))
            writer.writerow(map(shown, cells))


def show(outcome: Outcome, num_shown: int, console: Console) -> None:
    """The first predictions as a table, how many there are of each class, what was skipped, and the accuracy."""
    predictions, counts = outcome.predictions, Counter(one.label for one in outcome.predictions)
    has_truth = predictions[0].truth is not None
    table = Table(*("image", "class", "probability", *(["true class"] if has_truth else [])))
    for one in predictions[:num_shown]:
        wrong = "[red]" if has_truth and one.truth != one.label else ""
        cells = (str(one.path), one.label, f"{one.probability:.3f}", *([one.truth or ""] if has_truth else []))
        table.add_row(*(wrong + escape(shown(cell)) for cell in cells))
    console.print(table)
    if len(predictions) > num_shown:
        console.print(f"... and {len(predictions) - num_shown:,} more in predictions.csv")
    console.print(
        f"{len(predictions):,} images: " + ", ".join(f"{escape(shown(k))} {n:,}" for k, n in counts.most_common(10))
    )
    if outcome.unreadable:
        console.print(f"[yellow]Skipped {len(outcome.unreadable):,}:")
        for skipped in outcome.unreadable[:num_shown]:
            console.print(f"  {escape(shown(skipped.reason))}")
        if len(outcome.unreadable) > num_shown:
            console.print(f"  ... and {len(outcome.unreadable) - num_shown:,} more on the page")
    if accuracy := outcome.accuracy():
        console.print(f"[bold]{accuracy}")
