"""A number belongs to its inputs, through the command line: other images, features or checkpoints are refused."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from pretrain.store import images_fingerprint, read_split
from tests.conftest import run_command
from tests.leo.tables import make_table, write_features
from tests.test_prepare import EXTRACTOR, META

OWN = [
    "experiment=own_1shot",
    "data.name=birds",
    "data.source.image_size=16",
    "data.source.val_fraction=0.3",
    "data.source.test_fraction=0.3",
    "data.pretrain.schedule.num_warmup=0",
    *EXTRACTOR,
    *META,
]

D_OF_BIRDS = [override for override in OWN if not override.startswith("model.")]


def own(stage):
    """Of these overrides those that ``stage`` uses."""
    unused = {"prepare": [EXTRACTOR[0], EXTRACTOR[1], *META], "pretrain": META[:-2], "analyze": ["test.num_tasks=2"]}
    return [override for override in OWN if override not in unused.get(stage, [])]


def stage_of(overrides):
    """The stage that is chosen."""
    return next((one.partition("=")[2] for one in overrides if one.startswith("stage=")), "meta")


def photographs(folder, names, seed, count=4):
    """Class folders of noise."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


KINDS = [f"kind {i}" for i in range(7)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with birds, cars, and all that one run on the birds leaves."""
    folder = tmp_path_factory.mktemp("trained")
    photographs(folder / "birds", KINDS, 0)
    photographs(folder / "cars", KINDS, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, *OWN, "data.source.path=birds", "run_dir=runs/one") == ""
    return folder


@pytest.fixture
def here(trained, tmp_path, command):
    """A copy of it as the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    "stage",
    [
        ["stage=prepare"],
        ["stage=pretrain"],
        ["run_dir=runs/one"],
        ["run_dir=runs/two"],
        ["stage=test", "checkpoint=runs/one/best.ckpt"],
        ["stage=analyze", "checkpoint=runs/one/best.ckpt"],
        ["stage=search", "search.n_trials=1"],
    ],
    ids=str,
)
def test_cars_never_get_the_accuracy_of_birds(here, command, stage):
    said = command(*own(stage_of(stage)), *stage, "data.source.path=cars")
    assert "cars is not what images/birds was made of: 28 file(s) changed: " in said
    assert "Delete images/birds and what was made of it" in said
    assert "another data.name" in said
    assert not (here / "runs/two/config.yaml").exists()


def test_the_chain_is_recorded_from_images_to_result(here):
    stores = [read_split(here / "images/birds", split) for split in ("train", "val", "test")]
    images = images_fingerprint(stores)
    extractor = torch.load(here / "runs/pretrain-birds-wrn_10_2-seed0/best.ckpt", weights_only=True)
    learner = torch.load(here / "runs/one/best.ckpt", weights_only=True)
    result = json.loads((here / "runs/one/result.json").read_text())
    assert len(images) == 64
    assert extractor["config"]["images"] == images
    assert learner["config"]["features_origin"]["images"] == images
    assert result["config"]["features_origin"]["images"] == images
    assert result["experiment"] == "birds_1shot"


def test_birds_again_copied_moved_and_deleted_are_accepted(here, command):
    again = [*OWN, "run_dir=runs/one"]
    shutil.copytree(here / "birds", here / "copy", copy_function=shutil.copyfile)
    assert command(*again, "data.source.path=copy") == ""
    shutil.rmtree(here / "copy")
    assert command(*again, "data.source.path=copy") == ""
    assert command(*again) == ""
    shutil.rmtree(here / "images")
    assert command(*again) == ""


def test_features_of_other_images_are_refused_without_the_source(here, command):
    """The store was made anew of other images under the same name; the features are those of before."""
    shutil.rmtree(here / "images")
    assert command("stage=prepare", *own("prepare"), "data.source.path=cars") == ""
    for stage in (["run_dir=runs/one"], ["stage=test", "checkpoint=runs/one/best.ckpt"]):
        said = command(*own(stage_of(stage)), *stage)
        assert "features/birds-wrn_10_2-layer9 was made of other images than those in images/birds: of " in said
        assert "Delete it and runs/pretrain-birds-wrn_10_2-seed0 to make both anew, or keep both" in said
    said = command("stage=pretrain", *own("pretrain"))
    assert (
        "the extractor in runs/pretrain-birds-wrn_10_2-seed0 was trained on other images than those in images" in said
    )


