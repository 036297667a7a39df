"""The command for a GPU: its parts on the processor, and that one that fails or hangs leaves the others."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.gpu_parts import Network, Sizes, Span
from leo.captured_update import OptimisticUpdate
from leo.update import MetaUpdate
from tests.leo.tables import make_table

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)
SMALL = Sizes("cpu", num_way=3, num_query=2, tasks_per_batch=2, num_features=640, num_images=12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_a_line_and_does_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main(["--json", str(tmp_path / "gpu.json")])
    assert str(end.value.code).startswith("error: benchmarks.gpu needs a GPU of NVIDIA, and torch ")
    assert "\n" not in str(end.value.code)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_or_hangs_leaves_the_others(tmp_path, capsys):
    speed = [{gpu.SPEED: 60.0, "test, s": 1.5}, {gpu.SPEED: 60.0, "test, s": 2.5}]
    programs = {
        "card": "import sys, json; json.dump({'result': {'name': 'a card'}}, open(sys.argv[1], 'w'))",
        "tests": "print('first words'); raise RuntimeError('last words')",
        # It has started another process, which must end as well.
        "captured": "import subprocess, sys, time; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)",
        "resume": "pass",  # writes nothing
        "speed": f"import sys, json; json.dump({{'result': {speed!r}}}, open(sys.argv[1], 'w'))",
    }
    path, seen = tmp_path / "gpu.json", []

    def command_of(name, result):
        seen.append(sorted(json.loads(path.read_text())["parts"]) if path.exists() else [])
        return [sys.executable, "-c", programs[name], str(result)]

    start = time.perf_counter()
    gpu.measure_all(dict.fromkeys(programs, 20) | {"captured": 2}, command_of, path)
    assert time.perf_counter() - start < 20
    written = json.loads(path.read_text())
    parts = written["parts"]
    assert list(parts) == list(programs)
    assert [len(names) for names in seen] == [0, 1, 2, 3, 4], "written after each part"
    assert parts["card"]["result"] == {"name": "a card"}
    assert parts["tests"]["error"].startswith("ended with 1: first words\n")
    assert parts["tests"]["error"].endswith("RuntimeError: last words")
    assert parts["captured"]["error"] == "took longer than its 2 s and was stopped"
    assert parts["resume"]["error"].startswith("ended with 0")
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()
    met = {row["what"]: row["met"] for row in written["targets"]}
    assert met == {
        "seconds of 100,000 updates, 1-shot, extrapolated": False,
        "seconds of 100,000 updates, 5-shot, extrapolated": True,
        "seconds of a test of 50,000 tasks, 1-shot": True,
        "seconds of a test of 50,000 tasks, 5-shot": False,
        "share of the peak, WRN-28-10": None,
        "the same with the data path": None,
    }
    assert "[3/5] captured, at most 2 s" in capsys.readouterr().out


def test_shares_of_the_peak_are_judged_the_other_way_round():
    result = {"step": {"share_of_peak": 0.4}, "with data": {"share_of_peak": 0.39}}
    assert [row["met"] for row in gpu.judged({"wide_resnet": {"result": result}})[-2:]] == [True, False]
    result["step"]["share_of_peak"] = None  # of a card that is not known
    assert gpu.judged({"wide_resnet": {"result": result}})[-2]["met"] is None


def test_all_parts_take_ten_minutes_at_most():
    assert sum(part.limit for part in gpu.PARTS.values()) <= 600


def test_the_command_of_a_part_is_one_that_the_program_takes(tmp_path, monkeypatch):
    *_, module, option, name, to, path = gpu.part_command("card", tmp_path / "card.json")
    assert module == "benchmarks.gpu"
    monkeypatch.setattr(gpu, "check_gpu", lambda: None)
    monkeypatch.setitem(gpu.PARTS, "card", gpu.Part(lambda device: {"on": device}, 1))
    gpu.main([option, name, to, path])
    assert json.loads(Path(path).read_text()) == {"result": {"on": "cuda"}}


def test_the_card_of_a_processor():
    about = gpu_parts.card("cpu")
    assert about["torch"] == torch.__version__
    assert about["name"] == "CPU"


def test_outcomes_of_tests_are_counted_and_failures_named(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import os, pytest\n"
        "def test_passes(): assert os.environ['LEO_TEST_DEVICE'] == 'a device'\n"
        "def test_fails(): assert 1 == 2, 'no'\n"
        "def test_is_skipped(): pytest.skip('not here')\n"
    )
    outcome = gpu_parts.outcome_of_tests([str(tmp_path)], "a device")
    assert (outcome["run"], outcome["skipped"]) == (2, 1)
    assert list(outcome["failed"]) == ["test_fails"]
    assert "no" in outcome["failed"]["test_fails"]


@pytest.mark.slow
def test_the_golden_tests_are_found():
    outcomes = gpu_parts.tests("cpu")
    assert [outcome["failed"] for outcome in outcomes.values()] == [{}, {}, {}]
    assert outcomes["golden, float64"]["run"] > 30
    assert outcomes["golden, float32"]["run"] == 4
    assert sum(outcomes["tests that need a GPU"][key] for key in ("run", "skipped")) == 1


def test_captured_updates_are_compared_with_eager_ones(monkeypatch):
    """Equal on the processor; an update that does something else is seen."""
    rows = gpu_parts.captured("cpu", SMALL, points=(2, 5))
    assert [(row["shot"], row["updates"]) for row in rows] == [(1, 2), (1, 5), (5, 2), (5, 5)]
    assert all(row["largest relative difference"] == 0 for row in rows)
    assert all(row["eager, s"] > 0 and row["captured, s"] > 0 for row in rows)

    class Unclipped(OptimisticUpdate):
        def descend(self):
            self.optimizer.step()

    monkeypatch.setattr(gpu_parts, "fast_kind", lambda device: Unclipped)
    assert all(row["largest relative difference"] > 1e-6 for row in gpu_parts.captured("cpu", SMALL, points=(2, 5)))


def test_the_largest_difference_is_relative_to_the_norm():
    expected = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([100.0])}
    actual = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([101.0])}
    assert gpu_parts.largest_difference(actual, expected) == ("a", pytest.approx(0.1))
    actual["b"] = torch.tensor([float("nan")])
    assert gpu_parts.largest_difference(actual, expected)[0] == "b"


def test_updates_are_made_as_the_trainer_makes_them(monkeypatch):
    monkeypatch.setattr(gpu_parts, "UPDATES_PER_STEP", 4)
    table = make_table([12] * 6, 640)
    update = gpu_parts.make_update(
        MetaUpdate, gpu_parts.make_leo(SMALL.num_features, "cpu"), gpu_parts.make_stream(table, SMALL, 1)
    )
    sizes, make = [], MetaUpdate.__call__
    monkeypatch.setattr(MetaUpdate, "__call__", lambda self, batches: sizes.append(len(batches)) or make(self, batches))
    gpu_parts.train_on(update, 10)
    assert sizes == [4, 4, 2]
    assert update.num_updates == 10


def test_seconds_are_extrapolated_and_say_so(monkeypatch):
    monkeypatch.setattr("benchmarks.meta_training.UPDATES_PER_STEP", 4)
    rows = gpu_parts.speed("cpu", SMALL, num_updates=10, num_tasks=20)
    assert [row["shot"] for row in rows] == [1, 5]
    for row in rows:
        assert row["100,000 updates, extrapolated, s"] == pytest.approx(row["measured, s"] / 10 * 100_000)
        assert row["100,000 updates through the trainer, extrapolated from 150, s"] > 0
        assert 0 < row["test, s"] < 60
    assert gpu.SPEED in rows[0]


def test_time_that_spans_share_is_counted_once():
    spans = [Span("a", 0, 4), Span("b", 2, 3), Span("a", 3, 6), Span("c", 8, 9)]
    assert gpu_parts.busy(spans) == 7
    assert gpu_parts.longest(spans, 2, number=2) == [
        {"name": "a", "calls": 1.0, "us": 3.5},
        {"name": "b", "calls": 0.5, "us": 0.5},
    ]


def test_the_profile_of_an_update():
    rows = gpu_parts.profile("cpu", SMALL, num_updates=2)
    for row in rows:
        assert 0 <= row["idle, share of time"] < 1
        assert row["kernels of an update"] > 50
        assert row["ms of an update"] > 0
        assert len(row["top"]) == 15
        assert row["top"] == sorted(row["top"], key=lambda kernel: -kernel["us"])
        assert not any(kernel["name"].startswith("Optimizer.step") for kernel in row["top"])


TINY = Network(depth=10, width=1, size=16, batch_sizes=(64,), steps=1, compiled=False)


def test_images_per_second_with_and_without_data():
    result = gpu_parts.wide_resnet("cpu", TINY)
    assert (result["network"], result["batch"], result["peak_tflop_per_second"]) == ("WRN-10-1", 64, None)
    for which in ("step", "with data"):
        rate = result[which]["images_per_second"]
        assert rate > 0
        assert result[which]["tflop_per_second"] == pytest.approx(rate * result["gflop_per_image"] / 1000)
        assert result[which]["share_of_peak"] is None


def test_batches_of_random_images_are_read_as_stage_1_reads_them():
    batches = gpu_parts.endless_batches(64, 40)
    first, second, third = (next(batches) for _ in range(3))
    assert first.images.shape == (64, 42, 42, 3)
    assert first.images.dtype == torch.uint8
    assert not torch.equal(first.images, second.images)
    assert sorted(torch.cat([first.labels, second.labels]).tolist()) == sorted([*range(64)] * 2)
    assert len(third.labels) == 64


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    asked = []

    def time_network(device, network, batch_size):
        asked.append(batch_size)
        if batch_size > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"batch": batch_size}

    monkeypatch.setattr(gpu_parts, "time_network", time_network)
    assert gpu_parts.wide_resnet("cpu", Network()) == {"batch": 256}
    assert asked == [1024, 512, 256]
    with pytest.raises(RuntimeError, match="batches of 512 images do not fit"):
        gpu_parts.wide_resnet("cpu", Network(batch_sizes=(1024, 512)))


@pytest.mark.parametrize(
    ("card", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA H200", 989e12), ("A card", None)],
)
def test_peaks_are_those_of_known_cards(card, peak):
    assert gpu_parts.pretraining.peak_of(card) == peak


def test_steps_are_read_from_a_log_that_is_being_written(tmp_path):
    log = tmp_path / "metrics.csv"
    assert gpu_parts.last_step(log) == -1
    log.write_text("step,name,value\n9,train/loss,1.5\n19,train/loss,1.4\n2")
    assert gpu_parts.last_step(log) == 19


@pytest.mark.slow
def test_a_killed_training_is_compared_with_an_uninterrupted_one():
    small = ["num_way=3", "num_query=4", "tasks_per_batch=4", "model.learner.num_latents=4"]
    steps = ["max_steps=800", "val.every=200", "val.num_tasks=20", "test.num_tasks=20", "trainer.log_every_n_steps=1"]
    (outcome,) = gpu_parts.resume("cpu", [*small, *steps], kill_at=250).values()
    assert 250 <= outcome["killed after update"] < 800
    assert outcome["went on after update"] in (200, 400, 600)
    assert all(outcome[f"same {what}"] for what in ("weights", "optimiser", "log", "test accuracy")), outcome
    assert outcome["largest relative difference"] == 0
