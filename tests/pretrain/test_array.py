"""Features of the user's own: each format gives the same feature files; splits; what is wrong with a file is said."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from leo.features import load_splits
from leo.run import meta_train
from pretrain.run import ensure_features
from pretrain.sources import array
from runner.config import check_overrides

CLASSES, SIZE, WIDTH = 12, 6, 5
NAMES = np.array([f"kind {(7 * i) % CLASSES:02d}" for i in range(CLASSES * SIZE)])
pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)
OWN = ["experiment=own_1shot", "data.name=mine", "features=array"]


@pytest.fixture
def rows():
    """Features [72, 5] of 12 classes in mixed order; a row's first number is its class."""
    features = np.random.default_rng(0).normal(size=(len(NAMES), WIDTH)).astype(np.float16)
    features[:, 0] = [int(name.split()[1]) for name in NAMES]
    return features


def split_of(name):
    return "train" if name < "kind 06" else "val" if name < "kind 09" else "test"


def table(path, **columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def build(composed, *overrides):
    cfg = composed(*OWN, *overrides)
    check_overrides(cfg)
    settings = OmegaConf.to_container(cfg.features.source, resolve=True)
    assert settings.pop("_target_") == "pretrain.sources.array.build"
    array.build(Path(cfg.features.folder), **settings)
    return load_splits(Path(cfg.features.folder))


def test_every_format_gives_the_same_features(composed, rows, tmp_path):
    splits = np.array([split_of(name) for name in NAMES])
    np.savez(tmp_path / "a.npz", features=rows, labels=NAMES, splits=splits)
    np.save(tmp_path / "a.npy", rows)
    table(tmp_path / "a.csv", label=NAMES, split=splits)
    numbers = np.array([int(name.split()[1]) for name in NAMES])
    codes = np.array([["train", "val", "test"].index(split) for split in splits], dtype=np.int8)
    save_file({"features": rows, "labels": numbers, "splits": codes}, tmp_path / "a.safetensors")
    for suffix in ("npz", "npy", "safetensors"):
        tables = build(composed, f"data.name={suffix}", f"features.source.path={tmp_path / f'a.{suffix}'}")
        for split, found in tables.items():
            expected = [name for name in sorted(set(NAMES)) if split_of(name) == split]
            named = [str(int(name.split()[1])) for name in expected] if suffix == "safetensors" else expected
            assert sorted(found.class_names) == sorted(named)
            for number, name in enumerate(found.class_names):
                part = found.features[found.offsets[number] : found.offsets[number + 1]]
                mine = [name] if suffix != "safetensors" else [f"kind {int(name):02d}"]
                assert torch.equal(part, torch.from_numpy(rows[mine[0] == NAMES].astype(np.float32)))
        assert (tables["train"].origin["layer"], len(tables["train"].origin["images"])) == ("array", 64)


def test_splits_are_drawn_by_class_with_a_seed(composed, rows, tmp_path):
    np.savez(tmp_path / "a.npz", features=rows, labels=NAMES)
    path = f"features.source.path={tmp_path / 'a.npz'}"
    first = build(composed, path)
    assert {split: len(found.class_names) for split, found in first.items()} == {"train": 8, "val": 2, "test": 2}
    for found in first.values():
        for number, name in enumerate(found.class_names):
            part = found.features[found.offsets[number] : found.offsets[number + 1]]
            assert part[:, 0].tolist() == [int(name.split()[1])] * SIZE
    other = build(composed, path, "data.name=other", "features.source.seed=1")
    assert [other[split].class_names for split in other] != [first[split].class_names for split in first]
    with pytest.raises(ValueError, match=r"mine-array was made with other settings .seed: 0 -> 1.; delete it"):
        build(composed, path, "features.source.seed=1")
    build(composed, path)
    build(composed)  # the file is not needed any more
    np.savez(tmp_path / "a.npz", features=2 * rows, labels=NAMES)
    with pytest.raises(ValueError, match=r"a.npz is not what .*mine-array was made of .*; delete .* another data.name"):
        build(composed, path)


def test_a_learner_is_trained_on_them(composed, rows, tmp_path):
    np.savez(tmp_path / "a.npz", features=rows, labels=NAMES)
    given = ["features=array", f"features.source.path={tmp_path / 'a.npz'}"]
    sizes = ["num_way=2", "num_query=2", "tasks_per_batch=2", "max_steps=10", "val={every: 10, num_tasks: 5}",
             "test.num_tasks=5", "trainer.accelerator=cpu", "trainer.log_every_n_steps=10"]  # fmt: skip
    with pytest.raises(ValueError, match=r"experiment=glyphs_1shot is made for other images than features=array"):
        ensure_features(composed(*given))
    cfg = composed(*OWN, given[1], *sizes)
    ensure_features(cfg)
    assert 0 <= meta_train(cfg) <= 1


def test_what_is_wrong_with_a_file_is_said(composed, rows, tmp_path):
    def refused(message, path, *overrides, error=ValueError, **arrays):
        if arrays:
            np.savez(tmp_path / path, **arrays)
        with pytest.raises(error, match=message):
            build(composed, f"features.source.path={tmp_path / path}", *overrides)
        assert not list((tmp_path / "features").rglob("*.safetensors"))

    refused("a.npz lacks labels; it holds features", "a.npz", features=rows)
    refused(r"b.npz has labels .3. for 72 rows", "b.npz", features=rows, labels=NAMES[:3])
    refused(r"features of .*c.npz are float16 .72.; they must be numbers", "c.npz", features=rows[:, 0], labels=NAMES)
    broken = rows.copy()
    broken[5, 2] = np.inf
    refused(r"d.npz has NaN or infinite features in 1 of 72 rows, first in row 5 .class 'kind 11'", "d.npz",
            features=broken, labels=NAMES)  # fmt: skip
    refused("e.npz cannot be read without running it, or is damaged .*; write labels as text", "e.npz", features=rows,
            labels=NAMES.astype(object))  # fmt: skip
    (tmp_path / "f.npz").write_bytes(b"PK\x03\x04nothing")
    refused("f.npz cannot be read without running it, or is damaged", "f.npz")
    refused(
        "have dev; they must be train, val, test", "g.npz", features=rows, labels=NAMES, splits=["dev"] * len(NAMES)
    )
    refused("h.npz has no row of val and test; give all three splits, or none", "h.npz", features=rows, labels=NAMES,
            splits=["train"] * len(NAMES))  # fmt: skip
    mixed = np.repeat(["train", "val", "test"], len(NAMES) // 3)
    refused(
        "class 'kind .*is in .* and in .*; splits share no class", "i.npz", features=rows, labels=NAMES, splits=mixed
    )
    refused(r"j.npz has 2 class.es.: none is left to train on after 1 for validation and 1", "j.npz",
            features=rows, labels=np.arange(len(NAMES)) % 2)  # fmt: skip
    np.save(tmp_path / "k.npy", rows)
    refused("k.csv is missing: an .npy needs a CSV file with the column label", "k.npy", error=FileNotFoundError)
    table(tmp_path / "k.csv", name=NAMES)
    refused("k.csv has the columns name; it needs label", "k.npy")
    refused("a.npz has its labels inside; leave it out", "a.npz", f"features.source.labels={tmp_path / 'k.csv'}")
    (tmp_path / "l.txt").write_text("1 2 3")
    refused("ends in .txt; .npz, .npy and .safetensors are read", "l.txt")
    refused("features.source.val_fraction=2 must be between 0 and 1", "a.npz", "features.source.val_fraction=2")
