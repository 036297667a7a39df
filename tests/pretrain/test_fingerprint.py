"""What a store was made of: a copy is the same, a changed byte is not, and little is read twice."""

import hashlib
import json
import os
import shutil
import time
from functools import partial

import pytest
import torch

from pretrain import fingerprint
from pretrain.fingerprint import changes, digest, read_records, record, shown, write_records
from pretrain.sources import cifar, image_folder, imagenet, images, omniglot
from pretrain.store import SPLITS, images_fingerprint, read_split
from tests.pretrain import layouts

NAMES = ["kite/a.png", "kite/b.png", "owl/a.png"]
OLD = time.time() - 1000


@pytest.fixture
def birds(tmp_path):
    """Three files of two classes, made a while ago, and their records."""
    for name in NAMES:
        path = tmp_path / "birds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
        os.utime(path, (OLD, OLD))
    return tmp_path / "birds"


@pytest.fixture
def contents_read(monkeypatch):
    """The files whose content is read."""
    read = []

    def sha256(path):
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(fingerprint, "sha256", sha256)
    return read


def by_name(records):
    return {one.name: one for one in records}


def settled(records):
    """The records as they are when the files are older than what a clock tells apart."""
    return {one.name: one._replace(modified=int(OLD * 1e9), changed=one.changed) for one in records}


def test_records_hold_name_size_and_sha256_and_survive_a_file(birds, tmp_path):
    records = record(birds, NAMES, {})
    assert [one.name for one in records] == NAMES
    assert [one.size for one in records] == [100 * len(name) for name in NAMES]
    assert [one.sha256 for one in records] == [hashlib.sha256(name.encode() * 100).hexdigest() for name in NAMES]
    path = tmp_path / "files.csv"
    write_records(path, records)
    assert list(read_records(path).values()) == records
    rows = "".join(sorted(f"{one.name}\0{one.size}\0{one.sha256}\n" for one in records))
    assert digest(records) == hashlib.sha256(rows.encode()).hexdigest()
    for damaged in ("", "file,size\n", path.read_text()[:-90], "\0"):
        path.write_text(damaged)
        assert digest(read_records(path).values()) != digest(records)
    assert read_records(tmp_path / "nothing.csv") == {}


def test_a_name_that_is_not_utf8_is_recorded_and_shown(tmp_path):
    name = os.fsdecode(b"caf\xe9 \n.png")
    (tmp_path / name).write_bytes(b"x")
    records = record(tmp_path, [name], {})
    write_records(tmp_path / "files.csv", records)
    assert list(read_records(tmp_path / "files.csv")) == [name]
    assert shown(name) == "caf\ufffd \n.png"
    assert not changes(tmp_path, [name], by_name(records))
    (tmp_path / name).write_bytes(b"y")
    assert "1 file(s) changed: caf\ufffd" in str(changes(tmp_path, [name], by_name(records)))


