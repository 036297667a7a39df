"""The benchmark of stage 1 runs, and its figures fit together."""

import json
import statistics
import subprocess
import sys

import pytest

from benchmarks import pretraining
from tests.conftest import ROOT


def test_figures_fit_together(monkeypatch, capsys):
    size = "--depth 10 --width 1 --size 16 --batch 2 --steps 1 --threads 1 --device cpu --json"
    monkeypatch.setattr("sys.argv", ["pretraining", *size.split()])
    pretraining.main()
    result = json.loads(capsys.readouterr().out)
    rates = {name: 2 / statistics.median(times) for name, times in result["all_seconds_per_step"].items()}
    assert result["images_per_second"] == pytest.approx(rates)
    assert result["ratio"] == pytest.approx(rates["ours"] / rates["plain"])
    # WRN-10-1, 16x16: 27 * 16 weights on 16 * 16 pixels, then 16 -> 16 on 8 * 8, -> 32 on 4 * 4, -> 64 on 2 * 2,
    # each group with a shortcut of ab, and 9ab and 9bb; the classifier. Backward costs as much twice, but the stem's
    # input has no gradient.
    stem, groups = 432 * 256, (256 * 19) * 64 + (512 * 10 + 1024 * 9) * 16 + (2048 * 10 + 4096 * 9) * 4
    operations = 2 * (2 * stem + 3 * (groups + 64 * 64))
    assert result["gflop_per_image"] == pytest.approx(operations / 1e9)
    assert result["tflop_per_second"] == pytest.approx(rates["ours"] * operations / 1e12)


def test_the_recipe_is_found_by_a_program_that_is_not_train_py():
    program = "from benchmarks.pretraining import recipe; print(recipe('mini_imagenet').data.pretrain.max_steps)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(pretraining.recipe("mini_imagenet").data.pretrain.max_steps), done.stderr


def test_two_timings_make_no_median(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretraining", "--repeats", "2"])
    with pytest.raises(SystemExit):
        pretraining.main()
    assert "give at least 3" in capsys.readouterr().err