def test_images_whose_store_is_gone_are_compared_by_a_new_one(here, command):
    shutil.rmtree(here / "images")
    said = command(*OWN, "run_dir=runs/one", "data.source.path=cars")
    assert "features/birds-wrn_10_2-layer9 was made of other images" in said


def test_what_was_made_before_fingerprints_is_used(here, command):
    """Old stores, features and extractors do not record them: there is nothing to compare."""
    for path in [*(here / "features").rglob("*.safetensors"), *(here / "images").rglob("*.safetensors")]:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys() if name != "fingerprint"}  # noqa: SIM118
        save_file(tensors, path, {key: value for key, value in metadata.items() if key not in ("images", "files")})
    for path in (here / "images").rglob("*.csv"):
        path.unlink()
    assert command(*OWN, "run_dir=runs/two", "data.source.path=birds") == ""
    origin = json.loads((here / "runs/two/result.json").read_text())["config"]["features_origin"]
    assert origin["images"] is None
    assert command("stage=test", "checkpoint=runs/one/best.ckpt", *OWN) == ""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_does_not_go_on_with_other_features(here, command):
    """The trials of the study that is there were trained on features that have since been made anew."""
    search = ["stage=search", *OWN, "search.n_trials=1", "search/space=none"]
    search += ["+search.space.model.optimizer.lr='interval(1e-4,1e-3)'"]
    assert command(*search) == ""
    for folder in ("images", "features", "runs/pretrain-birds-wrn_10_2-seed0"):
        shutil.rmtree(here / folder)
    assert command("stage=pretrain", *own("pretrain"), "data.source.path=cars") == ""
    said = command(*search)
    assert "was started with other settings (inputs." in said
    assert re.search(r"inputs.images: \w{64} -> \w{64}", said)


@pytest.mark.parametrize("stage", ["test", "analyze"])
def test_features_of_another_extractor_are_refused(tmp_path, command, toy_overrides, stage):
    """Of the same width: nothing but their origin tells them from those of training."""
    toy_overrides.append("trainer.log_every_n_steps=1")
    assert command(*toy_overrides, "run_dir=run") == ""
    other = tmp_path / "other"
    for seed, (split, classes) in enumerate({"train": 12, "val": 6, "test": 6}.items()):
        write_features(other, split, make_table([30] * classes, 8, seed), {"checkpoint": "def", "extractor": "WRN-9"})
    unused = ("features.folder", "test.") if stage == "analyze" else ("features.folder",)
    sizes = [override for override in toy_overrides if not override.startswith(unused)]
    arguments = [f"stage={stage}", "checkpoint=run/best.ckpt", *sizes]
    said = command(*arguments, f"features.folder={other}")
    assert "run/best.ckpt was trained on other features than those in" in said
    assert "on toy (images unknown), extractor WRN-10-1 (abc), layer 9, crop full" in said
    assert "there are toy (images unknown), extractor WRN-9 (def), layer 9" in said
    assert "They differ in extractor, checkpoint" in said
    if stage == "test":
        assert command(*arguments, f"features.folder={tmp_path / 'toy'}") == ""


def test_own_images_need_an_experiment_of_their_own(tmp_path, command):
    photographs(tmp_path / "birds", KINDS, 0)
    for experiment in ([], ["experiment=glyphs_5shot"], ["experiment=mini_1shot"]):
        said = command("data=image_folder", "data.name=birds", "data.source.path=birds", *experiment)
        assert "is made for other images than data=image_folder" in said
        assert "Add experiment=own_1shot or own_5shot" in said
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) in (["birds"], ["birds", "runs"])


