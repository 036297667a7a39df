"""Sweeps on the command line: folders by meaning, finished runs left alone, one search for all seeds."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from hydra_plugins.leo_runs_sweeper import returned
from leo.run import meta_train
from runner.errors import InputError, users_message
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


def workers_of(pid):
    """The processes of joblib's pool in the process ``pid``."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"popen_loky" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)
def test_a_sweep_of_which_a_process_is_killed_goes_on_by_the_same_command(composed, tmp_path, toy_overrides):
    """Joblib ends the others at once; what is said is one line, and the same command finishes all four."""
    needs("joblib")
    settings = [*toy_overrides, "model.learner.dropout=0.0", "max_steps=300", "val.every=20"]
    folders = [f"dirs.{name}={tmp_path / name}" for name in ("images", "features", "runs")]
    words = command("-m", "hydra.launcher.n_jobs=2", "seed=0,1,2,3", *settings, *folders)
    with (tmp_path / "output.txt").open("w") as output:
        swept = subprocess.Popen(words, cwd=tmp_path, stdout=output, stderr=output)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*seed0*/last.ckpt")):
        assert swept.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = workers_of(swept.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert swept.wait(60) == 1
    said = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-2] == (
        "error: a process of this sweep was killed (SIGKILL(-9)), and joblib ended the others; give the same command "
        "again: finished runs are skipped, the others go on from their last checkpoints; where memory was short, with "
        "hydra.launcher.n_jobs=1"
    )
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not list((tmp_path / "runs").glob("*/result.json"))

    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert sorted(result["seed"] for result in results) == [0, 1, 2, 3]
    meta_train(composed(*settings, "seed=0", f"run_dir={tmp_path / 'straight'}"))
    straight = json.loads((tmp_path / "straight/result.json").read_text())
    (resumed,) = (result for result in results if result["seed"] == 0)
    assert [resumed[key] for key in ("accuracy", "val_accuracy")] == [
        straight[key] for key in ("accuracy", "val_accuracy")
    ]


@pytest.mark.slow
def test_the_runs_that_fail_are_said_in_a_line_and_the_others_run(tmp_path, toy_overrides):
    words = command("-m", "hydra/launcher=basic", *toy_overrides, "max_steps=20", "model.learner.dropout=1.5,0.1,1.7")
    failed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    rule = "is not a rate; it must be at least 0 and below 1"
    assert failed.stderr.splitlines()[-2] == f"error: 2 of 3 runs failed: dropout=1.5 {rule}; dropout=1.7 {rule}"
    for text in ("Traceback", "Error executing job"):
        assert text not in failed.stdout + failed.stderr
    logged = [line for line in failed.stdout.splitlines() if "[ERROR]" in line]
    assert [line.partition(" failed: ")[2] for line in logged] == [f"dropout={rate} {rule}" for rate in (1.5, 1.7)]
    (result,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(result.read_text())["config"]["model"]["learner"]["dropout"] == 0.1


def ended(value):
    """What Hydra has of a run that returned ``value``, or raised it."""
    status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    return JobReturn(status=status, _return_value=value)


def test_the_error_of_a_sweep_is_of_all_its_runs():
    assert returned([ended(0.5), ended(None)]) == [0.5, None]
    with pytest.raises(InputError, match="^no images$"):
        returned([ended(InputError("no images")), ended(InputError("no images"))])
    with pytest.raises(InputError, match="^2 of 3 runs failed: no images; no classes$"):
        returned([ended(InputError("no images")), ended(0.5), ended(ConfigCompositionException("no classes"))])
    with pytest.raises(InputError, match="^1 of 2 runs failed: no images$"):
        returned([ended(InputError("no images")), ended(0.5)])
    with pytest.raises(ZeroDivisionError):
        returned([ended(InputError("no images")), ended(ZeroDivisionError())])


def raised_by(module, error):
    """``error`` with the traceback of code of ``module``."""
    code = "def fail(error):\n    raise error"
    names = {"__name__": module}
    exec(code, names)
    try:
        names["fail"](error)
    except RuntimeError as caught:
        return caught


def test_jobs_that_slurm_ends_or_refuses_are_said_in_a_line():
    lost = "Job 7_1 (task: 0) with path /runs/.submitit/7_1/7_1_0_result.pkl\nhas not produced any output (state: {})\n"
    for state in ("TIMEOUT", "CANCELLED by 0", "OUT_OF_MEMORY"):
        text = lost.format(state) + "Error stream produced:\n---\nslurmstepd: error (7_1)"
        said = users_message(raised_by("submitit.core.core", RuntimeError(text)))
        assert said.startswith(
            f"job 7_1 ended without a result (state {state}; its output is in /runs/.submitit/7_1); "
        )
        assert "give the same command again" in said
    refused = RuntimeError("sbatch: error: invalid partition specified: gpu\nsbatch: error: failed")
    said = users_message(raised_by("submitit.core.utils", refused))
    assert said == "no job could be submitted: sbatch: error: invalid partition specified: gpu sbatch: error: failed"
    trace = RuntimeError("Job (task=0) failed during processing with trace:\nZeroDivisionError")
    assert users_message(raised_by("submitit.core.core", trace)) is None
    assert users_message(raised_by("leo.run", RuntimeError(lost))) is None


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
