"""Extractors that others have trained, and networks of the user's own, through the whole chain: images to package."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.nn.functional import normalize

from fewshot import FewShotClassifier
from fewshot.package import write_manifest
from fewshot.predict import predict
from fewshot.publish import package
from leo.run import meta_train
from pretrain.efficientnet_lite0 import their_name
from pretrain.extractor import Extractor, pretrained_extractor
from pretrain.run import ensure_features, plain_backbone, pretrain
from pretrain.sources.images import standard
from runner.config import check_overrides
from tests.fewshot.conftest import LEARNER, STAGES, stripes, write_classes

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of torch.export
]
LITE0 = ["backbone=efficientnet_lite0", "backbone.pretrained.image_size=64"]
TASKS = ["experiment=own_5shot", "data.name=crops", "num_way=2", "num_shot=2", "num_query=2", "tasks_per_batch=2",
         "max_steps=20", "val={every: 10, num_tasks: 10}", "test.num_tasks=10", "model.learner.num_latents=4",
         "trainer.accelerator=cpu", "trainer.log_every_n_steps=10"]  # fmt: skip


def write_crops(folder, *, shots, first=0):
    """Two photographs, each cut into columns: a class is a column, an image a square of it."""
    for name in ("china", "flower"):
        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for column in range(2):
            place = folder / f"{name} {column}"
            place.mkdir(parents=True)
            for i in range(first, first + shots):
                left, top = 300 * column + 7 * (i % 5), 40 * i
                picture.crop((left, top, left + 200, top + 150)).save(place / f"{i}.png")


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A folder with train, val and test, each with classes of its own."""
    folder = tmp_path_factory.mktemp("crops")
    for split in ("train", "val", "test"):
        write_crops(folder / split, shots=5)
        for place in (folder / split).iterdir():
            place.rename(place.with_name(f"{split} {place.name}"))
    return folder


