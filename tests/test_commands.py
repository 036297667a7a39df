"""The command line as a user types it: all three stages, kills and resumes, a finished run, clear errors."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from leo.run import meta_train
from tests.conftest import ROOT, TINY_GLYPHS


def command(*overrides):
    return [sys.executable, str(ROOT / "train.py"), *map(str, overrides)]


def run(folder, *overrides):
    """The finished process, run in ``folder``."""
    return subprocess.run(command(*overrides), cwd=folder, capture_output=True, text=True, check=False)


def rows(folder):
    """What ``metrics.csv`` holds."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def state(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


def start_and_signal(folder, signum, step, *overrides):
    """Start the command, send ``signum`` once ``step`` updates are logged; the exit code."""
    process = subprocess.Popen(command(*overrides), cwd=folder, stdout=subprocess.DEVNULL)
    log = folder / "run" / "metrics.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and any(row[0].isdigit() and int(row[0]) >= step for row in rows(folder / "run")):
            process.send_signal(signum)
            return process.wait(60)
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"the run ended with {process.poll()} before step {step} was logged")


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_as_the_uninterrupted_one(tmp_path, toy_overrides):
    """SIGKILL, then SIGTERM in the middle of an interval, then to the end: same weights, optimiser, log and result."""
    overrides = [*toy_overrides, "max_steps=800", "val.every=200", "trainer.log_every_n_steps=1"]
    straight = run(tmp_path, *overrides, "run_dir=straight")
    assert straight.returncode == 0, straight.stderr

    assert start_and_signal(tmp_path, signal.SIGKILL, 230, *overrides, "run_dir=run") == -signal.SIGKILL
    assert state(tmp_path / "run")["global_step"] == 200
    assert start_and_signal(tmp_path, signal.SIGTERM, 450, *overrides, "run_dir=run") == 143
    stopped_at = state(tmp_path / "run")["global_step"]
    assert stopped_at > 450
    assert stopped_at % 200, "stopped in the middle of an interval"
    resumed = run(tmp_path, *overrides, "run_dir=run")
    assert resumed.returncode == 0, resumed.stderr

    expected, actual = state(tmp_path / "straight"), state(tmp_path / "run")
    assert actual["global_step"] == expected["global_step"] == 800
    for key, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][key], value), key
    for expected_moments, moments in zip(
        expected["optimizer_states"][0]["state"].values(), actual["optimizer_states"][0]["state"].values(), strict=True
    ):
        assert all(torch.equal(expected_moments[key], moments[key]) for key in expected_moments)
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("straight", "run")]
    assert [result["accuracy"] for result in results] == [results[0]["accuracy"]] * 2
    assert results[0]["val_accuracy"] == results[1]["val_accuracy"]

    again = run(tmp_path, *overrides, "run_dir=run")
    assert again.returncode == 0
    assert "run is finished: test accuracy" in again.stdout
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    other = run(tmp_path, *overrides, "run_dir=run", "num_query=5")
    assert other.returncode == 1
    assert "run holds a run with other settings (num_query: 4 -> 5)" in other.stderr


def test_three_stages_of_a_tiny_data_set(tmp_path):
    """Glyphs with few images, a narrow extractor, all built by the one command; then the table."""
    trained = run(tmp_path, *TINY_GLYPHS, "run_dir=runs/glyphs_1shot-none-seed0")
    assert trained.returncode == 0, trained.stderr
    result = json.loads((tmp_path / "runs/glyphs_1shot-none-seed0/result.json").read_text())
    assert result["experiment"] == "glyphs_1shot"
    assert result["num_tasks"] == 30
    assert 0 < result["accuracy"] < 1
    assert result["interval95"] > 0
    assert result["config"]["model"]["learner"]["num_latents"] == 64
    logged = {name for _, name, _ in rows(tmp_path / "runs/glyphs_1shot-none-seed0")}
    terms = (
        "loss",
        "query_loss",
        "kl",
        "encoder_penalty",
        "l2",
        "orthogonality",
        "accuracy",
        "latent_lr",
        "finetune_lr",
    )
    assert logged >= {f"train/{term}" for term in terms} | {"val/accuracy", "val/loss"}
    for layer in ("pixels", "wrn_10_2-layer9", "wrn_10_2-layer10"):
        for split in ("train", "val", "test"):
            assert (tmp_path / "features" / f"glyphs-{layer}" / f"{split}.safetensors").exists()
    assert (tmp_path / "runs/pretrain-glyphs-wrn_10_2-seed0/contact_sheet.png").stat().st_size > 10_000
    shown = run(tmp_path, "stage=report")
    assert shown.returncode == 0, shown.stderr
    assert f"{100 * result['accuracy']:.2f}" in shown.stdout
    changed = run(tmp_path, *TINY_GLYPHS, "backbone.dropout=0.5")
    assert changed.returncode == 1
    assert "was made with other settings of stage 1 (backbone.dropout: 0.0 -> 0.5); delete it" in changed.stderr


def test_an_error_of_a_user_is_one_line(tmp_path, toy_overrides):
    failed = run(tmp_path, *toy_overrides, "model.learner.dropout=1.5", "run_dir=run")
    assert failed.returncode == 1
    assert "error: dropout=1.5 is not a rate; it must be at least 0 and below 1\n" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list((tmp_path / "run").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_way=9", "num_way=9 exceeds the 6 classes of the val split; lower num_way"),
        ("num_query=30", "num_shot + num_query needs 1 + 30 = 31; lower one of them"),
    ],
)
def test_tasks_that_do_not_fit_the_features_stop_before_work_starts(
    tmp_path, composed, toy_overrides, override, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        meta_train(composed(*toy_overrides, override))
    assert not (tmp_path / "run").exists()
