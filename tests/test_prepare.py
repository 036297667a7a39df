"""Each outside format through the command line: prepared, then to features and one meta-training step."""

import json
import re

import pytest

from pretrain.store import read_split
from tests.pretrain import layouts

TINY_CLASSES = {"train": 3, "val": 2, "test": 2}
EXTRACTOR = [
    "backbone=wrn_10_2",
    "backbone.width=1",
    "data.pretrain.max_steps=1",
    "data.pretrain.val_every=1",
    "data.pretrain.batch_size=4",
    "data.pretrain.num_val_per_class=1",
]
APPENDIX = ["data.pretrain.augment.size=16", "data.pretrain.schedule.milestones=[1]"]
GLYPHS_LIKE = ["data.pretrain.schedule.num_warmup=0"]
META = [
    "num_way=2",
    "num_query=2",
    "tasks_per_batch=2",
    "max_steps=1",
    "val={every: 1, num_tasks: 2}",
    "test.num_tasks=2",
    "model.learner.num_latents=4",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
]


def case(folder, name):
    """The layout ``name`` written to ``folder / "raw"``, and the overrides that it takes besides its path."""
    raw = folder / "raw"
    if name.startswith("mini"):
        write = {"folders": layouts.ilsvrc_folders, "tars": layouts.ilsvrc_tars}.get(name[5:]) or getattr(
            layouts, name.replace("-", "_")
        )
        write(raw)
        split_file = layouts.mini_split_file(folder)
        return ["data=mini_imagenet", f"data.source.split_file={split_file}", *APPENDIX]
    if name.startswith("tiered"):
        (layouts.ilsvrc_folders if name == "tiered-folders" else layouts.tiered_pickles)(raw)
        num_images = {split: 8 * len(names) for split, names in layouts.CLASSES.items()}
        split_file = layouts.tiered_split_file(folder)
        counts = json.dumps(num_images).replace('"', "")
        return [
            "data=tiered_imagenet",
            f"data.source.split_file={split_file}",
            f"data.source.num_images={counts}",
            *APPENDIX,
        ]
    if name in ("cifar_fs", "fc100"):
        layouts.cifar100(raw)
        return [f"data={name}", "data.source.images_per_class=5", *GLYPHS_LIKE]
    if name == "omniglot":
        split_file = layouts.omniglot_split_file(folder)
        layouts.omniglot(raw, split_file)
        return ["data=omniglot", f"data.source.split_file={split_file}", "data.source.images_per_class=3", *GLYPHS_LIKE]
    layouts.image_folder(raw, with_splits=name == "image_folder-splits")
    return ["experiment=own_1shot", "data.name=birds", "data.source.image_size=16", *GLYPHS_LIKE]


CASES = {
    "mini-folders": TINY_CLASSES,
    "mini-tars": TINY_CLASSES,
    "mini-pickles": TINY_CLASSES,
    "mini-csv": TINY_CLASSES,
    "tiered-folders": TINY_CLASSES,
    "tiered-pickles": TINY_CLASSES,
    "cifar_fs": {"train": 64, "val": 16, "test": 20},
    "fc100": {"train": 60, "val": 20, "test": 20},
    "omniglot": {"train": 4, "val": 2, "test": 3},
    "image_folder-splits": TINY_CLASSES,
    "image_folder-classes": {"train": 5, "val": 1, "test": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_every_format_becomes_features_and_a_meta_training_step(command, tmp_path, name):
    overrides = case(tmp_path, name)
    data = "birds" if name.startswith("image_folder") else overrides[0].partition("=")[2]
    if name == "image_folder-classes":  # one class is no task
        overrides += ["data.source.val_fraction=0.3", "data.source.test_fraction=0.3"]
    assert command("stage=prepare", *overrides, f"data.source.path={tmp_path / 'raw'}") == ""
    for split, num_classes in (TINY_CLASSES if name == "image_folder-classes" else CASES[name]).items():
        assert len(read_split(tmp_path / "images" / data, split).class_names) == num_classes
    # From here on the outside files are not needed: neither are they named.
    (tmp_path / "raw").rename(tmp_path / "gone")
    assert command(*overrides, *EXTRACTOR, *META, "run_dir=run") == ""
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["num_steps"] == 1
    assert result["data"] == data
    assert 0 <= result["accuracy"] <= 1
    # Where outside files lie is no setting of what was made from them.
    assert command(*overrides, *EXTRACTOR, *META, "run_dir=run", "data.source.path=elsewhere") == ""


def test_the_authors_features_need_no_stage_1(command, tmp_path):
    layouts.leo_embeddings(tmp_path / "embeddings")
    split_file = layouts.tiered_split_file(tmp_path)
    overrides = [
        "experiment=mini_1shot",
        "features=leo_embeddings",
        f"data.source.split_file={split_file}",
        "+data.source.num_images={train: 24, val: 16, test: 16}",
    ]
    path = f"features.source.path={tmp_path / 'embeddings'}"
    assert command("stage=prepare", *overrides, path) == ""
    assert not (tmp_path / "images").exists()
    assert command(*overrides, *META, "run_dir=run") == ""
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_steps"] == 1
    assert command(*overrides, *META, path, "run_dir=run") == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data=mini_imagenet"],
            r"data.source.path is not set; add data.source.path=PATH, a folder with \(1\) the class folders .*"
            r"\(2\) mini-imagenet-cache-train.pkl.*\(3\) train.csv",
        ),
        (["data=tiered_imagenet"], r"data.source.path is not set.*\(1\) .*\(2\) {train,val,test}_images_png.pkl"),
        (["experiment=own_1shot"], "data.source.path is not set; .*<split>/<class>/<image>"),
        (["data=mini_imagenet", "data.source.path=nowhere"], "data.source.path=nowhere is not a folder"),
        (
            ["experiment=mini_1shot", "features=leo_embeddings"],
            "features.source.path is not set; .*miniImageNet/center/{train,val,test}_embeddings.pkl",
        ),
        (["features=leo_embeddings"], "the authors published no features of data=glyphs"),
        (["data=glyphs", "data.source=null"], "images/glyphs/train.safetensors does not exist"),
    ],
    ids=str,
)
def test_a_path_that_is_not_given_is_named_with_what_is_looked_for(command, overrides, message):
    for stage in ("prepare", "meta"):
        if stage == "meta" and "data.source=null" in overrides:
            continue  # then the features are the user's
        assert re.match(f"error: .*{message}", command(f"stage={stage}", *overrides)), stage


def test_preparing_again_is_quick_and_other_settings_are_refused(command, tmp_path):
    overrides = case(tmp_path, "image_folder-splits")
    assert command("stage=prepare", *overrides, f"data.source.path={tmp_path / 'raw'}") == ""
    files = sorted((tmp_path / "images" / "birds").glob("*.safetensors"))
    made = [file.stat().st_mtime_ns for file in files]
    assert command("stage=prepare", *overrides) == ""
    assert [file.stat().st_mtime_ns for file in files] == made
    said = command("stage=prepare", *overrides, "data.source.image_size=8")
    assert "was made with image_size=16, this run asks for image_size=8; delete images/birds" in said