def rows(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_command_with_nothing_trained(composed, tmp_path):
    write_crops(tmp_path / "known", shots=2)
    write_crops(tmp_path / "new", shots=2, first=2)
    folders = [f"support={tmp_path / 'known'}", f"query={tmp_path / 'new'}"]
    cfg = composed("stage=predict", *LITE0, *folders)
    check_overrides(cfg)
    predict(cfg)
    known, new = (sorted((tmp_path / name).rglob("*.png")) for name in ("known", "new"))
    classifier = FewShotClassifier.pretrained("efficientnet_lite0", settings=["backbone.pretrained.image_size=64"])
    classifier.fit(known, [path.parent.name for path in known])
    found = rows(tmp_path / "run")
    assert [row["class"] for row in found] == list(classifier.predict(new))
    kinds = [(row["class"].split()[0], path.parent.name.split()[0]) for row, path in zip(found, new, strict=True)]
    assert all(predicted == true for predicted, true in kinds), "a temple is no flower"
    # The method again, in three lines.
    extractor = classifier.model.extractor
    features = [normalize(extractor.in_parts(images(paths, extractor)), dim=1) for paths in (known, new)]
    centroids = normalize(features[0].unflatten(0, (4, 2)).mean(1), dim=1)
    np.testing.assert_allclose(classifier.predict_proba(new), (features[1] @ centroids.T).softmax(1), atol=1e-5)
    page = (tmp_path / "run" / "predictions.html").read_text(encoding="utf-8")
    said = "nearest centroid on features of EfficientNet-Lite0 (layer pooled, trained by others, SHA-256"
    assert said in page
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["stage"] == "predict"
    assert set(result["overrides"]) >= {"stage=predict", *LITE0, *folders}
    assert said in result["method"]
    inputs = result["inputs"]
    assert (inputs["checkpoint"], inputs["support"]["path"]) == (None, str(tmp_path / "known"))
    assert inputs["support"]["sha256"] != inputs["query"]["sha256"]
    assert len(inputs["extractor"]["checkpoint"]) == 64


def images(paths, extractor):
    framed = [standard(Image.open(path), extractor.image_size, "RGB", extractor.framing) for path in paths]
    return torch.from_numpy(np.stack(framed))


def test_the_whole_chain_with_an_extractor_that_others_have_trained(composed, crops, tmp_path):
    stages = [*TASKS, *LITE0, f"data.source.path={crops}"]
    cfg = composed(*stages, f"run_dir={tmp_path / 'runs' / 'learner'}")
    check_overrides(cfg)
    ensure_features(cfg)
    run = tmp_path / "runs" / "pretrain-crops-efficientnet_lite0-seed0"
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert (result["num_steps"], result["num_images"]) == (0, 60)
    assert result["extractor"]["weights"] == "efficientnet-lite0-57934424.pth"
    assert result["extractor"]["settings"]["framing"] == {"crop_fraction": 0.875, "filter": "bicubic"}
    digest = result["checkpoint_sha256"]
    with safe_open(tmp_path / "features/crops-efficientnet_lite0-layerpooled/val.safetensors", "pt") as file:
        about, features = file.metadata(), file.get_tensor("features")
    assert (about["checkpoint"], about["extractor"]) == (digest, "EfficientNet-Lite0")
    assert about["crop"] == "centre 0.875 of the shorter side, bicubic"
    meta_train(cfg)
    learned = tmp_path / "runs" / "learner"
    assert json.loads((learned / "result.json").read_text())["inputs"]["features_origin"]["checkpoint"] == digest
    # The same images from their files have the same features.
    classifier = FewShotClassifier.load(learned)
    files = sorted((crops / "val").rglob("*.png"))
    torch.testing.assert_close(
        classifier.model.extractor.in_parts(images(files, classifier.model.extractor)), features, rtol=1e-4, atol=1e-4
    )
    # Alone, the checkpoint finds the weights where they are installed.
    alone = shutil.copytree(learned, tmp_path / "elsewhere" / "deep" / "learner")
    assert FewShotClassifier.load(alone).model.extractor is not None
    labels = [path.parent.name for path in files]
    expected = classifier.fit(files, labels).predict_proba(files)
    for weights in ("inside", "by_name"):
        out = tmp_path / weights
        cfg = composed(*TASKS, "stage=package", f"checkpoint={learned}", f"stage.output={out}", "stage.num_query=2",
                       f"stage.extractor_weights={weights}", f"run_dir={tmp_path / 'made' / weights}")  # fmt: skip
        package(cfg)
        assert (out / "extractor.safetensors").exists() == (weights == "inside")
        card = (out / "README.md").read_text(encoding="utf-8")
        assert f"trained by others (efficientnet-lite0-57934424.pth, SHA-256 {digest})" in card
        assert "the centred square of 0.875 of the shorter side, bicubic" in card
        loaded = FewShotClassifier.load(out).fit(files, labels)
        np.testing.assert_allclose(loaded.predict_proba(files), expected, atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    config["features_origin"]["checkpoint"] = "0" * 64
    (out / "config.json").write_text(json.dumps(config))
    (out / "manifest.json").unlink()
    write_manifest(out)
    with pytest.raises(ValueError, match=r"the weights efficientnet-lite0-57934424.pth found here are not those"):
        FewShotClassifier.load(out)


def test_a_store_of_another_size_and_other_weights_are_refused(composed, crops, tmp_path):
    stages = ["stage=pretrain", "experiment=own_1shot", "data.name=crops", f"data.source.path={crops}",
              "backbone=efficientnet_lite0"]  # fmt: skip
    with pytest.raises(
        ValueError, match=r"are 48x48, and backbone=efficientnet_lite0 is to see squares of 160: give ba"
    ):
        pretrain(composed(*stages, "data.source.image_size=48"))
    own = [*stages[1:], "backbone.pretrained.image_size=48", "num_way=2", "num_query=2"]
    cfg = composed(*own)
    ensure_features(cfg)
    weights = pretrained_extractor(plain_backbone(cfg), own=[]).network.state_dict()
    other = {their_name(name): value * 1.01 if "stem" in name else value for name, value in weights.items()}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"layerpooled was made with other weights than those in .*other.pth: with"):
        ensure_features(composed(*own, f"backbone.pretrained.file={tmp_path / 'other.pth'}"))


@pytest.mark.parametrize(
    "override",
    [
        "data.pretrain.max_steps=5",
        "data.pretrain.optimizer.lr=1",
        "compile=true",
        "centroid_tasks=5",
        "trainer.devices=2",
    ],
)
def test_what_trains_an_extractor_is_refused(composed, override):
    stage = ["stage=pretrain", "experiment=own_1shot", "data.name=crops", *LITE0]
    with pytest.raises(ValueError, match=f"{override}: no effect in stage=pretrain with backbone.pretrained given"):
        check_overrides(composed(*stage, override))
    check_overrides(composed(*stage))


def test_what_a_command_without_a_learner_does_not_use_is_refused(composed):
    stage = ["stage=predict", "support=a", "query=b", "backbone=efficientnet_lite0"]
    with pytest.raises(ValueError, match="experiment=glyphs_5shot: no effect in stage=predict"):
        check_overrides(composed(*stage, "experiment=glyphs_5shot"))
    with pytest.raises(ValueError, match="backbone=wrn_28_10: no effect in stage=predict"):
        check_overrides(composed(*stage[:3], "backbone=wrn_28_10"))
    with pytest.raises(ValueError, match="has to be trained first .*; others have trained efficientnet_lite0"):
        FewShotClassifier.pretrained("wrn_10_2")
    with pytest.raises(
        FileNotFoundError, match="there is no backbone 'nasnet'; those that others have trained are eff"
    ):
        FewShotClassifier.pretrained("nasnet")


OWN = '''"""A small network."""

from torch import nn


class Small(nn.Module):
    """Two layers."""

    penultimate, name = 2, "Small"

    def __init__(self, *, width, in_channels, num_classes):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(in_channels, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)])
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.classifier(self.features(images, [2])[2])

    def features(self, images, layers):
        found = {}
        for number, layer in enumerate(self.layers, start=1):
            images = layer(images).relu()
            if number in layers:
                found[number] = images.float().mean(dim=(2, 3))
        return found
'''


def test_a_network_of_your_own_goes_through_the_whole_chain(composed, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    (mine / "conf" / "backbone").mkdir(parents=True)
    (mine / "small_network.py").write_text(OWN)
    (mine / "conf/backbone/small.yaml").write_text(
        "_target_: small_network.Small\nname: small\nwidth: 8\nmid_level: 2\n"
    )
    monkeypatch.syspath_prepend(mine)
    for first, split, count in ((0, "train", 6), (20, "val", 3), (40, "test", 3)):
        write_classes(tmp_path / "stripes" / split, range(first, first + count), [8] * count)
    found = [f"hydra.searchpath=[file://{mine / 'conf'}]", "backbone=small"]
    stages = [text.replace("[9]", "[1,2]") for text in STAGES if "width" not in text]
    cfg = composed(*found, *LEARNER, *stages, f"data.source.path={tmp_path / 'stripes'}",
                   f"run_dir={tmp_path / 'runs' / 'learner'}")  # fmt: skip
    pretrain(cfg)
    meta_train(cfg)
    learned = tmp_path / "runs" / "learner"
    files = [tmp_path / "stripes" / "test" / f"class {label}" / f"{seed}.png" for label in (40, 41) for seed in (0, 1)]
    from small_network import Small

    # Not called unasked: neither from a checkpoint nor from a package.
    unasked = FewShotClassifier.load(learned)
    with pytest.raises(ValueError, match=r"a network of your own, which images need: give backbone=.*networks="):
        unasked.fit(files, [0, 0, 1, 1])
    expected = FewShotClassifier.load(learned, networks=[Small]).fit(files, [0, 0, 1, 1]).predict_proba(files)
    with safe_open(tmp_path / "features/stripes-small-layer2/test.safetensors", "pt") as file:
        features = file.get_tensor("features")[:2]
    np.testing.assert_allclose(
        FewShotClassifier.load(learned, networks=[Small]).model.extractor(
            torch.from_numpy(np.stack([np.asarray(stripes(40, seed)) for seed in (0, 1)]))
        ),
        features,
        atol=1e-5,
    )
    out = tmp_path / "package"
    cfg = composed(*found, *LEARNER, "stage=package", f"checkpoint={learned}", f"stage.output={out}",
                   "stage.num_query=2", f"run_dir={tmp_path / 'made'}")  # fmt: skip
    package(cfg)
    with pytest.raises(ValueError, match=r"package has the network small_network.Small, which is not of this project"):
        FewShotClassifier.load(out)
    loaded = FewShotClassifier.load(out, networks=[Small]).fit(files, [0, 0, 1, 1])
    np.testing.assert_allclose(loaded.predict_proba(files), expected, atol=1e-5)
    known = tmp_path / "stripes" / "test"
    command = ["stage=predict", f"support={known}", f"query={known}", f"checkpoint={out}"]
    cfg = composed(*found, *command, f"run_dir={tmp_path / 'predicted'}")
    check_overrides(cfg)
    predict(cfg)
    assert len(rows(tmp_path / "predicted")) == 24
    with pytest.raises(
        ValueError, match=r"backbone=efficientnet_lite0 has no effect: the extractor of .* is a WideRes"
    ):
        predict(composed("backbone=efficientnet_lite0", *command[:3], f"checkpoint={wide(tmp_path, out)}"))


def wide(tmp_path, package_of_own):
    """A package of the same learner with an extractor of this project."""
    out = shutil.copytree(package_of_own, tmp_path / "wide")
    settings = {"network": {"depth": 10, "width": 1, "strides": [2, 2, 2], "in_channels": 3}, "layer": 9,
                "image_size": 16, "crop": None, "multiview": False}  # fmt: skip
    save_file({k: v.contiguous() for k, v in Extractor(**settings).state_dict().items()}, out / "extractor.safetensors")
    config = json.loads((out / "config.json").read_text()) | {"extractor": settings}
    (out / "config.json").write_text(json.dumps(config))
    (out / "manifest.json").unlink()
    write_manifest(out)
    return out
