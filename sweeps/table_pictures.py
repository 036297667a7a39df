"""The tables as pictures: each row's accuracy with its standard deviation over seeds, beside the paper's."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

from runner.files import whole_file
from sweeps.paper_tables import Cell, Number

STYLES = {"ours": ("o", "tab:blue"), "paper": ("s", "tab:orange"), "released": ("^", "tab:green")}


def draw(cells: list[Cell], heads: dict[str, dict[str, str]], folder: Path) -> list[Path]:
    """Save a picture of each table that has a number of ours; ``heads`` are the tables' columns by title."""
    matplotlib.use("Agg")  # no window, whatever the machine has
    paths = []
    for number, title in enumerate(dict.fromkeys(cell.table for cell in cells), start=1):
        of_table = [cell for cell in cells if cell.table == title]
        filled = {(cell.model, cell.source) for cell in of_table if cell.ours}
        rows = [row for row in dict.fromkeys((cell.model, cell.source) for cell in of_table) if row in filled]
        columns = [column for column in heads[title] if any(cell.ours for cell in of_table if cell.column == column)]
        figure, axes = plt.subplots(1, len(columns), figsize=(3 + 4 * len(columns), 1.2 + 0.4 * len(rows)), sharey=True)
        for axis, column in zip([axes] if len(columns) == 1 else axes, columns, strict=True):
            labelled = set()
            for cell in of_table:
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
            axis.set_xlabel(f"{heads[title][column]}: test accuracy, %; bars: s.d. over seeds")
            axis.grid(axis="x", alpha=0.4)
            axis.legend()
            axis.set_yticks(range(len(rows)), [model for model, _ in rows])
            axis.set_ylim(len(rows) - 0.5, -0.5)
        figure.suptitle(title)
        figure.tight_layout()
        paths.append(folder / f"table{number}.png")
        with whole_file(paths[-1]) as partial:
            figure.savefig(partial, format="png", dpi=110)
        plt.close(figure)
    return paths
