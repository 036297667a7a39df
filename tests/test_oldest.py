"""The lower bounds of pyproject.toml are what the code needs."""

import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT

TESTS = ("tests/fewshot/test_classifier.py", "tests/pretrain/test_images.py", "tests/runner/test_runner.py")


def oldest():
    """Each dependency at the oldest version that is allowed."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.sub(r">=([\d.]+).*", r"==\1", dependency) for dependency in dependencies]


def test_each_dependency_has_a_lower_bound():
    assert [pin for pin in oldest() if "==" not in pin] == []


@pytest.mark.slow
def test_the_oldest_versions_that_are_allowed_work(tmp_path):
    """In an environment of their own; warnings of old packages about newer ones are no errors there."""
    python = tmp_path / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    packages = ["--editable", str(ROOT), *oldest(), "pytest", "selenium", "beartype"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    words = ["-m", "pytest", "-q", "-o", "addopts=", "-o", "filterwarnings=", *TESTS]
    done = subprocess.run([python, *words], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
