"""What a folder of images comes to: a prediction for each, and how often it is right where that is known."""

from pathlib import Path
from typing import NamedTuple

from pretrain.sources.walk import Unreadable


class Prediction(NamedTuple):
    """Of one image: its most probable class, how probable that is, and its own class where it is known."""

    path: Path
    label: str
    probability: float
    truth: str | None


class Outcome(NamedTuple):
    """All predictions, the classes' images that they rest on, and the files that were skipped."""

    predictions: list[Prediction]
    support: dict[str, list[Path]]
    unreadable: list[Unreadable]

    def accuracy(self) -> str | None:
        """The accuracy of what is known, with its 95 % interval (Wilson); None where nothing is."""
        correct = [one.label == one.truth for one in self.predictions if one.truth is not None]
        if not correct:
            return None
        from scipy.stats import binomtest  # which takes as long to import as a small prediction

        low, high = binomtest(sum(correct), len(correct)).proportion_ci(method="wilson")
        share, total = 100 * sum(correct) / len(correct), len(correct)
        return (
            f"leave-one-out accuracy {share:.1f} % ({sum(correct)} of {total} images; 95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f} %)"
        )
