"""The log that every run keeps: a CSV file that a resumed run continues."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from runner.files import whole_file

COLUMNS = ("step", "name", "value")


class CSVLog(Logger):
    """``metrics.csv`` in the run folder: one row for each logged value, with the number of updates before it.

    Long form, so that rows can be appended whatever is logged; `pandas.read_csv(path).pivot(index="step",
    columns="name", values="value")` gives the wide one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """None is kept: a run has one log."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append ``metrics``."""
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerows((step, name, repr(value)) for name, value in metrics.items() if name != "epoch")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's configuration stands in its folder already."""

    @rank_zero_only
    def keep_steps_before(self, step: int) -> None:
        """Drop what was logged after the checkpoint that a run resumes from."""
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        with whole_file(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            # A kill in the middle of a write can leave half a row at the end.
            writer.writerows(row for row in rows if len(row) == len(COLUMNS) and int(row[0]) < step)
