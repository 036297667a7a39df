"""Runs of learners that generate whole models: results, resume, Figure 3, and the third kind of task of the docs."""

import json
import math
import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from leo.families import FamilyShares
from leo.figure3 import PANELS, choose, draw
from leo.functions import Functions, ModelTasks, fit, nearest_family, values
from leo.inference import squared_error
from leo.model_problem import ModelScorer, score_shots
from leo.regression import ModelLearner
from leo.run import make_problem, meta_train
from leo.run import test_checkpoint as run_stage_test
from runner.files import sha256
from sweeps.search import search, write_best
from tests.conftest import ROOT
from tests.leo.test_functions import FAMILIES
from tests.test_commands import rows, state

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore::optuna.exceptions.ExperimentalWarning",
)
SMALL = [
    "model.learner.model.sizes=[1,6,1]",
    "tasks_per_batch=4",
    "max_steps=20",
    "val={every: 10, num_tasks: 30}",
    "test.num_tasks=100",
    "tasks.num_samples=3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=5",
]


class Constant:
    """y = the parameter, whatever x is."""

    scale = torch.ones(1)

    def __call__(self, parameters, x):
        return parameters.unsqueeze(1).expand(len(x), x.shape[1], 1)


class SineOrIdentity(Constant):
    """y = sin x where the parameter is positive, y = x elsewhere."""

    def __call__(self, parameters, x):
        return torch.where(parameters.unsqueeze(1) > 0, x.sin(), x)


