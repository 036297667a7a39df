"""The report as one HTML page that needs nothing else: ``page.html.jinja`` filled with what lies in the run folders."""

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sweeps import commands, paper_tables
from sweeps.chart import HEIGHT, MAX_POINTS, WIDTH, Scale, scale
from sweeps.collect import Row, finished
from sweeps.curves import curves
from sweeps.paper_tables import Cell, Number
from sweeps.searches import searches

STRIP = (6, 294)  # pixels of a comparison's scale


class Mark(NamedTuple):
    """A row of a comparison: ours, the paper's number where there is one."""

    row: Row
    ours: Number
    paper: Number | None


class Comparison(NamedTuple):
    """Rows that solve the same tasks, the best first, on one scale in percent."""

    title: str
    scale: Scale
    marks: list[Mark]


class Other(NamedTuple):
    """A finished run that is no row of a table: what it is, its score in words, and its command."""

    folder: Path
    kind: str
    score: str
    command: str


class Picture(NamedTuple):
    """A picture file of an analysis, and the file with its numbers."""

    path: Path
    numbers: Path


def render(runs: Path, select: str, folder: Path, rows: list[Row], cells: list[Cell], num_seeds: int) -> str:
    """The page for ``folder``: ``rows`` and ``cells`` of the runs that match ``select``, all searches and analyses."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"href": partial(link, folder), "embedded": embedded, "percent": percent}
    rows = sorted(rows, key=lambda row: (*task(row), -row.accuracy))
    position = {id(row): i for i, row in enumerate(rows)}
    return environment.get_template("page.html.jinja").render(
        made=datetime.now().astimezone(),
        pattern=f"{runs}/{select}",
        rows=rows,
        others=list(others(runs, select, rows)),
        unfinished=[
            path.parent
            for path in sorted(runs.glob(f"{select}/metrics.csv"))
            if not path.with_name("result.json").exists()
        ],
        tables=list(paper_tables.lines(cells)),
        legend=paper_tables.LEGEND.format(num_seeds=num_seeds),
        num_seeds=num_seeds,
        comparisons=list(comparisons(rows, cells)),
        groups=list(curves(runs, select)),
        analyses=list(analyses(runs)),
        searches=list(searches(runs)),
        machines=machines(rows),
        commands=commands,
        anchor=lambda row: f"run-{position[id(row)]}",
        others_of=lambda row: ", ".join(commands.changes(row.variant, row.results[0]["hparams"])),
        zip=zip,
        WIDTH=WIDTH,
        HEIGHT=HEIGHT,
        MAX_POINTS=MAX_POINTS,
    )


def link(folder: Path, path: Path) -> str:
    """The address of ``path`` relative to ``folder``."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def embedded(path: Path) -> str:
    """The PNG file at ``path`` as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def percent(fraction: float | None) -> str:
    """A fraction in percent, nothing for None."""
    return "" if fraction is None else f"{100 * fraction:.2f}"


def comparisons(rows: list[Row], cells: list[Cell]) -> Iterator[Comparison]:
    """The rows of each kind of task of which there are at least two, in their order."""
    paper = {id(cell.row): cell.paper for cell in cells if cell.row is not None}
    tasks: dict[tuple[str, int, int], list[Mark]] = {}
    for row in rows:
        mark = Mark(row, paper_tables.number(row), paper.get(id(row)))
        tasks.setdefault(task(row), []).append(mark)
    for (data, num_way, num_shot), marks in tasks.items():
        if len(marks) > 1:
            shown = [number for mark in marks for number in (mark.ours, mark.paper) if number is not None]
            ends = [number.mean + sign * (number.deviation or 0) for number in shown for sign in (-1, 1)]
            title = f"{data}, {num_way}-way {num_shot}-shot"
            yield Comparison(title, scale(ends, *STRIP, 5, is_wide=True), marks)


def task(row: Row) -> tuple[str, int, int]:
    """The data, ways and shots of the tasks that the row solves."""
    first = row.results[0]
    return first["data"], first["num_way"], first["num_shot"]


def others(runs: Path, select: str, rows: list[Row]) -> Iterator[Other]:
    """The finished runs that are in no row: stage 1, regression, and tests of a checkpoint alone."""
    shown = {folder for row in rows for folder in row.folders}
    for folder, result in finished(runs, select):
        if folder in shown:
            continue
        if result.get("stage") == "pretrain":
            words = ("stage=pretrain", f"data={result['data']}", f"backbone={result['backbone']}")
            score = f"{percent(result['val_accuracy'])} % of held-out images of the training classes"
            yield Other(folder, "stage 1", score, commands.line(*words))
        elif "accuracy" in result:
            words = (f"experiment={result['experiment']}", "stage=test", f"checkpoint='{result['checkpoint']}'")
            score = f"{percent(result['accuracy'])} % ± {percent(result['interval95'])} (95 % over tasks)"
            yield Other(folder, "test of a checkpoint", score, commands.line(*words))
        else:
            variant = folder.name.partition(f"-seed{result['seed']}")[2]
            errors = (
                f"{of['num_shot']}: {of['mean']:.3g} ± {of['mean_interval95']:.2g}" for of in result["by_num_shot"]
            )
            score = f"mean squared error (95 % over tasks) by shots {'; '.join(errors)}"
            yield Other(folder, "regression", score, commands.of_run(result, variant, [result["seed"]]))


def analyses(runs: Path) -> Iterator[tuple[Path, list[Picture]]]:
    """The folders of finished analyses, and of drawings of Figure 3, with their pictures."""
    found: list[tuple[Path, list[Picture]]] = []
    for path in sorted(runs.glob("*/analysis.json")):
        names = json.loads(path.read_text(encoding="utf-8"))["figures"]
        found.append((path, [Picture(path.with_name(f"{name}.png"), path.with_name(f"{name}.csv")) for name in names]))
    found += [(path, [Picture(path.with_suffix(".png"), path)]) for path in sorted(runs.glob("*/figure3.json"))]
    for path, pictures in found:
        yield path, [picture for picture in pictures if picture.path.exists()]


def machines(rows: list[Row]) -> list[tuple[dict[str, str], int]]:
    """The different surroundings that the results of ``rows`` name, and how many results name each."""
    counted: Counter[str] = Counter()
    for result in (result for row in rows for result in row.results):
        trainer = result["config"].get("trainer", {})
        named = {**result.get("versions", {}), **result.get("machine", {})}
        named |= {key: trainer[key] for key in ("accelerator", "precision") if key in trainer}
        counted[json.dumps(named)] += 1
    return [(json.loads(named), count) for named, count in counted.items()]
