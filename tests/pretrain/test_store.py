"""The image store: what is written is read back, and every broken file says what is wrong with it."""

import json
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pretrain.contact_sheet import draw
from pretrain.store import read_split, stream_split, write_split

IMAGES = torch.arange(5 * 4 * 3 * 3).remainder(251).to(torch.uint8).reshape(5, 4, 3, 3)
OFFSETS = torch.tensor([0, 2, 5])
METADATA = {
    "format": "leo-images-1",
    "split": "val",
    "data": "birds",
    "class_names": '["wren", "kite"]',
    "source": "{}",
}


@pytest.fixture
def folder(tmp_path):
    """A store of two classes, with two and three images of 4x3 RGB."""
    folder = tmp_path / "birds"
    write_split(folder, "val", IMAGES, OFFSETS, ["wren", "kite"], "birds", {"image_size": 4})
    return folder


def save(folder, *, images=IMAGES, offsets=OFFSETS, **metadata):
    """Overwrite the split with parts that ``write_split`` would refuse."""
    tensors = {"images": images, "offsets": offsets}
    save_file(tensors, folder / "val.safetensors", METADATA | metadata)


def test_what_is_written_is_read(folder) -> None:
    store = read_split(folder, "val")
    assert torch.equal(store.images, IMAGES)
    assert torch.equal(store.offsets, OFFSETS)
    assert store.labels.tolist() == [0, 0, 1, 1, 1]
    assert store[2:7] == (["wren", "kite"], "val", "birds", {"image_size": 4}, None)
    assert [path.name for path in folder.iterdir()] == ["val.safetensors"]


def images_after(done):
    """The images of IMAGES that follow the first ``done``."""
    return iter(IMAGES[done:].numpy())


STREAM = {
    "image_shape": (4, 3, 3),
    "class_sizes": {"wren": 2, "kite": 3},
    "data": "birds",
    "source": {"image_size": 4},
    "content": "a b c d e",
}


def test_a_streamed_split_is_the_same_file(tmp_path, folder) -> None:
    stream_split(tmp_path, "val", images_after, **STREAM)
    assert (tmp_path / "val.safetensors").read_bytes() == (folder / "val.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kept", [0, 5, -1, -40, -36 * 5])
def test_a_stream_goes_on_after_the_last_whole_image(tmp_path, folder, kept) -> None:
    def interrupted(done):
        assert done == 0
        yield from IMAGES.numpy()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_split(tmp_path, "val", interrupted, **STREAM)
    (begun,) = tmp_path.glob(".val.*.partial")
    begun.write_bytes(begun.read_bytes()[:kept])
    asked = []

    def rest(done):
        asked.append(done)
        return images_after(done)

    stream_split(tmp_path, "val", rest, **STREAM)
    assert asked == [{0: 0, 5: 0, -1: 4, -40: 3, -180: 0}[kept]]
    assert (tmp_path / "val.safetensors").read_bytes() == (folder / "val.safetensors").read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"content": "a b c d f"}, {"source": {"image_size": 5}}, {"class_sizes": {"wren": 3, "kite": 2}}],
    ids=str,
)
def test_a_stream_of_something_else_starts_anew(tmp_path, change) -> None:
    def interrupted(done):
        yield 255 - IMAGES[0].numpy()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_split(tmp_path, "val", interrupted, **STREAM)
    stream_split(tmp_path, "val", images_after, **STREAM | change)
    assert torch.equal(read_split(tmp_path, "val").images, IMAGES)
    assert not list(tmp_path.glob(".*"))


def test_a_split_that_the_disk_cannot_hold_is_refused_before_work(tmp_path) -> None:
    huge = STREAM | {"class_sizes": {"wren": 10**12}}
    with pytest.raises(ValueError, match=r"val.safetensors needs 36,000.0 GB, .* GB are free on its disk; make room"):
        stream_split(tmp_path, "val", images_after, **huge)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_images_are_mapped_not_copied(tmp_path) -> None:
    def anonymous_memory():  # kB, without the pages of mapped files
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    images = torch.zeros(200, 512, 512, 1, dtype=torch.uint8)
    write_split(tmp_path, "test", images, torch.tensor([0, 200]), ["a"], "d", {})
    before = anonymous_memory()
    store = read_split(tmp_path, "test")
    assert anonymous_memory() - before < 5_000  # a copy takes 52,429
    assert str(tmp_path / "test.safetensors") in Path("/proc/self/maps").read_text()
    store.images[0] = 1  # the map is private: the file does not change
    assert not read_split(tmp_path, "test").images[0].any()


def test_a_write_that_fails_halfway_leaves_the_old_file(folder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(Exception, match="too large"):
            write_split(folder, "val", IMAGES.repeat(500, 1, 1, 1), torch.tensor([0, 2500]), ["wren"], "birds", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.iterdir()] == ["val.safetensors"]
    assert torch.equal(read_split(folder, "val").images, IMAGES)


def test_a_missing_file_names_the_command_that_makes_it(folder) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"birds/train\.safetensors does not exist; make it with `python train.py stage=prepare` and the same",
    ):
        read_split(folder, "train")


