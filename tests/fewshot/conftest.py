"""One small world, made by the real stages: coloured stripes, an extractor, a learner, a package."""

import warnings

import numpy as np
import pytest
from PIL import Image

from fewshot.publish import package
from leo.run import meta_train
from pretrain.run import pretrain
from tests.conftest import composing

STAGES = [
    "data=image_folder", "data.name=stripes", "data.source.image_size=16", "data.export=[9]", "backbone.width=1",
    "data.pretrain.max_steps=8", "data.pretrain.val_every=8", "data.pretrain.batch_size=32",
    "data.pretrain.schedule.num_warmup=1", "trainer.accelerator=cpu", "trainer.log_every_n_steps=8",
]  # fmt: skip
LEARNER = [
    "experiment=glyphs_5shot", "num_way=3", "num_shot=2", "num_query=3", "tasks_per_batch=4", "max_steps=100",
    "val={every: 50, num_tasks: 20}", "test.num_tasks=20", "model.learner.num_latents=4",
]  # fmt: skip


def stripes(label, seed, size=16):
    """An image of class ``label``: stripes of its own colour and direction, noise."""
    rng, place = np.random.default_rng([label, seed]), np.arange(size)
    colour = np.random.default_rng(label).uniform(0.2, 1, 3)
    wave = np.sin(0.3 * (1 + label % 5) * (place[:, None] if label % 2 else place[None, :])) * np.ones((size, size))
    image = (0.5 + 0.4 * wave)[..., None] * colour + rng.normal(0, 0.1, (size, size, 3))
    return Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8))


def write_classes(folder, labels, shots, first_seed=0):
    """One folder of PNG files for each label."""
    for label, count in zip(labels, shots, strict=True):
        (folder / f"class {label}").mkdir(parents=True)
        for seed in range(first_seed, first_seed + count):
            stripes(label, seed).save(folder / f"class {label}" / f"{seed}.png")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder with ``runs/learner``, the run of stage 1 beside it, ``package``, and what they were made from."""
    folder = tmp_path_factory.mktemp("world")
    for first, split, count in ((0, "train", 10), (20, "val", 4), (40, "test", 4)):
        labels = range(first, first + count)
        write_classes(folder / "stripes" / split, labels, [8] * count)
    with composing(folder) as make, warnings.catch_warnings(action="ignore"):
        stages = [*STAGES, f"data.source.path={folder / 'stripes'}"]
        pretrain(make(*LEARNER, *stages))
        meta_train(make(*LEARNER, *stages, f"run_dir={folder / 'runs' / 'learner'}"))
        checkpoint = f"checkpoint={folder / 'runs' / 'learner' / 'best.ckpt'}"
        package(make("stage=package", checkpoint, f"stage.output={folder / 'package'}", "stage.num_query=4"))
    return folder
