"""How fast a classifier is fitted and asked, as ratios to scikit-learn's logistic regression in the same run.

    python -m benchmarks.prediction --threads 1 --json timings.json

Features are random, 640-d, of unit length; the learner is LEO with the settings of the paper, untrained, which costs
the same. ``fit``: 5 classes of 5; ``predict``: 1,000 images, with their probabilities. Contestants take turns.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.meta_training import in_turns, make_leo, show
from fewshot import FewShotClassifier
from fewshot.model import Model
from leo.features import Normalizer

LIMIT = 20.0  # ms, of each


def main() -> None:
    """Measure fitting and asking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--num-samples", type=int, nargs="+", default=[0, 20])
    parser.add_argument("--num-features", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    support, query = (rng.normal(size=(count, args.num_features)).astype(np.float32) for count in (25, 1000))
    support, query = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (support, query))
    labels, rows = np.repeat(np.arange(5), 5), []
    leo = make_leo(args.num_features, "cpu").eval().requires_grad_(False)
    model = Model(leo, Normalizer("l2", args.num_features), None, {"num_way": 5, "num_shot": 5}, "benchmark")
    for threads in args.threads:
        torch.set_num_threads(threads)
        theirs = LogisticRegression(max_iter=1000).fit(support, labels)
        for num_samples in args.num_samples:
            ours = FewShotClassifier(model, num_samples=num_samples, random_state=0).fit(support, labels)
            calls = {
                "fit": (partial(ours.fit, support, labels), partial(theirs.fit, support, labels)),
                "predict": (partial(ours.predict_proba, query), partial(theirs.predict_proba, query)),
            }
            for name, (our_call, their_call) in calls.items():
                seconds = in_turns({"ours": (our_call, 5), "logistic": (their_call, 5)}, args.repeats)
                row = {f"{contestant} ms": 1000 * value for contestant, value in seconds.items()}
                row |= {"ratio": seconds["ours"] / seconds["logistic"], "limit ms": LIMIT}
                rows.append({"call": name, "threads": threads, "samples": num_samples} | row)
    show("5-way 5-shot fit, 1,000 predictions", rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
