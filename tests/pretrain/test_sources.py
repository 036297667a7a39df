"""What each outside format puts into the store, and what each says when it is damaged."""

import pickle
import signal
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.sources import cifar, ilsvrc, image_folder, imagenet, images, leo_embeddings, omniglot, writing
from pretrain.store import SPLITS, read_split
from tests.pretrain import layouts
from tests.pretrain.layouts import CLASSES, NAMES, NUMBERS, PLACES, colour

TIERED_COUNTS = {split: len(names) * len(NUMBERS) for split, names in CLASSES.items()}


@pytest.fixture
def mini(tmp_path):
    return partial(
        imagenet.build_mini,
        tmp_path / "mini",
        path=str(tmp_path / "raw"),
        data="birds",
        image_size=84,
        split_file=str(layouts.mini_split_file(tmp_path)),
    )


@pytest.fixture
def tiered(tmp_path):
    return partial(
        imagenet.build_tiered,
        tmp_path / "tiered",
        path=str(tmp_path / "raw"),
        data="birds",
        image_size=84,
        split_file=str(layouts.tiered_split_file(tmp_path)),
        num_images=TIERED_COUNTS,
    )


@pytest.fixture
def embeddings(tmp_path):
    return partial(
        leo_embeddings.build,
        tmp_path / "features",
        path=str(tmp_path / "raw"),
        data="mini_imagenet",
        crop="center",
        layer=21,
        split_file=str(layouts.tiered_split_file(tmp_path)),
        num_images=TIERED_COUNTS,
    )


def assert_colours(store, expected, atol=3):
    """Every image is of its colour, within what JPEG leaves of it."""
    colours = torch.tensor(expected)
    assert store.images.shape == (len(expected), 84, 84, 3)
    assert (store.images - colours[:, None, None]).abs().max() <= atol


@pytest.mark.parametrize(
    ("write", "atol"),
    [
        (layouts.ilsvrc_folders, 3),
        (layouts.ilsvrc_tars, 3),
        (layouts.mini_pickles, 0),
        (layouts.mini_csv, 3),
    ],
)
def test_mini_imagenet_holds_the_images_of_its_split_in_the_order_of_their_numbers(tmp_path, mini, write, atol):
    write(tmp_path / "raw")
    mini()
    for split in SPLITS:
        store = read_split(tmp_path / "mini", split)
        assert (store.data, store.class_names) == ("birds", CLASSES[split])
        assert store.offsets.diff().tolist() == [len(PLACES)] * len(CLASSES[split])
        expected = [colour(NAMES.index(name), place - 1) for name in CLASSES[split] for place in PLACES]
        assert_colours(store, expected, atol)


@pytest.mark.parametrize(("write", "atol"), [(layouts.ilsvrc_folders, 3), (layouts.tiered_pickles, 0)])
def test_tiered_imagenet_holds_all_images(tmp_path, tiered, write, atol):
    write(tmp_path / "raw")
    tiered()
    for split in SPLITS:
        store = read_split(tmp_path / "tiered", split)
        expected = [colour(NAMES.index(name), k) for name in CLASSES[split] for k in range(len(NUMBERS))]
        assert_colours(store, expected, atol)
    if write is layouts.tiered_pickles:
        assert store.class_names == ["test/000 crane", "test/001 crane"]


def test_the_splits_that_the_project_carries():
    """Published sizes, and a few published members that were not used to make the files."""
    mini = writing.ilsvrc_classes("mini_imagenet.csv", None)
    assert [(len(split.classes), split.num_images) for split in mini.values()] == [(64, 38400), (16, 9600), (20, 12000)]
    assert all(len(places) == 600 for split in mini.values() for places in split.classes.values())
    assert mini["train"].classes["n01532829"][:8] == [5, 6, 7, 10, 14, 15, 16, 17]
    tiered = writing.ilsvrc_classes("tiered_imagenet.csv", dict.fromkeys(SPLITS, 1))
    assert [len(split.classes) for split in tiered.values()] == [351, 97, 160]
    omniglot_rows = writing.split_rows("omniglot.csv")
    counts = [sum(int(row["last"]) - int(row["first"]) + 1 for row in omniglot_rows[split]) for split in SPLITS]
    assert counts == [1028, 172, 423]
    assert [len(rows) for rows in writing.split_rows("cifar_fs.csv").values()] == [64, 16, 20]
    assert [len(rows) for rows in writing.split_rows("fc100.csv").values()] == [12, 4, 4]
    for name in ("mini_imagenet.csv", "tiered_imagenet.csv", "cifar_fs.csv", "fc100.csv"):
        members = [next(iter(list(row.values())[1:])) for rows in writing.split_rows(name).values() for row in rows]
        assert len(set(members)) == len(members), name


