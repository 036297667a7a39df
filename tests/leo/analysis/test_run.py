"""The command end to end on toy features: its files, what it skips, what it refuses."""

import csv
import json
import logging
import shutil
from xml.etree import ElementTree

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from leo.analysis.figures import FIGURES
from leo.analysis.methods import Sizes, load_methods
from leo.analysis.run import analyze
from leo.features import load_splits
from leo.methods import ESTIMATORS, METHODS
from leo.run import meta_train
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)

SMALL = ["stage=analyze", "stage.num_tasks=8", "stage.max_inner_steps=6", "stage.num_samples=2", "stage.num_bins=4",
         "stage.embedding.max_iter=250"]  # fmt: skip


@pytest.fixture
def train_toy(tmp_path, composed, toy_overrides):
    """A function from a name and overrides to the best checkpoint of a run of that name."""

    def train(name, *overrides):
        kept = [key for key in toy_overrides if "meta_sgd" not in str(overrides) or not key.startswith("model.learner")]
        meta_train(composed(*kept, *overrides, "test.num_tasks=null", f"run_dir={tmp_path / name}"))
        return tmp_path / name / "best.ckpt"

    return train


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_figure_of_three_methods(tmp_path, composed, toy_overrides, train_toy, caplog):
    leo = train_toy("leo")
    others = [
        train_toy("generator", "ablation=generator_finetuning"),
        train_toy("meta_sgd", "experiment=glyphs_1shot_meta_sgd"),
    ]
    caplog.set_level(logging.INFO)
    compare = f"stage.compare=[{','.join(map(str, others))}]"
    cfg = composed(*toy_overrides, *SMALL, f"checkpoint={leo}", compare)
    analyze(cfg)
    folder = tmp_path / "run"
    names = ["LEO", "LEO, generator finetuning", "Meta-SGD"]
    for figure in FIGURES:
        with Image.open(folder / f"{figure}.png") as picture:
            assert picture.size > (400, 300)
        assert ElementTree.parse(folder / f"{figure}.svg").getroot().tag.endswith("svg")
    methods = {
        figure: list(dict.fromkeys(row.get("method") for row in table(folder / f"{figure}.csv"))) for figure in FIGURES
    }
    assert methods == {
        "learned_rates": names, "decoder": names[:2], "curvature": names, "step_lengths": names, "calibration": names,
        "inner_steps": names, "codes": [None],
    }  # fmt: skip
    assert "decoder: Meta-SGD is left out, it has no latent codes" in caplog.text
    content = json.loads((folder / "analysis.json").read_text())
    assert content["checkpoints"] == dict(zip(names, map(str, [leo, *others]), strict=True))
    assert list(content["figures"]) == list(FIGURES)
    assert len(table(folder / "curvature.csv")) == 5 * 8 * 6  # spaces, tasks, (N - 1) K N eigenvalues
    assert len(table(folder / "step_lengths.csv")) == (10 + 5 + 5) * 8
    assert len(table(folder / "inner_steps.csv")) == 4 * 7
    codes = table(folder / "codes.csv")
    assert len(codes) == 2 * 8 * 3
    after = [float(row["silhouette"]) for row in codes if row["step"] == "after"]
    assert content["figures"]["codes"]["silhouette"]["after"] == pytest.approx(sum(after) / len(after))
    means = [row for row in table(folder / "learned_rates.csv") if row["step"] == "39" and row["element"] == "mean"]
    assert {row["rate"] for row in means} == {"latent_lr", "finetune_lr", "inner_lr"}
    trained = [row for row in table(folder / "inner_steps.csv") if row["steps"] == row["trained_steps"]]
    assert len({row["accuracy"] for row in trained if row["method"] == "LEO"}) == 1  # both loops as trained


def test_figures_that_a_method_cannot_have_are_skipped(tmp_path, composed, toy_overrides, train_toy, caplog):
    path = train_toy("meta_sgd", "experiment=glyphs_1shot_meta_sgd")
    (tmp_path / "meta_sgd" / "metrics.csv").unlink()
    caplog.set_level(logging.INFO)
    analyze(composed(*toy_overrides, *SMALL, f"checkpoint={path}"))
    for figure in ("decoder", "codes"):
        assert f"{figure}: skipped, it needs a method with latent codes" in caplog.text
        assert not list((tmp_path / "run").glob(f"{figure}.*"))
    assert "learned_rates: Meta-SGD is left out of the course of training" in caplog.text
    figures = json.loads((tmp_path / "run" / "analysis.json").read_text())["figures"]
    assert list(figures) == [figure for figure in FIGURES if figure not in ("decoder", "codes")]
    assert not [name for name in figures["calibration"] if "2 samples" in name]


