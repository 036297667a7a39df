"""Feature files: what is read, what is refused, how features are scaled."""

import json
import sys
from pathlib import Path

import pytest
import torch

from leo.features import (
    NORMALIZATIONS,
    FeatureTable,
    Normalizer,
    ScaledTable,
    concatenate,
    load_features,
    load_splits,
    scaled,
)
from tests.leo.tables import make_table, write_features, write_splits


def test_reads_what_was_written(tmp_path):
    table = make_table([3, 5, 2])
    write_features(tmp_path, "val", table)
    read = load_features(tmp_path, "val")
    assert torch.equal(read.features, table.features)
    assert read.offsets.tolist() == [0, 3, 8, 10]
    assert read.class_sizes.tolist() == [3, 5, 2]
    assert read.class_names == table.class_names
    assert read.origin["checkpoint"] == "abc"


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.safetensors is missing; `python train.py stage=pretrain`"):
        load_features(tmp_path, "train")


@pytest.mark.parametrize("keep", [0, 5, 60, -7])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = write_features(tmp_path, "train", make_table([3, 3]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="train.safetensors is truncated or not a safetensors file .*export it again"):
        load_features(tmp_path, "train")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "leo-images-1"}, "is not a feature file: its format is 'leo-images-1', expected 'leo-features-1'"),
        ({"split": "test"}, "holds the split 'test', not 'train'; was the file renamed"),
        ({"class_names": json.dumps(["a", "b", "c"])}, "names 3 different classes for 2 groups of images"),
        ({"class_names": json.dumps(["a", "a"])}, "names 1 different classes for 2 groups of images"),
    ],
)
def test_foreign_metadata_is_refused(tmp_path, metadata, message):
    write_features(tmp_path, "train", make_table([3, 3]), metadata)
    with pytest.raises(ValueError, match=message):
        load_features(tmp_path, "train")


@pytest.mark.parametrize("offsets", [[0, 3, 7], [1, 3, 6], [0, 3, 3, 6], [0, 4, 3, 6]])
def test_offsets_that_do_not_partition_the_images_are_refused(tmp_path, offsets):
    table = make_table([3, 3])._replace(offsets=torch.tensor(offsets), class_names=["x"] * (len(offsets) - 1))
    write_features(tmp_path, "train", table)
    with pytest.raises(ValueError, match="must rise from 0 to its 6 images without an empty class"):
        load_features(tmp_path, "train")


def test_a_wrong_type_is_refused(tmp_path):
    table = make_table([3, 3])
    write_features(tmp_path, "train", table._replace(features=table.features.double()))
    with pytest.raises(ValueError, match=r"features torch.float64 \[6, 6\] .* expected float32 \[n, D\]"):
        load_features(tmp_path, "train")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_by_image_and_class(tmp_path, bad):
    table = make_table([3, 3])
    table.features[4, 2] = bad
    write_features(tmp_path, "train", table)
    with pytest.raises(
        ValueError, match=r"NaN or infinite features in 1 of 6 images, first in image 4 \(class 'class0-1'\)"
    ):
        load_features(tmp_path, "train")


def test_splits_must_come_from_one_extractor_and_share_no_class(tmp_path):
    write_splits(tmp_path)
    assert set(load_splits(tmp_path)) == {"train", "val", "test"}
    write_features(tmp_path, "val", make_table([4] * 3, 8, seed=1), {"checkpoint": "def"})
    with pytest.raises(ValueError, match=r"train and val differ in checkpoint \('abc', 'def'\)"):
        load_splits(tmp_path)
    write_features(tmp_path, "val", make_table([4] * 3, 8, seed=0))
    with pytest.raises(ValueError, match="class 'class0-0' is in train and in val; splits must be disjoint"):
        load_splits(tmp_path)


def test_concatenated_tables_keep_classes_apart():
    first, second = make_table([3, 2], seed=0), make_table([4], seed=1)
    both = concatenate([first, second])
    assert both.offsets.tolist() == [0, 3, 5, 9]
    assert torch.equal(both.features[5:], second.features)
    assert both.class_names == first.class_names + second.class_names


