"""The embedded data set, built for real with two images a class."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from pretrain import glyphs
from pretrain.store import SPLITS, ImageStore, read_split, write_split

SETTINGS = {"images_per_class": 2, "image_size": 32, "seed": 0}
BUILD = """
import sys
from pathlib import Path
from pretrain import glyphs
print("ready", flush=True)
sys.stdin.readline()
glyphs.build(Path(sys.argv[1]), images_per_class=2, image_size=32, seed=0)
"""


def assert_same(one: ImageStore, other: ImageStore) -> None:
    """Not by the bytes of the files: safetensors writes its metadata in no fixed order."""
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.offsets, other.offsets)
    assert one[2:] == other[2:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "glyphs"
    glyphs.build(folder, **SETTINGS)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "glyphs")


def test_classes_and_images_of_each_split(folder) -> None:
    stores = {split: read_split(folder, split) for split in SPLITS}
    assert {split: len(store.class_names) for split, store in stores.items()} == {
        "train": 347,
        "val": 41,
        "test": 90,
    }
    for store in stores.values():
        assert store.images.shape == (2 * len(store.class_names), 32, 32, 1)
        assert store.offsets.diff().eq(2).all()
        assert (store.data, store.source) == ("glyphs", SETTINGS)
    characters = [set(store.class_names) for store in stores.values()]
    assert len(set.union(*characters)) == 347 + 41 + 90


def test_glyphs_are_light_on_a_dark_ground(folder) -> None:
    images = read_split(folder, "train").images[..., 0] / 255
    assert images.min() == 0
    assert images.max() == 1
    # Background up to 0.4, brightest at one end; a stroke adds 0.4 to 1.0 of what is left.
    assert images.flatten(1).quantile(0.2, dim=1).max() < 0.4
    assert images[:, 10:22, 10:22].mean() > images[:, :4].mean() + 0.15
    assert images.flatten(1).quantile(0.98, dim=1).min() > 0.4


def test_two_processes_at_once_build_once_and_the_same_images(folder, tmp_path) -> None:
    other = tmp_path / "glyphs"
    builders = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", BUILD, other],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [builder.stdout.readline() for builder in builders] == ["ready\n"] * 2
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    bars = ["Drawing glyphs" in builder.communicate()[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sorted(bars) == [False, True]
    for split in SPLITS:
        assert_same(read_split(other, split), read_split(folder, split))


def test_a_class_depends_on_seed_and_split_and_on_nothing_drawn_before(folder) -> None:
    characters = glyphs.classes()["val"]
    store = read_split(folder, "val")

    def draw(seed, num_images):
        return glyphs.draw_class("Ψ", characters, glyphs.faces(), num_images, 32, seed)

    first = int(store.offsets[characters.index("Ψ")])
    assert np.array_equal(draw(0, 2), store.images[first : first + 2])
    assert np.array_equal(draw(0, 3)[:2], draw(0, 2))
    assert not np.array_equal(draw(1, 2), draw(0, 2))


def test_neighbours_share_script_face_and_split() -> None:
    train, test = glyphs.classes()["train"], glyphs.classes()["test"]
    sans, stix = glyphs.faces()[0], glyphs.faces()[-1]
    assert set(glyphs.same_script(sans, "Ж", train)) == set("ЂЉЊЋЏДЖЛЩЫЮЯъѢѣѪѵҐҕҖҘҚҢҤҬҲҺӃӋӶԚ")
    assert set("13→≤") < set(glyphs.same_script(sans, "+", train))
    assert set(glyphs.same_script(stix, "Ж", train)) < set(glyphs.same_script(sans, "Ж", train))
    assert set(glyphs.same_script(sans, "ა", test)) == {letter for letter in test if letter >= "ა"}
    assert not glyphs.same_script(stix, "ა", test)


def test_a_line_has_a_neighbour_on_each_side_seven_times_in_ten() -> None:
    # The ink of the Em dash is 44 pixels wide: columns 74 to 117 of 192.
    sans = glyphs.faces()[0]
    lines = np.stack([glyphs.typeset("—", "Д", sans, np.random.default_rng(i)) for i in range(400)])
    ink = lines.any(axis=1)
    assert ink[:, 74:118].all()
    assert not ink[:, 70:74].any()
    assert not ink[:, 118:122].any()
    for side in (slice(0, 70), slice(122, 192)):
        assert abs(ink[:, side].any(axis=1).mean() - 0.7) < 0.09  # 4 standard deviations of 400 draws
    gaps = {int(row[118:].argmax()) for row in ink if row[118:].any()}
    assert gaps == {4, 5, 6, 7, 8, 9}


def test_image_size_only_changes_the_sampling() -> None:
    characters = glyphs.classes()["val"]
    small, large = (glyphs.draw_class("Σ", characters, glyphs.faces(), 1, size, 0)[0, ..., 0] for size in (32, 64))
    assert large.shape == (64, 64)
    halved = large.reshape(32, 2, 32, 2).mean((1, 3))
    assert np.corrcoef(halved.flatten(), small.flatten())[0, 1] > 0.8  # each has noise of its own


def test_a_complete_store_is_left_alone(copy) -> None:
    (copy / ".build.lock").unlink()
    glyphs.build(copy, **SETTINGS)
    assert sorted(path.name for path in copy.iterdir()) == [f"{split}.safetensors" for split in sorted(SPLITS)]


def test_missing_splits_are_built_and_the_others_kept(copy, folder) -> None:
    (copy / "val.safetensors").unlink()
    kept = (copy / "train.safetensors").stat().st_mtime_ns
    glyphs.build(copy, **SETTINGS)
    assert_same(read_split(copy, "val"), read_split(folder, "val"))
    assert (copy / "train.safetensors").stat().st_mtime_ns == kept


@pytest.mark.parametrize(("key", "value"), [("images_per_class", 3), ("image_size", 28), ("seed", 1)], ids=str)
def test_other_settings_are_refused(folder, key, value) -> None:
    with pytest.raises(
        ValueError,
        match=rf"train\.safetensors was made with {key}={SETTINGS[key]}, this run asks for {key}={value}; "
        rf"delete .*glyphs or give another data\.name",
    ):
        glyphs.build(folder, **SETTINGS | {key: value})


def test_a_store_of_another_data_set_is_refused(tmp_path) -> None:
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    write_split(tmp_path, "train", images, torch.tensor([0, 1]), ["wren"], "birds", {})
    with pytest.raises(ValueError, match="was made with data=birds, this run asks for data=glyphs"):
        glyphs.build(tmp_path, **SETTINGS)


@pytest.mark.parametrize(("key", "value", "limit"), [("images_per_class", 0, 1), ("image_size", 7, 8)])
def test_settings_below_their_limit_are_refused(tmp_path, key, value, limit) -> None:
    with pytest.raises(ValueError, match=f"{key}={value} .*must be at least {limit}"):
        glyphs.build(tmp_path, **SETTINGS | {key: value})


def test_the_sixteen_faces(tmp_path) -> None:
    for face in glyphs.faces():
        shutil.copy(face, tmp_path)
    assert [face.name for face in glyphs.faces(tmp_path)] == [face.name for face in glyphs.faces()]
    assert len(glyphs.faces()) == 16
    (tmp_path / "STIXGeneralBol.ttf").unlink()
    with pytest.raises(FileNotFoundError, match=r"STIXGeneralBol\.ttf does not exist.*reinstall"):
        glyphs.faces(tmp_path)


def test_a_character_in_no_face_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the 16 faces has '好' \(U\+597D\)"):
        glyphs.draw_class("好", "好", glyphs.faces(), 1, 32, 0)
