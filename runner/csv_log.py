"""The log that every run keeps: a CSV file that a resumed run continues."""

import csv
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from runner.files import whole_file, writable

log = logging.getLogger(__name__)

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
        with writable(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerows((step, name, repr(value)) for name, value in metrics.items() if name != "epoch")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's configuration stands in its folder already."""

    @rank_zero_only
    def keep_steps_before(self, step: int) -> None:
        """Drop what was logged after the checkpoint that a run resumes from, and what was damaged."""
        if not self.path.exists():
            return
        # A kill or a full disk can leave half a line at the end, a loss of power other bytes.
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[1:]
        rows = [row for row in map(whole_row, lines) if row is not None]
        if len(rows) < len(lines) - 1:
            log.warning(
                "%s is damaged: %d of its rows cannot be read and are dropped", self.path, len(lines) - len(rows)
            )
        with whole_file(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(row for row in rows if int(row[0]) < step)


def whole_row(line: str) -> list[str] | None:
    """The fields of a line of the log: step, name, value. None where it is damaged."""
    try:
        step, _, value = row = next(csv.reader([line]))
        int(step), float(value)
    except (ValueError, csv.Error):
        return None
    return row if line.endswith("\n") else None