def test_l2_makes_unit_lengths_and_needs_no_statistics():
    normalizer = Normalizer("l2", 2)
    normalizer.fit(torch.tensor([[100.0, 7.0]]))
    torch.testing.assert_close(normalizer(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


def test_standardize_by_hand():
    """Means (2, 5), standard deviations (sqrt 2, 1 for the constant): (4, 6) -> (sqrt 2, 1) -> length sqrt 2."""
    normalizer = Normalizer("standardize", 2)
    normalizer.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    expected = torch.tensor([[2**0.5, 1.0]]) / 3**0.5 * 2**0.5
    torch.testing.assert_close(normalizer(torch.tensor([[4.0, 6.0]])), expected)
    assert set(normalizer.state_dict()) == {"mean", "std"}


def test_centred_l2_by_hand():
    """Mean (2, 5): (5, 9) -> (3, 4) -> (0.6, 0.8), whatever the spread of each dimension."""
    normalizer = Normalizer("centred_l2", 2)
    normalizer.fit(torch.tensor([[1.0, 3.0], [3.0, 7.0]]))
    torch.testing.assert_close(normalizer(torch.tensor([[5.0, 9.0], [-4.0, 13.0]])),
                               torch.tensor([[0.6, 0.8], [-0.6, 0.8]]))  # fmt: skip
    again = Normalizer("centred_l2", 2)
    again.load_state_dict(normalizer.state_dict())  # as a checkpoint carries it
    torch.testing.assert_close(again(torch.tensor([5.0, 9.0])), torch.tensor([0.6, 0.8]))


def test_an_unknown_normalization_names_the_choices():
    with pytest.raises(
        ValueError, match="features.normalize='L2' is unknown; choose one of l2, standardize, centred_l2"
    ):
        Normalizer("L2", 2)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_statistics_of_parts_are_those_of_the_whole_to_the_bit(kind):
    first, second = make_table([700, 900], 37, seed=0).features, 3 + make_table([800], 37, seed=1).features
    both = torch.cat([first, second])
    both[:, 5] = first[:, 5] = second[:, 5] = 2.0
    normalizer = Normalizer(kind, 37)
    normalizer.fit(first, second)
    std, mean = torch.std_mean(both, dim=0)
    std[5] = 1.0
    assert torch.equal(normalizer.mean, torch.zeros(37) if kind == "l2" else mean)
    assert torch.equal(normalizer.std, std if kind == "standardize" else torch.ones(37))


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("num_tables", [1, 2, 3])
def test_rows_scaled_when_taken_are_those_of_the_scaled_table_to_the_bit(kind, num_tables, monkeypatch):
    tables = [make_table([50, 80, 30], 640, seed=seed) for seed in range(num_tables)]
    normalizer, rows = Normalizer(kind, 640), torch.randint(160 * num_tables, (70,))
    normalizer.fit(*(table.features for table in tables))
    raw = torch.cat([table.features for table in tables])
    whole = scaled(tables, normalizer, "cpu")
    monkeypatch.setattr("leo.features.COPIED", 0)
    by_row = scaled(tables, normalizer, "cpu")
    assert isinstance(whole, FeatureTable)
    assert isinstance(by_row, ScaledTable)
    assert torch.equal(whole.features, normalizer(raw))
    assert torch.equal(by_row.take(rows), whole.features[rows])
    assert torch.equal(whole.take(rows), whole.features[rows])
    assert torch.equal(by_row.offsets, whole.offsets)
    assert (by_row.class_names, by_row.origin) == (whole.class_names, whole.origin)
    assert torch.equal(raw, torch.cat([table.features for table in tables])), "what files hold is left as it is"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_a_file_is_mapped_not_read(tmp_path):
    path = write_features(tmp_path, "val", make_table([300] * 40, 640))
    table = load_features(tmp_path, "val")
    start, end = table.features.data_ptr(), table.features.data_ptr() + table.features.nbytes
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    of_file = [[int(address, 16) for address in line[0].split("-")] for line in maps if line[-1] == str(path)]
    assert any(first <= start and end <= last for first, last in of_file)
