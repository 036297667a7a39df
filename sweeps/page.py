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
from sweeps.collect import Found, Row, is_row, key, read_json, says_what_it_is
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
    """A finished run that is no row: what it is, what it found, and its command where it is known."""

    folder: Path
    kind: str
    outcome: str
    command: str | None


class Picture(NamedTuple):
    """A picture file of an analysis, and the file with its numbers."""

    path: Path
    numbers: Path


def render(
    runs: Path, select: str, folder: Path, found: Found, rows: list[Row], cells: list[Cell], num_seeds: int
) -> str:
    """The page for ``folder``: what was ``found`` in the runs that match ``select``, all searches and analyses."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"href": partial(link, folder), "embedded": embedded, "percent": percent}
    unreadable = {path / "result.json": reason for path, reason in found.unreadable.items()}
    studies, looked_into = list(searches(runs, unreadable)), list(analyses(runs, unreadable))
    rows = sorted(rows, key=lambda row: (row.task, -row.mean))
    position = {id(row): i for i, row in enumerate(rows)}
    return environment.get_template("page.html.jinja").render(
        made=datetime.now().astimezone(),
        pattern=f"{runs}/{select}",
        rows=rows,
        others=list(others(found, rows)),
        unreadable=unreadable,
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
        analyses=looked_into,
        searches=studies,
        machines=machines(rows),
        commands=commands,
        anchor=lambda row: f"run-{position[id(row)]}",
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
    tasks: dict[str, list[Mark]] = {}
    for row in rows:
        if row.is_accuracy:
            mark = Mark(row, paper_tables.number(row), paper.get(id(row)))
            tasks.setdefault(row.task, []).append(mark)
    for title, marks in tasks.items():
        if len(marks) > 1:
            shown = [number for mark in marks for number in (mark.ours, mark.paper) if number is not None]
            ends = [number.mean + sign * (number.deviation or 0) for number in shown for sign in (-1, 1)]
            yield Comparison(title, scale(ends, *STRIP, 5, is_wide=True), marks)


def others(found: Found, rows: list[Row]) -> Iterator[Other]:
    """The finished runs that are in no row: stage 1, tests of a checkpoint alone, and results of earlier versions."""
    shown = {folder for row in rows for folder in row.folders}
    for folder, result in found.results.items():
        if folder in shown:
            continue
        if not says_what_it_is(result):
            numbers = (f"{name} {result[name]:.4g}" for name in ("accuracy", "val_accuracy", "score") if name in result)
            yield Other(folder, "of an earlier version, which did not say what it is", "; ".join(numbers), None)
            continue
        overrides = result["overrides"]
        if result["stage"] == "pretrain":  # made by itself, or by a later stage that needed it
            overrides = [*(text for text in overrides if key(text) != "stage"), "stage=pretrain"]
        kinds = {"pretrain": "stage 1", "test": "test of a checkpoint"}
        kind = kinds.get(result["stage"], "a run that another folder holds too" if is_row(result) else result["stage"])
        yield Other(folder, kind, result["summary"], commands.line(*overrides))


def analyses(runs: Path, unreadable: dict[Path, str]) -> Iterator[tuple[Path, str | None, list[Picture]]]:
    """The files of finished analyses, Figure 3 and forecasts, with their commands and pictures."""
    for path in sorted([*runs.glob("*/analysis.json"), *runs.glob("*/figure3.json"), *runs.glob("*/forecasts.json")]):
        content = read_json(path)
        if isinstance(content, str):
            unreadable[path] = content
            continue
        pictures = [Picture(path.with_suffix(".png"), path)]
        if path.name == "analysis.json":
            figures = content.get("figures", {})
            pictures = [Picture(path.with_name(f"{name}.png"), path.with_name(f"{name}.csv")) for name in figures]
        made_by = commands.line(*content["overrides"]) if "overrides" in content else None
        yield path, made_by, [picture for picture in pictures if picture.path.exists()]


def machines(rows: list[Row]) -> list[tuple[dict[str, str], int]]:
    """The different surroundings that the results of ``rows`` name, and how many results name each."""
    counted: Counter[str] = Counter()
    for result in (result for row in rows for result in row.results):
        trainer = result["config"].get("trainer") or {}
        named = {**result.get("versions", {}), **result.get("machine", {})}
        named |= {key: trainer[key] for key in ("accelerator", "precision") if key in trainer}
        counted[json.dumps(named)] += 1
    return [(json.loads(named), count) for named, count in counted.items()]
