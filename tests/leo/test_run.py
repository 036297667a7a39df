"""Meta-training and testing in this process: results, checkpoints that do not fit, losses that are not finite."""

import json
import shutil
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from leo.checkpoint import load_weights
from leo.evaluate import evaluate, fixed_tasks
from leo.features import load_splits, scaled
from leo.run import TEST_SEED, build, meta_train, test_checkpoint
from runner.training import make_trainer, train
from tests.leo.tables import make_table, write_features

run_stage_test = test_checkpoint
del test_checkpoint  # pytest would take it for a test

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)


def test_the_result_is_the_best_checkpoints(tmp_path, composed, toy_overrides):
    cfg = composed(*toy_overrides)
    val_accuracy = meta_train(cfg)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    checkpoint = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    module = build(cfg, load_splits(tmp_path / "toy"))
    module.load_state_dict(checkpoint["state_dict"])
    table = scaled([load_splits(tmp_path / "toy")["test"]], module.normalizer, "cpu")
    scores = evaluate(module.learner, table, fixed_tasks(table, 40, 3, 1, TEST_SEED), 1)
    assert result["accuracy"] == pytest.approx(scores.accuracy.mean().item())
    assert result["val_accuracy"] == val_accuracy
    assert result["num_steps"] == 40
    assert result["checkpoint"] == str(tmp_path / "run" / "best.ckpt")
    assert result["seconds"]["train"] > 0
    assert checkpoint["config"] == result["config"]
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["last_epoch"] == 40  # the schedule counts updates
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)
    assert checkpoint["config"]["features_origin"]["checkpoint"] == "abc"


def test_stage_test_finds_the_same_accuracy(tmp_path, composed, toy_overrides):
    meta_train(composed(*toy_overrides))
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    cfg = composed(*toy_overrides, f"checkpoint={tmp_path / 'run' / 'best.ckpt'}", f"run_dir={tmp_path / 'tested'}")
    assert run_stage_test(cfg) == trained["accuracy"]
    assert json.loads((tmp_path / "tested" / "result.json").read_text())["val_accuracy"] == trained["val_accuracy"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=glyphs_1shot_meta_sgd"],
            "holds a leo.leo.LEO, the configuration asks for a leo.meta_sgd.MetaSGD",
        ),
        (
            ["features.normalize=l2"],
            "was trained with features.normalize=standardize, .* asks for l2; add features.norm",
        ),
        (["model.learner.num_latents=5"], "does not fit the configured learner: .*size mismatch"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, composed, toy_overrides, overrides, message):
    meta_train(composed(*toy_overrides))
    kept = [o for o in toy_overrides if "meta_sgd" not in str(overrides) or not o.startswith("model.learner")]
    cfg = composed(*kept, *overrides)
    module = build(cfg, load_splits(tmp_path / "toy"))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_weights(module, tmp_path / "run" / "best.ckpt", cfg)


def test_features_of_another_width_are_refused(tmp_path, composed, toy_overrides):
    meta_train(composed(*toy_overrides))
    for seed, split in enumerate(("train", "val", "test")):
        write_features(tmp_path / "wide", split, make_table([8] * 6, 9, seed))
    cfg = composed(*toy_overrides, f"features.folder={tmp_path / 'wide'}")
    with pytest.raises(ValueError, match="was trained on features of width 8, .*wide holds width 9"):
        load_weights(build(cfg, load_splits(tmp_path / "wide")), tmp_path / "run" / "best.ckpt", cfg)


def test_a_missing_or_foreign_checkpoint_is_refused(tmp_path, composed, toy_overrides):
    cfg = composed(*toy_overrides)
    module = build(cfg, load_splits(tmp_path / "toy"))
    with pytest.raises(FileNotFoundError, match=r"none.ckpt is missing; meta-training writes it"):
        load_weights(module, tmp_path / "none.ckpt", cfg)
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text.ckpt is not a checkpoint of this project, or is damaged"):
        load_weights(module, tmp_path / "text.ckpt", cfg)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, composed, toy_overrides):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    cfg = composed(*toy_overrides)
    with pytest.raises(ValueError, match=r"hostile.ckpt is not a checkpoint of this project"):
        load_weights(build(cfg, load_splits(tmp_path / "toy")), tmp_path / "hostile.ckpt", cfg)
    assert not (tmp_path / "ran").exists()


