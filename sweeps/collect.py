"""Result files of many runs as one table."""

import json
import logging
import math
import statistics
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.table import Table

from leo.methods import method_name

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What ``result.json`` files hold, by their folders; and why others cannot be read."""

    results: dict[Path, dict[str, Any]]
    unreadable: dict[Path, str]


class Row(NamedTuple):
    """All seeds of one configuration: of each the result, as it was read, and the folder that it lies in.

    ``changes`` are the overrides of the command line that change results, besides experiment, ablation and hparams.
    """

    results: list[dict[str, Any]]
    folders: list[Path]
    changes: list[str]

    @property
    def experiment(self) -> str:
        """The choice of conf/experiment."""
        return str(self.results[0]["experiment"])

    @property
    def ablation(self) -> str:
        """The choice of conf/ablation."""
        return str(self.results[0]["ablation"])

    @property
    def score_name(self) -> str:
        """What was tested."""
        return str(self.results[0]["score_name"])

    @property
    def is_accuracy(self) -> bool:
        """Whether scores are fractions of right answers, shown in percent."""
        return self.score_name == "accuracy"

    @property
    def method(self) -> str:
        """What tables call it: the learner, and the ablation where there is one."""
        learner = OmegaConf.select(OmegaConf.create(self.results[0]["config"]), "model.learner")
        method = method_name(learner or {}) or self.experiment
        return method if self.ablation == "none" else f"{method}, {self.ablation.replace('_', ' ')}"

    @property
    def task(self) -> str:
        """What is learned: data, ways and shots where there are any, or else the experiment."""
        first = self.results[0]
        sizes = [f"{first[key]}-{unit}" for key, unit in (("num_way", "way"), ("num_shot", "shot")) if first.get(key)]
        return f"{first.get('data', self.experiment)}, {' '.join(sizes)}".rstrip(", ")

    @property
    def features(self) -> str:
        """What the learner sees of an image, and whether its extractor was trained too; empty where it sees none."""
        layer, extractor = self.results[0].get("layer"), self.results[0]["config"].get("extractor")
        shown = f"layer {layer}" if layer not in (None, "pixels") else layer or ""
        return shown if extractor is None else f"{shown}, joint from {extractor['start'].replace('_', ' ')}"

    @property
    def scaling(self) -> str:
        """How the features are scaled; empty where the learner sees none."""
        return OmegaConf.select(OmegaConf.create(self.results[0]["config"]), "features.normalize") or ""

    @property
    def seconds(self) -> float:
        """Mean duration of training and test."""
        return statistics.mean(sum(filter(None, result["seconds"].values())) for result in self.results)

    @property
    def source(self) -> str:
        """Where the hyperparameters come from: the folder of conf/hparams."""
        return str(self.results[0]["hparams"]).partition("/")[0]

    @property
    def mean(self) -> float:
        """Mean test score over seeds; NaN where one has none."""
        return statistics.mean(self.scores)

    @property
    def scores(self) -> list[float]:
        """The test score of each seed; NaN where it is null."""
        return [math.nan if result["score_value"] is None else result["score_value"] for result in self.results]

    @property
    def std_over_seeds(self) -> float | None:
        """The paper's +-: the standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def spread(self) -> str:
        """The standard deviation over seeds, and their number; empty for one seed."""
        deviation = self.std_over_seeds
        return "" if deviation is None else f"{self.shown(deviation)} ({len(self.results)})"

    @property
    def num_diverged(self) -> int:
        """Tasks that diverged, of training and of the test, over all seeds."""
        keys = ("train_diverged", "num_diverged")
        return sum(result.get(key) or 0 for result in self.results for key in keys)

    @property
    def interval95(self) -> float | None:
        """The widest 95 % interval over tasks of a single run, a different thing; None where none is known."""
        return max((x for result in self.results if (x := result.get("interval95")) is not None), default=None)

    def shown(self, score: float | None) -> str:
        """A score, or a difference of scores, as tables have it: accuracies in percent; nothing for None."""
        if score is None:
            return ""
        return f"{100 * score:.2f}" if self.is_accuracy else f"{score:.4g}"


