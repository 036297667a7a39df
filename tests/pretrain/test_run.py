"""Stage 1 as configured for miniImageNet, on a toy store of 84x84 images: views, precision, two processes."""

import csv
import os
import subprocess
import sys
import time

import pytest
import torch
from hydra.utils import instantiate
from safetensors import safe_open
from torch import nn

from pretrain.run import pretrain
from pretrain.store import SPLITS, write_split
from tests.conftest import ROOT


@pytest.fixture
def toy(tmp_path):
    """Overrides for a narrow extractor on three noisy colours, 84x84, in ``tmp_path``."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, (3, 12, 84, 84, 3), dtype=torch.uint8, generator=generator)
    for colour in range(3):
        images[colour, ..., colour] += 100
    for split in SPLITS:
        write_split(
            tmp_path / "toy", split, images.flatten(0, 1), torch.arange(4) * 12, ["r", "g", "b"], "mini_imagenet", {}
        )
    return [
        "data=mini_imagenet",
        f"data.folder={tmp_path / 'toy'}",
        "data.source=null",
        "backbone.depth=10",
        "backbone.width=1",
        "backbone.mid_level=9",
        "data.pretrain.batch_size=6",
        "data.pretrain.max_steps=4",
        "data.pretrain.val_every=2",
        "data.pretrain.num_val_per_class=3",
        "data.pretrain.schedule.milestones=[2]",
        "data.pretrain.optimizer.lr=0.01",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
    ]


def features(folder, name):
    with safe_open(folder / name / "val.safetensors", framework="pt") as file:
        return file.get_tensor("features"), file.metadata()


def test_one_training_exports_single_views_and_the_mean_of_ten(composed, toy, tmp_path):
    bf16 = [*toy, "trainer.precision=bf16-mixed", "centroid_tasks=5", "num_way=3", "num_query=4"]
    score = pretrain(composed(*bf16))
    run = tmp_path / "runs/pretrain-mini_imagenet-wrn_28_10-seed0"
    made = (run / "last.ckpt").stat().st_mtime_ns
    assert pretrain(composed(*bf16, "views=multiview")) == score
    assert (run / "last.ckpt").stat().st_mtime_ns == made, "the extractor is not trained again"

    single, about = features(tmp_path / "features", "mini_imagenet-wrn_28_10-layer9")
    mean, about_mean = features(tmp_path / "features", "mini_imagenet-wrn_28_10-layer9-multiview")
    assert (about["crop"], about_mean["crop"]) == ("centre", "multiview")
    assert about["checkpoint"] == about_mean["checkpoint"]
    assert single.shape == mean.shape == (36, 64)
    assert not torch.allclose(single, mean)
    torch.testing.assert_close(single, mean, atol=0.2, rtol=0)

    assert {name for _, name in rows(run)} == {
        f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy")
    } | {"val/centroid_accuracy"}


def test_multiview_needs_crops(composed):
    with pytest.raises(ValueError, match="views=multiview needs crops, and data=glyphs uses full images"):
        pretrain(composed("views=multiview"))


def two_processes(*overrides):
    """The command line for two CPU processes."""
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.precision=32-true"]
    return [sys.executable, str(ROOT / "train.py"), "stage=pretrain", *ddp, *overrides]


def rows(run):
    """What was logged in the run folder, by step and name."""
    with (run / "metrics.csv").open(newline="") as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_two_processes_train_as_one(composed, toy, tmp_path):
    """Same batches, same statistics: without random draws the weights agree, and so does what is logged."""
    plain = [*toy, "data.pretrain.augment._target_=torch.nn.Identity", "backbone.dropout=0"]
    folders = {name: tmp_path / name for name in ("one", "two")}

    def overrides(name):
        return [*plain, *(f"dirs.{kind}={folders[name] / kind}" for kind in ("runs", "features"))]

    pretrain(composed(*overrides("one")))
    finished = subprocess.run(
        two_processes(*overrides("two")),
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "MEMBER: 2/2" in finished.stdout

    one, two = (next(path.glob("runs/*")) for path in folders.values())
    weights, expected = (torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (two, one))
    assert weights.keys() == expected.keys()
    torch.testing.assert_close(weights, expected, atol=1e-4, rtol=1e-3)
    assert rows(two) == pytest.approx(rows(one), abs=1e-3)
    for name in ("mini_imagenet-wrn_28_10-layer9", "mini_imagenet-wrn_28_10-layer10"):
        torch.testing.assert_close(
            *(features(path / "features", name)[0] for path in folders.values()), atol=1e-3, rtol=0
        )


@pytest.mark.slow(reason="starts two processes twice, half a minute")
def test_two_processes_end_on_sigterm_and_go_on(toy, tmp_path):
    changes = ["data.pretrain.max_steps=100", "data.pretrain.val_every=20"]
    folders = [f"dirs.{kind}={tmp_path / kind}" for kind in ("runs", "features")]
    command = two_processes(*toy, *changes, *folders)
    run = tmp_path / "runs/pretrain-mini_imagenet-wrn_28_10-seed0"
    started = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 100
    while not (run / "last.ckpt").exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started.terminate()
    assert started.wait(20) == 143
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] < 100
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120, check=True)
    assert {step for step, _ in rows(run)} == set(range(100))


@pytest.mark.parametrize(
    ("data", "num_steps", "milestones"),
    [
        ("mini_imagenet", 10_000, (3_000, 5_000, 7_000, 8_000, 9_000)),
        ("tiered_imagenet", 50_000, (20_000, 25_000, 30_000, 35_000, 40_000)),
    ],
)
def test_recipe_is_that_of_appendix_b2(composed, data, num_steps, milestones):
    cfg = composed(f"data={data}")
    recipe, backbone = cfg.data.pretrain, cfg.backbone
    assert (backbone.depth, backbone.width, list(backbone.strides), backbone.dropout) == (28, 10, [2, 2, 2], 0.5)
    assert (recipe.batch_size, recipe.max_steps, recipe.label_smoothing) == (1024, num_steps, 0)
    assert num_steps % recipe.val_every == 0
    optimizer = instantiate(recipe.optimizer)([nn.Parameter(torch.zeros(1))])
    settings = optimizer.param_groups[0]
    assert (settings["momentum"], settings["nesterov"], settings["weight_decay"]) == (0.9, True, 5e-4)
    schedule = instantiate(recipe.schedule)(optimizer)
    rates = {}
    optimizer.step()
    for step in range(num_steps):
        rates.setdefault(round(settings["lr"], 9), step)
        schedule.step()
    assert rates == {
        0.1: 0,
        0.02: milestones[0],
        0.004: milestones[1],
        0.0008: milestones[2],
        0.00016: milestones[3],
        0.000032: milestones[4],
    }
    images = torch.randint(256, (2, 84, 84, 3), dtype=torch.uint8)
    for view in (instantiate(recipe.augment), instantiate(cfg.data.crop)):
        assert view(images).shape == (2, 80, 80, 3)
    assert cfg.data.crop.area == 0.8595