DIVERGING = ("model.learner.latent_lr=1e30", "model.optimizer.lr=10")


def test_a_loss_that_is_not_finite_stops_with_step_and_terms(composed, toy_overrides):
    message = r"the training loss is not finite \((nan|inf)\) at step \d+ \(last finite loss .*\); lower the"
    with pytest.raises(ValueError, match=message):
        meta_train(composed(*toy_overrides, *DIVERGING, "diverged=stop"))


def test_a_run_in_which_too_many_tasks_diverge_stops_and_says_what_to_lower(composed, toy_overrides):
    message = r"44 of the 44 tasks of the last 11 updates diverged, at step 10: more than max_diverged=0.1 .*; low"
    with pytest.raises(ValueError, match=message):
        meta_train(composed(*toy_overrides, *DIVERGING))


def test_a_result_counts_diverged_tasks_and_never_holds_a_nan(composed, toy_overrides, tmp_path):
    """With a limit of 1 the run goes on: every task of training, validation and test diverges."""
    score = meta_train(composed(*toy_overrides, "model.learner.latent_lr=3e38", "max_diverged=1"))
    text = (tmp_path / "run" / "result.json").read_text()
    result = json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON
    assert (score, result["accuracy"], result["loss"]) == (0.0, 0.0, None)
    assert (result["train_diverged"], result["num_diverged"]) == (4 * 40, 40)
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert [value for _, name, value in rows if name == "train/diverged"] == ["40.0", "80.0", "120.0", "160.0"]
    assert {value for _, name, value in rows if name == "val/diverged"} == {"30.0"}
    assert not any(value == "nan" for _, _, value in rows)


class CopyAt(pl.Callback):
    """Copies the run folder as a kill at ``step`` would leave it."""

    def __init__(self, step, source, target):
        self.step, self.source, self.target = step, source, target

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            shutil.copytree(self.source, self.target)


@pytest.mark.parametrize("diverged", ["skip", "decay"])
def test_a_run_with_diverged_tasks_resumes_bit_for_bit(composed, toy_overrides, tmp_path, diverged):
    """Weights, log and count; about half of the tasks diverge."""
    overrides = [*toy_overrides, "model.learner.latent_lr=1.0", "max_diverged=1", f"diverged={diverged}"]
    meta_train(composed(*overrides), [CopyAt(30, tmp_path / "run", tmp_path / "resumed")])
    assert not (tmp_path / "resumed" / "trained.json").exists()
    meta_train(composed(*overrides, f"run_dir={tmp_path / 'resumed'}"))
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "resumed")]
    assert 0 < results[0]["train_diverged"] == results[1]["train_diverged"] < 160
    assert results[0]["accuracy"] == results[1]["accuracy"]
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("run", "resumed"))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    logs = [(tmp_path / name / "metrics.csv").read_text() for name in ("run", "resumed")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [("diverged=ignore", "diverged='ignore' is unknown; choose one of skip, decay, stop"),
     ("max_diverged=10", "max_diverged=10.* is a share of tasks; it must be between 0 and 1")],
)  # fmt: skip
def test_answers_and_limits_that_make_no_sense_are_refused(composed, toy_overrides, override, message):
    with pytest.raises(ValueError, match=message):
        meta_train(composed(*toy_overrides, override))


