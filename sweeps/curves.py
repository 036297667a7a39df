"""The curves of every run, as charts: what ``metrics.csv`` holds, the seeds of a run together."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from runner.terminal import shares_terminal
from sweeps.chart import Chart, Line, Points, chart

PERCENT = ("accuracy", "centroid_accuracy")


class Curves(NamedTuple):
    """The charts of runs whose folders differ in the seed alone; ``folders`` by what tells them apart."""

    name: str
    folders: dict[str, Path]
    charts: list[Chart]


def curves(runs: Path, select: str) -> Iterator[Curves]:
    """The curves of all runs in ``runs`` that match ``select``, finished or not."""
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(runs.glob(f"{select}/metrics.csv")):
        name, seed = without_seed(path.parent.name)
        groups.setdefault(name, {})[seed] = path.parent
    for name, folders in track(groups.items(), "curves", transient=True, disable=shares_terminal()):
        yield Curves(name, folders, charts(folders))


def without_seed(folder: str) -> tuple[str, str]:
    """A folder's name less its seed, and the seed; "run" where it names none."""
    found = re.search(r"-seed(\d+)", folder)
    return (folder.replace(found[0], "", 1), f"seed {found[1]}") if found else (folder, "run")


def charts(folders: dict[str, Path]) -> list[Chart]:
    """A chart for each quantity, training and validation in one; accuracies first."""
    by_quantity: dict[str, list[Line]] = {}
    for seed, folder in folders.items():
        for name, points in logged(folder / "metrics.csv").items():
            split, _, quantity = name.rpartition("/")
            scale = 100 if quantity in PERCENT else 1
            line = Line(split, f"{split}, {seed}", [(step, scale * value) for step, value in points])
            by_quantity.setdefault(quantity, []).append(line)
    order = sorted(
        by_quantity, key=lambda quantity: ("accuracy" not in quantity and quantity != "score", quantity.endswith("_lr"))
    )
    drawn = (chart(title(quantity), sorted(by_quantity[quantity])) for quantity in order)
    return [found for found in drawn if found is not None]


def title(quantity: str) -> str:
    """What a chart is called."""
    unit = ", %" if quantity in PERCENT else ", mean learned rate" if quantity.endswith("_lr") else ""
    return quantity.replace("_", " ") + unit


def logged(path: Path) -> dict[str, Points]:
    """The values of each name by the number of updates before them."""
    found: dict[str, Points] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["value"] is not None:  # a run that is still writing
                found.setdefault(row["name"], []).append((int(row["step"]) + 1, float(row["value"])))
    return found
