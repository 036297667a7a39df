"""The tables as pictures: each row's accuracy with its standard deviation over seeds, beside the paper's."""

from pathlib import Path

from matplotlib.figure import Figure

from runner.files import whole_file
from sweeps.paper_tables import Cell, Number, heads

STYLES = {"ours": ("o", "tab:blue"), "paper": ("s", "tab:orange"), "released": ("^", "tab:green")}


def draw(cells: list[Cell], folder: Path) -> list[Path]:
    """Save a picture of each table of ``cells``."""
    paths = []
    for number, title in enumerate(dict.fromkeys(cell.table for cell in cells), start=1):
        paths.append(folder / f"table{number}.png")
        with whole_file(paths[-1]) as partial:
            picture(title, [cell for cell in cells if cell.table == title]).savefig(partial, format="png", dpi=110)
    return paths


def picture(title: str, cells: list[Cell]) -> Figure:
    """The lines and columns of the table ``title`` that have a number of ours."""
    filled = {(cell.model, cell.source) for cell in cells if cell.ours}
    rows = [row for row in dict.fromkeys((cell.model, cell.source) for cell in cells) if row in filled]
    columns = {
        name: head for name, head in heads()[title].items() if any(cell.ours for cell in cells if cell.column == name)
    }
    figure = Figure((3 + 4 * len(columns), 1.2 + 0.4 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)
    for axis, (column, head) in zip(grid[0], columns.items(), strict=True):
        labelled = set()
        for cell in cells:
            if cell.column != column or (cell.model, cell.source) not in filled:
                continue
            for name, (marker, color) in STYLES.items():
                value: Number | None = getattr(cell, name)
                if value is None:
                    continue
                axis.errorbar(
                    value.mean, rows.index((cell.model, cell.source)), xerr=value.deviation, fmt=marker,
                    color=color, capsize=4, label=None if name in labelled else name,
                )  # fmt: skip
                labelled.add(name)
        axis.set_xlabel(f"{head}: test accuracy, %; bars: s.d. over seeds")
        axis.grid(axis="x", alpha=0.4)
        axis.legend()
        axis.set_yticks(range(len(rows)), [model for model, _ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(title)
    return figure