def test_an_unknown_split_is_refused(folder) -> None:
    with pytest.raises(ValueError, match="split 'valid' is not one of train, val, test"):
        read_split(folder, "valid")


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: whole[:20], lambda whole: b"", lambda whole: b"PK\x03\x04" * 99],
    ids=["truncated", "header only", "empty", "zip"],
)
def test_bytes_that_are_no_store(folder, damage) -> None:
    path = folder / "val.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"val\.safetensors is truncated or not a safetensors file.*delete it"):
        read_split(folder, "val")


def test_a_tensor_that_is_not_there(folder) -> None:
    save_file({"images": IMAGES}, folder / "val.safetensors", METADATA)
    with pytest.raises(ValueError, match=r"does not contain tensor offsets.*delete it"):
        read_split(folder, "val")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "leo-features-1"}, "format 'leo-features-1', an image store has 'leo-images-1'"),
        ({"split": "train"}, "holds the 'train' split, not 'val'"),
        ({"class_names": "[wren"}, "broken metadata"),
        ({"class_names": '["wren"]'}, "1 class names for the 2 classes"),
        ({"class_names": '{"wren": 2, "kite": 3}'}, "class_names is not a list of strings"),
        ({"source": "[]"}, "source is not a JSON object"),
    ],
)
def test_metadata_that_does_not_fit(folder, metadata, message) -> None:
    save(folder, **metadata)
    with pytest.raises(ValueError, match=rf"val\.safetensors.*{message}.*again with `python train.py stage=prepare`"):
        read_split(folder, "val")


def test_foreign_safetensors_have_no_metadata(folder) -> None:
    save_file({"images": IMAGES, "offsets": OFFSETS}, folder / "val.safetensors")
    with pytest.raises(ValueError, match="has format None"):
        read_split(folder, "val")


def test_metadata_without_a_key(folder) -> None:
    incomplete = {key: value for key, value in METADATA.items() if key != "source"}
    save_file({"images": IMAGES, "offsets": OFFSETS}, folder / "val.safetensors", incomplete)
    with pytest.raises(ValueError, match=r"broken metadata \(KeyError\('source'\)\)"):
        read_split(folder, "val")


BROKEN_PARTS = [
    ({"images": IMAGES.float()}, r"images are torch\.float32 \[5, 4, 3, 3\]"),
    ({"images": IMAGES[0]}, r"images are torch\.uint8 \[4, 3, 3\]"),
    ({"images": IMAGES[..., :2].contiguous()}, r"they must be torch\.uint8 \[n, H, W, 1 or 3\]"),
    ({"offsets": OFFSETS.int()}, r"offsets are torch\.int32 \[3\]"),
    ({"offsets": torch.tensor([0])}, r"offsets are torch\.int64 \[1\]"),
    ({"offsets": torch.tensor([1, 2, 5])}, "offsets run from 1 to 5, they must run from 0 to 5"),
    ({"offsets": torch.tensor([0, 2, 6])}, "offsets run from 0 to 6, they must run from 0 to 5"),
    ({"offsets": torch.tensor([0, 5, 5])}, "class 'kite' has 0 images, it must have at least 1"),
    ({"offsets": torch.tensor([0, 6, 5])}, "class 'kite' has -1 images"),
    ({"class_names": ["wren", "wren"]}, r"class names \['wren'\] occur more than once"),
]


@pytest.mark.parametrize(("parts", "message"), BROKEN_PARTS)
def test_parts_that_are_no_split(tmp_path, folder, parts, message) -> None:
    whole = {"images": IMAGES, "offsets": OFFSETS, "class_names": ["wren", "kite"]} | parts
    with pytest.raises(ValueError, match=f"was not written: .*{message}"):
        write_split(tmp_path / "new", "val", data="birds", source={}, **whole)
    assert not (tmp_path / "new").exists()
    save(folder, **whole | {"class_names": json.dumps(whole["class_names"])})
    with pytest.raises(ValueError, match=rf"val\.safetensors: .*{message}.*delete it and make it again"):
        read_split(folder, "val")


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_shows_each_image_enlarged(tmp_path, channels) -> None:
    # Three classes of three 32x32 images, each a constant grey: 10 * class + image + 100.
    greys = torch.tensor([[100, 101, 102], [110, 111, 112], [120, 121, 122]], dtype=torch.uint8)
    images = greys.reshape(9, 1, 1, 1).expand(9, 32, 32, channels)
    write_split(tmp_path, "train", images, torch.tensor([0, 3, 6, 9]), ["a", "b", "kite"], "birds", {})
    draw(read_split(tmp_path, "train"), tmp_path / "sheet.png", num_classes=2, num_images=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        counts = {colour[0]: count for count, colour in sheet.getcolors(1000) if len(set(colour)) == 1}
    shown = {grey: counts.get(grey, 0) >= 96 * 96 for grey in greys.flatten().tolist()}
    assert [grey for grey, whole in shown.items() if whole] == [100, 101, 120, 121]


def test_contact_sheet_of_fewer_classes_and_images_than_asked(tmp_path, folder) -> None:
    draw(read_split(folder, "val"), tmp_path / "sheet.png", num_classes=10, num_images=4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height < 2 * 96 + 100
    with pytest.raises(ValueError, match="num_classes=0 and num_images=4 must be at least 1"):
        draw(read_split(folder, "val"), tmp_path / "sheet.png", num_classes=0, num_images=4)