@pytest.mark.parametrize("suffix", ["", "_meta_sgd", "_prototypes", "_centroid_pixels", "_centroid_mid_level"])
def test_runs_of_own_images_are_named_by_them(composed, suffix):
    cfg = composed(f"experiment=own_5shot{suffix}", "data.name=birds", "data.source.path=/data/birds", "seed=3")
    assert cfg.stage.folder == f"birds_5shot{suffix}-none-seed3"
    assert cfg.names.experiment == f"birds_5shot{suffix}"
    assert composed("experiment=glyphs_1shot", "data.name=other").stage.folder.endswith("seed0-data.name=other")


def test_too_few_classes_are_refused_when_the_folders_are_counted(tmp_path, command):
    photographs(tmp_path / "birds", [f"kind {i:02d}" for i in range(20)], 0)
    said = command("experiment=own_1shot", "data.name=birds", "data.source.path=birds", "trainer.accelerator=cpu")
    assert (
        "num_way=5 exceeds the 3 classes of the val split of birds (20 classes in all); lower num_way, add classes, "
        "or raise data.source.val_fraction"
    ) in said
    assert not (tmp_path / "images").exists()
    said = command("experiment=own_1shot", "data.name=birds", "data.source.path=birds", "num_way=3")
    assert "of the train split of birds has 4 images, a task needs 16 (num_shot=1 and 15 to classify)" in said
    assert not (tmp_path / "images").exists()


def test_too_many_ways_are_refused_before_stage_1_of_any_data(tmp_path, command):
    said = command("num_way=42", "data.source.images_per_class=6", "num_query=3", "trainer.accelerator=cpu")
    assert "num_way=42 exceeds the 41 classes of the val split of glyphs" in said
    assert not (tmp_path / "runs/pretrain-glyphs-wrn_10_2-seed0").exists()


def test_a_name_that_is_a_number_is_text(tmp_path, command):
    photographs(tmp_path / "birds", KINDS, 0)
    arguments = [*OWN, "data.name=2024", "data.source.path=birds"]
    assert command(*arguments) == ""
    assert command(*arguments) == ""
    assert read_split(tmp_path / "images/2024", "val").data == "2024"
    (run,) = (tmp_path / "runs").glob("2024_1shot-none-seed0*")
    assert json.loads((run / "result.json").read_text())["data"] == "2024"
    said = command(*OWN, "data.name=a/b", "data.source.path=birds")
    assert "data.name=a/b is not the name of a folder; give one without slashes" in said


def test_class_folders_may_be_named_like_splits(tmp_path, command):
    names = ["bus", "car", "test", "train", "tram", "val", "van"]
    photographs(tmp_path / "vehicles", names, 0)
    prepare = ["stage=prepare", *own("prepare"), "data.name=vehicles", "data.source.path=vehicles"]
    assert command(*prepare) == ""
    found = [name for split in ("train", "val", "test") for name in read_split(tmp_path / "images/vehicles", split)[2]]
    assert sorted(found) == names


def test_splits_may_have_their_other_names(tmp_path, command):
    for split, names in {"Training": KINDS[:3], "valid": KINDS[3:5], "test": KINDS[5:]}.items():
        photographs(tmp_path / "raw" / split, names, 0)
    (tmp_path / "raw" / "valid" / "labels.txt").write_text("a")
    assert command("stage=prepare", *own("prepare"), "data.source.path=raw") == ""
    assert read_split(tmp_path / "images/birds", "val").class_names == KINDS[3:5]
    photographs(tmp_path / "raw" / "val", KINDS[:2], 0)
    said = command("stage=prepare", *own("prepare"), "data.source.path=raw", "data.name=other")
    assert "folders of class folders called Training, val, valid, test, two of them for one split" in said


