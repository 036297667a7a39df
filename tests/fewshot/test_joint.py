"""A learner and an extractor that were trained jointly, in use: from the checkpoint alone, and as a package."""

import json
import warnings

import numpy as np
import pytest
import torch

from fewshot import FewShotClassifier
from fewshot.predict import predict
from fewshot.publish import package
from leo.run import meta_train
from pretrain.extractor import Extractor
from pretrain.network import state_sha256
from tests.conftest import composing
from tests.fewshot.conftest import LEARNER, STAGES, stripes, write_classes


@pytest.fixture(scope="module")
def checkpoint(world, tmp_path_factory):
    """``best.ckpt`` of a joint run, in a folder with nothing of stage 1 beside it."""
    folder = tmp_path_factory.mktemp("jointly")
    with composing(world) as make, warnings.catch_warnings(action="ignore"):
        stages = [*STAGES, f"data.source.path={world / 'stripes'}"]
        joint = ["extractor=joint", "extractor.lr=1e-3", "max_steps=20", "val.every=10"]
        meta_train(make(*LEARNER, *stages, *joint, f"run_dir={folder / 'alone' / 'learner'}"))
    return folder / "alone" / "learner" / "best.ckpt"


def extractor_in(path):
    """The extractor in the checkpoint at ``path``, put together by hand; that of stage 1 is another."""
    content = torch.load(path, weights_only=True)
    extractor = Extractor(**content["extractor"])
    names = [name for name in content["state_dict"] if name.startswith("extractor.")]
    extractor.load_state_dict({name.partition(".")[2]: content["state_dict"][name] for name in names})
    return extractor


def pictures(labels, seeds):
    return [np.asarray(stripes(label, seed)) for label in labels for seed in seeds]


def test_images_are_seen_by_the_extractor_in_the_checkpoint(world, checkpoint):
    classifier, labels = FewShotClassifier.load(checkpoint), [label for label in (40, 41, 42) for _ in range(2)]
    images, extractor = torch.from_numpy(np.stack(pictures((40, 41, 42), (0, 1)))), extractor_in(checkpoint)
    features = extractor.in_parts(images).numpy()
    before = FewShotClassifier.load(world / "runs" / "learner").model.extractor
    assert not np.allclose(features, before.in_parts(images).numpy(), atol=1e-3)
    queries = pictures((40, 41, 42), (5, 6))
    of_images = classifier.fit(list(images.numpy()), labels).predict_proba(queries)
    of_features = classifier.fit(features, labels).predict_proba(
        extractor.in_parts(torch.from_numpy(np.stack(queries))).numpy()
    )
    np.testing.assert_allclose(of_images, of_features, atol=1e-5)
    digest = state_sha256(extractor.state_dict())
    assert classifier.model.config["features_origin"]["checkpoint"] == digest != state_sha256(before.state_dict())
    assert f"trained with the learner on stripes, SHA-256 {digest[:12]}" in classifier.model.method
    with pytest.raises(
        ValueError, match="best.ckpt has its own extractor, trained with the learner; leave out .*pretr"
    ):
        run = next((world / "runs").glob("pretrain-*"))
        FewShotClassifier.load(checkpoint, extractor=run)


def test_a_folder_is_classified_without_the_run_of_stage_1(checkpoint, composed, tmp_path):
    write_classes(tmp_path / "support", [40, 41], [3, 3])
    folders = [f"{name}={tmp_path / 'support'}" for name in ("support", "query")]
    predict(composed("stage=predict", f"checkpoint={checkpoint}", *folders))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["num_predictions"] == 6
    assert result["inputs"]["extractor"]["checkpoint"] == state_sha256(extractor_in(checkpoint).state_dict())


def test_a_package_holds_the_extractor_of_the_checkpoint(checkpoint, composed, tmp_path):
    package(composed("stage=package", f"checkpoint={checkpoint}", f"stage.output={tmp_path / 'package'}"))
    packed, images = FewShotClassifier.load(tmp_path / "package"), pictures((40, 41, 42), (0, 1))
    labels = [label for label in (40, 41, 42) for _ in range(2)]
    expected = FewShotClassifier.load(checkpoint).fit(images, labels).predict_proba(images)
    np.testing.assert_allclose(packed.fit(images, labels).predict_proba(images), expected, atol=1e-6)
    card = (tmp_path / "package" / "README.md").read_text()
    assert "tell the training classes of *stripes* apart, then trained together with the learner, on tasks of" in card
    with pytest.raises(ValueError, match="was trained here, so its weights have no other name"):
        package(
            composed(
                "stage=package", f"checkpoint={checkpoint}", "stage.extractor_weights=by_name",
                f"stage.output={tmp_path / 'other'}", f"run_dir={tmp_path / 'other_run'}",
            )
        )  # fmt: skip
