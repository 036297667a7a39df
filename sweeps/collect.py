"""Result files of many runs as one table."""

import json
import logging
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from leo.methods import METHODS
from runner.errors import InputError
from runner.folder import differences

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """All seeds of one experiment and ablation; ``variant`` is what else its folders' names say. Fractions.

    Of each seed there are the result and the folder that it lies in.
    """

    experiment: str
    ablation: str
    variant: str
    results: list[dict[str, Any]]
    folders: list[Path]

    @property
    def method(self) -> str:
        """What tables call it: the learner, and the ablation where there is one."""
        method = METHODS.get(self.results[0]["config"]["model"]["learner"]["_target_"], self.experiment)
        return method if self.ablation == "none" else f"{method}, {self.ablation.replace('_', ' ')}"

    @property
    def features(self) -> str:
        """What the learner sees of an image."""
        layer = self.results[0]["layer"]
        return "pixels" if layer == "pixels" else f"layer {layer}"

    @property
    def seconds(self) -> float:
        """Mean duration of training and test."""
        return statistics.mean(sum(filter(None, result["seconds"].values())) for result in self.results)

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


def finished(runs: Path, select: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders in ``runs`` that match ``select`` and hold a result, with that result."""
    for path in sorted(runs.glob(f"{select}/result.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))


def collect(runs: Path, select: str) -> list[Row]:
    """The finished meta-training runs in ``runs`` whose folder matches ``select``, grouped over seeds.

    Runs of one group must differ in nothing but the seed.
    """
    rows: dict[tuple[str, str, str], Row] = {}
    for folder, result in finished(runs, select):
        if "accuracy" not in result or folder.name.startswith("test-"):
            continue  # stage 1, regression, and tests alone have no row
        key = result["experiment"], result["ablation"], folder.name.partition(f"-seed{result['seed']}")[2]
        row = rows.setdefault(key, Row(*key, [], []))
        if row.results:
            first, ignored = row.results[0], {"seed": None}
            changed = differences(first["config"] | ignored, result["config"] | ignored)
            if changed:
                raise InputError(
                    f"{folder} and {first['experiment']} of seed {first['seed']} differ in more than the "
                    f"seed ({'; '.join(changed)}); move one of them away"
                )
        row.results.append(result)
        row.folders.append(folder)
    return list(rows.values())


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
        shown.add_row(
            row.method,
            row.features,
            f"{first['num_way']}w {first['num_shot']}s",
            f"{100 * row.accuracy:.2f}",
            f"+- {100 * row.interval95:.2f}",
            *((row.spread,) if several else ()),
            f"{row.seconds:.0f}",
        )
    return shown
