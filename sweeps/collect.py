"""Result files of many runs as one table."""

import json
import logging
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from runner.folder import differences

log = logging.getLogger(__name__)

METHODS = {
    "leo.prototypes.NearestCentroid": "nearest centroid",
    "leo.prototypes.LinearPrototypes": "prototypes, learned linear map",
    "leo.meta_sgd.MetaSGD": "Meta-SGD",
    "leo.leo.LEO": "LEO",
}


class Row(NamedTuple):
    """All seeds of one experiment and ablation. Accuracies are fractions."""

    experiment: str
    ablation: str
    results: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over seeds."""
        return statistics.mean(result["accuracy"] for result in self.results)

    @property
    def std_over_seeds(self) -> float | None:
        """The paper's +-: the standard deviation over seeds; None for one seed."""
        accuracies = [result["accuracy"] for result in self.results]
        return statistics.stdev(accuracies) if len(accuracies) > 1 else None

    @property
    def interval95(self) -> float:
        """The widest 95 % interval over tasks of a single run, a different thing."""
        return max(result["interval95"] for result in self.results)


def collect(runs: Path, select: str) -> list[Row]:
    """The finished meta-training runs in ``runs`` whose folder matches ``select``, grouped over seeds.

    Runs of one group must differ in nothing but the seed.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for path in sorted(runs.glob(f"{select}/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("stage") == "pretrain" or path.parent.name.startswith("test-"):
            continue
        variant = path.parent.name.partition(f"-seed{result['seed']}")[2]
        group = groups.setdefault((result["experiment"], result["ablation"], variant), [])
        if group:
            ignored = {"seed": None}
            changed = differences(group[0]["config"] | ignored, result["config"] | ignored)
            if changed:
                raise ValueError(
                    f"{path.parent} and {group[0]['experiment']} of seed {group[0]['seed']} differ in more than the "
                    f"seed ({'; '.join(changed)}); move one of them away"
                )
        group.append(result)
    return [Row(experiment, ablation, results) for (experiment, ablation, _), results in groups.items()]


def table(rows: list[Row]) -> Table:
    """The rows by increasing accuracy."""
    shown = Table(caption="interval: 95 % over the tasks of a run; s.d.: standard deviation over seeds")
    for column, align in (
        ("method", "left"), ("features", "left"), ("task", "left"), ("test accuracy %", "right"),
        ("interval", "right"), ("s.d.", "right"), ("seeds", "right"), ("seconds", "right"),
    ):  # fmt: skip
        shown.add_column(column, justify=align)  # type: ignore[arg-type]
    for row in sorted(rows, key=lambda row: (row.results[0]["num_shot"], row.accuracy)):
        first = row.results[0]
        method = METHODS.get(first["config"]["model"]["learner"]["_target_"], row.experiment)
        seconds = statistics.mean(sum(filter(None, result["seconds"].values())) for result in row.results)
        shown.add_row(
            method if row.ablation == "none" else f"{method}, {row.ablation.replace('_', ' ')}",
            f"{first['data']}, {'pixels' if first['layer'] == 'pixels' else 'layer ' + first['layer']}",
            f"{first['num_way']}-way {first['num_shot']}-shot",
            f"{100 * row.accuracy:.2f}",
            f"+- {100 * row.interval95:.2f}",
            "" if row.std_over_seeds is None else f"{100 * row.std_over_seeds:.2f}",
            str(len(row.results)),
            f"{seconds:.0f}",
        )
    return shown


def report(cfg: DictConfig) -> None:
    """Show the table of ``cfg.stage.select``."""
    rows = collect(Path(cfg.dirs.runs), cfg.stage.select)
    if not rows:
        raise FileNotFoundError(
            f"no finished run matches {cfg.dirs.runs}/{cfg.stage.select}/result.json; train one first"
        )
    Console().print(table(rows))
