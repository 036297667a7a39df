"""Accuracy where tasks differ from those of training: what each image counts, and what other classifiers reach.

    python -m benchmarks.other_shapes features/glyphs-wrn_10_2-layer9 runs/.../best.ckpt runs/.../best.ckpt --split test

Each class has a random number of support images and 30 queries. ``summed``: every image counts once, as in training;
``by class``: the images of a class together count as the shots of training; ``counted`` is what the classifier does,
which also lets N classes count as the square root of N times the ways of training. This rule was chosen on the val
split, as were the hyperparameters of the learners; so ``--split test`` is the fair comparison.

The scaling of the features for nearest centroid and logistic regression, and the C of the latter, are chosen on tasks
of the same shape from the val split (with as many ways as it has classes, at most); the table shows them. Statistics of
the scaling are those of the training split. The interval (95 %) is that of the mean over the tasks; ``gain`` that of
the difference to ``summed``, task by task.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.progress import track
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.meta_training import console, show
from fewshot import FewShotClassifier
from fewshot.loading import load
from leo.evaluate import interval95
from leo.features import NORMALIZATIONS, FeatureTable, Normalizer, load_features
from leo.softmax import Labels
from leo.support import Support, labelled
from runner.errors import InputError

NUM_QUERY = 30
STRENGTHS = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]  # of logistic regression, C


class Summed(Support):
    """Every image counts once, however many its class has."""

    def labels(self) -> Labels:
        """Counts of one."""
        return Labels(self.targets, torch.ones(len(self.present), 1, len(self.images)))


class Task(NamedTuple):
    """Rows of a feature table, and their labels 0 to N - 1."""

    support: Int[np.ndarray, " n"]
    labels: Int[Tensor, " n"]
    query: Int[np.ndarray, " m"]
    truth: Int[Tensor, " m"]


class Choice(NamedTuple):
    """A classifier that is not meta-trained: its name, the scaling of its features, and its C if it has one."""

    name: str
    scaling: str
    strength: float | None

    def __str__(self) -> str:
        return self.scaling if self.strength is None else f"{self.scaling}, C={self.strength:g}"

    def classifier(self) -> ClassifierMixin:
        """Not fitted yet."""
        return FewShotClassifier() if self.strength is None else LogisticRegression(C=self.strength, max_iter=1000)


def draw(table: FeatureTable, num_way: int, shots: list[int], num_tasks: int, seed: int) -> Iterator[Task]:
    """Tasks of ``num_way`` classes, each with a random number of support images within ``shots`` (fewest, most)."""
    rng, sizes = np.random.default_rng(seed), table.class_sizes.numpy()
    if num_way > len(sizes):
        raise InputError(f"--num-way={num_way}, but this split has {len(sizes)} classes; give --split train, or fewer")
    if sizes.min() <= shots[1]:
        raise InputError(f"--shots up to {shots[1]}, but a class has {sizes.min()} images, all of them; give fewer")
    for _ in range(num_tasks):
        classes = rng.choice(len(sizes), num_way, replace=False)
        num_shots = rng.integers(shots[0], shots[1] + 1, num_way)
        rows = [int(table.offsets[c]) + rng.permutation(sizes[c])[: shots[1] + NUM_QUERY] for c in classes]
        queries = [of_class[shots[1] :] for of_class in rows]
        yield Task(
            np.concatenate([of_class[:k] for of_class, k in zip(rows, num_shots, strict=True)]),
            torch.arange(num_way).repeat_interleave(torch.from_numpy(num_shots)),
            np.concatenate(queries),
            torch.arange(num_way).repeat_interleave(torch.tensor([len(of_class) for of_class in queries])),
        )


def scalings(train: FeatureTable, table: FeatureTable) -> dict[str, Float[Tensor, "n D"]]:
    """The features of ``table`` in each scaling, with the statistics of ``train``."""
    scaled = {}
    for kind in NORMALIZATIONS:
        normalizer = Normalizer(kind, train.features.shape[1])
        normalizer.fit(train.features)
        scaled[kind] = normalizer(table.features)
    return scaled


def accuracy_of(choice: Choice, features: Float[Tensor, "n D"], task: Task) -> Tensor:
    """The accuracy of a classifier fitted to the support of ``task``, a fraction."""
    fitted = choice.classifier().fit(features[task.support].numpy(), task.labels.numpy())
    return (torch.from_numpy(fitted.predict(features[task.query].numpy())) == task.truth).double().mean()


def choose(train: FeatureTable, val: FeatureTable, num_way: int, shots: list[int], num_tasks: int) -> list[Choice]:
    """Of each classifier the settings with the highest accuracy on tasks of ``val``."""
    settings = {
        "centroid": [Choice("centroid", kind, None) for kind in NORMALIZATIONS],
        "logistic": [Choice("logistic", *both) for both in product(NORMALIZATIONS, STRENGTHS)],
    }
    scaled, sums = scalings(train, val), {choice: 0.0 for choices in settings.values() for choice in choices}
    drawn = draw(val, min(num_way, len(val.class_names)), shots, num_tasks, seed=1)
    for task in track(drawn, "tuning", num_tasks, console=console, transient=True):
        for choice in sums:
            sums[choice] += accuracy_of(choice, scaled[choice.scaling], task).item()
    return [max(choices, key=sums.__getitem__) for choices in settings.values()]


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Compare on the same tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--split", default="val", choices=["train", "val", "test"], help="of the tasks compared on")
    parser.add_argument("--num-way", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs=2, default=[1, 10], help="fewest and most")
    parser.add_argument("--num-tasks", type=int, default=1000)
    parser.add_argument("--num-tuning-tasks", type=int, default=200, help="of the val split, for the competitors")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables = {split: load_features(args.features, split) for split in ("train", "val", args.split)}
    table, models = tables[args.split], {path: load(path, None) for path in args.checkpoints}
    others = choose(tables["train"], tables["val"], args.num_way, args.shots, args.num_tuning_tasks)
    of_models = {path: model.normalizer(table.features) for path, model in models.items()}
    of_others = scalings(tables["train"], table)
    correct: dict[tuple[str, str], list[Tensor]] = {}
    tasks = draw(table, args.num_way, args.shots, args.num_tasks, seed=0)
    for task in track(tasks, "testing", args.num_tasks, console=console, transient=True):
        for path, model in models.items():
            scaled = of_models[path]
            counted = labelled(scaled[task.support], task.labels, model.config["num_shot"], model.config["num_way"])
            by_class = counted._replace(num_way=args.num_way)
            for name, used in (("summed", Summed(*counted)), ("by class", by_class), ("counted", counted)):
                classifier = model.learner.adapt(used)[0]
                scores = model.learner.embed(scaled[task.query]) @ classifier.T
                of_task = (scores.argmax(1) == task.truth).double().mean()
                correct.setdefault((path.parent.name, name), []).append(of_task)
        for choice in others:
            of_task = accuracy_of(choice, of_others[choice.scaling], task)
            correct.setdefault(("", choice.name), []).append(of_task)
    settings = {(path.parent.name): str(model.normalizer.kind) for path, model in models.items()}
    settings |= {choice.name: str(choice) for choice in others}
    results = []
    for (run, name), values in correct.items():
        accuracy = 100 * torch.stack(values)
        row: dict[str, Any] = {"run": run, "classifier": name, "scaling": settings[run or name], "chosen on": "val"}
        row |= {"accuracy": f"{accuracy.mean():.2f}", "+-": f"{interval95(accuracy):.2f}"}
        gain = accuracy - 100 * torch.stack(correct[run, "summed"]) if name in ("by class", "counted") else None
        row |= {"gain": "", "of gain": ""} if gain is None else {
            "gain": f"{gain.mean():+.2f}", "of gain": f"{interval95(gain):.2f}",
        }  # fmt: skip
        results.append(row)
    show(f"{args.split}: {args.num_way}-way, {args.shots[0]} to {args.shots[1]} shots, {args.num_tasks} tasks", results)


if __name__ == "__main__":
    main()