@pytest.mark.parametrize("ablation", ["generator_only", "deterministic"])
def test_an_ablation_has_the_figures_that_it_can_have(tmp_path, composed, toy_overrides, train_toy, ablation, caplog):
    caplog.set_level(logging.INFO)
    path = train_toy("leo", f"ablation={ablation}", "max_steps=20")
    analyze(composed(*toy_overrides, *SMALL, f"checkpoint={path}"))
    figures = json.loads((tmp_path / "run" / "analysis.json").read_text())["figures"]
    missing = {"learned_rates", "step_lengths", "inner_steps"} if ablation == "generator_only" else set()
    assert list(figures) == [figure for figure in FIGURES if figure not in missing]
    assert all(f"{figure}: skipped, no method" in caplog.text for figure in missing)
    assert (len(figures["calibration"]) == 1) == (ablation == "deterministic")


def test_the_same_method_twice_is_told_apart_by_its_folder(tmp_path, train_toy):
    path = train_toy("first", "max_steps=20")
    (tmp_path / "second").mkdir()
    other = shutil.copy(path, tmp_path / "second" / "best.ckpt")
    methods = load_methods([path, other], load_splits(tmp_path / "toy"), Sizes(3, 1, 4))
    assert [method.name for method in methods] == ["LEO (first)", "LEO (second)"]


def test_what_cannot_be_looked_at_is_refused_before_work(tmp_path, composed, toy_overrides, train_toy):
    path = train_toy("leo", "max_steps=20")

    def refused(message, *overrides, error=ValueError):
        with pytest.raises(error, match=message):
            analyze(composed(*toy_overrides, *SMALL, *overrides))
        assert not (tmp_path / "run").exists()

    given = f"checkpoint={path}"
    refused("stage=analyze needs checkpoint=PATH")
    refused(
        "none.ckpt is missing; meta-training writes it", f"checkpoint={tmp_path / 'none.ckpt'}", error=FileNotFoundError
    )
    refused("none.ckpt is missing", given, f"stage.compare=[{tmp_path / 'none.ckpt'}]", error=FileNotFoundError)
    refused("was trained with num_shot=1, the analysis is of num_shot=2", given, "num_shot=2")
    refused("stage.num_tasks=1 must be a whole number of at least 2", given, "stage.num_tasks=1")
    refused("has 30 images, num_shot \\+ num_query needs 1 \\+ 40", given, "num_query=40")

    checkpoint = torch.load(path, weights_only=True)
    learner = checkpoint["config"]["model"]["learner"]
    origin = checkpoint["config"]["features_origin"]
    changed = {
        "holds a os.system; what can be looked into and used is leo": (
            "model",
            {"learner": learner | {"_target_": "os.system"}},
        ),
        "does not fit the learner that it names": ("model", {"learner": learner | {"num_latents": 5}}),
        "on other features than those in .* layer 21, .* They differ in layer: choose data=": (
            "features_origin",
            origin | {"layer": "21"},
        ),
    }
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    refused("other.ckpt does not hold a learner; choose the best.ckpt", f"checkpoint={tmp_path / 'other.ckpt'}")
    for message, (key, value) in changed.items():
        torch.save(checkpoint | {"config": checkpoint["config"] | {key: value}}, tmp_path / "changed.ckpt")
        refused(message, f"checkpoint={tmp_path / 'changed.ckpt'}")


def test_every_configured_classifier_has_a_name():
    """conf/model/model_*.yaml are learners that generate a whole model, which are composed, not found by name."""
    paths = [path for path in (ROOT / "conf" / "model").glob("*.yaml") if not path.name.startswith("model_")]
    learners = [OmegaConf.load(path).learner for path in paths]
    targets = {learner._target_ for learner in learners if "_target_" in learner}
    assert targets == {*METHODS, "leo.scikit_learn.LinearEstimator"}
    estimators = {learner.estimator._target_ for learner in learners if "_target_" not in learner}
    assert estimators == set(ESTIMATORS)
