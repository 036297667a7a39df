"""The curves of every run, as charts: what ``metrics.csv`` holds, the seeds of a run together."""

import csv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.progress import track
from yaml import YAMLError

from runner.folder import differences
from runner.record import group
from runner.terminal import shares_terminal
from sweeps.chart import Chart, Line, Points, chart

PERCENT = ("accuracy", "centroid_accuracy")


class Curves(NamedTuple):
    """The charts of runs whose configurations differ in the seed alone; ``folders`` by their seeds."""

    name: str
    folders: dict[str, Path]
    charts: list[Chart]


def curves(runs: Path, select: str) -> Iterator[Curves]:
    """The curves of all runs in ``runs`` that match ``select``, finished or not."""
    groups: dict[str, Curves] = {}
    configs: dict[str, dict[str, Any]] = {}  # the first of each name
    for path in sorted(runs.glob(f"{select}/metrics.csv")):
        folder = path.parent
        config = configuration(folder)
        name = "-".join(config.get("names", {}).get(kind, "") for kind in ("experiment", "ablation")).strip("-")
        name = name or folder.name
        changed = differences(configs.setdefault(name, config), config | {"seed": configs[name].get("seed")})
        title = f"{name} ({'; '.join(changed)})" if changed else name
        of_seeds = groups.setdefault(group(config) if config else folder.name, Curves(title, {}, [])).folders
        seed = f"seed {config['seed']}" if "seed" in config else "run"
        of_seeds[folder.name if seed in of_seeds else seed] = folder
    for found in track(groups.values(), "curves", transient=True, disable=shares_terminal()):
        yield found._replace(charts=charts(found.folders))


def configuration(folder: Path) -> dict[str, Any]:
    """What ``config.yaml`` of a run says; nothing where it cannot be read."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError, YAMLError):
        return {}
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else {}


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
    """The values of each name by the number of updates before them; of a run that is writing, its whole lines."""
    found: dict[str, Points] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.reader(file):
            with suppress(ValueError):  # the head, or half a line
                step, name, value = row
                found.setdefault(name, []).append((int(step) + 1, float(value)))
    return found
