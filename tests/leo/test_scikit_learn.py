"""scikit-learn's classifiers as methods, against scikit-learn called by hand on the same tasks."""

import json

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from leo.evaluate import evaluate, fixed_tasks
from leo.features import Normalizer, load_splits
from leo.run import TEST_SEED, meta_train
from leo.scikit_learn import LinearEstimator
from leo.support import Support
from runner.errors import InputError
from sweeps.search import search, write_best
from tests.leo.tables import make_table

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
MODELS = ["logistic_regression", "ridge", "linear_svm", "lda"]


def estimator(composed, model):
    """A fresh estimator of ``conf/model``, for a call by hand."""
    return instantiate(composed(f"experiment=glyphs_5shot_{model}").model.learner.estimator)


def by_hand(classifier, table, tasks, num_shot):
    """The accuracy of each task, and the mean log-loss by the classifier's own probabilities, if it has any."""
    accuracy, losses = [], []
    for classes, images in zip(tasks.classes.tolist(), tasks.images[:, :, :num_shot].tolist(), strict=True):
        x = np.concatenate([table.features[rows].double().numpy() for rows in images])
        classifier.fit(x, np.repeat(classes, num_shot))
        right, loss = [], []
        for label, rows in zip(classes, images, strict=True):
            first, last = table.offsets[label : label + 2].tolist()
            query = table.features[[i for i in range(first, last) if i not in rows]].double().numpy()
            right.extend(classifier.predict(query) == label)
            if hasattr(classifier, "predict_proba"):
                of_class = list(classifier.classes_).index(label)
                loss.extend(-np.log(classifier.predict_proba(query)[:, of_class]))
        accuracy.append(np.mean(right))
        losses.append(np.mean(loss) if loss else np.nan)
    return torch.tensor(accuracy), torch.tensor(losses)


@pytest.mark.parametrize("num_way", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_scores_are_those_of_scikit_learn_on_the_same_tasks(composed, model, num_way):
    """Classes are labelled by their numbers in the table, which are in another order than in the task."""
    table, num_shot = make_table([9, 12, 8, 11, 10], 6, spread=2.0), 3
    learner = LinearEstimator(num_features=6, num_way=num_way, num_shot=num_shot, estimator=estimator(composed, model))
    tasks = fixed_tasks(table, 30, num_way, num_shot, seed=0)
    scores = evaluate(learner, table, tasks, num_shot)
    accuracy, loss = by_hand(estimator(composed, model), table, tasks[0], num_shot)
    assert accuracy.std() > 0.02
    torch.testing.assert_close(scores.accuracy.double(), accuracy, atol=1e-6, rtol=0)
    if model in ("logistic_regression", "lda"):
        torch.testing.assert_close(scores.loss.double(), loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_unequal_classes_are_fitted_as_they_are(composed, model):
    """Two adaptations of one support: to all of it, and to all but one image."""
    table = make_table([4, 2, 3], 6)
    labels = np.arange(3).repeat([4, 2, 3])
    present = torch.ones(2, 9, dtype=torch.bool)
    present[1, 2] = False
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels)).T.float()
    learner = LinearEstimator(num_features=6, num_way=5, num_shot=5, estimator=estimator(composed, model))
    adapted = learner.adapt(Support(table.features, targets, present, 5, 5))
    scores = learner.embed(table.features) @ adapted.mT
    for i in range(2):
        seen = present[i].numpy()
        classifier = estimator(composed, model).fit(table.features.double().numpy()[seen], labels[seen])
        expected = classifier.decision_function(table.features.double().numpy())
        torch.testing.assert_close(scores[i].double(), torch.from_numpy(expected), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(adapted[0], adapted[1])


@pytest.mark.parametrize("model", ["ridge", "lda"])
def test_a_run_tests_what_scikit_learn_finds_by_hand(composed, toy_overrides, tmp_path, model):
    kept = [o for o in toy_overrides if not o.startswith(("model.", "max_steps", "val.every", "num_query"))]
    meta_train(composed(f"experiment=glyphs_5shot_{model}", "features.normalize=centred_l2", *kept))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    tables = load_splits(tmp_path / "toy")
    normalizer = Normalizer("centred_l2", 8)
    normalizer.fit(tables["train"].features)
    table = tables["test"]._replace(features=normalizer(tables["test"].features))
    (tasks,) = fixed_tasks(table, 40, 3, 5, TEST_SEED)
    accuracy, _ = by_hand(estimator(composed, model), table, tasks, 5)
    assert result["accuracy"] == pytest.approx(accuracy.mean().item(), abs=1e-6)
    assert (result["checkpoint"], result["seconds"]["test"] > 0) == (str(tmp_path / "run" / "best.ckpt"), True)


def test_what_cannot_be_fitted_or_is_not_linear_is_refused_before_work(composed, toy_overrides, tmp_path):
    with pytest.raises(InputError, match="LinearDiscriminantAnalysis cannot be fitted to 1 images of each of 5 cl"):
        LinearEstimator(num_features=6, num_way=5, num_shot=1, estimator=estimator(composed, "lda"))
    for other in (KNeighborsClassifier(1), SVC(kernel="linear")):  # one weight vector for each pair of classes
        with pytest.raises(InputError, match=f"model.learner.estimator={type(other).__name__} is not a linear class"):
            LinearEstimator(num_features=6, num_way=4, num_shot=2, estimator=other)
    kept = [override for override in toy_overrides if not override.startswith(("model.", "max_steps", "val.every"))]
    with pytest.raises(InstantiationException, match="InputError.*cannot be fitted to 1 images"):
        meta_train(composed("experiment=glyphs_5shot_lda", "num_shot=1", *kept))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("model", "key"), list(zip(MODELS, ("C", "alpha", "C", "shrinkage"), strict=True)))
def test_regularisation_and_scaling_are_chosen_by_validation(composed, toy_overrides, tmp_path, model, key):
    kept = [override for override in toy_overrides if not override.startswith(("model.", "max_steps", "val.every"))]
    best = tmp_path / "conf/hparams/search/toy.yaml"
    cfg = composed(
        f"experiment=glyphs_5shot_{model}", *kept, "stage=search", "search.n_trials=4", f"search.best={best}"
    )
    score = search(cfg)
    write_best(cfg)
    values = composed(f"experiment=glyphs_5shot_{model}", "hparams=search/toy", *kept,
                      f"hydra.searchpath=[file://{tmp_path / 'conf'}]")  # fmt: skip
    assert f"{key}: {values.model.learner.estimator[key]}" in best.read_text()
    assert f"normalize: {values.features.normalize}" in best.read_text()
    assert meta_train(values) == score
