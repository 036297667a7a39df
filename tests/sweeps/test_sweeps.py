"""Sweeps on the command line: folders by meaning, finished runs left alone, one search for all seeds."""

import json
import os
import re
import subprocess

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT, TINY_GLYPHS
from tests.sweeps.test_launchers import needs
from tests.sweeps.test_search import ONE_VALUE
from tests.test_commands import command


def sweep(folder, toy_overrides, *overrides):
    """The results, by seed, that ``-m`` has left in ``folder``."""
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    words = command("-m", *toy_overrides, "model.learner.dropout=0", *overrides)  # finite with every seed
    done = subprocess.run(words, cwd=folder, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {json.loads(path.read_text())["seed"]: path for path in (folder / "runs").glob("glyphs_*/result.json")}


@pytest.mark.slow
def test_five_seeds_leave_a_finished_run_alone(tmp_path, toy_overrides):
    one = sweep(tmp_path, toy_overrides, "max_steps=20", "seed=3")
    stamp = one[3].stat().st_mtime_ns
    five = sweep(tmp_path, toy_overrides, "max_steps=20", "sweep=five_seeds")
    assert sorted(five) == [0, 1, 2, 3, 4]
    assert five[3] == one[3]
    assert five[3].stat().st_mtime_ns == stamp
    assert all(path.parent.name.startswith(f"glyphs_1shot-none-seed{seed}") for seed, path in five.items())


@pytest.mark.slow
def test_the_jobs_of_two_seeds_share_one_search(tmp_path, toy_overrides):
    needs("joblib")
    search = [*ONE_VALUE[1:], "search.n_trials=3", "search.name=study", "search.storage.heartbeat_interval=1"]
    search.append(f"search.best={tmp_path}/conf/hparams/search/glyphs_1shot-none.yaml")
    runs = sweep(tmp_path, toy_overrides, *search, "stage=paper", "seed=0,1", "hydra/launcher=joblib")
    trials = sorted(path.name for path in (tmp_path / "runs/study").glob("trial-*"))
    assert trials == ["trial-000", "trial-001", "trial-002"]
    results = [json.loads(runs[seed].read_text()) for seed in (0, 1)]
    assert results[0]["hparams"] == "search/glyphs_1shot-none"
    rates = {result["config"]["model"]["optimizer"]["lr"] for result in results}
    assert len(rates) == 1
    found = (tmp_path / "conf/hparams/search/glyphs_1shot-none.yaml").read_text()
    assert f"lr: {rates.pop()}" in found


@pytest.mark.slow
def test_runs_that_start_together_make_missing_features_once(tmp_path):
    needs("joblib")
    runs = sweep(tmp_path, TINY_GLYPHS, "seed=0,1", "hydra/launcher=joblib")
    assert sorted(runs) == [0, 1]
    made = [json.loads(path.read_text())["config"]["features_origin"]["checkpoint"] for path in runs.values()]
    assert made[0] == made[1]


@pytest.mark.slow
def test_one_command_does_all_three_stages_on_glyphs(tmp_path):
    """Features, a search, training on train + val with what it found, for two seeds; then the report."""
    needs("joblib")
    tiny = ["search.n_trials=3", "~search.space.model.learner.dropout", "search.storage.heartbeat_interval=1"]
    runs = sweep(tmp_path, TINY_GLYPHS, "sweep=paper_glyphs", "seed=0,1", *tiny)
    results = [json.loads(runs[seed].read_text()) for seed in (0, 1)]
    (study,) = (tmp_path / "runs").glob("search-glyphs_1shot-none-seed0*")
    assert {path.name for path in study.glob("trial-*")} == {"trial-000", "trial-001", "trial-002"}
    assert {result["hparams"] for result in results} == {"search/glyphs_1shot-none"}
    assert all(result["config"]["train_splits"] == ["train", "val"] for result in results)
    found = OmegaConf.load(study / "conf/hparams/search/glyphs_1shot-none.yaml")
    for result in results:
        assert result["config"]["model"]["optimizer"]["lr"] == found.model.optimizer.lr
        assert result["config"]["features"]["normalize"] == found.features.normalize
    words = command("stage=report", "stage.select=glyphs_1shot-none-seed*-hparams*")
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(words, cwd=tmp_path, env=paths, capture_output=True, text=True, check=True).stdout
    assert re.search(r"LEO .*\(2\)", shown), "a row of two seeds"


@pytest.mark.slow
def test_rows_of_a_table_are_searched_and_tested(tmp_path, toy_overrides):
    """Two methods that need no training: each has its search, then its run."""
    of_training = ("model.", "max_steps", "val.every", "tasks_per_batch")
    kept = [override for override in toy_overrides if not override.startswith(of_training)]
    chosen = ["sweep=table1_glyphs", "experiment=glyphs_5shot_ridge,glyphs_5shot_centroid_mid_level"]
    places = ["search.storage.heartbeat_interval=1", f"search.best={tmp_path}/best.yaml", "hydra/launcher=basic"]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    words = command("-m", *kept, *chosen, "search.n_trials=3", *places)
    subprocess.run(words, cwd=tmp_path, env=paths, capture_output=True, text=True, check=True)
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("glyphs_*/result.json")]
    assert {result["hparams"] for result in results} == {"search/best"}
    assert sorted(result["experiment"] for result in results) == [
        "glyphs_5shot_centroid_mid_level", "glyphs_5shot_ridge",
    ]  # fmt: skip
    trials = [path.parent.name for path in (tmp_path / "runs").glob("search-glyphs_5shot_*/trial-*")]
    assert len(trials) == 6
    assert len(set(trials)) == 2
