"""Result files of many runs as one table."""

import json
import logging
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from leo.methods import METHODS
from runner.folder import differences

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """All seeds of one experiment and ablation; ``variant`` is what else its folders' names say. Fractions."""

    experiment: str
    ablation: str
    variant: str
    results: list[dict[str, Any]]

    @property
    def source(self) -> str:
        """Where the hyperparameters come from: the folder of conf/hparams."""
        return str(self.results[0]["hparams"]).partition("/")[0]

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
    def spread(self) -> str:
        """The standard deviation over seeds in percent, and their number; empty for one seed."""
        deviation = self.std_over_seeds
        return "" if deviation is None else f"{100 * deviation:.2f} ({len(self.results)})"

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
        if "accuracy" not in result or path.parent.name.startswith("test-"):
            continue  # stage 1, regression, and tests alone have no row
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
    return [Row(*key, results) for key, results in groups.items()]


def table(rows: list[Row]) -> Table:
    """The rows by increasing accuracy."""
    shown = Table(
        title=f"{', '.join(sorted({row.results[0]['data'] for row in rows}))}: accuracy on held-out classes",
        caption="task: ways and shots; interval: 95 % over a run's tasks; s.d.: over seeds; seconds: train + test",
    )
    several = any(row.std_over_seeds is not None for row in rows)
    shown.add_column("method", no_wrap=True)
    shown.add_column("features")
    for column in ("task", "test %", "interval", *(("s.d. (seeds)",) if several else ()), "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.results[0]["num_shot"], row.accuracy)):
        first = row.results[0]
        method = METHODS.get(first["config"]["model"]["learner"]["_target_"], row.experiment)
        seconds = statistics.mean(sum(filter(None, result["seconds"].values())) for result in row.results)
        shown.add_row(
            method if row.ablation == "none" else f"{method}, {row.ablation.replace('_', ' ')}",
            "pixels" if first["layer"] == "pixels" else f"layer {first['layer']}",
            f"{first['num_way']}w {first['num_shot']}s",
            f"{100 * row.accuracy:.2f}",
            f"+- {100 * row.interval95:.2f}",
            *((row.spread,) if several else ()),
            f"{seconds:.0f}",
        )
    return shown
