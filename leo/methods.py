"""What methods are called in tables and figures."""

from collections.abc import Mapping
from typing import Any

METHODS = {
    "leo.prototypes.NearestCentroid": "nearest centroid",
    "leo.prototypes.LinearPrototypes": "linear prototypes",
    "leo.meta_sgd.MetaSGD": "Meta-SGD",
    "leo.leo.LEO": "LEO",
}
ESTIMATORS = {
    "sklearn.linear_model.LogisticRegression": "logistic regression",
    "sklearn.linear_model.RidgeClassifier": "ridge",
    "sklearn.svm.LinearSVC": "linear SVM",
    "sklearn.discriminant_analysis.LinearDiscriminantAnalysis": "LDA",
}  # of leo.scikit_learn


def method_name(learner: Mapping[str, Any]) -> str | None:
    """What the method with the settings ``learner`` is called; None where it has no name here."""
    if "estimator" in learner:
        target = str(learner["estimator"]["_target_"])
        return ESTIMATORS.get(target, target.rpartition(".")[2])
    return METHODS.get(str(learner.get("_target_")))
