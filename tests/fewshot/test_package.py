"""A package: what is in it, that it is whole and unchanged, that nothing in it is run; its exported program."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshot import FewShotClassifier
from fewshot.package import write_manifest
from fewshot.publish import AdaptAndPredict, package
from runner.files import sha256
from tests.fewshot.conftest import LEARNER, stripes


def test_what_is_in_a_package(world):
    folder = world / "package"
    names = {
        "README.md", "adapt_and_predict.pt2", "config.json", "extractor.safetensors", "learner.safetensors",
        "manifest.json",
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {name: sha256(folder / name) for name in names - {"manifest.json"}}
    config = json.loads((folder / "config.json").read_text())
    assert config["extractor"] == {
        "network": {"depth": 10, "width": 1, "strides": [2, 2, 2], "in_channels": 3},
        "layer": 9, "image_size": 16, "framing": None, "crop": None, "multiview": False,
    }  # fmt: skip
    assert not [name for name in load_file(folder / "extractor.safetensors") if "classifier" in name]
    result = json.loads((world / "runs" / "learner" / "result.json").read_text())
    card = (folder / "README.md").read_text()
    assert f"{100 * result['accuracy']:.2f} +- {100 * result['interval95']:.2f} % (95 % interval over 20 tasks)" in card
    assert "3-way 2-shot, on test classes of stripes that training never saw" in card
    assert "16x16 pixels in RGB" in card
    assert "{" not in card


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_exported_program_is_the_classifier(world):
    program = torch.export.load(world / "package" / "adapt_and_predict.pt2").module()
    classifier = FewShotClassifier.load(world / "package")
    for first in (40, 20):
        support = np.array([[np.asarray(stripes(first + c, seed)) for seed in (0, 1)] for c in range(3)])
        query = np.array([np.asarray(stripes(first + c, 5)) for c in (2, 0, 1, 0)])
        found = program(torch.from_numpy(support), torch.from_numpy(query))
        eager = AdaptAndPredict(classifier.model)(torch.from_numpy(support), torch.from_numpy(query))
        torch.testing.assert_close(found, eager, rtol=0, atol=1e-5)
        fitted = classifier.fit(support.reshape(6, 16, 16, 3), [0, 0, 1, 1, 2, 2]).predict_proba(query)
        np.testing.assert_allclose(found.numpy(), fitted, rtol=0, atol=1e-5)
        assert fitted.max(1).min() > 0.4


@pytest.fixture
def copy(world, tmp_path):
    return shutil.copytree(world / "package", tmp_path / "copy")


@pytest.mark.parametrize("name", ["learner.safetensors", "README.md", "adapt_and_predict.pt2"])
def test_a_changed_file_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=f"copy/{name} is changed or damaged: its SHA-256 is .*; get the package again"
    ):
        FewShotClassifier.load(copy)


def test_a_missing_file_and_a_broken_manifest_are_refused(copy):
    (copy / "extractor.safetensors").unlink()
    with pytest.raises(ValueError, match=r"copy lacks extractor.safetensors, which its manifest names"):
        FewShotClassifier.load(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest.json does not name config.json"):
        FewShotClassifier.load(copy)
    (copy / "manifest.json").write_text('{"config.json": "", "../../x": ""')
    with pytest.raises(ValueError, match=r"manifest.json is not a manifest"):
        FewShotClassifier.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learner": {"_target_": "os.system"}}, "holds a os.system; what can be looked into and used is leo"),
        ({"extractor": {"depth": 10}}, "package .*copy cannot be used: .*unexpected keyword argument 'depth'"),
        ({"format": "other"}, "its format is 'other', expected 'few-shot-package-1'"),
        ({"normalize": "none"}, "features.normalize='none' is unknown"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(copy, change, message):
    """Even where the hashes fit: what is named in it is looked up, never run."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    with pytest.raises(ValueError, match=message):
        FewShotClassifier.load(copy)


def test_weights_of_another_learner_are_refused(copy):
    weights = load_file(copy / "learner.safetensors")
    weights["learner.encoder.weight"] = weights["learner.encoder.weight"][:2].contiguous()
    save_file(weights, copy / "learner.safetensors")
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    with pytest.raises(
        ValueError,
        match=r"package .*copy cannot be used: it does not fit the learner that it names: (?s:.*)size mismatch",
    ):
        FewShotClassifier.load(copy)


def test_a_package_is_written_whole_or_not_at_all(world, composed, tmp_path, monkeypatch):
    checkpoint = f"checkpoint={world / 'runs' / 'learner' / 'best.ckpt'}"
    cfg = composed(*LEARNER, "stage=package", checkpoint, f"stage.output={tmp_path / 'new' / 'package'}")

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", fail)
        with pytest.raises(OSError, match="the disk is full"):
            package(cfg)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new" / "package").mkdir()
    with pytest.raises(ValueError, match="new/package exists already; delete it or choose another folder"):
        package(cfg)
    alone = tmp_path / "alone" / "learner" / "best.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(world / "runs" / "learner" / "best.ckpt", alone)
    cfg = composed(*LEARNER, "stage=package", f"checkpoint={alone}")
    with pytest.raises(ValueError, match="without its extractor, which images need: .*; give stage.extractor=PATH"):
        package(cfg)
    with pytest.raises(ValueError, match="package is a package already; copy it"):
        package(composed(*LEARNER, "stage=package", f"checkpoint={world / 'package'}"))
    with pytest.raises(FileNotFoundError, match="learner/best.ckpt is missing; meta-training writes it"):
        package(composed(*LEARNER, "stage=package", f"checkpoint={tmp_path / 'learner' / 'best.ckpt'}"))
    assert not (tmp_path / "run").exists()
