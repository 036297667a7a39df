"""The simulated user: what is counted, and in which order images are asked about."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.labelling import after, drawn, mean_and_interval, reached, simulated
from fewshot.labelling.methods import Centroid, centred
from tests.fewshot.test_labelling import blobs


def oracle(truth):
    """A method that is right about all classes that have an example, and equally sure of all."""

    def method(rows, classes, num_classes):
        known = np.unique(truth[rows])
        found = np.full((len(truth), num_classes), 0.1, np.float32)
        for i, number in enumerate(truth):
            found[i, np.searchsorted(known, number) % num_classes] = 0.9
        return found

    return method


def test_answers_are_counted_one_by_one():
    truth = np.repeat([0, 1, 2], 10)
    curve = simulated(oracle(truth), truth, np.array([0, 1, 10, 20]), "random", 1)
    assert curve == [(1, 1 / 30), (2, 2 / 30), (3, 20 / 30), (4, 1)]
    assert (reached(curve, 0.5), reached(curve, 0.95), after(curve, 3), after(curve, 99)) == (3, 4, 20 / 30, 1)


def test_mistakes_are_corrected_first():
    truth = np.repeat([0, 1, 2], 10)
    curve = simulated(oracle(truth), truth, np.array([0, 10, 1]), "mistakes", 1)
    assert [number for number, _ in curve] == [1, 2, 3]  # the third answer is of the third class
    assert curve[-1][1] == 1


@pytest.mark.parametrize("asking", ["uncertain", "mistakes", "random"])
def test_every_order_comes_to_an_end(asking):
    X, truth = blobs(4, 30, seed=3)
    part = drawn(type("Labelled", (), {"features": X, "classes": truth})(), 3, np.random.default_rng(0))
    first = np.random.default_rng(1).permutation(len(part.classes))
    curve = simulated(Centroid(centred(part.features)), part.classes, first, asking, 5)
    assert sorted(set(part.classes)) == [0, 1, 2]
    assert curve[-1][1] >= 0.99
    assert all(later[0] > earlier[0] for earlier, later in pairwise(curve))


def test_the_interval_is_that_of_the_mean():
    assert mean_and_interval([7, 7]) == "7"
    assert mean_and_interval([10, 20, 30]) == "20 +- 11"  # 1.96 * 10 / sqrt(3)