@pytest.mark.parametrize(("name", "sizes"), [("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_cifar_takes_training_and_test_images_of_each_class(tmp_path, name, sizes):
    layouts.cifar100(tmp_path / "raw")
    cifar.build(tmp_path / name, path=str(tmp_path / "raw"), data="birds", split_file=f"{name}.csv", images_per_class=5)
    fine = sorted(" ".join(layouts.SUPERCLASSES.values()).split())
    stores = [read_split(tmp_path / name, split) for split in SPLITS]
    assert [len(store.class_names) for store in stores] == sizes
    for store in stores:
        reds = torch.tensor([2 * fine.index(name) + k for name in store.class_names for k in range(5)])
        assert store.images[..., 0].eq(reds[:, None, None]).all()
        assert store.images[..., 1].eq(7).all()
        assert store.images[..., 2].eq(torch.arange(32)[:, None]).all()
    names = [set(store.class_names) for store in stores]
    if name == "fc100":
        assert {"baby", "boy", "girl", "man", "woman"} < names[2]
        assert {"fox", "possum", "skunk"} < names[2]
        assert {"bear", "leopard", "lion", "tiger", "wolf"} < names[1]
    assert len(set.union(*names)) == 100


def test_omniglot_with_rotations_as_train_classes(tmp_path):
    split_file = layouts.omniglot_split_file(tmp_path)
    layouts.omniglot(tmp_path / "raw", split_file)
    build = partial(
        omniglot.build,
        path=str(tmp_path / "raw"),
        data="birds",
        image_size=28,
        split_file=str(split_file),
        images_per_class=3,
    )
    build(tmp_path / "turned", rotations=True)
    build(tmp_path / "plain", rotations=False)
    train = read_split(tmp_path / "turned", "train")
    assert train.class_names[:4] == ["Greek/character01"] + [f"Greek/character01/rot{d}" for d in ("090", "180", "270")]
    assert len(train.class_names) == 4 * 4
    # The ink is in the upper left quarter; anticlockwise it moves to the lower left, lower right, upper right.
    corners = [(4, 4), (23, 4), (23, 23), (4, 23)]
    first = train.images[::3, ..., 0][:4]
    for turned, ink in enumerate(corners):
        assert [bool(first[turned][corner] < 20) for corner in corners] == [corner == ink for corner in corners]
    for split, names in {
        "val": ["Hebrew/character01", "Hebrew/character02"],
        "test": ["Gurmukhi/character02", "Tibetan/character01", "Tibetan/character02"],
    }.items():
        assert read_split(tmp_path / "turned", split).class_names == names
    assert len(read_split(tmp_path / "plain", "train").class_names) == 4


def test_class_folders_are_split_by_seed_and_the_split_is_recorded(tmp_path):
    layouts.image_folder(tmp_path / "raw", with_splits=False)
    build = partial(
        image_folder.build,
        path=str(tmp_path / "raw"),
        data="birds",
        image_size=84,
        framing=None,
        val_fraction=0.3,
        test_fraction=0.15,
    )
    names = {}
    for seed in (0, 0, 1):
        folder = tmp_path / f"seed{seed}-{len(names)}"
        build(folder, seed=seed)
        stores = [read_split(folder, split) for split in SPLITS]
        assert [len(store.class_names) for store in stores] == [4, 2, 1]
        assert set().union(*(store.class_names for store in stores)) == set(NAMES)
        assert stores[0].source == {
            "format": "class folders, split by seed",
            "image_size": 84,
            "framing": None,
            "seed": seed,
            "val_fraction": 0.3,
            "test_fraction": 0.15,
        }
        assert_colours(stores[0], [colour(NAMES.index(name), k) for name in stores[0].class_names for k in range(4)], 0)
        names[folder.name] = [store.class_names for store in stores]
    first, again, other = names.values()
    assert first == again != other


def test_the_authors_features_are_sorted_by_class(tmp_path, embeddings):
    from leo.features import load_splits

    layouts.leo_embeddings(tmp_path / "raw")
    embeddings()
    tables = load_splits(tmp_path / "features")
    for split, names in CLASSES.items():
        assert tables[split].class_names == names
        for c, name in enumerate(names):
            rows = tables[split].features[tables[split].offsets[c] : tables[split].offsets[c + 1]]
            assert rows.shape == (8, 640)
            expected = torch.tensor([NAMES.index(name) + k / 100 for k in range(8)])
            torch.testing.assert_close(rows[:, 100], expected)
            torch.testing.assert_close(rows[:, c], expected + 1)
    origin = tables["train"].origin
    assert (origin["data"], origin["layer"], origin["crop"]) == ("mini_imagenet", "21", "center")
    written = [file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.safetensors")]
    embeddings(path=None)
    assert [file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.safetensors")] == written


# Damage: what happens to files, for each format.


def rewrite_pickle(file, change):
    content = pickle.loads(file.read_bytes(), encoding="latin1")
    change(content)
    file.write_bytes(pickle.dumps(content, protocol=2))


def in_row(file, number, text):
    lines = file.read_text().splitlines()
    lines[number - 1] = text
    file.write_text("\n".join(lines) + "\n")


def truncate(file, size):
    file.write_bytes(file.read_bytes()[:size])


def rename_member(archive, old, new):
    with tarfile.open(archive) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    layouts.write_tar(archive, [(new if name == old else name, content) for name, content in members])


def link_in(archive):
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("n01000001_7.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


FOLDERS = [
    (
        lambda raw: (raw / "n01000002/n01000002_2000.JPEG").unlink(),
        r"raw: class n01000002 has 7 images, expected at least 8, the last of the split",
    ),
    (
        lambda raw: (raw / "n02000001/n02000001_33.JPEG").write_bytes(b""),
        r"image .*raw/n02000001/n02000001_33.JPEG is empty \(0 bytes\); replace it and start again",
    ),
    (
        lambda raw: truncate(raw / "n02000001/n02000001_33.JPEG", 400),
        r"image .*n02000001_33.JPEG is truncated or damaged \((?i:.*truncated)",
    ),
    (
        lambda raw: (raw / "n02000001/n02000001_33.JPEG").write_text("<html>"),
        r"image .*n02000001_33.JPEG is not an image",
    ),
    (
        lambda raw: (raw / "n02000001/n02000001_033.JPEG").write_bytes(b"x"),
        r"raw/n02000001/n02000001_0*33.JPEG is there twice; remove one",
    ),
    (
        lambda raw: (raw / "n02000001/n02000002_7.JPEG").write_bytes(b"x"),
        r"n02000002_7.JPEG is not an image of class n02000001, n02000001_<number>.JPEG",
    ),
    (
        lambda raw: (raw / "n03000002").rename(raw / "gone"),
        r"class n03000002 is missing in .*raw: neither n03000002/ nor",
    ),
]


@pytest.mark.parametrize(("damage", "message"), FOLDERS)
def test_damaged_ilsvrc_folders(tmp_path, mini, damage, message):
    layouts.ilsvrc_folders(tmp_path / "raw")
    damage(tmp_path / "raw")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mini()
    assert not list((tmp_path / "mini").glob("test.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda raw: truncate(raw / "n01000001.tar", 900),
            r"raw/n01000001.tar is truncated or not a plain tar archive \(unexpected end of data\); fetch it again",
        ),
        (
            lambda raw: (raw / "n01000001.tar").write_bytes(b"not a tar" * 99),
            "n01000001.tar is truncated or not a plain tar archive",
        ),
        (
            lambda raw: rename_member(raw / "n01000001.tar", "n01000001_9.JPEG", "../../n01000001_9.JPEG"),
            r"n01000001.tar \(../../n01000001_9.JPEG\) is not an image of class n01000001",
        ),
        (
            lambda raw: rename_member(raw / "n01000001.tar", "n01000001_9.JPEG", "n01000001_10.JPEG"),
            r"n01000001.tar \(n01000001_10.JPEG\) is there twice",
        ),
        (
            lambda raw: link_in(raw / "n01000001.tar"),
            "n01000001.tar holds 'n01000001_7.JPEG', which is not a plain file",
        ),
        (
            lambda raw: layouts.write_tar(
                raw / "n01000001.tar", [(f"n01000001_{number}.JPEG", b"") for number in NUMBERS]
            ),
            r"image .*n01000001.tar \(n01000001_10.JPEG\) is empty",
        ),
    ],
)
def test_damaged_ilsvrc_archives_which_write_nothing(tmp_path, mini, damage, message):
    layouts.ilsvrc_tars(tmp_path / "raw")
    damage(tmp_path / "raw")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mini()
    assert {path for path in tmp_path.rglob("*") if tmp_path / "mini" not in [path, *path.parents]} == set(before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda raw: (raw / "mini-imagenet-cache-validation.pkl").unlink(),
            "mini-imagenet-cache-val.pkl or mini-imagenet-cache-validation.pkl is missing in .*raw",
        ),
        (
            lambda raw: truncate(raw / "mini-imagenet-cache-train.pkl", 5000),
            r"raw/mini-imagenet-cache-train.pkl is truncated or not a pickle .*fetch it again",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "mini-imagenet-cache-train.pkl", lambda c: c["class_dict"].pop("n01000002")
            ),
            "train.pkl: the train split has 2 classes, expected 3; it lacks n01000002",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "mini-imagenet-cache-train.pkl", lambda c: c["class_dict"]["n01000002"].pop()
            ),
            "train.pkl: class n01000002 of the train split has 4 images, expected 5",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "mini-imagenet-cache-train.pkl", lambda c: c["class_dict"].update(n01000002=[0, 3, 6, 9, 12])
            ),
            "train.pkl: image 0 is in class n01000001 and in class n01000002",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "mini-imagenet-cache-train.pkl", lambda c: c["class_dict"].update(n01000002=[1, 4, 7, 10, 15])
            ),
            "train.pkl: class n01000002 names image 15, image_data has 15",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "mini-imagenet-cache-train.pkl", lambda c: c.update(image_data=c["image_data"] / 255)
            ),
            r"train.pkl: image_data is float64 \[15, 84, 84, 3\], expected uint8 \[N, 84, 84, 3\]",
        ),
        (
            lambda raw: rewrite_pickle(raw / "mini-imagenet-cache-train.pkl", lambda c: c.pop("class_dict")),
            "train.pkl lacks class_dict; it has image_data",
        ),
    ],
)
def test_damaged_mini_imagenet_pickles(tmp_path, mini, damage, message):
    layouts.mini_pickles(tmp_path / "raw")
    damage(tmp_path / "raw")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mini()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: (raw / "val.csv").unlink(), "raw/val.csv does not exist"),
        (lambda raw: (raw / "images").rename(raw / "pictures"), "raw/images does not exist"),
        (
            lambda raw: (raw / "images/n0100000200000003.jpg").unlink(),
            "train.csv, line 6: .*raw/images/n0100000200000003.jpg does not exist",
        ),
        (
            lambda raw: in_row(raw / "train.csv", 3, "n0100000100000002.jpg,n01000001"),
            "train.csv, line 3: image n0100000100000002.jpg is listed before, in .*train.csv",
        ),
        (
            lambda raw: in_row(raw / "val.csv", 2, "n0100000100000002.jpg,n02000001"),
            "val.csv, line 2: image n0100000100000002.jpg is listed before, in .*train.csv",
        ),
        (lambda raw: in_row(raw / "train.csv", 3, "a.jpg"), "train.csv, line 3: 'a.jpg' is not a row image,class"),
        (
            lambda raw: in_row(raw / "train.csv", 3, "n0100000200000002.jpg,n01000009"),
            "train.csv: the train split has 4 classes, expected 3; it should not have n01000009",
        ),
        (
            lambda raw: in_row(raw / "train.csv", 3, "n0100000200000002.jpg,n01000001"),
            "train.csv: class n01000001 of the train split has 6 images, expected 5",
        ),
    ],
)
def test_damaged_csv_files(tmp_path, mini, damage, message):
    layouts.mini_csv(tmp_path / "raw")
    damage(tmp_path / "raw")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mini()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: (raw / "test_labels.pkl").unlink(), "test_labels.pkl is missing in .*raw"),
        (lambda raw: truncate(raw / "train_images_png.pkl", 3000), "train_images_png.pkl is truncated or not a pickle"),
        (
            lambda raw: rewrite_pickle(raw / "train_images_png.pkl", lambda images: images.pop()),
            "train_images_png.pkl: the train split has 23 images, expected 24",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "train_labels.pkl", lambda c: c.update(label_specific=c["label_specific"][:-1])
            ),
            "train_labels.pkl: the train split has 23 images, expected 24",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "train_labels.pkl", lambda c: c.update(label_specific=c["label_specific"] % 2)
            ),
            "train_labels.pkl: the train split has 2 classes, expected 3",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "train_images_png.pkl", lambda images: images.__setitem__(4, np.zeros(0, np.uint8))
            ),
            r"image 4 of .*train_images_png.pkl is empty \(0 bytes\)",
        ),
        (
            lambda raw: rewrite_pickle(
                raw / "train_images_png.pkl", lambda images: images.__setitem__(4, images[4][:90])
            ),
            "image 4 of .*train_images_png.pkl is truncated or damaged",
        ),
    ],
)
def test_damaged_tiered_imagenet_pickles(tmp_path, tiered, damage, message):
    layouts.tiered_pickles(tmp_path / "raw")
    damage(tmp_path / "raw")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiered()