def read_results(runs: Path, select: str) -> Found:
    """The results in the folders of ``runs`` that match ``select``; those that cannot be read are named in the log."""
    found = Found({}, {})
    for path in sorted(runs.glob(f"{select}/result.json")):
        content = read_json(path)
        if isinstance(content, str):
            log.warning("%s is left out: %s", path, content)
            found.unreadable[path.parent] = content
        else:
            found.results[path.parent] = content
    return found


def read_json(path: Path) -> dict[str, Any] | str:
    """What the file holds, or in a few words why it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{error}" if path.stat().st_size else "the file is empty"
    return content if isinstance(content, dict) else "it does not hold an object"


def says_what_it_is(result: dict[str, Any]) -> bool:
    """Whether ``result`` has the fields by which it is shown; earlier versions did not write them."""
    return result.keys() >= {"stage", "overrides", "group", "score_name", "score_value", "summary", "config"}


def is_row(result: dict[str, Any]) -> bool:
    """Whether ``result`` is of a training with tasks: stage 1 and tests alone have no row."""
    of_run = {"experiment", "ablation", "hparams", "seed", "seconds"}
    return says_what_it_is(result) and result["stage"] not in ("pretrain", "test") and result.keys() >= of_run


def collect(found: Found, placing: Collection[str]) -> list[Row]:
    """The finished meta-training runs, grouped over seeds.

    A run that was repeated in another folder counts once. ``placing`` are the keys of the configuration that change no
    result.
    """
    rows: dict[str, Row] = {}
    for folder, result in found.results.items():
        if not is_row(result):
            continue
        row = rows.setdefault(result["group"], Row([], [], changes(result["overrides"], placing)))
        if result["seed"] in [other["seed"] for other in row.results]:
            log.warning("%s is left out: it repeats a run that %s holds", folder, row.folders[0].parent)
            continue
        row.results.append(result)
        row.folders.append(folder)
    return list(rows.values())


def changes(overrides: list[str], placing: Collection[str]) -> list[str]:
    """The ``overrides`` that change results, besides the choices that a result names by itself."""
    named = {"experiment", "ablation", "hparams", "seed", "hydra.searchpath", *placing}
    return [text for text in overrides if key(text) not in named]


def key(override: str) -> str:
    """What ``override`` sets, or the group of which it chooses."""
    return override.partition("=")[0].lstrip("+~")


def tables(rows: list[Row]) -> Iterator[Table]:
    """A table of the rows of each score, by number of shots and increasing score."""
    for score_name in dict.fromkeys(row.score_name for row in rows):
        of_score = [row for row in rows if row.score_name == score_name]
        yield table(sorted(of_score, key=lambda row: (row.results[0].get("num_shot", 0), row.mean)))


def table(rows: list[Row]) -> Table:
    """The rows, all of one score."""
    name = "accuracy on held-out classes" if rows[0].is_accuracy else f"{rows[0].score_name}, higher is better"
    shown = Table(
        title=f"{', '.join(sorted({row.results[0].get('data', row.experiment) for row in rows}))}: {name}",
        caption="interval: 95 % over a run's tasks; s.d.: over seeds; diverged: of all seeds; seconds: train + test",
    )
    several = any(row.std_over_seeds is not None for row in rows)
    diverged = any(row.num_diverged for row in rows)
    # In narrow terminals names may take several lines, a word each.
    for header, names in (("method", [row.method for row in rows]), ("features", [row.features for row in rows])):
        words = [word for name in names for word in name.split()]
        shown.add_column(header, min_width=max(map(len, words), default=0))
    shown.add_column("scaling", no_wrap=True)
    score = "test %" if rows[0].is_accuracy else "test"
    for column in ("task", score, "interval", *(("s.d. (seeds)",) * several), *(("diverged",) * diverged), "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        first = row.results[0]
        shown.add_row(
            row.method,
            row.features,
            row.scaling,
            " ".join(f"{first[key]}{unit}" for key, unit in (("num_way", "w"), ("num_shot", "s")) if first.get(key)),
            row.shown(row.mean),
            "" if row.interval95 is None else f"+- {row.shown(row.interval95)}",
            *((row.spread,) * several),
            *((f"{row.num_diverged:,}",) * diverged),
            f"{row.seconds:.0f}",
        )
    return shown
