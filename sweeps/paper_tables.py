"""The paper's Tables 1 and 2: ours beside the paper's and the released code's numbers (published.yaml)."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.table import Table

from runner.errors import InputError
from runner.folder import differences
from sweeps.collect import Row

INCOMPLETE, APART = "*", "!"
LEGEND = (
    "Test accuracy in %: mean +- standard deviation over seeds (number of seeds). "
    f"{INCOMPLETE}: fewer than {{num_seeds}} seeds. {APART}: a difference of more than two standard deviations."
)


class Number(NamedTuple):
    """A mean and its standard deviation, where there is one, in percent."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" +- {self.deviation:.2f}")


class Cell(NamedTuple):
    """One number of a table: that of ``row``, with hyperparameters of ``source``, beside others'.

    ``experiment`` and ``ablation`` are what is to be run for it; empty for a method that is not here.
    """

    table: str
    model: str
    source: str
    column: str
    experiment: str
    ablation: str
    row: Row | None
    paper: Number | None
    released: Number | None
    compared: Number | None

    @property
    def ours(self) -> Number | None:
        """Over the seeds of the row."""
        return None if self.row is None else number(self.row)

    @property
    def num_seeds(self) -> int:
        """Of the row."""
        return 0 if self.row is None else len(self.row.results)

    @property
    def scaling(self) -> str:
        """How the features of the row are scaled."""
        return "" if self.row is None else self.row.scaling

    @property
    def difference(self) -> float | None:
        """Ours less what it is compared with, in percent points."""
        return None if self.ours is None or self.compared is None else self.ours.mean - self.compared.mean

    @property
    def is_apart(self) -> bool:
        """Whether the difference exceeds two standard deviations of a difference of two such runs."""
        if self.difference is None or self.ours is None or self.compared is None:
            return False
        if self.ours.deviation is None or self.compared.deviation is None:
            return False
        return abs(self.difference) > 2 * math.hypot(self.ours.deviation, self.compared.deviation)

    def lines(self, needed: int) -> list[str]:
        """What the table shows; ``needed`` seeds make it complete."""
        if not self.experiment:
            return [str(self.paper)] if self.paper else []
        sign = INCOMPLETE if self.num_seeds < needed else ""
        shown = [f"{self.ours} ({self.num_seeds}){sign}" if self.ours else f"none{sign}"]
        shown += [f"paper {self.paper}"] if self.paper else []
        shown += [f"released {self.released}"] if self.released else []
        if self.difference is not None:
            shown.append(f"difference {self.difference:+.2f}{APART if self.is_apart else ''}")
        return shown


def cells(rows: list[Row], published: list[dict[str, Any]]) -> Iterator[Cell]:
    """The cells of all tables that hold a run of ``rows``.

    A row of a table appears once for each source of hyperparameters that was run. Runs with other changes of the
    command line than the hyperparameters are left out.
    """
    plain = [row for row in rows if row.is_accuracy and not row.changes]
    for table in published:
        found = [cell for line in table["rows"] for cell in line_cells(plain, table, line)]
        if any(cell.ours for cell in found):
            yield from found


def line_cells(rows: list[Row], table: dict[str, Any], line: dict[str, Any]) -> Iterator[Cell]:
    """The cells of one line of a table, for each source. ``columns`` of the line are those that can be run."""
    paper, released = ({c: Number(*n) for c, n in line.get(key, {}).items()} for key in ("paper", "released"))
    can_run = line.get("columns", list(table["columns"])) if "experiment" in line else []
    experiments = {c: line["experiment"].format(column=c) if c in can_run else "" for c in table["columns"]}
    ablation = line.get("ablation", "none")
    own = [row for row in rows if row.experiment in experiments.values() and row.ablation == ablation]
    for source in sorted({row.source for row in own}) or (["none"] if "experiment" in line else [""]):
        for column, experiment in experiments.items():
            row = single([row for row in own if row.experiment == experiment and row.source == source])
            compared = paper.get(column)
            if compared is None and "compare" in table and line["model"] != table["compare"]:
                base = [r for r in rows if (r.experiment, r.ablation, r.source) == (column, "none", source)]
                compared = number(base[0]) if base else None
            yield Cell(
                table["title"], line["model"], source, column, experiment, ablation, row,
                paper.get(column), released.get(column), compared,
            )  # fmt: skip


