"""Figure 4: latent codes before and after adaptation, in the plane and by how well their classes separate."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import TransformerMixin
from sklearn.metrics import silhouette_samples
from torch import Tensor

STEPS = ("before", "after")


class CodeMap(NamedTuple):
    """Of n codes before adaptation and the same after, first axis: their place in the plane, the silhouette of each
    in latent space, by class, in [-1, 1]; and the class of each."""

    places: Float[np.ndarray, "2 n 2"]
    silhouettes: Float[np.ndarray, "2 n"]
    classes: Int[np.ndarray, " n"]

    @property
    def typical_class(self) -> int:
        """The class whose silhouette gains the median amount by adaptation (the lower one of two)."""
        labels = np.unique(self.classes)
        gain = self.silhouettes[1] - self.silhouettes[0]
        gains = [gain[self.classes == label].mean() for label in labels]
        return int(labels[np.argsort(gains, kind="stable")[(len(labels) - 1) // 2]])


def code_map(
    before: Float[Tensor, "n Z"], after: Float[Tensor, "n Z"], classes: Int[Tensor, " n"], embedding: TransformerMixin
) -> CodeMap:
    """The map of codes; ``embedding`` is fitted once to all of them, so that both steps share a plane."""
    both, labels = np.stack([before.numpy(), after.numpy()]), classes.numpy()
    places = np.asarray(embedding.fit_transform(both.reshape(-1, both.shape[2])))
    silhouettes = np.stack([silhouette_samples(codes, labels) for codes in both])
    return CodeMap(places.reshape(*both.shape[:2], 2), silhouettes, labels)
