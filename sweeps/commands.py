"""The command lines that give results again."""

import shlex

from runner.conf_folder import IS_INSTALLED
from sweeps.collect import Row, key
from sweeps.paper_tables import Cell


def line(*words: str) -> str:
    """``python train.py``, or ``leo`` where the package is installed, with ``words``, as a shell reads them."""
    return shlex.join([*(["leo"] if IS_INSTALLED else ["python", "train.py"]), *words])


def of_seeds(overrides: list[str], seeds: list[int]) -> str:
    """The command of ``overrides`` for ``seeds``; of a single one, ``overrides`` are taken as they are."""
    if len(seeds) == 1:
        return line(*overrides)
    rest = [override for override in overrides if key(override) != "seed"]
    return line("-m", *rest, f"seed={','.join(map(str, sorted(seeds)))}")


def of_row(row: Row) -> str:
    """The command of all seeds of ``row``; one for each way of writing the same thing."""
    seeds: dict[tuple[str, ...], list[dict]] = {}
    for result in row.results:
        rest = tuple(override for override in result["overrides"] if key(override) != "seed")
        seeds.setdefault(rest, []).append(result)
    return "\n".join(of_seeds(same[0]["overrides"], [one["seed"] for one in same]) for same in seeds.values())


def of_cell(cell: Cell, num_seeds: int) -> str:
    """The command that gives the cell its number, where it has none yet of ``num_seeds`` seeds."""
    if cell.row is not None:
        return of_row(cell.row)
    # What else there is, experiments choose by themselves.
    source = {"search": ["stage=paper"], "released": [f"hparams=released/{cell.experiment}"]}.get(cell.source, [])
    ablation = [f"ablation={cell.ablation}"] if cell.ablation != "none" else []
    return of_seeds([f"experiment={cell.experiment}", *ablation, *source], list(range(num_seeds)))