def test_tiered_imagenet_from_ilsvrc_counts_its_images(tmp_path, tiered):
    layouts.ilsvrc_folders(tmp_path / "raw")
    (tmp_path / "raw/n01000002/n01000002_100.JPEG").unlink()
    with pytest.raises(ValueError, match=r"raw: the train split has 23 images, expected 24"):
        tiered()
    assert not list((tmp_path / "tiered").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda file: file.unlink(),
            r"val_embeddings.pkl does not exist; features.source.path is the folder with mini",
        ),
        (lambda file: truncate(file, 2000), "val_embeddings.pkl is truncated or not a pickle"),
        (
            lambda file: rewrite_pickle(file, lambda c: c["keys"].__setitem__(1, c["keys"][3])),
            "val_embeddings.pkl: image 'n02000002_10.JPEG' occurs twice",
        ),
        (
            lambda file: rewrite_pickle(file, lambda c: c["keys"].__setitem__(1, b"1-n02000002-n02000001_9.JPEG")),
            "val_embeddings.pkl: key '1-n02000002-n02000001_9.JPEG' is not of the form <x>-<class>-<class>_<image>",
        ),
        (
            lambda file: rewrite_pickle(file, lambda c: c["keys"].__setitem__(1, b"1-n02000009-n02000009_9.JPEG")),
            "val_embeddings.pkl: the val split has 3 classes, expected 2",
        ),
        (
            lambda file: rewrite_pickle(file, lambda c: c.update(keys=c["keys"][:-1], embeddings=c["embeddings"][:-1])),
            "val_embeddings.pkl: the val split has 15 images, expected 16",
        ),
        (
            lambda file: rewrite_pickle(file, lambda c: c.update(embeddings=c["embeddings"][:-1])),
            r"embeddings are float32 \[15, 640\] for 16 keys",
        ),
        (lambda file: rewrite_pickle(file, lambda c: c.pop("keys")), "val_embeddings.pkl lacks keys; it has emb"),
    ],
)
def test_damaged_features_of_the_authors(tmp_path, embeddings, damage, message):
    layouts.leo_embeddings(tmp_path / "raw")
    damage(tmp_path / "raw/miniImageNet/center/val_embeddings.pkl")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        embeddings()


