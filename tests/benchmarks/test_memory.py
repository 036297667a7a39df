"""The benchmark of memory runs, and a process that takes some is seen to."""

import json
import subprocess
import sys

import pytest

from benchmarks.memory import main, megabytes, watch
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def taking(num_bytes):
    """A process that holds so many bytes for two seconds."""
    return subprocess.Popen([sys.executable, "-c", f"import time; x = b'1' * {num_bytes}; time.sleep(2)"], cwd=ROOT)


def test_the_largest_memory_of_each_process_is_seen():
    little, much = watch([taking(1), taking(200_000_000)])
    for name in ("own", "share"):
        assert 195 < much[name] - little[name] < 215


def test_a_process_that_has_ended_takes_nothing():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert megabytes(ended.pid, "status", "RssAnon") == 0


@pytest.mark.slow
def test_runs_on_small_features(tmp_path):
    short = ["max_steps=4", "val.every=2", "val.num_tasks=4", "test.num_tasks=4", "model.learner.num_latents=4"]
    sizes = ["--images", "25", "--num-features", "8", "--runs", "1", "--json", str(tmp_path / "memory.json")]
    main([*sizes, *short])
    few, many = json.loads((tmp_path / "memory.json").read_text())
    assert (few["own adds"], few["share adds"]) == (0, 0)
    assert many["features MB"] == pytest.approx(1.25 * few["features MB"])
    assert many["own adds"] == pytest.approx(many["own"] - few["own"])
    assert few["own"] > 50
