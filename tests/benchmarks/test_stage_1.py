"""The two whole loops of stage 1: what each contestant sees and counts, and that their figures fit together."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import stage_1
from benchmarks.pretraining import recipe
from benchmarks.stage_1 import Job, Stopwatch, Stored, Timing, preset
from pretrain.augment import InceptionAugment, RandomShift

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


def test_files_and_store_hold_the_same_images(tmp_path):
    for data in ("glyphs", "mini_imagenet_small"):
        store = stage_1.make_store(stage_1.STORED[data], 2)
        (tmp_path / data).mkdir()
        stage_1.write_files(store, tmp_path / data)
        for i in (0, 5, 127):
            path = tmp_path / data / store.class_names[store.labels[i]] / f"{i:05}.png"
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), store.images[i].squeeze(-1).numpy())


def test_the_stopwatch_begins_after_the_warm_up(monkeypatch):
    now = 0.0

    def take(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(stage_1.time, "perf_counter", lambda: now)

    def loader():
        for _ in range(5):
            take(1.0)  # loading
            yield object()

    stopwatch = Stopwatch()
    for _ in stopwatch.batches(loader()):
        take(10.0)  # the network
        stopwatch.timed(take, 3.0)  # augmentation
        stopwatch.step()
        if stopwatch.steps == stage_1.WARM_UP + 2:
            assert stopwatch.timing() == Timing(28.0, 8.0)


def test_the_presets_of_the_loop_have_our_ranges():
    shift = preset(RandomShift(2), [0.25], [0.25], colours=True).transforms
    assert (shift[0].size, shift[0].padding, shift[0].padding_mode) == ((32, 32), [2] * 4, "reflect")
    ours = stage_1.instantiate(recipe("mini_imagenet_small").data.pretrain.augment)
    assert isinstance(ours, InceptionAugment)
    crop, mirror, colours, *_ = preset(ours, [0.5] * 3, [0.5] * 3, colours=True).transforms
    assert (crop.size, crop.scale, crop.ratio) == ((40, 40), (0.4, 1.0), (0.75, 1.3333333))
    assert mirror.p == 0.5
    assert (colours.brightness, colours.contrast) == ((0.875, 1.125), (0.5, 1.5))
    assert (colours.saturation, colours.hue) == ((0.5, 1.5), (-0.2, 0.2))
    assert len(preset(ours, [0.5] * 3, [0.5] * 3, colours=False).transforms) == 5


def test_stored_images_are_scaled_as_ours_are():
    """With nothing random left: a shift of 0 pixels."""
    store = stage_1.make_store(stage_1.STORED["glyphs"], 1)
    image, label = Stored(store, preset(RandomShift(0), [0.25], [0.5], colours=False))[7]
    torch.testing.assert_close(image, (store.images[7].permute(2, 0, 1) / 255 - 0.25) / 0.5)
    assert label == 7


def test_percent_of_the_largest_logits():
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3]])
    assert [value.item() for value in stage_1.top(logits, torch.tensor([0, 2, 0]), (1, 2))] == pytest.approx(
        [100 / 3, 200 / 3]
    )


def test_all_contestants_train(tmp_path):
    """In this process: each one's network changes, and its loading is within its time."""
    side = stage_1.STORED["glyphs"]
    store, cfg = stage_1.make_store(side, 6), recipe("glyphs")
    stage_1.write_files(store, tmp_path)
    for contestant in stage_1.CONTESTANTS:
        job = Job(contestant, "glyphs", tmp_path, 6, threads=1, steps=1, batch_size=8)
        kind = stage_1.our_training if contestant.startswith("ours") else stage_1.reference_loop
        timing = kind(job, cfg, store)()
        assert 0 < timing.data < timing.total, contestant


@pytest.mark.slow
def test_figures_of_a_comparison(tmp_path):
    size = ["--data", "glyphs", "--images-per-class", "4", "--batch-size", "8", "--steps", "1", "--repeats", "2"]
    rows = stage_1.main([*size, "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text())["rows"] == rows
    assert [row["contestant"] for row in rows] == list(stage_1.CONTESTANTS)
    assert (rows[0]["network"], rows[0]["threads"], rows[0]["x ours"]) == ("wrn_10_2", 1, 1)
    for row in rows:
        assert row["images/s"] > 0
        assert 0 < row["loading %"] < 100


def test_a_row_compares_within_a_turn():
    job = Job("stored", "glyphs", None, 1, 1, steps=10, batch_size=128)
    theirs, ours = [Timing(4.0, 1.0), Timing(9.0, 0.9), Timing(2.0, 1.0)], [Timing(2.0, 0)] * 2 + [Timing(1.0, 0)]
    assert stage_1.row(job, theirs, ours, 128) == {
        "images/s": 320.0,
        "loading %": pytest.approx(25.0),
        "x ours": 2.0,
    }
