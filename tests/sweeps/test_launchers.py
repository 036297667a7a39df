"""Workers of one search placed by Hydra's launchers."""

import importlib.util
import os
import subprocess

import pytest
from hydra import compose

from sweeps.search import load_study
from tests.conftest import ROOT
from tests.sweeps.test_search import ONE_VALUE, draws
from tests.test_commands import command

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


def needs(launcher):
    """Skip where the launcher's extra is not installed."""
    try:
        found = importlib.util.find_spec(PLUGINS[launcher])
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"hydra/launcher={launcher} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PLUGINS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_one_command_places_two_workers(composed, toy_overrides, tmp_path, launcher):
    needs(launcher)
    settings = [*toy_overrides, *ONE_VALUE, "search.name=study", "search.n_trials=3", f"dirs.runs={tmp_path / 'runs'}"]
    workers = ["-m", f"hydra/launcher={launcher}", "search.worker=0,1", "search.storage.heartbeat_interval=1"]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}  # a launcher's process does not start beside train.py
    done = subprocess.run(
        command(*workers, *settings), cwd=tmp_path, env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(draws(load_study(composed(*settings)))) == ["trial-000", "trial-001", "trial-002"]


def test_the_slurm_launcher_composes(composed):
    needs("submitit_local")
    overrides = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "threads=2"]
    launcher = compose("train", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.cpus_per_task, launcher.partition, launcher.timeout_min) == (2, "gpu", 1440)
    assert launcher.submitit_folder.endswith("runs/.submitit/%j")


def test_the_ray_launcher_composes(composed):
    needs("ray")
    launcher = compose("train", ["hydra/launcher=ray_cluster", "threads=2"], return_hydra_config=True).hydra.launcher
    assert (launcher.ray.init.address, launcher.ray.remote.num_cpus) == ("auto", 2)