def test_contents_are_read_again_only_where_times_or_sizes_differ(birds, contents_read, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SETTLED", 0)
    recorded = by_name(record(birds, NAMES, {}))
    assert sorted(contents_read) == ["a.png", "a.png", "b.png"]
    contents_read.clear()
    assert not changes(birds, NAMES, recorded)
    assert contents_read == []
    os.utime(birds / "kite/b.png", (OLD + 5, OLD + 5))
    found = changes(birds, NAMES, recorded)
    assert not found
    assert contents_read == ["b.png"]
    contents_read.clear()
    assert not changes(birds, NAMES, by_name(found.records)), "the new times are known now"
    assert contents_read == []


def test_a_file_that_is_too_young_is_not_trusted_by_its_times(birds, contents_read):
    """Where a file system counts whole seconds, a file may change again without another time."""
    (birds / "owl/a.png").write_bytes(b"1")
    recorded = by_name(record(birds, ["owl/a.png"], {}))
    contents_read.clear()
    (birds / "owl/a.png").write_bytes(b"2")
    os.utime(birds / "owl/a.png", ns=(recorded["owl/a.png"].modified,) * 2)
    assert changes(birds, ["owl/a.png"], recorded).changed == ["owl/a.png"]
    assert contents_read == ["a.png"]


def test_a_changed_byte_shows_even_where_its_time_is_set_back(birds, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SETTLED", 0)
    recorded = by_name(record(birds, NAMES, {}))
    path = birds / "kite/b.png"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    time.sleep(0.05)
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    found = changes(birds, NAMES, recorded)
    assert found.changed == ["kite/b.png"]
    assert str(found) == "1 file(s) changed: kite/b.png"


def test_what_differs_is_named(birds):
    recorded = by_name(record(birds, NAMES, {}))
    shutil.rmtree(birds / "owl")
    (birds / "jay").mkdir()
    names = [f"jay/{i}.png" for i in range(5)]
    for name in names:
        (birds / name).write_bytes(b"jay")
    (birds / "kite/b.png").write_bytes(b"longer or shorter")
    found = changes(birds, [*names, *NAMES[:2]], recorded)
    assert str(found) == (
        "1 class(es) added: jay; 1 class(es) removed: owl; "
        "5 file(s) added: jay/0.png, jay/1.png, jay/2.png and 2 more; 1 file(s) removed: owl/a.png; "
        "1 file(s) changed: kite/b.png"
    )
    assert changes(birds, NAMES, recorded).removed == ["owl/a.png"], "listed, but gone"


SOURCES = {
    "folders": (layouts.ilsvrc_folders, "n01000001/n01000001_1001.JPEG"),
    "tars": (layouts.ilsvrc_tars, "n01000001.tar"),
    "pickles": (layouts.mini_pickles, "mini-imagenet-cache-test.pkl"),
    "csv": (layouts.mini_csv, f"images/n01000001{layouts.PLACES[0]:08d}.jpg"),
}


def flip(path):
    """Change the last byte, which no decoder misses or one ignores."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def check_source(build, raw, changed):
    """A copy, a moved and a missing source are accepted, one changed byte in it is not."""
    build(path=str(raw))
    build(path=str(raw))
    copy = raw.with_name("copy")
    shutil.copytree(raw, copy)
    build(path=str(copy))
    flip(copy / changed)
    with pytest.raises(
        ValueError, match=r"copy.* is not what .* was made of: 1 file\(s\) changed: .* another data.name"
    ):
        build(path=str(copy))
    (copy / changed).unlink()
    with pytest.raises(ValueError, match=r"1 file\(s\) removed|is missing in|does not exist|expected"):
        build(path=str(copy))
    build(path=str(raw.with_name("nowhere")))
    build(path=str(raw))


@pytest.mark.parametrize("layout", SOURCES)
def test_every_format_of_mini_imagenet_is_compared(tmp_path, layout):
    write, changed = SOURCES[layout]
    write(tmp_path / "raw")
    split_file = str(layouts.mini_split_file(tmp_path))
    build = partial(imagenet.build_mini, tmp_path / "mini", data="birds", image_size=84, split_file=split_file)
    check_source(build, tmp_path / "raw", changed)


def test_tiered_pickles_cifar_and_omniglot_are_compared(tmp_path):
    (tmp_path / "tiered").mkdir()
    layouts.tiered_pickles(tmp_path / "tiered" / "raw")
    split_file = str(layouts.tiered_split_file(tmp_path))
    num_images = {split: 8 * len(names) for split, names in layouts.CLASSES.items()}
    tiered = partial(
        imagenet.build_tiered,
        tmp_path / "tiered/store",
        data="birds",
        image_size=84,
        split_file=split_file,
        num_images=num_images,
    )
    check_source(tiered, tmp_path / "tiered" / "raw", "val_images_png.pkl")
    layouts.cifar100(tmp_path / "cifar" / "raw")
    build = partial(cifar.build, tmp_path / "cifar/store", data="cifar", split_file="cifar_fs.csv", images_per_class=5)
    check_source(build, tmp_path / "cifar" / "raw", "cifar-100-python/train")
    omniglot_split = layouts.omniglot_split_file(tmp_path)
    layouts.omniglot(tmp_path / "omniglot" / "raw", omniglot_split)
    build = partial(
        omniglot.build,
        tmp_path / "omniglot/store",
        data="omniglot",
        image_size=28,
        split_file=str(omniglot_split),
        images_per_class=3,
        rotations=True,
    )
    check_source(build, tmp_path / "omniglot" / "raw", "omniglot-py/images_background/Greek/character01/0001_01.png")


@pytest.fixture
def build_birds(tmp_path):
    layouts.image_folder(tmp_path / "raw", with_splits=False)
    settings = {"data": "birds", "image_size": 8, "framing": None, "seed": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    return partial(image_folder.build, tmp_path / "birds", **settings)


def test_an_image_folder_is_compared(tmp_path, build_birds):
    check_source(build_birds, tmp_path / "raw", "n01000001/photo 2.png")
    shutil.copytree(tmp_path / "raw" / "n01000001", tmp_path / "raw" / "owl")
    with pytest.raises(
        ValueError, match=r"1 class\(es\) added: owl; 4 file\(s\) added: owl/photo 0.png, .* and 1 more"
    ):
        build_birds(path=str(tmp_path / "raw"))
    shutil.rmtree(tmp_path / "raw" / "owl")
    (tmp_path / "raw" / "n01000001" / "Thumbs.db").write_bytes(b"\0")
    build_birds(path=str(tmp_path / "raw"))
    for file in (tmp_path / "raw").rglob("*.*"):
        file.unlink()
    build_birds(path=str(tmp_path / "raw"))  # deleted after preparation: the store is enough


def test_a_store_without_records_is_used(tmp_path, build_birds):
    build_birds(path=str(tmp_path / "raw"))
    for file in (tmp_path / "birds").glob("*.csv"):
        file.unlink()
    flip(tmp_path / "raw" / "n01000001" / "photo 2.png")
    build_birds(path=str(tmp_path / "raw"))


def test_fingerprints_of_stores_follow_from_classes_and_pixels_alone(tmp_path, build_birds):
    build_birds(path=str(tmp_path / "raw"))
    stores = [read_split(tmp_path / "birds", split) for split in SPLITS]
    for store in stores:
        about = json.dumps([store.split, list(store.images.shape), store.offsets.tolist(), store.class_names])
        expected = hashlib.sha256(about.encode() + store.images.contiguous().numpy().tobytes()).hexdigest()
        assert store.fingerprint == expected
    whole = hashlib.sha256("".join(store.fingerprint for store in stores).encode()).hexdigest()
    assert images_fingerprint(stores) == whole
    assert images_fingerprint([stores[0], stores[1]._replace(fingerprint=None)]) is None
    assert stores[0].files == digest(read_records(tmp_path / "birds" / "train.files.csv").values())


def test_images_that_changed_after_a_kill_are_made_anew(tmp_path, build_birds, monkeypatch):
    """What is kept of the attempt before ends where the first changed file is."""

    def fail(content, *arguments, **options):
        if content.name == "photo 3.png" and content.parent.name == names[-1]:
            raise KeyboardInterrupt
        return images.decode(content, *arguments, **options)

    order = image_folder.list_classes(tmp_path / "raw", image_folder.Draw(0, 0.2, 0.2)).classes["train"]
    names = list(order)
    monkeypatch.setattr("pretrain.sources.writing._CHUNK", 1)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode", fail)
        with pytest.raises(KeyboardInterrupt):
            build_birds(path=str(tmp_path / "raw"))
    (begun,) = (tmp_path / "birds").glob(".train*.partial")
    assert begun.stat().st_size > (4 * len(names) - 2) * 8 * 8 * 3
    path = tmp_path / "raw" / names[1] / "photo 1.png"
    layouts.picture(9, 9).save(path)
    decoded = []

    def count(content, *arguments, **options):
        decoded.append(content.relative_to(tmp_path / "raw").as_posix())
        return images.decode(content, *arguments, **options)

    monkeypatch.setattr(image_folder, "decode", count)
    build_birds(path=str(tmp_path / "raw"))
    in_order = [file for files in order.values() for file in files]
    assert [file for file in decoded if file in in_order] == in_order[5:], "from the changed file on"
    store = read_split(tmp_path / "birds", "train")
    assert store.images[5, 0, 0].tolist() == list(layouts.colour(9, 9))
    about = json.dumps([store.split, list(store.images.shape), store.offsets.tolist(), store.class_names])
    assert store.fingerprint == hashlib.sha256(about.encode() + store.images.numpy().tobytes()).hexdigest()
    build_birds(path=str(tmp_path / "raw"))
    assert torch.equal(store.images, read_split(tmp_path / "birds", "train").images)
