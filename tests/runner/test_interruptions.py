"""What kills, damage, full disks and read-only folders leave behind, and the way on from there."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors import SafetensorError

from leo.run import meta_train
from runner.files import is_running, partial_path, whole_file, whole_folder, writable, write_text
from tests.conftest import composing, toy
from tests.test_commands import command, rows, run, state

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Overrides for a run of a second, and the folder of one that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    with composing(folder) as make:
        overrides = [*toy(folder), *(f"dirs.{name}={folder / name}" for name in ("images", "features", "runs"))]
        meta_train(make(*overrides))
    return overrides, folder / "run"


def contents(folder):
    """The SHA-256 of each visible file of ``folder`` but the log of its commands."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.name != "train.log" and not path.name.startswith(".")
    }


def ends_alike(folder, straight):
    """Whether two runs have the same last weights, best weights, log, score and result."""
    for name in ("last.ckpt", "best.ckpt"):
        actual, expected = (torch.load(path / name, weights_only=True) for path in (folder, straight))
        assert actual["global_step"] == expected["global_step"]
        for key, value in expected["state_dict"].items():
            assert torch.equal(actual["state_dict"][key], value), (name, key)
    assert rows(folder) == rows(straight)
    trained = [json.loads((path / "trained.json").read_text()) for path in (folder, straight)]
    results = [json.loads((path / "result.json").read_text()) for path in (folder, straight)]
    assert [(it["score"], it["num_steps"]) for it in trained] == [(trained[1]["score"], trained[1]["num_steps"])] * 2
    for key in ("accuracy", "interval95", "loss", "val_accuracy", "num_steps", "config"):
        assert results[0][key] == results[1][key], key
    assert not list(folder.glob(".*.partial"))


def start_again(folder, *names):
    """Remove files of a run folder."""
    for name in names:
        (folder / name).unlink()


