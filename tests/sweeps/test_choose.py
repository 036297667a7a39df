"""The choice of a method by validation: against runs and differences computed by hand, and what it leaves."""

import json

import pytest
import torch
from PIL import Image

from fewshot import FewShotClassifier
from leo.checkpoint import load_weights
from leo.evaluate import Scorer, fixed_tasks
from leo.run import VAL_SEED, make_problem
from tests.conftest import composing
from tests.test_inputs import D_OF_BIRDS, KINDS, photographs

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)


SIMPLE = ["stage.only=[centroid,ridge,prototypes]", "+stage.methods.ridge=['model=ridge','hparams=none','max_steps=0']"]
CENTROIDS = "stage.only=[centroid,centroid_centred]"


@pytest.fixture
def settings(toy_overrides):
    """A choice on toy features; what belongs to LEO alone is left out."""
    return ["stage=choose", "run_dir=choice", *(it for it in toy_overrides if not it.startswith("model."))]


def test_the_best_on_the_same_tasks_is_chosen_and_tested_once(command, settings, tmp_path, capsys):
    assert command(*settings, *SIMPLE) == ""
    choice = json.loads((tmp_path / "choice/choice.json").read_text())
    by_hand = {}
    for name in ("centroid", "ridge", "prototypes"):
        hparams = "manual/prototypes" if name == "prototypes" else "none"
        with composing(tmp_path) as make:
            cfg = make(*settings[2:], f"model={name}", f"hparams={hparams}")
        problem = make_problem(cfg)
        module = problem.build()
        load_weights(module, tmp_path / "choice" / name / "best.ckpt", cfg)
        val = problem.scaled(module, ["val"], torch.device("cpu"))
        scorer = Scorer(module.learner.eval(), val, cfg.num_shot)
        tasks = fixed_tasks(val, cfg.val.num_tasks, cfg.num_way, cfg.num_shot, VAL_SEED)
        by_hand[name] = torch.cat([scorer(chunk).accuracy for chunk in tasks]).double()
    order = sorted(by_hand, key=lambda name: -by_hand[name].mean())
    assert [row["name"] for row in choice["rows"]] == order
    assert choice["chosen"] == order[0]
    for row in choice["rows"]:
        difference = by_hand[row["name"]] - by_hand[order[0]]
        half = 1.96 * difference.std() / len(difference) ** 0.5
        assert row["accuracy"] == pytest.approx(100 * by_hand[row["name"]].mean().item())
        assert row["difference"] == pytest.approx(100 * difference.mean().item())
        assert row["difference_interval95"] == pytest.approx(100 * half.item())
    result = json.loads((tmp_path / "choice/test/result.json").read_text())
    assert result["checkpoint"] == f"choice/{order[0]}/best.ckpt"
    assert not [path for path in (tmp_path / "choice").glob("*/result.json") if path.parent.name != "test"]
    assert choice["num_val_classes"] < 20
    said = capsys.readouterr().out
    assert f"there are only {choice['num_val_classes']} validation classes" in " ".join(said.split())

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "choice/prototypes").glob("*.ckpt")}
    (tmp_path / "choice/choice.json").unlink()
    assert command(*settings, *SIMPLE) == ""
    again = json.loads((tmp_path / "choice/choice.json").read_text())
    assert [row | {"seconds": 0} for row in again["rows"]] == [row | {"seconds": 0} for row in choice["rows"]]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "choice/prototypes").glob("*.ckpt")} == before


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(command, settings, tmp_path):
    assert "name at least two methods" in command(*settings, "stage.only=[leo]")
    assert "stage.only: there is no method svm; choose of leo, prototypes" in command(*settings, "stage.only=[leo,svm]")
    assert "model.learner.dropout=0.1: no effect in stage=choose" in command(*settings, "model.learner.dropout=0.1")
    broken = ["+stage.methods.mine=['model=none_such']", "stage.only=[centroid,mine]"]
    assert "model=none_such does not exist" in command(*settings, *broken)
    assert not (tmp_path / "choice").exists()


def test_the_choice_is_packaged_with_its_extractor(command, tmp_path):
    photographs(tmp_path / "birds", KINDS, 0)
    assert command("stage=choose", *D_OF_BIRDS, "data.source.path=birds", "run_dir=choice", CENTROIDS) == ""
    package = FewShotClassifier.load(tmp_path / "choice/package")
    images = sorted((tmp_path / "birds").glob("kind [01]/*.png"))
    package.fit(images, [path.parent.name for path in images])
    assert package.predict_proba([Image.open(images[0])]).shape == (1, 2)
    assert command("stage=choose", *D_OF_BIRDS, "data.source.path=birds", "run_dir=choice", CENTROIDS) == ""  # again