def number(row: Row) -> Number:
    """Mean and deviation over seeds, in percent."""
    return Number(100 * row.mean, None if row.std_over_seeds is None else 100 * row.std_over_seeds)


def single(rows: list[Row]) -> Row | None:
    """The one row, or None; two that differ in more than the seed do not become one number."""
    if len(rows) > 1:
        first, second = (row.results[0]["config"] | {"seed": None} for row in rows[:2])
        raise InputError(
            f"{rows[0].experiment}, {rows[0].ablation}: {rows[0].folders[0]} and {rows[1].folders[0]} differ in more "
            f"than the seed ({'; '.join(differences(first, second))}); choose one with stage.select"
        )
    return rows[0] if rows else None


def published() -> list[dict[str, Any]]:
    """The tables of published.yaml."""
    content = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("published.yaml")))
    assert isinstance(content, list)
    return content


def heads() -> dict[str, dict[str, str]]:
    """The columns of each table by its title: what is printed above them, by their names."""
    return {table["title"]: table["columns"] for table in published()}


def scalings(line: list[Cell], heads: dict[str, str]) -> str:
    """How the features of a line's cells are scaled: in a word where all agree, else for each column."""
    found = {heads[cell.column]: cell.scaling for cell in line if cell.scaling}
    if len(set(found.values())) <= 1:
        return next(iter(found.values()), "")
    return "\n".join(f"{head}: {scaling}" for head, scaling in found.items())


def lines(shown: list[Cell]) -> Iterator[tuple[str, list[str], list[tuple[str, str, list[Cell]]]]]:
    """Each table's title and heads, and its lines: a name, the scaling of the features, and the cells."""
    columns = heads()
    for title in dict.fromkeys(cell.table for cell in shown):
        found = [cell for cell in shown if cell.table == title]
        of_table = []
        for model, source in dict.fromkeys((cell.model, cell.source) for cell in found):
            name = model if source in ("", "none") else f"{model}\n(hparams: {source})"
            line = [cell for cell in found if (cell.model, cell.source) == (model, source)]
            of_table.append((name, scalings(line, columns[title]), line))
        yield title, ["Model", "Scaling", *columns[title].values()], of_table


def grid(shown: list[Cell], num_seeds: int) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Each table's title, heads and lines of text; a cell's lines are joined by newlines."""
    for title, columns, of_table in lines(shown):
        yield (
            title,
            columns,
            [[name, scaling, *("\n".join(cell.lines(num_seeds)) for cell in line)] for name, scaling, line in of_table],
        )


def terminal(shown: list[Cell], num_seeds: int) -> Iterator[Table]:
    """The tables for the terminal."""
    for title, columns, lines in grid(shown, num_seeds):
        table = Table(title=title, caption=LEGEND.format(num_seeds=num_seeds), show_lines=True)
        for head in columns:
            table.add_column(head)
        for line in lines:
            table.add_row(*line)
        yield table


def markdown(shown: list[Cell], num_seeds: int) -> str:
    """The tables as Markdown."""
    parts = []
    for title, columns, lines in grid(shown, num_seeds):
        rows = [columns, ["---"] * len(columns), *([text.replace("\n", "<br>") for text in line] for line in lines)]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join([*parts, LEGEND.format(num_seeds=num_seeds)]).replace("+-", "±").replace("*", r"\*") + "\n"


def as_csv(shown: list[Cell], num_seeds: int) -> str:
    """One line for each cell."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    kinds = ("ours", "paper", "released", "compared")
    number_heads = [f"{kind}{part}" for kind in kinds for part in ("", "_deviation")]
    first = ["table", "model", "hparams", "column", "scaling", "num_seeds", "is_complete"]
    writer.writerow([*first, *number_heads, "difference", "is_apart"])
    for cell in shown:
        numbers = [part for kind in kinds for part in (getattr(cell, kind) or Number(math.nan, None))]
        rounded = ["" if part is None or math.isnan(part) else round(part, 4) for part in numbers]
        difference = "" if cell.difference is None else round(cell.difference, 4)
        own = [cell.scaling, cell.num_seeds, cell.num_seeds >= num_seeds]
        writer.writerow([*cell[:4], *own, *rounded, difference, cell.is_apart])
    return file.getvalue()