def test_a_validation_that_is_not_finite_does_not_let_a_worse_checkpoint_win(tmp_path):
    """Scores 0.9, NaN, 0.5, 0.7: best.ckpt is the first one's."""

    class Scripted(pl.LightningModule):
        scores = iter([0.9, float("nan"), 0.5, 0.7])

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            return self.weight * 0 + (self.weight - self.global_step).square() * 0

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.weight.data.fill_(self.global_step)

        def validation_step(self, batch, batch_idx):
            self.log("val/score", next(self.scores))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def train_dataloader(self):
            return DataLoader(torch.zeros(1, 1))

        val_dataloader = train_dataloader

    trainer = make_trainer(
        partial(pl.Trainer, accelerator="cpu", devices=1, log_every_n_steps=1), tmp_path, config={},
        monitor="val/score", patience=None, max_steps=4, val_every=1, updates_per_step=1, loggers=[], more_callbacks=[],
    )  # fmt: skip
    trained = train(trainer, Scripted(), None, tmp_path)
    assert (trained.score, trained.num_steps) == (pytest.approx(0.9), 4)
    best, last = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["state_dict"]["weight"].item(), last["state_dict"]["weight"].item()) == (1.0, 4.0)


def test_steps_that_validation_would_miss_are_refused(composed, toy_overrides):
    with pytest.raises(ValueError, match="max_steps=41 is not a multiple of the 20 steps between validations.* try 40"):
        meta_train(composed(*toy_overrides, "max_steps=41"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_way=1", "num_way=1 must be a whole number of at least 2"),
        ("num_shot=0", "num_shot=0 must be a whole number of at least 1"),
        ("num_query=0", "num_query=0 must be a whole number of at least 1"),
        ("tasks_per_batch=0", "tasks_per_batch=0 must be a whole number of at least 1"),
        ("val.num_tasks=1.5", "val.num_tasks=1.5 must be a whole number of at least 2"),
        ("test.num_tasks=0", "test.num_tasks=0 must be a whole number of at least 2"),
        ("train_splits=[trian]", r"train_splits=\['trian'\] must be \[train\] or \[train, val\]"),
        ("max_steps=0", "max_steps=0 ends before the first validation, after val.every=20"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_before_work(tmp_path, composed, toy_overrides, override, message):
    with pytest.raises(ValueError, match=message):
        meta_train(composed(*toy_overrides, override))
    assert not (tmp_path / "run").exists()


def test_stage_test_needs_a_checkpoint(composed, toy_overrides):
    with pytest.raises(ValueError, match="stage=test needs checkpoint=PATH"):
        run_stage_test(composed(*toy_overrides))


def test_training_on_train_and_val_uses_both(composed, toy_overrides, tmp_path):
    cfg = composed(*toy_overrides, "train_splits=[train,val]")
    meta_train(cfg)
    module = build(cfg, load_splits(tmp_path / "toy"))
    tables = load_splits(tmp_path / "toy")
    both = torch.cat([tables["train"].features, tables["val"].features])
    torch.testing.assert_close(module.normalizer.mean, both.mean(0))


@pytest.mark.parametrize("splits", ["[train]", "[train,val]"])
def test_a_run_on_features_scaled_row_by_row_is_the_same(composed, toy_overrides, tmp_path, monkeypatch, splits):
    cfg = composed(*toy_overrides, f"train_splits={splits}")
    results, weights = [], []
    for name, limit in (("copied", 10**8), ("by_row", 0)):
        monkeypatch.setattr("leo.features.COPIED", limit)
        meta_train(OmegaConf.merge(cfg, {"run_dir": str(tmp_path / name)}))
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
        weights.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    for key in ("accuracy", "loss", "val_accuracy", "interval95"):
        assert results[0][key] == results[1][key]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_early_stopping_ends_a_run_that_no_longer_improves(composed, toy_overrides, tmp_path):
    meta_train(composed(*toy_overrides, "max_steps=400", "patience=2", "model.optimizer.lr=1e-9"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["num_steps"] == 60  # one best validation, two without a better one


def test_nearest_centroid_needs_no_training(composed, toy_overrides, tmp_path):
    kept = [override for override in toy_overrides if not override.startswith(("model.", "max_steps"))]
    cfg = composed("experiment=glyphs_1shot_centroid_mid_level", *kept)
    meta_train(cfg)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    checkpoint = result["checkpoint"]
    assert (
        run_stage_test(OmegaConf.merge(cfg, {"checkpoint": checkpoint, "run_dir": str(tmp_path / "tested")}))
        == (result["accuracy"])
    )
    assert result["num_steps"] == 0
    assert result["accuracy"] > 0.5
