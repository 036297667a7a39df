"""Run folders, logs and files."""

import csv
import os
import stat
import subprocess
import sys
import time

import pytest
from pytorch_lightning import LightningModule, Trainer

from runner.csv_log import CSVLog
from runner.files import sha256, whole_file, write_text
from runner.folder import differences, run_folder
from runner.training import RunProgressBar


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_log_appends_and_a_resumed_run_drops_what_it_will_log_again(tmp_path):
    log = CSVLog(tmp_path)
    log.log_metrics({"train/loss": 0.1 + 0.2, "epoch": 0}, step=9)
    CSVLog(tmp_path).log_metrics({"train/loss": 2.5, "val/accuracy": 0.5}, step=19)
    assert read(log.path) == [
        ["step", "name", "value"],
        ["9", "train/loss", "0.30000000000000004"],
        ["19", "train/loss", "2.5"],
        ["19", "val/accuracy", "0.5"],
    ]
    with log.path.open("a") as file:
        file.write("29,train/lo")  # as a kill leaves it
    log.keep_steps_before(19)
    assert read(log.path) == [["step", "name", "value"], ["9", "train/loss", "0.30000000000000004"]]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert list(path.parent.iterdir()) == []
    write_text(path, "first")
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_files_get_the_permissions_of_the_umask(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as partial:
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_sha256_of_a_known_text(tmp_path):
    write_text(tmp_path / "abc", "abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_differences_name_the_keys_on_either_side():
    recorded = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 0}
    requested = {"a": 1, "b": {"c": 3, "d": [1]}, "new": 5}
    assert differences(recorded, requested) == ["b.c: 2 -> 3", "gone: 0 -> None", "new: None -> 5"]


def test_a_folder_keeps_its_configuration(tmp_path):
    with run_folder(tmp_path / "run", {"seed": 0, "lr": 1e-3}):
        pass
    with run_folder(tmp_path / "run", {"seed": 0, "lr": 1e-3}):
        pass
    message = r"holds a run with other settings \(lr: 0.001 -> 0.1\); delete it, or give .* run_dir="
    with pytest.raises(ValueError, match=message), run_folder(tmp_path / "run", {"seed": 0, "lr": 0.1}):
        pass


def test_a_run_that_ends_before_it_writes_anything_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), run_folder(tmp_path / "run", {"seed": 0}):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyError), run_folder(tmp_path / "run", {"seed": 0}) as folder:
        (folder / "metrics.csv").write_text("step")
        raise KeyError
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "config.yaml", "metrics.csv"}
    with pytest.raises(KeyError), run_folder(tmp_path / "run", {"seed": 0}):
        raise KeyError
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_a_folder_serves_one_process_at_a_time(tmp_path):
    program = (
        "import sys; from pathlib import Path; from runner.folder import run_folder\n"
        "with run_folder(Path(sys.argv[1]), {}): pass"
    )
    with run_folder(tmp_path / "run", {}):
        other = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, text=True, check=False
        )
    assert other.returncode == 1
    assert "run is in use by another process; wait for it or stop it" in other.stderr


def test_the_progress_bar_tells_the_time_to_the_end_of_the_run():
    trainer = Trainer(max_steps=1_000, accelerator="cpu", logger=False, enable_checkpointing=False)
    bar = RunProgressBar(updates_per_step=1)
    bar.start, bar.first_step = time.perf_counter() - 8, -2  # two steps of this process took eight seconds
    assert bar.get_metrics(trainer, LightningModule())["left"].startswith("1:06:4")


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        ({"train/loss": 1.5, "train/kl": 2.0}, {"train/loss": 1.5}),
        ({"train/loss": 1.5, "val/loss": 1.2, "val/diverged": 3.0, "val/accuracy": 0.5}, {"val/accuracy": 0.5}),
        ({"train/loss": 1.5, "val/loss": 1.2, "val/mse": 0.5}, {"val/mse": 0.5}),
        ({}, {}),
    ],
)
def test_the_progress_bar_shows_what_fits_into_a_line(logged, shown, monkeypatch):
    trainer = Trainer(max_steps=1_000, accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(Trainer, "progress_bar_metrics", logged)
    assert RunProgressBar(updates_per_step=1).get_metrics(trainer, LightningModule()) == shown


def test_the_progress_bar_counts_updates():
    """After two training steps of five updates each it stands at ten."""
    trainer = Trainer(max_steps=4_000, accelerator="cpu", logger=False, enable_checkpointing=False)
    bar, shown = RunProgressBar(updates_per_step=5), []
    bar._update = lambda bar_id, current: shown.append(current)
    bar._update_metrics = bar.refresh = lambda *_: None
    bar.train_progress_bar_id = 0
    for batch_idx in range(2):
        bar.on_train_batch_end(trainer, LightningModule(), None, None, batch_idx)
    assert shown == [5, 10]
