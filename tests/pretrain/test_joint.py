"""Joint training by the real stages, on images of 8x8: what it equals, its resume, its starts, what it refuses."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from leo.analysis.run import analyze
from leo.features import read_origin
from leo.run import make_problem, meta_train
from leo.run import test_checkpoint as run_stage_test
from pretrain.extractor import read_extractor
from pretrain.joint import NUM_FIRST_IMAGES
from pretrain.run import pretrain
from pretrain.store import write_split
from sweeps.search import search
from tests.conftest import composing
from tests.leo.test_run import CopyAt

STAGES = [
    "data.source=null", "backbone.width=1", "data.pretrain.max_steps=8", "data.pretrain.val_every=8",
    "data.pretrain.batch_size=32", "data.pretrain.schedule.num_warmup=1", "data.pretrain.augment.max_shift=1",
    "num_way=3", "num_query=4", "tasks_per_batch=3", "max_steps=20", "val={every: 10, num_tasks: 20}",
    "test.num_tasks=20", "model.learner.num_latents=4", "model.learner.dropout=0.2", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=5",
]  # fmt: skip


def write_images(folder):
    """Stripes of a random direction and wave length for each class, with noise."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(8.0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        waves = torch.rand(count, 2, 1, 1, generator=generator) * 2
        clean = torch.sin(waves[:, 0] * place + waves[:, 1] * place[:, None])
        noisy = clean.unsqueeze(1) + 0.3 * torch.randn(count, 12, 8, 8, generator=generator)
        images = (noisy.clamp(-1, 1) * 127 + 128).byte().reshape(-1, 8, 8, 1)
        names = [f"{split}{label}" for label in range(count)]
        write_split(folder, split, images, 12 * torch.arange(count + 1), names, "stripes", {})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Overrides, and the folder with images, stage 1's run and features, and a frozen run in ``run``."""
    folder = tmp_path_factory.mktemp("joint")
    write_images(folder / "stripes")
    overrides = [*STAGES, f"data.folder={folder / 'stripes'}"]
    overrides += [f"dirs.{name}={folder / name}" for name in ("features", "runs")]
    with composing(folder) as make, warnings.catch_warnings(action="ignore"):
        pretrain(make(*overrides))
        meta_train(make(*overrides))
    return overrides, folder


@pytest.fixture
def joint(world, composed):
    """A function from more overrides to the configuration of a joint run."""
    return lambda *more: composed(*world[0], "extractor=joint", *more)


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def stage_1(folder):
    origin = read_origin(folder / "features" / "glyphs-wrn_10_2-layer9")
    return read_extractor(folder / "runs" / "pretrain-glyphs-wrn_10_2-seed0", origin)


def test_at_a_rate_of_0_and_without_augmentation_a_run_is_the_frozen_one(world, joint, tmp_path):
    """The extractor to the bit; the learner to rounding, as its inner loops are autograd's: 1e-4 after 20 updates."""
    meta_train(joint("extractor.lr=0", "extractor.weight_decay=0.1", "extractor.augment=false"))
    found, frozen = state(tmp_path / "run" / "last.ckpt"), state(world[1] / "run" / "last.ckpt")
    for name, value in stage_1(world[1]).state_dict().items():
        assert torch.equal(found.pop(f"extractor.{name}"), value), name
    assert found.keys() == frozen.keys()
    for name, value in frozen.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert torch.equal(found["normalizer.mean"], frozen["normalizer.mean"])
    results = [json.loads((folder / "run" / "result.json").read_text()) for folder in (tmp_path, world[1])]
    assert results[0]["val_accuracy"] == pytest.approx(results[1]["val_accuracy"], abs=0.005)
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-3)
    for key in ("data", "layer", "num_tasks"):
        assert results[0][key] == results[1][key]
    assert results[0]["group"] != results[1]["group"]
    assert "extractor" not in results[1]["config"]


@pytest.mark.parametrize("start", ["stage_1", "random"])
def test_a_killed_run_goes_on_bit_for_bit(joint, tmp_path, start):
    """Augmented, in chunks, with a decay; killed at update 15, after the checkpoint of update 10."""
    overrides = [f"extractor.start={start}", "extractor.lr=1e-3", "extractor.weight_decay=0.01", "extractor.chunk=16"]
    meta_train(joint(*overrides), [CopyAt(15, tmp_path / "run", tmp_path / "resumed")])
    assert not (tmp_path / "resumed" / "trained.json").exists()
    meta_train(joint(*overrides, f"run_dir={tmp_path / 'resumed'}"))
    for file in ("best.ckpt", "last.ckpt"):
        one, other = (torch.load(tmp_path / name / file, weights_only=True) for name in ("run", "resumed"))
        for name, value in one["state_dict"].items():
            assert torch.equal(value, other["state_dict"][name]), name
        for moments, others in zip(
            *(ckpt["optimizer_states"][0]["state"].values() for ckpt in (one, other)), strict=True
        ):
            assert all(torch.equal(moments[key], others[key]) for key in moments)
    logs = [(tmp_path / name / "metrics.csv").read_text() for name in ("run", "resumed")]
    assert logs[0] == logs[1]
    moved = make_problem(joint(*overrides)).build().extractor.state_dict()
    changed = {key for key, value in moved.items() if not torch.equal(value, one["state_dict"][f"extractor.{key}"])}
    assert "network.stem.weight" in changed
    assert not [key for key in changed if "running" in key]


