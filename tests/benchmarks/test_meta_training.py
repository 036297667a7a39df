"""The benchmark of meta-training: what it says of memory and growth, by hand the same."""

import argparse

import pytest
import torch

from benchmarks import meta_training
from benchmarks.meta_training import SIZES, peak_memory, scaling, slope


def test_the_peak_is_of_what_is_held_at_the_same_time():
    def call():
        for _ in range(3):
            first = torch.empty(250_000)  # 1 MB
            second = torch.empty(500_000)
            del first
            third = torch.empty(125_000)
            del second, third

    assert peak_memory(call) == 3_000_000
    assert peak_memory(lambda: None) == 0


def test_the_slope_of_a_square_is_two():
    assert slope({"n": 3, "ms": 9.0}, {"n": 6, "ms": 36.0}, "n", "ms") == pytest.approx(2)


def test_growth_is_shown_for_every_size(monkeypatch):
    monkeypatch.setattr(meta_training, "SIZES", [size._replace(values=(4, 8)) for size in SIZES])
    shown = []
    monkeypatch.setattr(meta_training, "show", lambda title, rows: shown.append((title, list(rows))))
    monkeypatch.setattr(meta_training, "make_table", small(meta_training.make_table))
    sizes = {"num_way": 3, "num_query": 2, "tasks_per_batch": 2, "num_features": 8}
    found = scaling(argparse.Namespace(threads=[1], device="cpu", repeats=1, **sizes))
    assert [title.partition(":")[0] for title, _ in shown] == [
        f"{'a test of 500 tasks' if size.of_test else 'an update'} by {size.name}" for size in SIZES
    ]
    assert [row["value"] for row in found] == [4, 8] * len(SIZES)
    by_size = {(row["of"], row["varied"], row["value"]): row for row in found}
    assert by_size["an update", "tasks a batch", 8]["MB"] > 1.2 * by_size["an update", "tasks a batch", 4]["MB"]
    assert all(row["ms"] > 0 and row["MB"] > 0 for row in found)
    assert [row["slope"] is None for row in found] == [True, False] * len(SIZES)


def small(make_table):
    """``make_table`` of as many images as the tasks of the test need, where the benchmark asks for 600."""

    def make(num_classes, num_images, *rest):
        return make_table(num_classes, 12 if num_images == 600 else num_images, *rest)

    return make
