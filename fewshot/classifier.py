"""The classifier of one's own classes, with scikit-learn's conventions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from fewshot.images import are_images, pixels
from fewshot.loading import backbone_config, load, untrained
from fewshot.model import Model, nearest_centroid, probabilities
from runner.errors import InputError

ROWS_PER_PART = 4096  # of features, scored at a time

# Of scikit-learn's estimator checks, for ``check_estimator`` and ``parametrize_with_checks``: those that a classifier
# with a trained model cannot pass, as it takes features of one width, and each of these brings another one. Without
# a model, and where a learner is made for the width of each check, none fails.
EXPECTED_FAILED_CHECKS = dict.fromkeys(
    (
        "check_classifier_data_not_an_array", "check_classifiers_classes", "check_classifiers_train",
        "check_dict_unchanged", "check_dont_overwrite_parameters", "check_dtype_object", "check_estimators_dtypes",
        "check_estimators_fit_returns_self", "check_estimators_nan_inf", "check_estimators_overwrite_params",
        "check_estimators_pickle", "check_f_contiguous_array_estimator", "check_fit2d_predict1d",
        "check_fit_check_is_fitted", "check_fit_idempotent", "check_fit_score_takes_y",
        "check_methods_sample_order_invariance", "check_methods_subset_invariance", "check_n_features_in",
        "check_n_features_in_after_fitting", "check_pipeline_consistency", "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input", "check_supervised_y_2d",
    ),
    "brings features of another width than those that the trained learner takes",
)  # fmt: skip


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of any classes from a few examples of each, by a trained learner that adapts to them.

    ``FewShotClassifier.load(path)`` gives one with its model. ``X`` is a list of images (paths, Pillow's images,
    arrays or tensors of pixels, as ``fewshot.images.pixels`` takes them), an array of images [n, H, W(, C)], or an
    array of features [n, D]. An iterator or a column of a pandas table serves as a list. Classes may have different
    numbers of examples, and need not be as many as in training.

    Args:
        model: the trained pieces. None: nearest centroid by cosine, which needs no training, on features alone.
        num_samples: adaptations whose probabilities are averaged, drawn as in training; 0: the one of the means.
        random_state: of the sampled adaptations.
        batch_size: images that the extractor sees at a time.
        device: on which all is computed.

    Attributes:
        classes_: the labels, sorted.
        classifiers_: float32 [num_samples or 1, N, E], a weight vector for each class in each adaptation.
        n_features_in_: D.

    It passes scikit-learn's estimator checks; with a trained model, all but those of ``EXPECTED_FAILED_CHECKS``.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        num_samples: int = 0,
        random_state: int | np.random.RandomState | None = None,
        batch_size: int = 256,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.num_samples = num_samples
        self.random_state = random_state
        self.batch_size = batch_size
        self.device = device

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        extractor: str | Path | None = None,
        networks: Sequence[type] = (),
        **parameters: Any,
    ) -> Self:
        """One with the model at ``path``: a checkpoint of meta-training, its run folder, or a package.

        ``extractor`` is the run folder of stage 1 or its file; it is found by itself in a package, and next to the run
        folder of a checkpoint. ``networks`` are classes of your own that the extractor may be built of. ``parameters``
        are those of the constructor. Nothing at ``path`` is run.
        """
        own = [f"{network.__module__}.{network.__qualname__}" for network in networks]
        return cls(load(Path(path), None if extractor is None else Path(extractor), own), **parameters)

    @classmethod
    def pretrained(cls, backbone: str, *, settings: Sequence[str] = (), **parameters: Any) -> Self:
        """Nearest centroid on the features of a network that others have trained: nothing has to be trained.

        ``backbone`` is a file of conf/backbone, ``settings`` are changes as the command line has them, such as
        ``["backbone.network=resnet18"]``. ``parameters`` are those of the constructor.
        """
        return cls(untrained(backbone_config(backbone, settings)), **parameters)

    def fit(self, X: Any, y: Any) -> Self:
        """Adapt to the images or features ``X`` and their labels ``y``."""
        X, y = listed(X), list(y) if isinstance(y, Iterator) else y
        if are_images(X):
            check_consistent_length(X, y)
            y = column_or_1d(y, warn=True)
        else:
            X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"y has one class only ({classes[0]}); give examples of at least two classes")
        if self.num_samples < 0 or self.batch_size < 1:
            raise InputError(
                f"num_samples={self.num_samples} must be at least 0, batch_size={self.batch_size} at least 1"
            )
        model = self._model(None if are_images(X) else X.shape[1])
        features = torch.cat(list(self._features(X, model)))
        seed = check_random_state(self.random_state).randint(2**31)
        classifiers = model.fit(features, torch.from_numpy(labels).to(self.device), self.num_samples, seed)
        self.classes_, self.n_features_in_ = classes, model.num_features
        self.classifiers_: NDArray[np.float32] = classifiers.cpu().numpy()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities [n, N], the columns as in ``classes_``."""
        check_is_fitted(self)
        X = listed(X)
        if not are_images(X):
            X = validate_data(self, X, dtype=np.float32, reset=False)
        model, classifiers = self._model(self.n_features_in_), torch.from_numpy(self.classifiers_).to(self.device)
        parts = [probabilities(model.embed(part), classifiers) for part in self._features(X, model)]
        result: NDArray[np.float64] = torch.cat(parts).cpu().numpy()
        return result

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each image or row of ``X``."""
        most_probable: NDArray[Any] = self.predict_proba(X).argmax(1)
        return self.classes_[most_probable]

    def _model(self, num_features: int | None) -> Model:
        """The model on its device, for features of width ``num_features``, or, where that is None, for images."""
        if self.model is None:
            if num_features is None:
                raise InputError(
                    "FewShotClassifier() without a model knows features only; for images take "
                    "FewShotClassifier.load(PATH), with a checkpoint of meta-training or a package, or "
                    "FewShotClassifier.pretrained('efficientnet_lite0')"
                )
            return nearest_centroid(num_features).to(self.device)
        if num_features not in (None, self.model.num_features):
            raise InputError(
                f"X has n_features={num_features}, and the learner of {self.model.source} takes "
                f"{self.model.num_features}: those of layer {self.model.config['features_origin']['layer']} of its "
                f"extractor; give those, or the images"
            )
        return self.model.to(self.device)

    def _features(self, X: Any, model: Model) -> Iterator[Tensor]:
        """Float32 [., D] of what ``X`` holds, some rows at a time."""
        if not are_images(X):
            yield from torch.from_numpy(X).to(self.device).split(ROWS_PER_PART)
            return
        extractor = model.needed_extractor()
        for start in range(0, len(X), self.batch_size):
            part = [
                pixels(X[i], f"image {i} of X", extractor.image_size, extractor.mode, extractor.framing)
                for i in range(start, min(start + self.batch_size, len(X)))
            ]
            yield extractor.in_parts(torch.stack(part).to(self.device))


def listed(X: Any) -> Any:
    """``X`` as a list where it is an iterator or a column of a table; raises where it is one image or nothing."""
    is_pixels = isinstance(X, np.ndarray | Tensor) and X.ndim == 3 and X.shape[2] in (1, 3, 4)
    if is_pixels or isinstance(X, str | bytes | os.PathLike | Image.Image):
        what = f"an array of the shape {list(X.shape)}" if is_pixels else repr(X)
        raise InputError(f"X is one image ({what}); give a list of images, also for one: [image]")
    if hasattr(X, "iloc"):  # of pandas
        column = X.iloc[:, 0] if X.ndim == 2 and X.shape[1] == 1 else X
        values = list(column) if column.ndim == 1 else []
        return values if are_images(values) else X
    if isinstance(X, Iterator):
        X = list(X)
    if isinstance(X, list | tuple) and not X:
        raise InputError("X is empty (a used iterator is, too); give a list of images, or an array of features [n, D]")
    return X