class Recorded(ModelLearner):
    """Sample s of every task is ``samples[s]``."""

    def __init__(self, model, samples):
        super().__init__()
        self.model, self.loss, self.samples = model, squared_error, torch.tensor(samples)

    def sample(self, x, y, generator):
        return self.samples.repeat_interleave(len(x) // len(self.samples)).unsqueeze(1)


def test_mean_single_and_best_by_hand():
    """Samples 0, 2, 4 of tasks whose truth is 1 and 2."""
    x = torch.zeros(2, 3, 1)
    truth = torch.tensor([1.0, 2.0]).view(2, 1, 1).expand(2, 3, 1)
    tasks = ModelTasks(x, x, x, truth, truth)

    def extra(tasks, learner, parameters):
        return {"first": torch.tensor([3.0, math.nan]), "none": torch.full((2,), math.nan)}

    result, num_diverged, score = score_shots(Recorded(Constant(), [0.0, 2.0, 4.0]), [tasks], 3, extra)
    assert (num_diverged, score) == (0, -result["mean"])
    assert result["mean"] == pytest.approx((1 + 0) / 2)
    assert result["single"] == pytest.approx(((1 + 1 + 9) / 3 + (4 + 0 + 4) / 3) / 2)
    assert result["best"] == pytest.approx((1 + 0) / 2)
    assert result["mean_interval95"] == pytest.approx(1.96 * 0.5**0.5 / 2**0.5)
    assert (result["first"], result["none"]) == (3.0, None)
    validated = ModelScorer(Recorded(Constant(), [0.0, 2.0, 4.0]), 3)(tasks)
    assert (validated.loss.tolist(), validated.score.tolist()) == ([1.0, 0.0], [-1.0, 0.0])
    assert validated.diverged.tolist() == [False, False]


def test_a_diverged_task_has_no_loss_and_the_score_of_a_model_of_zeros():
    """Samples 0, 2, 4 of the first task, of the second one 0, inf, 4; the truths are 1 and 2."""
    x = torch.zeros(2, 3, 1)
    truth = torch.tensor([1.0, 2.0]).view(2, 1, 1).expand(2, 3, 1)
    tasks = ModelTasks(x, x, x, truth, truth)

    class Overflowing(Recorded):
        def sample(self, x, y, generator):
            return torch.tensor([0.0, 0.0, 2.0, math.inf, 4.0, 4.0]).unsqueeze(1)

    learner = Overflowing(Constant(), [0.0, 2.0, 4.0])
    result, num_diverged, score = score_shots(learner, [tasks], 3, None)
    assert (result["mean"], result["mean_interval95"], num_diverged) == (1.0, None, 1)
    assert score == -(1.0 + 2.0**2) / 2  # a model of zeros says 0 where the truth is 2
    validated = ModelScorer(learner, 3)(tasks)
    assert validated.diverged.tolist() == [False, True]
    assert validated.score.tolist() == [-1.0, -4.0]
    assert math.isnan(validated.loss[1])


def test_samples_of_both_families_are_found():
    """Samples sin x and x of one ambiguous and one certain task; then sin x and sin x."""
    x = torch.tensor([[[-1.0], [0.0], [1.0]], [[-3.0], [0.0], [3.0]]])
    y = torch.tensor([[[-0.85], [0.0], [0.85]], [[-6.0], [0.0], [6.0]]])
    tasks = ModelTasks(x, y, x, y, y)
    shares = FamilyShares(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3)
    for samples, both in (([1.0, -1.0], 1.0), ([1.0, 1.0], 0.0)):
        result = score_shots(Recorded(SineOrIdentity(), samples), [tasks], 2, shares).numbers
        assert (result["ambiguous"], result["both_if_ambiguous"], result["both_if_certain"]) == (0.5, both, both)
        probability = shares.probability(x, y, 20_000)[:, 0].tolist()
        for name, of_sine in zip(("exact_if_ambiguous", "exact_if_certain"), probability, strict=True):
            assert result[name] == pytest.approx(2 * of_sine * (1 - of_sine), abs=1e-5)


@pytest.mark.parametrize("experiment", ["sines_and_lines", "sines_and_lines_meta_sgd", "sines_and_lines_maml"])
def test_a_run_leaves_the_result_of_its_best_checkpoint(tmp_path, composed, experiment):
    cfg = composed(f"experiment={experiment}", *SMALL)
    score = meta_train(cfg)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    by_shot = {row["num_shot"]: row for row in result["by_num_shot"]}
    assert list(by_shot) == [1, 3, 5, 10]
    assert result["score"] == -by_shot[5]["mean"]
    assert result["val_score"] == score < 0
    if experiment != "sines_and_lines":  # nothing is sampled
        assert by_shot[5]["best"] == pytest.approx(by_shot[5]["mean"], rel=1e-5)
    tested = composed(f"experiment={experiment}", *SMALL, f"checkpoint={tmp_path / 'run/best.ckpt'}",
                      f"run_dir={tmp_path / 'tested'}")  # fmt: skip
    assert run_stage_test(tested) == result["score"]
    logged = {name for _, name, _ in rows(tmp_path / "run")}
    assert logged >= {"train/loss", "train/query_loss", "val/loss", "val/score"}


class StopAt(pl.Callback):
    """What SIGTERM does, after update 13."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 13:
            raise SIGTERMException


def test_a_stopped_and_resumed_run_ends_as_the_uninterrupted_one(tmp_path, composed):
    overrides = ["experiment=sines_and_lines", *SMALL, "trainer.log_every_n_steps=1"]
    meta_train(composed(*overrides, f"run_dir={tmp_path / 'straight'}"))
    with pytest.raises(SystemExit, match="143"):
        meta_train(composed(*overrides), [StopAt()])
    assert state(tmp_path / "run")["global_step"] == 13
    meta_train(composed(*overrides))
    expected, actual = state(tmp_path / "straight"), state(tmp_path / "run")
    for key, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][key], value), key
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("straight", "run")]
    assert results[0]["by_num_shot"] == results[1]["by_num_shot"]


def test_figure_3_is_drawn_from_the_run(tmp_path, composed):
    meta_train(composed("experiment=sines_and_lines", *SMALL))
    settings = [*SMALL, "stage=figure3", "test.num_tasks=300", f"run_dir={tmp_path / 'figure'}"]
    trained = f"stage.trained={tmp_path / 'run' / 'best.ckpt'}"
    draw(composed("experiment=sines_and_lines", *settings, trained, "stage.num_samples=4"))
    assert (tmp_path / "figure" / "figure3.png").stat().st_size > 20_000
    assert "</svg>" in (tmp_path / "figure" / "figure3.svg").read_text()
    numbers = json.loads((tmp_path / "figure" / "figure3.json").read_text())
    assert numbers["checkpoint_sha256"] == sha256(tmp_path / "run" / "best.ckpt")
    with pytest.raises(ValueError, match="figure holds a run with other settings .*num_samples: 4 -> 5"):
        draw(composed("experiment=sines_and_lines", *settings, trained, "stage.num_samples=5"))
    cfg = composed("experiment=sines_and_lines", "stage=figure3", "stage.num_samples=5", "num_shot=3")
    assert cfg.stage.trained == composed("experiment=sines_and_lines", "num_shot=3").stage.folder.join(
        (f"{tmp_path / 'runs'}/", "/best.ckpt")
    )
    assert list(numbers["families_of_samples"]) == list(PANELS)
    assert len(numbers["samples"]) == 4
    with pytest.raises(ValueError, match="choose experiment=sines_and_lines"):
        draw(composed("experiment=lines", *SMALL, "stage=figure3"))


def test_panels_obey_their_rule():
    tasks = Functions(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3).sample(
        1000, 5, 100, torch.Generator().manual_seed(2)
    )
    shares = FamilyShares(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3)
    panels = choose(tasks, shares)
    assert shares.explained(panels.support_x, panels.support_y).tolist() == [
        [True, False], [False, True], [True, True], [True, True],
    ]  # fmt: skip
    # Of the tasks that could stand in the ambiguous panels, by the rule written out once more, these are least known.
    inputs = torch.linspace(-5, 5, 201).view(-1, 1)
    best = fit(FAMILIES, tasks.support_x, tasks.support_y).coefficients
    sinusoids, lines = (values(family, inputs, best[:, i]) for i, family in enumerate(FAMILIES))
    fits = ((sinusoids - lines).square().mean((1, 2)) > 0.9**2) & shares.ambiguous(tasks.support_x, tasks.support_y)
    is_line = nearest_family(FAMILIES, tasks.query_x, tasks.truth) == 1
    for panel, of_family in ((2, fits & ~is_line), (3, fits & is_line)):
        doubts = [(shares.probability(x[None], y[None], 100_000)[0, 1] - 0.5).abs().item()
                  for x, y in zip(tasks.support_x[of_family], tasks.support_y[of_family], strict=True)]  # fmt: skip
        chosen = shares.probability(panels.support_x[panel, None], panels.support_y[panel, None], 100_000)[0, 1]
        assert abs(chosen.item() - 0.5) == pytest.approx(min(doubts), abs=0.02)
        assert len(doubts) > 5
    slopes = (panels.truth[:, 1] - panels.truth[:, 0]) / (panels.query_x[:, 1] - panels.query_x[:, 0])
    others = (panels.truth[:, 3] - panels.truth[:, 2]) / (panels.query_x[:, 3] - panels.query_x[:, 2])
    assert ((slopes - others).abs() < 1e-2).flatten().tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="none of the 1 test tasks is 'certain: line'; give test.num_tasks more"):
        choose(ModelTasks(*(part[:1] for part in panels)), shares)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_shot=4", r"tasks.num_shots=\[1, 3, 5, 10\] must be positive and hold num_shot=4; add it"),
        ("tasks.num_samples=0", "tasks.num_samples=0 must be a whole number of at least 1"),
        ("num_query=0", "num_query=0 must be a whole number of at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(composed, override, message):
    with pytest.raises(ValueError, match=message):
        make_problem(composed("experiment=sines_and_lines", override))


def test_the_third_kind_of_task_of_the_documentation_learns(tmp_path, composed, monkeypatch):
    text = (ROOT / "docs" / "new-task.md").read_text()
    files = dict(re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))
    assert sorted(files) == ["conf/experiment/half_planes.yaml", "conf/tasks/half_planes.yaml", "half_planes.py"]
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    cfg = composed(
        f"hydra.searchpath=[file://{tmp_path / 'mine' / 'conf'}]", "experiment=half_planes", *SMALL[1:],
        "max_steps=150", "val.every=50", "tasks_per_batch=16",
    )  # fmt: skip
    assert meta_train(cfg) > -math.log(2)  # better than not knowing


@pytest.mark.slow
def test_a_search_of_a_whole_model_leaves_values_that_a_run_takes(tmp_path, composed):
    best = tmp_path / "mine" / "hparams" / "search" / "tiny.yaml"
    overrides = ["experiment=sines_and_lines", *SMALL, "tasks.num_samples=2"]
    stage = [*overrides, "stage=search", "search.n_trials=2", "search.enqueue=[manual]", f"search.best={best}"]
    score = search(composed(*stage, "search.name=study"))
    write_best(composed(*stage, "search.name=study"))
    assert score < 0
    assert f"validation score {score:.4f}" in best.read_text()
    found = f"hydra.searchpath=[file://{tmp_path / 'mine'}]"
    assert meta_train(composed(*overrides, found, "hparams=search/tiny")) == score
