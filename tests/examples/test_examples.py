"""The examples as their users run them, on what real small runs leave."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY_GLYPHS

pytestmark = pytest.mark.slow
PICTURES = ("support", "predictions", "accuracy", "codes", "leo")


def call(folder, script, *arguments):
    """The finished process of a script of the project, run in ``folder``."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, features, and LEO with two ablations, two seeds of two of them."""
    folder = tmp_path_factory.mktemp("examples")
    for run in ("none-seed0", "none-seed1", "no_finetuning-seed0", "no_finetuning-seed1", "deterministic-seed7"):
        ablation, seed = run.split("-seed")
        made = call(
            folder, "train.py", *TINY_GLYPHS, f"ablation={ablation}", f"seed={seed}", f"run_dir=runs/glyphs_1shot-{run}"
        )
        assert made.returncode == 0, made.stderr
    return folder


def test_adaptation_to_glyphs_draws_its_pictures(trained):
    done = call(trained, "examples/adapt_to_glyphs.py", "seed=3")
    assert done.returncode == 0, done.stderr
    assert "25 queries classified" in done.stdout  # 5 classes of 6 images, one of them support
    for name in PICTURES:
        with Image.open(trained / "runs/adapt_to_glyphs" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50, name


def test_comparison_of_ablations_agrees_with_the_result_files(trained):
    done = call(trained, "examples/compare_ablations.py")
    assert done.returncode == 0, done.stderr
    accuracy = {
        (ablation, seed): 100
        * json.loads((trained / f"runs/glyphs_1shot-{ablation}-seed{seed}/result.json").read_text())["accuracy"]
        for ablation in ("none", "no_finetuning")
        for seed in (0, 1)
    }
    found = json.loads((trained / "runs/compare_ablations/comparison.json").read_text())
    assert found["seeds"] == [0, 1]
    differences = [accuracy["no_finetuning", seed] - accuracy["none", seed] for seed in (0, 1)]
    assert found["difference"]["mean"] == pytest.approx(sum(differences) / 2)
    assert found["none"]["mean"] == pytest.approx((accuracy["none", 0] + accuracy["none", 1]) / 2)
    assert found["none"]["deviation"] == pytest.approx(abs(accuracy["none", 0] - accuracy["none", 1]) / 2**0.5)
    for pair, difference in zip(found["by_task"], differences, strict=True):
        assert pair["difference"] == pytest.approx(difference, abs=1e-3)
        assert pair["better"] + pair["worse"] <= 1
    assert (trained / "runs/compare_ablations/comparison.png").stat().st_size > 20_000


def test_comparison_without_checkpoints_keeps_to_the_result_files(trained, tmp_path):
    for run in ("none-seed0", "no_finetuning-seed0"):
        result = json.loads((trained / f"runs/glyphs_1shot-{run}/result.json").read_text())
        (tmp_path / f"runs/glyphs_1shot-{run}").mkdir(parents=True)
        (tmp_path / f"runs/glyphs_1shot-{run}/result.json").write_text(json.dumps(result))
    done = call(tmp_path, "examples/compare_ablations.py")
    assert done.returncode == 0, done.stderr
    assert "seed 0: no difference by task" in done.stdout
    assert json.loads((tmp_path / "runs/compare_ablations/comparison.json").read_text())["by_task"] == []


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("adapt_to_glyphs", ["checkpoint=other.ckpt"], "other.ckpt is missing; `python train.py` makes it"),
        ("adapt_to_glyphs", ["sed=1"], "Key 'sed' is not in struct"),
        ("compare_ablations", ["second=generator_only"], "ablation=generator_only is needed in runs, found: none"),
        ("compare_ablations", ["second=deterministic"], "none has seeds [0, 1], deterministic has [7]: none in common"),
    ],
    ids=["missing", "misspelt", "not trained", "no seed in common"],
)  # fmt: skip
def test_mistakes_get_one_message(trained, script, arguments, message):
    done = call(trained, f"examples/{script}.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
