"""Configurations composed as train.py composes them, on toy features, one thread."""

import os
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import open_dict
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import train

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start: several run at a time
Plugins.instance()  # loads the modules of plugins; those that tests had imported before would be others
ROOT = Path(__file__).parent.parent
# All three stages on glyphs in seconds: few images, a narrow extractor, few steps.
TINY_GLYPHS = [
    "data.source.images_per_class=6",
    "backbone.width=1",
    "data.pretrain.max_steps=4",
    "data.pretrain.val_every=4",
    "data.pretrain.schedule.num_warmup=1",
    "max_steps=20",
    "val={every: 10, num_tasks: 20}",
    "test.num_tasks=30",
    "num_query=3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
]


@pytest.fixture
def composed(tmp_path):
    """A function from overrides to the configuration; its folders are below ``tmp_path``."""
    with composing(tmp_path) as make:
        yield make


@contextmanager
def composing(folder):
    """A function from overrides to the configuration; its folders are below ``folder``."""

    def make(*overrides):
        folders = [f"dirs.{name}={folder / name}" for name in ("images", "features", "runs")]
        cfg = compose("train", [*folders, f"run_dir={folder / 'run'}", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield make
    HydraConfig.instance().cfg = None


@pytest.fixture
def toy_overrides(tmp_path):
    """Overrides for a small LEO that trains in a second on toy features in ``tmp_path / "toy"``."""
    return toy(tmp_path)


def toy(folder):
    """Toy features in ``folder / "toy"``, and overrides for a small LEO on them."""
    from tests.leo.tables import write_splits

    write_splits(folder / "toy")
    return [
        "data.source=null",
        f"features.folder={folder / 'toy'}",
        "num_way=3",
        "num_query=4",
        "tasks_per_batch=4",
        "max_steps=40",
        "val.every=20",
        "val.num_tasks=30",
        "test.num_tasks=40",
        "model.learner.num_latents=4",
        "model.learner.dropout=0.2",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=10",
    ]


def run_command(patch, *overrides):
    """``python train.py`` with overrides, in this process and in the current folder; what it says when it fails."""
    patch.setattr(sys, "argv", ["train.py", f"--config-path={ROOT / 'conf'}", *map(str, overrides)])
    try:
        train.main()
    except SystemExit as end:
        return str(end.code)
    return ""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``run_command`` in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return partial(run_command, monkeypatch)


@pytest.fixture
def browser():
    """A headless browser that keeps what it is asked for and what its console says."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options, Service(driver))
    yield opened
    opened.quit()
