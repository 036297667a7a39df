"""What is imported, and what importing changes: nothing that is not asked for."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Notes each change that a module of ours makes while it is imported, itself or by a function that it calls; what the
# libraries that it imports do is theirs.
CHANGES = """
import importlib, logging, os, pkgutil, sys, warnings

FOLDERS = tuple(os.path.join(os.getcwd(), name, "") for name in PACKAGES)
found = []

def watched(owner, name):
    original = getattr(owner, name)
    def note(*args, **kwargs):
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
            if frame.f_code.co_filename.startswith(FOLDERS):
                found.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {name}")
                break
            frame = frame.f_back
        return original(*args, **kwargs)
    setattr(owner, name, note)

import torch
for owner, names in {
    warnings: ("filterwarnings", "simplefilter"),
    logging.Logger: ("setLevel", "addHandler"),
    logging: ("disable", "basicConfig"),
    os: ("umask", "putenv", "unsetenv", "chdir"),
    torch: ("set_num_threads", "manual_seed", "set_default_dtype", "set_float32_matmul_precision"),
}.items():
    for name in names:
        watched(owner, name)
for package in PACKAGES:
    for module in pkgutil.walk_packages([package], f"{package}."):
        importlib.import_module(module.name)
print(*found, sep="\\n")
"""


def run(program):
    """What a fresh process prints that runs ``program`` in the project's folder."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_importing_changes_no_warnings_levels_umask_and_environment():
    assert "".join(run(f"PACKAGES = ['leo', 'pretrain', 'fewshot', 'runner', 'sweeps']{CHANGES}")) == ""


@pytest.mark.parametrize("statement", ["os.umask(0)", "os.environ['A'] = '1'", "logging.getLogger('x').setLevel(10)"])
def test_a_change_would_be_noted(statement, tmp_path):
    folder = tmp_path / "changing"
    folder.mkdir()
    (folder / "part.py").write_text(f"import logging, os\n{statement}\n")
    (found,) = run(f"import os; os.chdir({str(tmp_path)!r}); PACKAGES = ['changing']{CHANGES}")
    assert f"{folder / 'part.py'}:2" in found


OTHERS = {"optuna", "pandas", "sklearn", "sqlalchemy", "wandb"}
HEAVY = OTHERS | {"matplotlib", "scipy.signal", "torchvision"}  # which torchmetrics imports, and so does Lightning
TRAINING = {"pytorch_lightning", "torchmetrics"}


@pytest.mark.parametrize(
    ("task", "unused"),
    [
        ("leo.run.meta_train", OTHERS),
        ("leo.run.test_checkpoint", OTHERS),
        ("pretrain.run.pretrain", OTHERS),
        ("pretrain.prepare.prepare", HEAVY | TRAINING),
        ("fewshot.predict.predict", HEAVY | {"scipy.stats"} | TRAINING),
        ("sweeps.report.report", TRAINING | {"torch", "torchvision", "sklearn", "wandb"}),
        ("sweeps.search.search", {"pandas", "sklearn", "wandb"}),
    ],
)
def test_a_task_does_not_import_what_it_does_not_use(task, unused):
    imported = run(
        f"""
import sys
from hydra.utils import get_method
get_method({task!r})
print(*sys.modules, sep="\\n")"""
    )
    assert "runner.errors" in imported
    assert unused & set(imported) == set()


def test_neither_does_a_command(tmp_path):
    """Its checks import too: of what is configured."""
    imported = run(
        f"""
import sys, train
sys.argv = ["train.py", "--config-path={ROOT / "conf"}", "stage=test", "run_dir={tmp_path / "run"}"]
try:
    train.main()
except SystemExit as end:
    assert "stage=test needs checkpoint=PATH" in str(end.code), end
print(*sys.modules, sep="\\n")"""
    )
    assert "leo.run" in imported
    assert OTHERS & set(imported) == set()