def test_the_authors_published_no_features_of_other_data(embeddings):
    with pytest.raises(ValueError, match="no features of data=glyphs; use data=mini_imagenet or data=tiered_imagenet"):
        embeddings(data="glyphs")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: (raw / "meta").unlink(), "cifar-100-python/meta does not exist"),
        (lambda raw: truncate(raw / "test", 9000), "cifar-100-python/test is truncated or not a pickle"),
        (
            lambda raw: rewrite_pickle(raw / "test", lambda c: c["fine_labels"].__setitem__(0, 1)),
            "cifar-100-python: class apple has 4 images, expected 5",
        ),
        (
            lambda raw: rewrite_pickle(raw / "meta", lambda c: c["fine_label_names"].__setitem__(0, "durian")),
            "cifar-100-python lacks the .*apple.* of cifar_fs.csv",
        ),
        (
            lambda raw: rewrite_pickle(raw / "train", lambda c: c.pop("coarse_labels")),
            "cifar-100-python/train lacks coarse_labels",
        ),
    ],
)
def test_damaged_cifar(tmp_path, damage, message):
    layouts.cifar100(tmp_path / "raw")
    damage(tmp_path / "raw" / "cifar-100-python")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cifar.build(
            tmp_path / "fs", path=str(tmp_path / "raw"), data="birds", split_file="cifar_fs.csv", images_per_class=5
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda raw: next((raw / "images_background/Greek/character02").iterdir()).unlink(),
            "images_background/Greek/character02 has 2 drawings, expected 3",
        ),
        (
            lambda raw: (raw / "images_evaluation/Tibetan").rename(raw / "Tibetan"),
            "character Tibetan/character01 is missing in .*omniglot-py/images_background and images_evaluation",
        ),
        (
            lambda raw: next((raw / "images_background/Greek/character02").iterdir()).write_bytes(b""),
            r"image .*Greek/character02/.*.png is empty",
        ),
    ],
)
def test_damaged_omniglot(tmp_path, damage, message):
    split_file = layouts.omniglot_split_file(tmp_path)
    layouts.omniglot(tmp_path / "raw", split_file)
    damage(tmp_path / "raw" / "omniglot-py")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        omniglot.build(
            tmp_path / "omniglot",
            path=str(tmp_path / "raw"),
            data="birds",
            image_size=28,
            split_file=str(split_file),
            images_per_class=3,
            rotations=False,
        )


