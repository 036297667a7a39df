"""The classifier as its users call it: scikit-learn's checks, every kind of input, mistakes."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from fewshot import FewShotClassifier
from fewshot.classifier import EXPECTED_FAILED_CHECKS
from fewshot.model import Model
from leo import softmax
from leo.analysis.calibration import sampled_predictions
from leo.episodes import Tasks
from leo.features import Normalizer, load_splits
from leo.leo import LEO
from leo.meta_sgd import MetaSGD
from leo.run import meta_train
from runner.files import sha256
from tests.conftest import ROOT
from tests.fewshot.conftest import stripes
from tests.leo.test_leo import DEFAULTS


def random_model(num_features=8, num_way=5, num_shot=5, learner=None):
    """An untrained LEO, or a given learner."""
    torch.manual_seed(0)
    rates = {"num_latent_steps": 5, "num_finetune_steps": 5, "latent_lr": 0.1, "finetune_lr": 0.01}
    learner = learner or LEO(**DEFAULTS | rates | {"num_features": num_features, "num_latents": 16})
    config = {
        "num_way": num_way,
        "num_shot": num_shot,
        "features_origin": {"layer": "9", "checkpoint": "", "extractor": ""},
    }
    normalizer = Normalizer("standardize", num_features)
    return Model(learner.eval().requires_grad_(False), normalizer, None, config, "here")


class ForEveryWidth(FewShotClassifier):
    """Makes an untrained LEO for the width of what it is given, so that every check applies."""

    def _model(self, num_features):
        return random_model(num_features)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (FewShotClassifier(), {}),
        (ForEveryWidth(), {}),
        (ForEveryWidth(num_samples=3), {}),
        (FewShotClassifier(random_model()), EXPECTED_FAILED_CHECKS),
    ],
    ids=["centroid", "leo", "sampled", "one_width"],
)
def test_scikit_learns_estimator_checks(estimator, expected):
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None)
    status = {result["check_name"]: result["status"] for result in results}
    assert {name for name, is_ in status.items() if is_ == "xfail"} == set(expected)
    assert len([is_ for is_ in status.values() if is_ == "passed"]) >= (20 if expected else 40)


@pytest.fixture(scope="session")
def trained(world):
    return FewShotClassifier.load(world / "runs" / "learner" / "best.ckpt")


SHOTS = {40: 3, 41: 1, 42: 2, 43: 4}
LABELS = [f"class {label}" for label, count in SHOTS.items() for _ in range(count)]
IMAGES = [stripes(label, seed) for label, count in SHOTS.items() for seed in range(count)]
QUERIES = [stripes(label, seed) for label in SHOTS for seed in (10, 11)]


def test_features_of_images_are_those_of_stage_1(world, trained):
    table = load_splits(world / "features" / "stripes-wrn_10_2-layer9")["test"]
    paths = [world / "stripes" / "test" / "class 40" / f"{seed}.png" for seed in range(8)]
    features = torch.cat(list(trained._features(paths, trained.model)))
    torch.testing.assert_close(features, table.features[:8], rtol=1e-5, atol=1e-5)


def test_every_kind_of_image_is_the_same(world, trained, tmp_path):
    trained.fit(IMAGES, LABELS)
    expected = trained.predict_proba(QUERIES)
    assert expected.shape == (8, 4)
    np.testing.assert_allclose(expected.sum(1), 1)
    paths = [tmp_path / f"{i}.png" for i in range(len(QUERIES))]
    turned = [tmp_path / f"{i}-turned.png" for i in range(len(QUERIES))]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    for path, turned_path, image in zip(paths, turned, QUERIES, strict=True):
        image.save(path)
        image.transpose(Image.Transpose.ROTATE_90).save(turned_path, exif=exif)
    arrays = np.stack([np.asarray(image) for image in QUERIES])
    kinds = {
        "paths": paths,
        "strings": np.array([str(path) for path in paths]),
        "turned by the camera": turned,
        "turned images": [Image.open(path) for path in turned],
        "array": arrays,
        "list of arrays": list(arrays),
        "fractions": arrays / 255,
        "tensor": torch.from_numpy(arrays),
        "channels first": list(torch.from_numpy(arrays).permute(0, 3, 1, 2)),
        "float tensor": torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255,
        "features": torch.cat(list(trained._features(QUERIES, trained.model))).numpy(),
    }
    for name, X in kinds.items():
        np.testing.assert_allclose(trained.predict_proba(X), expected, rtol=1e-5, err_msg=name)
    small_batches = clone(trained).set_params(batch_size=3).fit(IMAGES, LABELS)
    np.testing.assert_allclose(small_batches.predict_proba(QUERIES), expected, rtol=1e-4)


def test_one_image_or_nothing_is_refused(trained, tmp_path):
    classifier, path = clone(trained).fit(IMAGES, LABELS), tmp_path / "a.jpg"
    IMAGES[0].save(path)
    array = np.asarray(IMAGES[0])
    grey = array[:, :, :1]
    for one in (str(path), path, IMAGES[0], array, grey, torch.from_numpy(array)):
        for call in (classifier.predict, classifier.predict_proba, lambda X: classifier.fit(X, LABELS)):
            with pytest.raises(ValueError, match=r"X is one image .*; give a list of images, also for one: \[image\]"):
                call(one)
    assert list(classifier.predict([path])) == list(classifier.predict([str(path)]))
    for nothing in ([], (), iter([])):
        for call in (classifier.predict, lambda X: classifier.fit(X, LABELS)):
            with pytest.raises(ValueError, match="X is empty .*; give a list of images"):
                call(nothing)


def test_iterators_and_columns_of_tables_are_lists(world, trained):
    folder = world / "stripes" / "test"
    paths = sorted(folder.glob("*/*.png"))
    labels = [path.parent.name for path in paths]
    expected = clone(trained).fit(paths, labels).predict_proba(paths)
    in_order = [path.parent.name for path in folder.glob("*/*.png")]
    fitted = clone(trained).fit(folder.glob("*/*.png"), iter(in_order))
    np.testing.assert_allclose(fitted.predict_proba(iter(paths)), expected, rtol=1e-5)
    np.testing.assert_allclose(
        clone(trained).fit(tuple(paths), tuple(labels)).predict_proba(map(str, paths)), expected, rtol=1e-5
    )
    assert fitted.score((path for path in paths), labels) == fitted.score(paths, labels)


def test_tables_of_pandas(world, trained):
    pandas = pytest.importorskip("pandas")
    paths = sorted((world / "stripes" / "test").glob("*/*.png"))
    table = pandas.DataFrame({"path": paths, "text": map(str, paths), "label": [path.parent.name for path in paths]})
    expected = clone(trained).fit(paths, list(table.label)).predict_proba(paths)
    shuffled = table.sample(frac=1, random_state=0)  # its index no longer counts from 0
    for column in ("path", "text", ["path"], ["text"]):
        fitted = clone(trained).fit(shuffled[column], shuffled.label)
        np.testing.assert_allclose(fitted.predict_proba(table[column]), expected, rtol=1e-5)
        assert list(fitted.predict(table[column])) == list(fitted.classes_[expected.argmax(1)])
    features = torch.cat(list(trained._features(paths, trained.model))).numpy()
    numbers = pandas.DataFrame(features, columns=[f"f{i}" for i in range(features.shape[1])])
    fitted = clone(trained).fit(numbers, table.label)
    np.testing.assert_allclose(fitted.predict_proba(numbers), expected, rtol=1e-5)
    narrow = FewShotClassifier().fit(numbers[["f0"]], table.label)
    assert narrow.n_features_in_ == 1


def test_it_learns_and_scores(world, trained):
    trained.fit(IMAGES, LABELS)
    truth = [f"class {label}" for label in SHOTS for _ in range(2)]
    assert list(trained.classes_) == [f"class {label}" for label in SHOTS]
    assert trained.score(QUERIES, truth) > 0.6
    again = pickle.loads(pickle.dumps(trained))
    np.testing.assert_array_equal(again.predict(QUERIES), trained.predict(QUERIES))
    for path in (world / "runs" / "learner", world / "package"):
        other = FewShotClassifier.load(path).fit(IMAGES, LABELS)
        np.testing.assert_allclose(other.predict_proba(QUERIES), trained.predict_proba(QUERIES), rtol=1e-5)


def test_sampled_probabilities_are_those_of_the_analysis():
    """Equal shots as in training: the mean over adaptations drawn from the same numbers."""
    model = random_model(num_features=6, num_way=3, num_shot=2)
    features = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1)).permute(1, 0, 2)
    X, y = features[:, :2].reshape(6, 6).numpy(), np.repeat([0, 1, 2], 2)
    classifier = FewShotClassifier(model, num_samples=3, random_state=5).fit(X, y)
    proba = classifier.predict_proba(features[:, 2:].reshape(6, 6).numpy())
    scaled = model.normalizer(features)
    tasks = Tasks(scaled[None, :, :2], scaled[None, :, 2:])
    seed = np.random.RandomState(5).randint(2**31)
    confidence, correct = sampled_predictions(model.learner, tasks, 3, torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(proba.max(1), confidence.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(proba.argmax(1) == y, correct.numpy())
    plain = FewShotClassifier(model).fit(X, y).predict_proba(tasks.query[0].flatten(0, 1).numpy())
    assert np.abs(plain - proba).max() > 1e-3
    expected = softmax.logits(model.learner.adapt(tasks.support), tasks.query).softmax(-1)[0].flatten(0, 1)
    means = FewShotClassifier(model).fit(X, y).predict_proba(features[:, 2:].reshape(6, 6).numpy())
    np.testing.assert_allclose(means, expected.numpy(), rtol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)
def test_a_checkpoint_carries_the_mean_that_it_subtracts(composed, toy_overrides, tmp_path):
    """Scaled by hand, new features give the classifier of the same learner without scaling."""
    meta_train(composed(*toy_overrides, "features.normalize=centred_l2", "model.learner.latent_lr=0.5"))
    classifier = FewShotClassifier.load(tmp_path / "run")
    tables = load_splits(tmp_path / "toy")
    mean, test = tables["train"].features.double().numpy().mean(0), tables["test"]
    X, y = test.features[:60].numpy(), np.repeat([0, 1], 30)
    scaled = X - mean
    scaled = torch.from_numpy(scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).float()
    torch.testing.assert_close(classifier.model.normalizer(torch.from_numpy(X)), scaled, atol=1e-5, rtol=1e-4)
    plain = classifier.model._replace(normalizer=Normalizer("l2", 8))  # which leaves unit length as it is
    expected = FewShotClassifier(plain).fit(scaled[::5].numpy(), y[::5]).predict_proba(scaled.numpy())
    np.testing.assert_allclose(classifier.fit(X[::5], y[::5]).predict_proba(X), expected, atol=1e-4)


def test_three_hundred_classes():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(300), rng.integers(1, 4, 300))
    X = rng.normal(size=(300, 8))[y] + 0.01 * rng.normal(size=(len(y), 8))
    classifier = FewShotClassifier(random_model()).fit(X, y)
    proba = classifier.predict_proba(X)
    assert proba.shape == (len(y), 300)
    np.testing.assert_allclose(proba.sum(1), 1)


def test_mistakes_get_one_clear_message(world, trained, tmp_path):
    images, labels = IMAGES[:4], [0, 0, 1, 1]
    features = np.random.default_rng(0).normal(size=(4, 8))
    alone = tmp_path / "alone" / "learner" / "best.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(world / "runs" / "learner" / "best.ckpt", alone)
    stage_1 = next((world / "runs").glob("pretrain-*"))
    other = tmp_path / "other.ckpt"
    other.write_bytes((stage_1 / "last.ckpt").read_bytes() + b" ")
    meta_sgd = MetaSGD(num_features=8, num_way=5, num_steps=1, inner_lr=0.1, l2_weight=0.0)

    def refused(message, call, error=ValueError):
        with pytest.raises(error, match=message):
            call()

    refused("without its extractor, which images need: WRN-10-1 trained on stripes, .*; give stage.extractor=PATH",
            lambda: FewShotClassifier.load(alone).fit(images, labels))  # fmt: skip
    assert FewShotClassifier.load(alone, extractor=stage_1).fit(images, labels).n_features_in_ == 64
    refused(
        "is not the one that the learner was trained on: its SHA-256 is",
        lambda: FewShotClassifier.load(alone, extractor=other),
    )
    refused("extractor .*none is missing; give the run folder of stage 1",
            lambda: FewShotClassifier.load(alone, extractor=tmp_path / "none"), FileNotFoundError)  # fmt: skip
    refused(
        "none is missing; meta-training writes it", lambda: FewShotClassifier.load(tmp_path / "none"), FileNotFoundError
    )
    refused("is a package, which has its extractor", lambda: FewShotClassifier.load(world / "package", extractor=other))
    refused("without a model knows features only; for images take", lambda: FewShotClassifier().fit(images, labels))
    refused(
        "no extractor of stage 1 makes of images .layer 9 of none",
        lambda: FewShotClassifier(random_model()).fit(images, labels),
    )
    refused("y has one class only .1.; give examples of at least two", lambda: trained.fit(images, [1] * 4))
    refused(
        "X has n_features=8, and the learner of .* takes 64: those of layer 9", lambda: trained.fit(features, labels)
    )
    refused("inconsistent numbers of samples: .4, 3", lambda: trained.fit(images, labels[:3]))
    refused("the support has 2 classes, and Meta-SGD learns .* num_way=5 only",
            lambda: FewShotClassifier(random_model(learner=meta_sgd)).fit(features, labels))  # fmt: skip
    refused("num_samples=2 asks for sampled adaptations, which the learner of here does not have",
            lambda: FewShotClassifier(random_model(learner=meta_sgd), num_samples=2).fit(features, labels))  # fmt: skip
    diverging = random_model()
    diverging.learner.latent_lr.data.fill_(3e38)
    refused("the learner of here diverged on these examples: its classifier is not finite",
            lambda: FewShotClassifier(diverging).fit(features, labels))  # fmt: skip
    refused("num_samples=-1 must be at least 0", lambda: FewShotClassifier(num_samples=-1).fit(features, labels))
    refused(
        "image 1 of X has the shape .16, 16, 7.; pixels are",
        lambda: trained.fit([images[0], np.zeros((16, 16, 7))], [0, 1]),
    )
    refused("image 1 of X holds float64 numbers from 7.0 to 7.0; pixels are uint8, 0 to 255, or",
            lambda: trained.fit([images[0], np.full((16, 16), 7.0)], [0, 1]))  # fmt: skip
    (tmp_path / "text.png").write_text("no image")
    refused("text.png is not an image", lambda: trained.fit([images[0], tmp_path / "text.png"], [0, 1]))


def test_a_network_of_ones_own_is_not_built_but_its_features_are_taken(world, tmp_path):
    shutil.copytree(world / "runs", tmp_path / "runs")
    (stage_1,) = (tmp_path / "runs").glob("pretrain-*/best.ckpt")
    paths = {"learner": tmp_path / "runs" / "learner" / "best.ckpt", "extractor": stage_1}
    checkpoints = {name: torch.load(path, weights_only=True) for name, path in paths.items()}
    for name in ("extractor", "learner"):
        checkpoints[name]["config"]["backbone"]["_target_"] = "mine.Network"
        torch.save(checkpoints[name], paths[name])
        checkpoints["learner"]["config"]["features_origin"]["checkpoint"] = sha256(stage_1)
    with pytest.raises(ValueError, match="has the network mine.Network, which is not of this project"):
        FewShotClassifier.load(paths["learner"], extractor=stage_1)
    classifier = FewShotClassifier.load(paths["learner"])
    with pytest.raises(ValueError, match="of mine.Network, a network of your own, which images need: give backbone="):
        classifier.fit(IMAGES[:4], [0, 0, 1, 1])
    features = np.random.default_rng(0).normal(size=(4, 64))
    assert classifier.fit(features, [0, 0, 1, 1]).predict(features).shape == (4,)


def test_a_larger_grey_or_transparent_image_is_made_to_fit(trained):
    image = stripes(40, 0)
    large = image.resize((160, 160), Image.Resampling.NEAREST)
    trained.fit(IMAGES, LABELS)
    opaque = trained.predict_proba([image.convert("RGBA")])
    np.testing.assert_allclose(opaque, trained.predict_proba([image]), rtol=1e-5)
    assert trained.predict_proba([large, image.convert("L")]).shape == (2, 4)


@pytest.mark.parametrize("module", ["fewshot.classifier", "fewshot.predict"])
def test_what_only_training_needs_is_not_imported(module):
    heavy = "pytorch_lightning", "lightning_fabric", "torchmetrics", "torchvision", "wandb", "optuna", "sqlalchemy"
    program = f"import sys, {module}; print(*({{'matplotlib', *{heavy}}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