CUT, EMPTY, ZEROS = (lambda b: b[: len(b) // 2]), (lambda b: b""), (lambda b: bytes(len(b)))


def one_bit_wrong(content):
    """A byte in the middle of a tensor changed, as a bad disk does."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def at_a_line(content):
    """Cut so that what is left can be read."""
    return content[: content.index(b"\nmodel:") + 1]


AFTER_TRAINING, AFTER_TEST = ("trained.json", "result.json"), ("result.json",)
PLACE = r"put .*run/best.ckpt in its place to go on from there, or delete .*run/last.ckpt: the same command then starts"
AGAIN = r"delete .*run/last.ckpt: the same command then starts from the first update"


@pytest.mark.parametrize(
    ("name", "damage", "removed", "message", "way_on"),
    [
        ("last.ckpt", CUT, AFTER_TRAINING, rf"last.ckpt is not a checkpoint .* or is damaged: .*; {PLACE}", "place"),
        ("last.ckpt", EMPTY, AFTER_TRAINING, rf"last.ckpt is not a checkpoint .*; {PLACE}", "delete"),
        ("last.ckpt", ZEROS, AFTER_TRAINING, rf"last.ckpt is not a checkpoint .*; {PLACE}", "delete"),
        ("last.ckpt", one_bit_wrong, AFTER_TRAINING, r"last.ckpt .* has another check sum than when .*", "delete"),
        ("best.ckpt", CUT, AFTER_TRAINING, rf"best.ckpt is not a checkpoint .*; {AGAIN}", "delete last"),
        ("best.ckpt", None, AFTER_TRAINING, rf"best.ckpt, which .* builds on, is missing; {AGAIN}", "delete last"),
        ("best.ckpt", CUT, AFTER_TEST, r"best.ckpt is not .* or delete its run folder and train again", None),
        ("trained.json", CUT, AFTER_TEST, r"trained.json is damaged .*; delete it: the same command makes", "delete"),
        ("trained.json", EMPTY, AFTER_TEST, r"trained.json is damaged .*; delete it", "delete"),
        ("trained.json", lambda _: b'{"score": 1}', AFTER_TEST, r"trained.json .* lacks num_steps, seconds", "delete"),
        ("result.json", EMPTY, (), r"result.json is damaged .*; delete it: the same command tests again", "delete"),
        ("result.json", CUT, (), r"result.json is damaged .*; delete it: the same command tests again", "delete"),
        ("result.json", lambda _: b"[1]\n", (), r"result.json is damaged .*; delete it", "delete"),
        ("config.yaml", EMPTY, (), r"config.yaml is damaged .*no configuration.*; delete that file and give", "delete"),
        ("config.yaml", at_a_line, (), r"config.yaml is damaged \(it is cut short\); delete that file", "delete"),
        ("config.yaml", ZEROS, (), r"config.yaml is damaged .*; delete that file and give the command", "delete"),
        ("config.yaml", lambda _: b"a: [1\nb", (), r"config.yaml is damaged .*; delete that file", "delete"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_way_on(tmp_path, composed, finished, name, damage, removed, message, way_on):
    """The message, that nothing else is touched, and that its advice leads to the end of an uninterrupted run."""
    (overrides, straight), folder = finished, tmp_path / "run"
    cfg = composed(*overrides)
    shutil.copytree(straight, folder)
    start_again(folder, *removed)
    path = folder / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    before = contents(folder)
    with pytest.raises(ValueError, match=message) as caught:
        meta_train(cfg)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before
    if way_on is None:
        return
    if way_on == "place":
        shutil.copy(folder / "best.ckpt", path)
    elif way_on == "delete last":
        (folder / "last.ckpt").unlink()
    else:
        path.unlink()
    meta_train(cfg)
    ends_alike(folder, straight)


def test_a_damaged_log_keeps_what_can_be_read(tmp_path, composed, finished, caplog):
    (overrides, straight), folder = finished, tmp_path / "run"
    cfg = composed(*overrides)
    shutil.copytree(straight, folder)
    start_again(folder, *AFTER_TRAINING)
    log = folder / "metrics.csv"
    intact = log.read_bytes()
    log.write_bytes(intact + b"29,train/loss,0.12")  # a value that is cut off
    meta_train(cfg)
    ends_alike(folder, straight)
    assert "is damaged" not in caplog.text
    start_again(folder, *AFTER_TRAINING)
    lines = intact.splitlines(keepends=True)
    bad = [
        b"9,train/loss\r\n",
        b"x,train/loss,1\r\n",
        b"9,train/loss,one\r\n",
        bytes(200_000) + b"\r\n",
        b"\xff\xfe\r\n",
    ]
    log.write_bytes(b"".join(lines[:3] + bad + lines[3:]))
    meta_train(cfg)
    ends_alike(folder, straight)
    assert "metrics.csv is damaged: 5 of its rows cannot be read and are dropped" in caplog.text


def test_a_run_killed_before_its_first_checkpoint_logs_nothing_twice(tmp_path, composed, finished):
    overrides, straight = finished
    write_text(tmp_path / "run" / "metrics.csv", "step,name,value\n0,train/loss,9.0\n9,train/lo")
    meta_train(composed(*overrides))
    ends_alike(tmp_path / "run", straight)


def test_a_run_that_early_stopping_ended_does_not_train_on(tmp_path, composed, toy_overrides):
    """Killed between its last checkpoint and the note of its end."""
    cfg = composed(*toy_overrides, "max_steps=400", "val.every=10", "patience=1", "model.optimizer.lr=1e-9")
    meta_train(cfg)
    folder = tmp_path / "run"
    shutil.copytree(folder, tmp_path / "straight")
    assert state(folder)["global_step"] < 400
    start_again(folder, *AFTER_TRAINING)
    meta_train(cfg)
    ends_alike(folder, tmp_path / "straight")


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path, composed, finished):
    overrides, straight = finished
    shutil.copytree(straight, tmp_path / "run")
    start_again(tmp_path / "run", *AFTER_TRAINING, "config.yaml")
    with pytest.raises(
        ValueError, match=r"last.ckpt belongs to a run with other settings \(num_query: 4 -> 5\); delete"
    ):
        meta_train(composed(*overrides, "num_query=5"))


def test_a_damaged_feature_file_is_one_line(tmp_path, toy_overrides):
    path = tmp_path / "toy" / "val.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    failed = run(tmp_path, *toy_overrides, "run_dir=run")
    assert failed.returncode == 1
    assert f"error: feature file {path} is truncated or not a safetensors file" in failed.stderr
    assert "delete it and export it again: `python train.py stage=pretrain`" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB and a function that fills it but for a number of bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=False).returncode:
        pytest.skip("a small disk is mounted by root only")

    def fill(free):
        with (folder / "filler").open("wb") as file:
            size = os.statvfs(folder)
            file.write(bytes(size.f_bavail * size.f_frsize - free))

    yield folder, fill
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("free", [0, 30_000, 65_000])
def test_a_full_disk_is_one_line_and_costs_nothing_else(composed, finished, small_disk, free):
    """Full at once, at the first checkpoint, at the second one."""
    (overrides, straight), (disk, fill) = finished, small_disk
    cfg = composed(*overrides, f"run_dir={disk / 'run'}")
    fill(free)
    message = (
        r"disk/run/\S+ cannot be written: No space left on device; make room there, and give the same command again"
    )
    with pytest.raises(ValueError, match=message):
        meta_train(cfg)
    assert not list((disk / "run").glob(".*.partial"))
    (disk / "filler").unlink()
    meta_train(cfg)
    ends_alike(disk / "run", straight)


def test_a_folder_that_turns_read_only_is_one_line(tmp_path, finished, small_disk):
    (overrides, straight), (disk, _) = finished, small_disk
    shutil.copytree(straight, disk / "run")
    start_again(disk / "run", *AFTER_TRAINING)
    before = contents(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    failed = run(tmp_path, *overrides, f"run_dir={disk / 'run'}")
    assert failed.returncode == 1
    said = (
        f"error: {disk / 'run'} cannot be written: Read-only file system; make the folder writable, and give the same"
    )
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert contents(disk / "run") == before


def test_only_what_users_can_mend_becomes_a_message(tmp_path):
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        with pytest.raises(ValueError, match="x cannot be written: .*, and give the same"), writable(tmp_path / "x"):
            raise OSError(code, os.strerror(code))
    with pytest.raises(ValueError, match="x cannot be written: No space left"), writable(tmp_path / "x"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="InvalidHeader"), writable(tmp_path / "x"):
        raise SafetensorError("InvalidHeader")
    with pytest.raises(OSError, match="Input/output error"), writable(tmp_path / "x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_two_machines_never_share_a_partial_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    names = {partial_path(path).name for _ in range(2)}
    monkeypatch.setattr("platform.node", lambda: "other")
    others = {partial_path(path).name for _ in range(2)}
    assert [".other." in name for name in (*names, *others)] == [False, False, True, True]
    names |= others
    assert len(names) == 4
    assert all(name.startswith(".last.ckpt.") and name.endswith(".partial") for name in names)
    long = partial_path(tmp_path / ("ж" * 127)).name
    assert len(long.encode()) <= 255


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(tmp_path, monkeypatch):
    path = tmp_path / "file[1]"
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not is_running(gone.pid)
    assert is_running(os.getpid())
    mine, dead = partial_path(path), partial_path(path)
    dead = dead.with_name(dead.name.replace(f".{os.getpid()}.", f".{gone.pid}."))
    with monkeypatch.context() as patched:
        patched.setattr("platform.node", lambda: "other")
        elsewhere = partial_path(path)
    for partial in (mine, dead, elsewhere):
        partial.touch()
    write_text(path, "whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, mine.name, elsewhere.name}


def test_the_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    """A loss of power after the renaming must not leave an empty file."""
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("content") or fsync(fd))
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append("name") or replace(self, to))
    with whole_file(tmp_path / "file") as partial:
        partial.write_text("whole")
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "one").write_text("1")
        (partial / "two").write_text("2")
    assert calls == ["content", "name", "content", "content", "name"]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path, toy_overrides):
    """Ten runs, two SIGKILLs each, anywhere from the start of Python to the test of the best checkpoint."""
    overrides = [*toy_overrides, "max_steps=600", "val.every=20", "trainer.log_every_n_steps=2"]
    begun = time.monotonic()
    assert run(tmp_path, *overrides, "run_dir=straight").returncode == 0
    duration, draw = time.monotonic() - begun, random.Random(0)
    num_killed = 0
    for number in range(10):
        for _ in range(2):
            process = subprocess.Popen(
                command(*overrides, f"run_dir=run-{number}"), cwd=tmp_path, stdout=subprocess.DEVNULL
            )
            time.sleep(draw.uniform(0.3, 1) * duration)
            process.send_signal(signal.SIGKILL)
            num_killed += process.wait() == -signal.SIGKILL
        finished = run(tmp_path, *overrides, f"run_dir=run-{number}")
        assert finished.returncode == 0, finished.stderr[-2000:]
        ends_alike(tmp_path / f"run-{number}", tmp_path / "straight")
    assert num_killed >= 15, "most moments lie within the run"


class Terminated(pl.Callback):
    """Sends this process SIGTERM in the hook ``hook``, once, from update ``step`` on."""

    def __init__(self, hook, step):
        self.step, self.is_sent = step, False
        setattr(self, hook, self.send)

    def send(self, trainer, *args):
        if not self.is_sent and trainer.global_step >= self.step:
            self.is_sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [20, 40])
@pytest.mark.parametrize(
    "hook",
    [
        "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end",
        "on_train_epoch_end", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_end",
    ],
)  # fmt: skip
def test_sigterm_at_any_moment_around_a_validation_loses_no_update(finished, tmp_path, hook, step):
    """The updates are 40 in two intervals of 20: no interval is made twice, and none is left out."""
    overrides, straight = finished
    folder = tmp_path / "run"
    with composing(tmp_path) as make:
        cfg = make(*overrides, f"run_dir={folder}")
        with suppress(SystemExit):  # none where all was done already
            meta_train(cfg, callbacks=[Terminated(hook, step)])
        meta_train(cfg)
    ends_alike(folder, straight)
