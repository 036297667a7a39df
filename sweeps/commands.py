"""The command lines that give results again."""

import re
import shlex
from typing import Any

from sweeps.collect import Row
from sweeps.paper_tables import Cell


def train(experiment: str, ablation: str, *more: str, seeds: list[int] | None = None) -> str:
    """The command of an experiment and ablation with overrides ``more``, for the ``seeds`` given, or as it is."""
    words = ["experiment=" + experiment, *(["ablation=" + ablation] if ablation != "none" else []), *more]
    words += [] if seeds is None else ["seed=" + ",".join(map(str, sorted(seeds)))]
    return line(*(["-m"] if seeds is not None and len(seeds) > 1 else []), *words)


def of_row(row: Row) -> str:
    """The command of all seeds of ``row``."""
    return of_run(row.results[0], row.variant, [result["seed"] for result in row.results])


def of_cell(cell: Cell, num_seeds: int) -> str:
    """The command that gives the cell its number, where it has none yet of ``num_seeds`` seeds."""
    if cell.row is not None:
        return of_row(cell.row)
    # What else there is, experiments choose by themselves.
    source = {"search": ["stage=paper"], "released": [f"hparams=released/{cell.experiment}"]}.get(cell.source, [])
    return train(cell.experiment, cell.ablation, *source, seeds=list(range(num_seeds)))


def of_run(result: dict[str, Any], variant: str, seeds: list[int]) -> str:
    """The command of ``result`` with other ``seeds``; ``variant`` is what its folder's name says after the seed."""
    hparams = [f"hparams={result['hparams']}"] if written(result["hparams"]) in variant else []
    more = changes(variant, result["hparams"])
    return train(result["experiment"], result["ablation"], *hparams, *more, seeds=seeds)


def changes(variant: str, hparams: str) -> list[str]:
    """The overrides beside ``hparams`` that a folder is named by.

    A folder's name has ``_`` for each ``/``: of a chosen group that is to be undone by hand.
    """
    return overrides(variant.replace(written(hparams), "", 1).strip("-,"))


def written(hparams: str) -> str:
    """The choice of ``hparams`` as folders' names have it."""
    return "hparams=" + hparams.replace("/", "_")


def overrides(text: str) -> list[str]:
    """Overrides joined by commas, one by one; commas in brackets belong to their values."""
    return [part for part in re.split(r",(?![^\[{]*[\]}])", text) if part]


def line(*words: str) -> str:
    """``python train.py`` with ``words``, as a shell reads them."""
    return shlex.join(["python", "train.py", *words])