@pytest.mark.parametrize(
    ("with_splits", "damage", "message"),
    [
        (
            True,
            lambda raw: (raw / "val").rename(raw / "eval"),
            r"has folders of class folders called train, test, but none for val; give one folder each for train, "
            r"val \(or valid, validation, dev\) and test, or class folders alone",
        ),
        (
            True,
            lambda raw: (raw / "train/n01000001").rename(raw / "test/n01000002"),
            "class n01000002 is in train and in test of .*splits share no class",
        ),
        (
            True,
            lambda raw: [file.unlink() for file in (raw / "train/n01000001").iterdir()],
            "class folder .*raw/train/n01000001 has no images",
        ),
        (
            True,
            lambda raw: (raw / "train/n01000001/readme.txt").write_text("hello"),
            "image .*raw/train/n01000001/readme.txt is not an image",
        ),
        (
            False,
            lambda raw: [(raw / name).rename(raw.parent / name) for name in NAMES[2:]],
            "has 2 class folders: none is left to train on after 1 for validation and 1 for test",
        ),
        (False, lambda raw: (raw / NAMES[0] / "more").mkdir(), "n01000001/more is a folder; a class folder holds"),
    ],
)
def test_damaged_image_folders(tmp_path, with_splits, damage, message):
    layouts.image_folder(tmp_path / "raw", with_splits)
    damage(tmp_path / "raw")
    with pytest.raises(ValueError, match=message):
        image_folder.build(
            tmp_path / "birds",
            path=str(tmp_path / "raw"),
            data="birds",
            image_size=8,
            framing=None,
            seed=0,
            val_fraction=0.2,
            test_fraction=0.2,
        )


