"""Weights & Biases offline: what a run carries, and that a run that fails is closed before the next one logs."""

import json
import struct
import time

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from leo.run import meta_train

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)


BLOCK, HEADER = 32768, 7  # of the log files of LevelDB, whose format W&B uses


def records(folder):
    """All records of the one offline run in ``folder``, once its end is on disk: W&B writes in a process of its own."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):
        found = parse(path)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def parse(path):
    """The records that ``path`` holds so far."""
    data, position, whole, found = path.read_bytes(), HEADER, b"", []
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + HEADER])
        position += HEADER + length
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
    fails = [f"run_dir={tmp_path / 'fails'}", "model.learner.latent_lr=1e30"]
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
