"""Trained methods, rebuilt from their checkpoints, and the features that each of them sees."""

from pathlib import Path
from typing import NamedTuple

from hydra.utils import get_class
from torch import nn

from leo.episodes import check_task_size
from leo.features import FeatureTable, Normalizer
from leo.learner import Learner
from leo.methods import METHODS
from leo.run import read_checkpoint
from runner.folder import differences


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
    config = checkpoint["config"]
    settings = dict(config["model"]["learner"])
    target = settings.pop("_target_")
    # Of a checkpoint only these are called: it may come from elsewhere.
    if target not in METHODS:
        raise ValueError(f"{path} holds a {target}; stage=analyze looks into {', '.join(METHODS)}")
    for key in ("num_way", "num_shot"):
        if config[key] != getattr(sizes, key):
            raise ValueError(
                f"{path} was trained with {key}={config[key]}, the analysis is of {key}={getattr(sizes, key)}; "
                f"choose the experiment that the checkpoint was trained with"
            )
    if changed := differences(config["features_origin"], tables["train"].identity):
        raise ValueError(
            f"{path} was trained on other features ({'; '.join(changed)}); choose data=, backbone= and features= as "
            f"it was trained with"
        )
    width = tables["train"].features.shape[1]
    parts = nn.ModuleDict(
        {
            "learner": get_class(target)(num_features=width, **settings),
            "normalizer": Normalizer(config["features"]["normalize"], width),
        }
    ).eval()
    try:
        parts.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the learner that it names: {error}") from error
    learner, normalizer = parts["learner"].requires_grad_(False), parts["normalizer"]
    assert isinstance(learner, Learner)
    val, test = (tables[split]._replace(features=normalizer(tables[split].features)) for split in ("val", "test"))
    ablation = config["names"]["ablation"].replace("_", " ")
    return Method(METHODS[target] if ablation == "none" else f"{METHODS[target]}, {ablation}", learner, path, val, test)
