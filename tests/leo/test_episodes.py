"""Sampling: exactly uniform, without replacement, from classes of unequal size; streams that resume."""

import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from leo.episodes import TaskStream, check_task_size, gather, sample_tasks, sample_without_replacement
from tests.leo.tables import make_table


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "count"), [(4, 2), (5, 3), (3, 3)])
def test_every_ordered_sample_is_equally_likely(size, count):
    sizes = torch.full((60_000,), size)
    sizes[::2] = 7  # rows of another size in the same draw
    picks = sample_without_replacement(sizes, count, generator())[1::2]
    observed = Counter(map(tuple, picks.tolist()))
    possible = list(itertools.permutations(range(size), count))
    assert set(observed) == set(possible)
    assert chisquare([observed[sample] for sample in possible]).pvalue > 1e-3


def test_unequal_classes_are_drawn_within_their_bounds():
    table = make_table([3, 9, 4, 30])
    tasks = sample_tasks(table, 4_000, num_way=3, num_images=3, generator=generator())
    for classes, images in zip(tasks.classes.tolist(), tasks.images.tolist(), strict=True):
        assert len(set(classes)) == 3
        for label, rows in zip(classes, images, strict=True):
            assert len(set(rows)) == 3
            assert all(table.offsets[label] <= row < table.offsets[label + 1] for row in rows)


def test_classes_and_images_of_tasks_are_uniform():
    """Each class in N / C of the tasks whatever its size; each image of a class equally often in each place."""
    table = make_table([4, 8, 5, 6])
    tasks = sample_tasks(table, 20_000, num_way=2, num_images=2, generator=generator(1))
    assert chisquare(tasks.classes.flatten().bincount()).pvalue > 1e-3
    for label in range(4):
        for place in range(2):
            rows = tasks.images[tasks.classes == label][:, place] - table.offsets[label]
            assert chisquare(rows.bincount(minlength=int(table.class_sizes[label]))).pvalue > 1e-3


def test_gather_splits_support_and_query():
    table = make_table([5, 5, 5])
    tasks = sample_tasks(table, 2, num_way=2, num_images=4, generator=generator())
    batch = gather(table, tasks, num_shot=1)
    assert batch.support.shape == (2, 2, 1, 6)
    assert torch.equal(batch.query[1, 0, 2], table.features[tasks.images[1, 0, 3]])


def stream(seed=3):
    return TaskStream(
        make_table([8] * 5),
        num_way=3,
        num_shot=1,
        num_query=2,
        batch_size=600,
        batches_per_epoch=4,
        batches_per_step=1,
        generator=generator(seed),
    )


@pytest.mark.parametrize("consumed", [0, 1, 2, 3])
def test_a_resumed_stream_goes_on_where_it_was(consumed):
    """Blocks hold two batches here, so some places are inside a block and some at its end."""
    original = stream()
    batches = iter(original)
    for _ in range(consumed):
        next(batches)
    resumed = stream(seed=99)
    resumed.load_state_dict(original.state_dict())
    for expected, actual in zip(batches, resumed, strict=False):
        assert torch.equal(expected[0].classes, actual[0].classes)
        assert torch.equal(expected[0].images, actual[0].images)


def test_batches_of_a_stream_differ():
    first, second, third, _ = (batch.images for (batch,) in stream())
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_task_larger_than_the_split_is_refused():
    table = make_table([9, 4, 9])
    with pytest.raises(ValueError, match="num_way=5 exceeds the 3 classes of the val split; lower num_way"):
        check_task_size(table, "val", num_way=5, num_shot=1, num_query=1)
    with pytest.raises(
        ValueError, match=r"class 'class0-1' of the val split has 4 images, .* needs 2 \+ 3 = 5; lower one"
    ):
        check_task_size(table, "val", num_way=2, num_shot=2, num_query=3)