def test_a_checkpoint_of_a_joint_run_is_tested_with_its_extractor_and_no_other(world, joint, composed, tmp_path):
    (overrides, folder), path = world, tmp_path / "run" / "best.ckpt"
    meta_train(joint("extractor.lr=1e-3"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    given = ["stage=test", f"checkpoint={path}", f"run_dir={tmp_path / 'tested'}"]
    assert run_stage_test(joint("extractor.lr=1e-3", *given)) == result["accuracy"]
    # The test again, by hand: its features made by the weights in the checkpoint.
    extractor = stage_1(folder)
    extractor.load_state_dict(
        {name[10:]: value for name, value in state(path).items() if name.startswith("extractor.")}
    )
    problem = make_problem(joint())
    module = problem.build()
    module.load_state_dict(state(path))
    table = problem.scaled(module, ["test"], torch.device("cpu"))
    expected = module.normalizer(extractor.in_parts(problem.parts.stores["test"].images))
    torch.testing.assert_close(table.features, expected)
    with pytest.raises(
        ValueError, match="run/best.ckpt holds an extractor that was trained with its learner; add extr"
    ):
        run_stage_test(composed(*overrides, *given))
    frozen = f"checkpoint={folder / 'run' / 'best.ckpt'}"
    with pytest.raises(ValueError, match="run/best.ckpt holds no extractor: its learner was trained on frozen featur"):
        run_stage_test(joint("stage=test", frozen))


def test_a_search_draws_the_extractors_rate_and_the_analysis_says_what_it_does_not_take(world, joint, composed):
    """One trial; its run has the rate that was drawn."""
    drawn = ["~search.space", '+search.space={extractor: {lr: "tag(log, interval(1e-5, 1e-3))"}}']
    cfg = joint("stage=search", "search.n_trials=1", "search.name=tried", *drawn)
    score = search(cfg)
    path = Path(cfg.search.folder) / "trial-000"
    assert 1e-5 < OmegaConf.load(path / "config.yaml").extractor.lr < 1e-3
    assert json.loads((path / "trained.json").read_text())["score"] == score
    with pytest.raises(ValueError, match="best.ckpt holds an extractor that was trained with its learner; stage=anal"):
        analyze(composed(*world[0], "stage=analyze", f"checkpoint={path / 'best.ckpt'}"))


def test_joint_training_may_go_on_from_a_learner_of_frozen_features(world, joint, tmp_path):
    """At rates of 0 it keeps all of it: learner, stage 1's extractor, normaliser."""
    path = world[1] / "run" / "best.ckpt"
    meta_train(joint("extractor.lr=0", "model.optimizer.lr=0", f"checkpoint={path}"))
    found = state(tmp_path / "run" / "last.ckpt")
    for name, value in state(path).items():
        assert torch.equal(found[name], value), name
    for name, value in stage_1(world[1]).state_dict().items():
        assert torch.equal(found[f"extractor.{name}"], value), name


def test_nothing_of_stage_1_is_needed_where_the_extractor_starts_from_nothing(world, joint, tmp_path):
    """Its weights follow from the seed; its statistics are those of training images, so that layers are scaled."""
    empty = [f"dirs.{name}={tmp_path / 'empty'}" for name in ("features", "runs")]
    first, again, other = (
        make_problem(joint("extractor.start=random", f"seed={seed}", *empty)) for seed in (0, 0, 1)
    )  # fmt: skip
    weights = [problem.parts.extractor.network.stem.weight for problem in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.origin["features_origin"]["checkpoint"] != other.origin["features_origin"]["checkpoint"]
    assert not first.parts.extractor.training
    images, network = first.parts.stores["train"].images, first.parts.extractor.network
    assert len(images) < NUM_FIRST_IMAGES  # all of them are looked at
    x = (images.permute(0, 3, 1, 2) / 255 - 0.25) / 0.25
    with torch.no_grad():
        activations = network.stem(x)
    norm = network.blocks[0].norm1
    torch.testing.assert_close(norm.running_mean, activations.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, activations.var((0, 2, 3)), rtol=1e-3, atol=1e-3)
    module = first.build().train()
    assert not any(part.training for part in module.extractor.modules())
    torch.testing.assert_close(
        module.normalizer.mean, first.parts.extractor.in_parts(images).mean(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["extractor.lr=-1"], "extractor.lr=-1 must be a number of at least 0"),
        (["extractor.weight_decay=much"], "extractor.weight_decay=much must be a number of at least 0"),
        (["extractor.chunk=0"], "extractor.chunk=0 must be a whole number of at least 1, or null"),
        (["extractor.start=stage1"], "extractor.start=stage1 is unknown; choose one of stage_1, random"),
        (["features=pixels"], "extractor=joint needs an extractor, and features has pixels"),
        (["features=array"], "needs an extractor, and features has features that were made elsewhere"),
        (["captured=true"], "captured=true has no joint training"),
        (["model.learner.inner_loops=closed_form"], "inner_loops=closed_form is for frozen features, .*; choose auto"),
        (["dirs.runs=elsewhere"], r"elsewhere/pretrain-.* is missing, from which extractor=joint goes on: .*"),
        (["dirs.features=elsewhere"], r"elsewhere/glyphs-wrn_10_2-layer9 is missing, from which extractor=joint goes"),
        (["model.optimizer=null"], "goes on with the learner's training, and leo.leo.LEO has none; leave it out"),
        (["num_way=9"], "num_way=9 exceeds the 8 classes of the train split"),
    ],
    ids=str,
)
def test_what_joint_training_does_not_have_is_refused_before_work(joint, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        meta_train(joint(*overrides))
    assert not (tmp_path / "run").exists()


def test_tasks_that_are_no_images_are_refused(composed):
    with pytest.raises(
        ValueError, match="extractor=joint learns from images of classes, and tasks has leo.model_probl"
    ):
        make_problem(composed("experiment=sines_and_lines", "extractor=joint"))
