"""Labelling a folder: how long the page waits for a new order, and how many clicks a user saves.

    python -m benchmarks.labelling speed --num-images 2000 --num-features 1280
    python -m benchmarks.labelling clicks features/glyphs-wrn_10_2-layer9 --checkpoint runs/.../best.ckpt --classes 20
    python -m benchmarks.labelling clicks runs/label-photos-... --figure clicks.png

``speed``: a click in a folder of random features with 20 classes, from the request's arrival to the answer that holds
the new order, the journal on disk included; without the time of images and network.

``clicks``: a simulated user who knows every class answers one image after another: the first of *Ask next*
(``uncertain``), the most certain one of those under a wrong class, which the eye finds (``mistakes``), or any one
(``random``). Counted are the answers until 95 % and 99 % of all labels are right, those by hand included; the interval
is 95 % over the repetitions, which draw classes and start anew. With ``--step 10`` everything is sorted again after
each ten answers once 40 are given, which is less than the page does and faster to measure. Features are those of a
folder of feature files (its test split), or of the run folder of ``stage=label``, where each image has the class of its
own folder. Without the page, every image costs one click.
"""

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.meta_training import console, show
from fewshot.labelling.board import CENTROID, LOGISTIC, NUM_UNCERTAIN, Board
from fewshot.labelling.features import known
from fewshot.labelling.journal import Journal
from fewshot.labelling.methods import Centroid, Logistic, Method, Trained, centred
from fewshot.labelling.order import NONE, order, unlike_each_other
from fewshot.labelling.pictures import NUM_DIGITS, Picture
from fewshot.loading import load
from fewshot.model import Model, nearest_centroid
from leo.features import load_features
from pretrain.fingerprint import read_records

GOALS = (0.95, 0.99)
LIMIT = 300.0  # ms, from click to new order


class Labelled(NamedTuple):
    """Features [n, D] and classes [n]."""

    features: NDArray[np.float32]
    classes: NDArray[np.intp]


def main() -> None:
    """Measure speed or clicks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed")
    speed.set_defaults(call=measure_speed)
    speed.add_argument("--num-images", type=int, nargs="+", default=[2000])
    speed.add_argument("--num-features", type=int, default=1280)
    speed.add_argument("--num-examples", type=int, nargs="+", default=[40, 200])
    speed.add_argument("--repeats", type=int, default=15)
    clicks = commands.add_parser("clicks")
    clicks.set_defaults(call=measure_clicks)
    clicks.add_argument("features", type=Path)
    clicks.add_argument("--checkpoint", type=Path, help="of a learner trained on such features")
    clicks.add_argument("--classes", type=int, help="drawn anew for each repetition; all of them if not given")
    clicks.add_argument("--repeats", type=int, default=5)
    clicks.add_argument("--step", type=int, default=1)
    clicks.add_argument("--figure", type=Path)
    for command in (speed, clicks):
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = args.call(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def measure_speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of a click, for each number of images and of examples."""
    rows, rng = [], np.random.default_rng(0)
    for num_images in args.num_images:
        middles = rng.normal(size=(20, args.num_features))
        truth = rng.integers(0, 20, num_images)
        features = (middles[truth] + 2 * rng.normal(size=(num_images, args.num_features))).astype(np.float32)
        pictures = [Picture(f"{i:032x}", [f"{i}.jpg"]) for i in range(num_images)]
        for num_examples in args.num_examples:
            with tempfile.TemporaryDirectory() as folder:
                board = board_of(pictures, features, Path(folder))
                for number in range(20):
                    board.act({"kind": "new", "name": f"class {number}"}, board.view(0)["version"])
                given = rng.permutation(num_images)
                labels = {str(i): int(truth[i]) + 1 for i in given[:num_examples]}
                board.act({"kind": "label", "labels": labels}, board.view(0)["version"])
                for method in board.methods:
                    board.choose(method)
                    seconds = []
                    for i in given[num_examples : num_examples + args.repeats]:
                        start, version = time.perf_counter(), board.view(0)["version"]
                        board.act({"kind": "label", "labels": {str(i): int(truth[i]) + 1}}, version)
                        json.dumps(board.view(40))
                        seconds.append(time.perf_counter() - start)
                    middle, worst = 1000 * statistics.median(seconds), 1000 * max(seconds)
                    rows.append({"method": method, "images": num_images, "examples": num_examples,
                                 "median ms": middle, "worst ms": worst, "limit ms": LIMIT})  # fmt: skip
                board.close()
    show(f"from click to new order, 20 classes, {args.num_features} features, {args.threads} threads", rows)
    return rows


def board_of(pictures: list[Picture], features: NDArray[np.float32], folder: Path) -> Board:
    """A board without a learner, with its journal in ``folder``."""
    model = nearest_centroid(features.shape[1])
    return Board(folder, pictures, features, Journal(folder / "labels.jsonl"), model)


