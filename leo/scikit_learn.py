"""Linear classifiers of scikit-learn as methods: each is fitted to a task's support alone."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import ClassifierMixin
from torch import Tensor

from leo.learner import Learner
from leo.support import AnySupport, Support, images_of
from runner.errors import InputError


class LinearEstimator(Learner):
    """A linear classifier of scikit-learn, fitted to each task's support in float64. Nothing is learned across tasks.

    Scores are those of its ``decision_function``. Their softmax is ``predict_proba`` of logistic regression and LDA;
    other estimators have no probabilities, so of them the accuracy alone has a meaning.

    Args:
        num_features: D.
        num_way, num_shot: N and K of the tasks. Raises InputError where the estimator cannot be fitted to so few
            images, or is not linear with one weight vector for each class.
        estimator: fitted anew for each task.
    """

    def __init__(self, *, num_features: int, num_way: int, num_shot: int, estimator: ClassifierMixin) -> None:
        super().__init__()
        self.estimator, name = estimator, type(estimator).__name__
        anything = np.random.default_rng(0).normal(size=(num_way * num_shot, num_features))
        try:
            estimator.fit(anything, np.arange(num_way).repeat(num_shot))
        except ValueError as error:
            raise InputError(
                f"{name} cannot be fitted to {num_shot} images of each of {num_way} classes: {error} "
                f"Choose another num_shot or another estimator"
            ) from error
        shape = np.atleast_2d(getattr(estimator, "coef_", [])).shape
        if shape != (num_way if num_way > 2 else 1, num_features):
            raise InputError(
                f"model.learner.estimator={name} is not a linear classifier with a weight vector for each class; "
                f"choose one, such as sklearn.linear_model.LogisticRegression"
            )

    def embed(self, x: Float[Tensor, "*any D"]) -> Float[Tensor, "*any E"]:
        """The features and a 1, which the intercept is multiplied by."""
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)

    def adapt(self, support: AnySupport) -> Float[Tensor, "B N E"]:
        """Coefficients and intercept of each class. Every image counts once."""
        fitted = np.stack([self.fitted(images, labels) for images, labels in labelled_sets(support)])
        return torch.from_numpy(fitted).to(images_of(support))

    def fitted(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The classifier of ``images`` [n, D], whose ``labels`` are 0 to N - 1; [N, D + 1]."""
        self.estimator.fit(images, labels)
        coefficients = np.atleast_2d(self.estimator.coef_)
        weights = np.column_stack([coefficients, np.broadcast_to(self.estimator.intercept_, len(coefficients))])
        return weights if len(weights) > 1 else np.concatenate([np.zeros_like(weights), weights])  # of two classes: one


def labelled_sets(support: AnySupport) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images that each adaptation sees, and their labels."""
    images = images_of(support).double().cpu()
    if isinstance(support, Support):
        labels = support.targets.argmax(0).cpu()
        for present in support.present.cpu():
            yield images[present].numpy(), labels[present].numpy()
    else:
        num_way, num_shot = images.shape[1:3]
        for task in images.flatten(1, 2):
            yield task.numpy(), np.arange(num_way).repeat(num_shot)
