"""The inner loops' learned rates: their means over training, and each of them at the end."""

import csv
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from leo.learner import MetaLearner


class Rate(NamedTuple):
    """The mean of a vector of rates after an update of training, counted from 0."""

    step: int
    name: str
    mean: float


def logged_rates(path: Path) -> list[Rate]:
    """What a run's ``metrics.csv`` says of its learned rates; nothing where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Rate(int(row["step"]), row["name"].removeprefix("train/"), float(row["value"]))
            for row in csv.DictReader(file)
            if row["name"].startswith("train/") and row["name"].endswith("_lr")
        ]


def final_rates(learner: MetaLearner) -> dict[str, Float[Tensor, " n"]]:
    """All elements of each of the learner's vectors of rates."""
    return {name: value.flatten() for name, value in learner.named_parameters() if name.endswith("_lr")}