def measure_clicks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers until the goals, for each method and order of asking."""
    data = read(args.features)
    model = None if args.checkpoint is None else load(args.checkpoint, None)
    curves: dict[tuple[str, str], list[list[tuple[int, float]]]] = {}
    for repetition in track(range(args.repeats), console=console, transient=True):
        rng = np.random.default_rng(repetition)
        part = drawn(data, args.classes, rng)
        unit = centred(part.features)
        methods: dict[str, Method] = {CENTROID: Centroid(unit), LOGISTIC: Logistic(unit)}
        if model is not None:
            methods[type(model.learner).__name__] = trained(part, model)
        start = rng.permutation(len(part.classes))
        kinds = unlike_each_other(unit[start], NUM_UNCERTAIN)  # ties and the subset follow the order
        for name, method in methods.items():
            for asking, first in (("uncertain", start[kinds]), ("mistakes", start[kinds]), ("random", start)):
                curve = simulated(method, part.classes, first, asking, args.step)
                curves.setdefault((name, asking), []).append(curve)
        console.print(f"repetition {repetition + 1} of {args.repeats} is done")
    num_images = len(part.classes)
    rows = [
        {"method": name, "asked": asking, "images": num_images, "repetitions": args.repeats}
        | {f"clicks to {100 * goal:.0f} %": mean_and_interval([reached(c, goal) for c in of]) for goal in GOALS}
        | {f"right after {n} clicks, %": round(100 * float(np.mean([after(c, n) for c in of])), 1) for n in (50, 100)}
        for (name, asking), of in curves.items()
    ]
    show(f"clicks until the labels of {num_images} images are right ({args.features.name})", rows)
    if args.figure:
        draw(curves, num_images, args.figure)
    return rows


def read(path: Path) -> Labelled:
    """The features at ``path`` with their classes."""
    if not (path / "files.csv").is_file():
        table = load_features(path, "test")
        return Labelled(table.features.numpy(), np.repeat(np.arange(len(table.class_sizes)), table.class_sizes))
    (store,) = (path / "features").iterdir()
    features = known(store)
    files = {one.sha256[:NUM_DIGITS]: name for name, one in read_records(path / "files.csv").items()}
    keys = [key for key in files if key in features]
    names = [files[key].rpartition("/")[0] for key in keys]
    return Labelled(np.stack([features[key] for key in keys]), np.unique(names, return_inverse=True)[1])


def drawn(data: Labelled, num_classes: int | None, rng: np.random.Generator) -> Labelled:
    """The images of some classes, which are 0 to N - 1."""
    if num_classes is None:
        return data
    chosen = rng.choice(data.classes.max() + 1, num_classes, replace=False)
    rows = np.flatnonzero(np.isin(data.classes, chosen))
    return Labelled(data.features[rows], np.unique(data.classes[rows], return_inverse=True)[1])


def trained(part: Labelled, model: Model) -> Method:
    """The learner of ``model`` as a method."""
    return Trained(part.features, model)


def simulated(
    method: Method, truth: NDArray[np.intp], first: NDArray[np.intp], asking: str, step: int
) -> list[tuple[int, float]]:
    """Numbers of answers, and the share of right labels after each, until it is above all goals.

    ``first`` are asked about until two classes are known, and, where ``asking`` is random, always.
    """
    by_hand, curve = np.full(len(truth), NONE), []
    hidden, asked = np.zeros(len(truth), bool), iter(first)
    answers = [next(asked)]
    while True:
        by_hand[answers] = truth[answers]
        rows = np.flatnonzero(by_hand != NONE)
        columns = np.unique(by_hand[rows])
        many = 1 if len(rows) < 40 else step
        if len(columns) < 2:
            curve.append((len(rows), len(rows) / len(truth)))
            answers = [next(asked)]
            continue
        found = method(rows, np.searchsorted(columns, by_hand[rows]), len(columns))
        now = order(by_hand, found, columns, truth.max() + 1, many, hidden)
        curve.append((len(rows), float((now.classes == truth).mean())))
        if curve[-1][1] >= max(GOALS) or len(rows) == len(truth):
            return curve
        if asking == "random":
            answers = list(islice(asked, many))
        elif asking == "mistakes":
            wrong = np.flatnonzero(now.classes != truth)
            answers = list(wrong[np.argsort(-now.probabilities[wrong], kind="stable")[:many]])
        else:
            answers = list(now.uncertain[:many])


def reached(curve: list[tuple[int, float]], goal: float) -> int:
    """The number of answers after which the share is at least ``goal`` for the first time."""
    return next(number for number, share in curve if share >= goal)


def after(curve: list[tuple[int, float]], num_clicks: int) -> float:
    """The share after so many answers; the curve ends where nearly all is right."""
    return [share for number, share in curve if number <= num_clicks][-1]


def mean_and_interval(values: list[int]) -> str:
    """The mean, with the 95 % interval of it over the repetitions, unless they are all the same."""
    if len(set(values)) < 2:
        return f"{values[0]}"
    return f"{np.mean(values):.0f} +- {1.96 * np.std(values, ddof=1) / len(values) ** 0.5:.0f}"


def draw(curves: dict[tuple[str, str], list[list[tuple[int, float]]]], num_images: int, path: Path) -> None:
    """The mean share of right labels by number of answers."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in curves))}
    longest = max(curve[-1][0] for of in curves.values() for curve in of)
    for (name, asking), of in curves.items():
        mean = np.mean([[after(curve, i) for i in range(1, longest + 1)] for curve in of], 0)
        style = {"uncertain": "-", "mistakes": "--", "random": ":"}[asking]
        axes.plot(np.arange(1, longest + 1), 100 * mean, style, color=colours[name], label=f"{name}, {asking}")
    axes.plot([0, num_images], [0, 100], color="0.6", linewidth=1, label="every label by hand")
    for goal in GOALS:
        axes.axhline(100 * goal, color="0.85", linewidth=1, zorder=0)
    axes.set(xlabel="clicks", ylabel="labels that are right, %", xlim=(0, min(longest, num_images)), ylim=(0, 100))
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