def test_litter_is_passed_over_and_all_that_is_bad_is_listed_at_once(tmp_path, command):
    folder = photographs(tmp_path / "raw", KINDS, 0)
    for name in KINDS:
        for litter in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "Icon\r", "ehthumbs.db"):
            (folder / name / litter).write_bytes(b"\0" * 20)
        (folder / name / "@eaDir").mkdir()
        (folder / name / "@eaDir" / "0.png").write_bytes(b"\0")
    for name in ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", ".hidden"):
        (folder / name).mkdir()
    assert command("stage=prepare", *own("prepare"), "data.source.path=raw") == ""
    bad = {
        KINDS[0] + "/clip.mp4": b"\0\0\0\x20ftypisom" + bytes(100),
        KINDS[1] + "/clip.mov": b"\0\0\0\x14ftypqt  " + bytes(100),
        KINDS[2] + "/paper.pdf": b"%PDF-1.7" + bytes(100),
        KINDS[3] + "/page.jpg": b"\n<!DOCTYPE html>" + bytes(100),
        KINDS[4] + "/lfs.jpg": b"version https://git-lfs.github.com/spec/v1\n",
        KINDS[5] + "/empty.jpg": b"",
        KINDS[6] + "/new.HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / KINDS[0] / "gone.png").symlink_to("/nowhere/gone.png")
    (folder / KINDS[0] / "more").mkdir()
    os.mkfifo(folder / KINDS[1] / "pipe.png")
    said = command("stage=prepare", *own("prepare"), "data.name=other", "data.source.path=raw")
    assert "10 of 38 files of raw cannot be used; replace or remove them and start again" in said
    for line in (
        "raw/kind 0/clip.mp4 is not an image: it is a film (MP4, QuickTime)",
        "raw/kind 1/clip.mov is not an image: it is a film (MP4, QuickTime)",
        "raw/kind 2/paper.pdf is not an image: it is a PDF document",
        "raw/kind 3/page.jpg is not an image: it is a web page",
        "raw/kind 4/lfs.jpg is not an image: it is a pointer of Git LFS",
        "raw/kind 5/empty.jpg is empty (0 bytes)",
        "raw/kind 0/gone.png cannot be opened: it leads to /nowhere/gone.png, No such file or directory",
        "raw/kind 0/more is a folder; a class folder holds images only",
        "raw/kind 1/pipe.png is a pipe, a socket or a device, not a file",
    ):
        assert line in said
    assert not list((tmp_path / "images/other").glob("*.safetensors"))


def test_images_that_are_cut_off_are_listed_at_once_and_the_work_goes_on(tmp_path, command):
    folder = photographs(tmp_path / "raw", KINDS, 0)
    cut = [folder / KINDS[0] / "1.png", folder / KINDS[0] / "3.png", folder / KINDS[3] / "0.png"]
    sound = {path: path.read_bytes() for path in cut}
    for path in cut:
        path.write_bytes(sound[path][:200])
    prepare = ["stage=prepare", *own("prepare"), "data.source.path=raw", "data.source.val_fraction=0.2"]
    said = command(*prepare, "data.source.test_fraction=0.2")
    assert said.count("is truncated or damaged") == len([path for path in cut if path.parent.name in said])
    assert said.count("is truncated or damaged") >= 2
    for path, content in sound.items():
        path.write_bytes(content)
    assert command(*prepare, "data.source.test_fraction=0.2") == ""


def test_names_that_are_not_utf8_and_links_to_class_folders(tmp_path, command):
    folder = photographs(tmp_path / "raw", KINDS[:6], 0)
    (folder / KINDS[0] / "0.png").rename(os.fsdecode(os.fsencode(folder / KINDS[0]) + b"/caf\xe9.png"))
    (folder / KINDS[1]).rename(os.fsdecode(os.fsencode(folder) + b"/\xe9toile"))
    photographs(tmp_path / "elsewhere", KINDS[6:], 0)
    (folder / KINDS[6]).symlink_to(tmp_path / "elsewhere" / KINDS[6])
    arguments = [*OWN, "data.source.path=raw"]
    assert command(*arguments) == ""
    found = [name for split in ("train", "val", "test") for name in read_split(tmp_path / "images/birds", split)[2]]
    assert sorted(found) == sorted([*KINDS[:1], *KINDS[2:], "\ufffdtoile"])
    assert command(*arguments) == ""
    with (tmp_path / "images/birds/train.files.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        assert len(list(csv.reader(file))) >= 1 + 4
