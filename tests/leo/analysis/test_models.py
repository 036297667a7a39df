"""The figures of learners of whole models: files, numbers against a learner made for that number of steps."""

import copy
import csv
import json

import pytest
import torch
from PIL import Image

from leo.analysis.models import MODEL_FIGURES, error_after
from leo.analysis.run import analyze
from leo.inference import MLP, squared_error
from leo.model_problem import ModelScorer
from leo.regression import ModelMetaSGD
from leo.run import make_problem, meta_train
from tests.leo.test_model_problem import SMALL

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)
ANALYZE = ["stage=analyze", "stage.num_tasks=25", "stage.max_inner_steps=3"]


@pytest.mark.parametrize(
    ("experiment", "figures", "loops"),
    [
        ("sines_and_lines", list(MODEL_FIGURES), {"latent", "weight"}),
        ("sines_and_lines_meta_sgd", list(MODEL_FIGURES), {"weight"}),
        ("sines_and_lines_maml", ["inner_steps"], {"weight"}),  # whose rate is not learned
    ],
)
def test_the_figures_of_a_run(composed, tmp_path, experiment, figures, loops):
    overrides = [f"experiment={experiment}", *SMALL]
    meta_train(composed(*overrides, "test.num_tasks=null", f"run_dir={tmp_path / 'trained'}"))
    analyze(composed(*overrides, *ANALYZE, f"checkpoint={tmp_path / 'trained' / 'best.ckpt'}"))
    folder = tmp_path / "run"
    assert list(json.loads((folder / "analysis.json").read_text())["figures"]) == figures
    for figure in figures:
        with Image.open(folder / f"{figure}.png") as picture:
            assert min(picture.size) > 200
        assert (folder / f"{figure}.svg").exists()
    with (folder / "inner_steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["loop"] for row in rows} == loops
    assert [int(row["steps"]) for row in rows] == [0, 1, 2, 3] * len(loops)
    assert all(float(row["loss"]) > 0 and float(row["interval95"]) > 0 for row in rows)


def test_the_error_after_some_steps_is_that_of_a_learner_of_so_many_steps(composed):
    torch.manual_seed(0)
    settings = {"model": MLP(sizes=[1, 6, 1]), "loss": squared_error, "max_norm": 1.0, "inner_lr": 0.05}
    learner = ModelMetaSGD(**settings, num_steps=2, learn_rates=True).eval()
    tasks = make_problem(composed("experiment=sines_and_lines", *SMALL)).fixed_tasks(30, 5, 1, torch.device("cpu"))
    losses = {}
    for num_steps in (0, 2, 4):
        other = ModelMetaSGD(**settings, num_steps=num_steps, learn_rates=True)
        other.load_state_dict(copy.deepcopy(learner.state_dict()))
        expected = torch.cat([ModelScorer(other, 1)(chunk).loss for chunk in tasks])
        losses[num_steps] = error_after(learner, "num_steps", num_steps, tasks)
        torch.testing.assert_close(losses[num_steps], expected)
    assert losses[0].mean() > losses[2].mean() > losses[4].mean()
    assert learner.num_steps == 2


def test_one_learner_at_a_time(composed, tmp_path):
    given = [f"checkpoint={tmp_path / 'a.ckpt'}", f"stage.compare=[{tmp_path / 'b.ckpt'}]"]
    with pytest.raises(ValueError, match="stage.compare is for classifiers"):
        analyze(composed("experiment=sines_and_lines", *SMALL, *ANALYZE, *given))
