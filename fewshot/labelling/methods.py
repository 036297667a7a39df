"""From a few examples to probabilities of all images: each method is prepared once, then asked after every click."""

import warnings
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

from fewshot.model import Model

Features = NDArray[np.float32]
SCALES = np.geomspace(5, 60, 12)  # what cosines are multiplied by before their softmax
USUAL_SCALE = 14.0  # while examples are few: between those that suit photographs (about 20) and glyphs (about 8)
STRENGTH = 30.0  # C of logistic regression, on features of unit length


class Method(Protocol):
    """Probabilities float32 [n, N] of all images by examples: their rows [m], and their classes [m], 0 to N - 1."""

    def __call__(self, rows: NDArray[np.intp], classes: NDArray[np.intp], num_classes: int) -> NDArray[np.float32]:
        """Each class has an example, and there are at least two."""
        ...


def unit_length(features: Features) -> Features:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), np.float32)


def centred(features: Features) -> Features:
    """Unit-length features, seen from their mean over all images: what all have in common tells no class."""
    unit = unit_length(features)
    return unit_length(unit - unit.mean(0))


class Centroid:
    """Cosines of ``unit``, as ``centred`` gives it, to the mean of each class's examples; their softmax at a scale.

    The scale is that at which the examples, each left out in turn, are most probable, drawn towards the usual one
    while they are few. It changes how sure the method is, not which class it names.
    """

    def __init__(self, unit: Features) -> None:
        self.unit = unit

    def __call__(self, rows: NDArray[np.intp], classes: NDArray[np.intp], num_classes: int) -> NDArray[np.float32]:
        """See ``Method``."""
        examples, counts = self.unit[rows], np.bincount(classes, minlength=num_classes)
        sums = np.eye(num_classes, dtype=np.float32)[classes].T @ examples  # [N, D]
        centroids = unit_length(sums)
        scale = self._scale(examples, classes, sums, centroids, counts)
        return np.asarray(softmax(scale * (self.unit @ centroids.T), axis=1), np.float32)

    @staticmethod
    def _scale(
        examples: Features, classes: NDArray[np.intp], sums: Features, centroids: Features, counts: NDArray[np.intp]
    ) -> float:
        several = np.flatnonzero(counts[classes] > 1)
        without = unit_length(sums[classes[several]] - examples[several])
        cosines = examples[several] @ centroids.T
        own = (np.arange(len(several)), classes[several])
        cosines[own] = (without * examples[several]).sum(1)
        likelihood = [log_softmax(scale * cosines, axis=1)[own].sum() for scale in SCALES]
        return float(SCALES[np.argmax(likelihood - 5 * np.log(SCALES / USUAL_SCALE) ** 2)])


class Logistic:
    """Multinomial logistic regression of scikit-learn on the same features; all classes count alike.

    The weights are sums of the examples, so the fit is made in as many dimensions as there are examples: the same
    classifier, faster while examples are fewer than features.
    """

    def __init__(self, unit: Features) -> None:
        self.unit = unit

    def __call__(self, rows: NDArray[np.intp], classes: NDArray[np.intp], num_classes: int) -> NDArray[np.float32]:
        """See ``Method``."""
        examples = self.unit[rows]
        values, vectors = np.linalg.eigh(examples.astype(np.float64) @ examples.T)
        kept = values > 1e-6 * values[-1]
        roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
        with warnings.catch_warnings(action="ignore"):  # about few examples of many classes, which is how it starts
            fitted = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200).fit(vectors * roots, classes)
        of_examples = (vectors / roots) @ np.atleast_2d(fitted.coef_).T  # [m, N]: the weights as sums of examples
        weights = examples.T @ of_examples.astype(np.float32)
        logits = self.unit @ weights + fitted.intercept_.astype(np.float32)
        if logits.shape[1] == 1:  # of two classes: one
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return np.asarray(softmax(logits, axis=1), np.float32)


class Trained:
    """A trained learner, such as LEO, that adapts to the examples."""

    def __init__(self, features: Features, model: Model) -> None:
        self.model, self.features = model, torch.from_numpy(features)
        self.embedded = model.embed(self.features)

    def __call__(self, rows: NDArray[np.intp], classes: NDArray[np.intp], num_classes: int) -> NDArray[np.float32]:
        """See ``Method``."""
        chosen = self.features[torch.from_numpy(rows)]
        targets = one_hot(torch.from_numpy(classes), num_classes).T.to(chosen)
        everything = torch.ones(1, len(rows), dtype=torch.bool)
        weights = self.model.adapt(chosen, targets, everything, 0, torch.Generator())[0, 0]
        probabilities: NDArray[np.float32] = (self.embedded @ weights.T).softmax(1).numpy()
        return probabilities


def similarity(unit: Features, rows: NDArray[np.intp]) -> Features:
    """The cosine of each row of ``unit`` to the mean of the examples ``rows``, which are of one class."""
    return np.asarray(unit @ unit_length(unit[rows].mean(0, keepdims=True))[0], np.float32)