def test_a_path_that_holds_something_else(tmp_path, mini):
    (tmp_path / "raw").mkdir()
    with pytest.raises(
        ValueError, match=r"data.source.path=.*raw holds none of .*\(1\) the class folders.*\(3\) train"
    ):
        mini()


def test_a_store_is_not_mixed_from_two_formats(tmp_path, mini):
    layouts.mini_pickles(tmp_path / "raw")
    mini()
    (tmp_path / "mini" / "test.safetensors").unlink()
    layouts.mini_csv(tmp_path / "csv")
    with pytest.raises(
        ValueError, match="train.safetensors was made with format=pickles, this run asks for format=csv"
    ):
        mini(path=str(tmp_path / "csv"))


def test_after_a_bad_image_the_work_goes_on_where_it_stopped(tmp_path, mini, monkeypatch):
    layouts.ilsvrc_folders(tmp_path / "raw")
    bad = tmp_path / "raw/n01000002/n01000002_1001.JPEG"
    sound = bad.read_bytes()
    bad.write_bytes(b"")
    with pytest.raises(ValueError, match="n01000002_1001.JPEG is empty"):
        mini()
    (partial_file,) = (tmp_path / "mini").glob(".*.partial")
    decoded = []

    def decode(content, name, *arguments):
        decoded.append(Path(name).parent.name)
        return images.decode(content, name, *arguments)

    monkeypatch.setattr(ilsvrc, "decode", decode)
    bad.write_bytes(sound)
    mini()
    assert "n01000001" not in decoded, "what is done is not decoded again"
    assert set(decoded) >= {"n01000002", "n01000003"}
    assert not partial_file.exists()
    assert_colours(read_split(tmp_path / "mini", "train"), [colour(c, place - 1) for c in range(3) for place in PLACES])
    assert sorted(path.name for path in (tmp_path / "mini").glob(".*.partial")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pretrain.sources import ilsvrc, imagenet

decode, done = ilsvrc.decode, 0

def decode_until_killed(*args):
    global done
    done += 1
    if done == 300:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*args)

