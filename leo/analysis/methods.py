"""Trained methods, rebuilt from their checkpoints, and the features that each of them sees."""

from pathlib import Path
from typing import NamedTuple

from leo.checkpoint import read_checkpoint
from leo.episodes import check_task_size
from leo.features import FeatureTable, check_origin
from leo.learner import Learner
from leo.methods import METHODS
from leo.trained import rebuild
from runner.errors import InputError


class Method(NamedTuple):
    """A trained learner in evaluation mode, and the features of the val and test splits as it sees them."""

    name: str
    learner: Learner
    checkpoint: Path
    val: FeatureTable
    test: FeatureTable


class Sizes(NamedTuple):
    """Of the tasks that are looked at."""

    num_way: int
    num_shot: int
    num_query: int


def load_methods(paths: list[Path], tables: dict[str, FeatureTable], sizes: Sizes) -> list[Method]:
    """The methods of the checkpoints at ``paths``, with names of their own."""
    for split in ("val", "test"):
        check_task_size(tables[split], split, *sizes)
    methods = [load_method(path, tables, sizes) for path in paths]
    names = [method.name for method in methods]
    return [
        method if names.count(method.name) == 1 else method._replace(name=f"{method.name} ({path.parent.name})")
        for method, path in zip(methods, paths, strict=True)
    ]


def load_method(path: Path, tables: dict[str, FeatureTable], sizes: Sizes) -> Method:
    """The learner of the checkpoint at ``path``, which must know tasks of ``sizes`` and the features of ``tables``."""
    checkpoint = read_checkpoint(path)
    if "extractor" in checkpoint:
        raise InputError(
            f"{path} holds an extractor that was trained with its learner; stage=analyze looks at learners of frozen "
            f"features alone, those of extractor=frozen"
        )
    config = checkpoint["config"]
    settings = config["model"]["learner"]
    learner, normalizer = rebuild(settings, config["features"]["normalize"], checkpoint["state_dict"], path)
    for key in ("num_way", "num_shot"):
        if config[key] != getattr(sizes, key):
            raise InputError(
                f"{path} was trained with {key}={config[key]}, the analysis is of {key}={getattr(sizes, key)}; "
                f"choose the experiment that the checkpoint was trained with"
            )
    check_origin(config["features_origin"], tables["train"].identity, path, "the features given")
    val, test = (tables[split]._replace(features=normalizer(tables[split].features)) for split in ("val", "test"))
    ablation = config["names"]["ablation"].replace("_", " ")
    name = METHODS[settings["_target_"]]
    return Method(name if ablation == "none" else f"{name}, {ablation}", learner, path, val, test)
