"""Accuracy where tasks differ from those of training: what each image counts, and what other classifiers reach.

    python -m benchmarks.other_shapes features/glyphs-wrn_10_2-layer9 runs/glyphs_1shot-none-seed0/best.ckpt ...

Each class has a random number of support images and 30 queries. ``summed``: every image counts once, as in training;
``by class``: the images of a class together count as the shots of training; ``counted`` is what the classifier does,
which also lets N classes count as the square root of N times the ways of training. Nearest centroid and logistic
regression see the features as the first learner does. The interval (95 %) is that of the mean over the tasks; ``gain``
that of the difference to ``summed``, task by task.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.meta_training import console, show
from fewshot import FewShotClassifier
from fewshot.loading import load
from leo.evaluate import interval95
from leo.features import load_features
from leo.softmax import Labels
from leo.support import Support, labelled

NUM_QUERY = 30


class Summed(Support):
    """Every image counts once, however many its class has."""

    def labels(self) -> Labels:
        """Counts of one."""
        return Labels(self.targets, torch.ones(len(self.present), 1, len(self.images)))


@torch.no_grad()
def main() -> None:
    """Compare on the same tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--split", default="val", choices=["train", "val"])
    parser.add_argument("--num-way", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs=2, default=[1, 10], help="fewest and most")
    parser.add_argument("--num-tasks", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, models = load_features(args.features, args.split), {path: load(path, None) for path in args.checkpoints}
    scaled = {path: model.normalizer(table.features) for path, model in models.items()}
    first = next(iter(scaled.values()))
    rng, sizes = np.random.default_rng(0), table.class_sizes.numpy()
    correct: dict[tuple[str, str], list[Tensor]] = {}
    for _ in track(range(args.num_tasks), console=console, transient=True):
        classes = rng.choice(len(sizes), args.num_way, replace=False)
        shots = rng.integers(args.shots[0], args.shots[1] + 1, args.num_way)
        rows = [int(table.offsets[c]) + rng.permutation(sizes[c])[: args.shots[1] + NUM_QUERY] for c in classes]
        support = np.concatenate([of_class[:k] for of_class, k in zip(rows, shots, strict=True)])
        query = np.concatenate([of_class[args.shots[1] :] for of_class in rows])
        labels = torch.arange(args.num_way).repeat_interleave(torch.from_numpy(shots))
        truth = torch.arange(args.num_way).repeat_interleave(len(query) // args.num_way)
        scores: dict[tuple[str, str], Tensor] = {}
        for path, model in models.items():
            counted = labelled(scaled[path][support], labels, model.config["num_shot"], model.config["num_way"])
            by_class = counted._replace(num_way=args.num_way)
            for name, used in (("summed", Summed(*counted)), ("by class", by_class), ("counted", counted)):
                classifier = model.learner.adapt(used)[0]
                scores[str(path.parent.name), name] = model.learner.embed(scaled[path][query]) @ classifier.T
        for name, other in (("centroid", FewShotClassifier()), ("logistic", LogisticRegression(max_iter=1000))):
            other.fit(first[support].numpy(), labels.numpy())
            scores["", name] = torch.from_numpy(other.predict_proba(first[query].numpy()))
        for key, of_task in scores.items():
            correct.setdefault(key, []).append((of_task.argmax(1) == truth).double().mean())
    results = []
    for (run, name), values in correct.items():
        accuracy = 100 * torch.stack(values)
        row = {"run": run, "weighting": name, "accuracy": f"{accuracy.mean():.2f}", "+-": f"{interval95(accuracy):.2f}"}
        gain = accuracy - 100 * torch.stack(correct[run, "summed"]) if name in ("by class", "counted") else None
        row |= {"gain": "", "of gain": ""} if gain is None else {
            "gain": f"{gain.mean():+.2f}", "of gain": f"{interval95(gain):.2f}",
        }  # fmt: skip
        results.append(row)
    show(f"{args.split}: {args.num_way}-way, {args.shots[0]} to {args.shots[1]} shots, {args.num_tasks} tasks", results)


if __name__ == "__main__":
    main()