ilsvrc.decode = decode_until_killed
raw, store, split_file = sys.argv[1:]
num_images = dict(train=400, val=8, test=8)
imagenet.build_tiered(Path(store), path=raw, data="birds", image_size=16, split_file=split_file, num_images=num_images)
"""


def test_after_a_kill_the_work_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Killed while the 300th of 400 images is read: 256 of them are written, and are not decoded again."""
    split_file = tmp_path / "split.csv"
    split_file.write_text("split,class\ntrain,n01000001\nval,n02000001\ntest,n03000001\n")
    for name, count in {"n01000001": 400, "n02000001": 8, "n03000001": 8}.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        for k in range(count):
            content = layouts.encoded(layouts.picture(1, k % 25, (16, 16)), "PNG")
            (tmp_path / "raw" / name / f"{name}_{k}.JPEG").write_bytes(content)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "raw", tmp_path / "store", split_file],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (begun,) = (tmp_path / "store").glob(".train*.partial")
    written = begun.stat().st_size // (16 * 16 * 3)
    assert 200 < written < 400
    decoded = []

    def decode(content, name, *arguments):
        decoded.append(name)
        return images.decode(content, name, *arguments)

    monkeypatch.setattr(ilsvrc, "decode", decode)
    imagenet.build_tiered(
        tmp_path / "store",
        path=str(tmp_path / "raw"),
        data="birds",
        image_size=16,
        split_file=str(split_file),
        num_images={"train": 400, "val": 8, "test": 8},
    )
    assert len(decoded) == 400 - written + 16
    pixels = read_split(tmp_path / "store", "train").images
    assert torch.equal(pixels[:, 0, 0], torch.tensor([colour(1, k % 25) for k in range(400)]).to(torch.uint8))
    assert pixels.eq(pixels[:, :1, :1]).all()
