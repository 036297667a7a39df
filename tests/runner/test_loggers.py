"""Weights & Biases offline: what a run carries, and that a run that fails is closed before the next one logs."""

import json
import struct
import time

import pytest
import pytorch_lightning as pl
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from leo.run import meta_train
from runner.loggers import shortened

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)


BLOCK, HEADER = 32768, 7  # of the log files of LevelDB, whose format W&B uses


def records(folder):
    """All records of the one offline run in ``folder``."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return records_of(path)


def records_of(path):
    """All records of the file at ``path``, once its end is on disk: W&B writes in a process of its own."""
    for _ in range(300):
        found = parse(path)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def parse(path):
    """The records that ``path`` holds whole so far; W&B may be writing the last one."""
    data, position, whole, found = path.read_bytes(), HEADER, b"", []
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + HEADER])
        position += HEADER + length
        if position > len(data):
            break
        whole += data[position - length : position]
        if kind in (1, 4):  # a full record, or the last part of one
            found.append(Record())
            found[-1].ParseFromString(whole)
            whole = b""
    return found


def logged(folder):
    """The names that the run in ``folder`` logged."""
    return {".".join(item.nested_key) or item.key for r in records(folder) for item in r.history.item}


def test_two_runs_of_one_process_are_two_runs_though_the_first_fails(tmp_path, composed, toy_overrides, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = [*toy_overrides, "logger=wandb", "ablation=no_finetuning"]
    fails = [f"run_dir={tmp_path / 'fails'}", "model.learner.latent_lr=1e30", "diverged=stop"]
    with pytest.raises(ValueError, match="not finite"):
        meta_train(composed(*overrides, *fails))
    assert wandb.run is None
    meta_train(composed(*overrides, "seed=1"))
    assert wandb.run is None
    assert {"val/accuracy", "train/kl", "test/accuracy"} <= logged(tmp_path / "run")
    assert "val/accuracy" not in logged(tmp_path / "fails")
    (run,) = [record.run for record in records(tmp_path / "run") if record.HasField("run")]
    assert run.display_name == str(tmp_path / "run")
    assert (run.run_group, run.job_type) == ("glyphs_1shot", "meta")
    assert set(run.tags) == {"no_finetuning", "manual/glyphs_1shot"}
    config = {item.key: json.loads(item.value_json) for r in records(tmp_path / "run") for item in r.config.update}
    config |= {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 1
    assert "num_finetune_steps" in str(config["model"])
    codes = [
        [record.exit.exit_code for record in records(tmp_path / name) if record.HasField("exit")]
        for name in ("fails", "run")
    ]
    assert codes == [[1], [0]]


class Stop(pl.Callback):
    """Ends a run after its first checkpoint, as a kill does."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step > 20:
            raise InterruptedError


def test_a_run_that_goes_on_is_the_same_wandb_run_with_names_that_wandb_takes(
    tmp_path, composed, toy_overrides, monkeypatch
):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / ("long" * 40) / "run"
    overrides = [*toy_overrides, "logger=wandb", f"run_dir={folder}", f"names.hparams=search/{'x' * 90}"]
    with pytest.raises(InterruptedError):
        meta_train(composed(*overrides), callbacks=[Stop()])
    time.sleep(1.1)  # W&B names its folders by the second
    meta_train(composed(*overrides))
    kept = (folder / "wandb_id.txt").read_text().strip()
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{kept}.wandb"] * 2
    for path in files:
        run = next(record.run for record in records_of(path) if record.HasField("run"))
        assert run.run_id == kept
        assert len(run.display_name) == 128
        assert "long/run-" in run.display_name
        assert sorted(map(len, run.tags)) == [4, 64]
    meta_train(composed(*overrides, "logger.wandb.id=mine", f"run_dir={tmp_path / 'other'}"))
    assert list((tmp_path / "other").glob("wandb/offline-run-*-mine"))
    assert not (tmp_path / "other" / "wandb_id.txt").exists()


def test_names_that_are_cut_end_in_a_digest_of_the_whole():
    assert shortened("a" * 64, 64) == "a" * 64
    one, two = shortened("b" + "a" * 64, 64), shortened("c" + "a" * 64, 64)
    assert len(one) == len(two) == 64
    assert one != two
