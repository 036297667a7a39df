"""The wheel, installed in an environment of its own and used from another folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_GLYPHS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a command of an environment in which the wheel is installed, from an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    changed = subprocess.run(["git", "diff", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    if changed:
        subprocess.run(["git", "apply"], cwd=source, input=changed, check=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(wheel, check=True)
    environment, elsewhere = folder / "environment", folder / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    (path,) = folder.glob("leo-*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(path)], check=True)
    # What the wheel depends on is that of the tests' environment, where this project is not seen.
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    elsewhere.mkdir()

    def run(*words):
        """What the command prints."""
        done = subprocess.run(
            [str(environment / "bin" / words[0]), *words[1:]], cwd=elsewhere, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder, run.wheel = elsewhere, path
    return run


def test_the_wheel_holds_every_file_of_the_configuration(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    files = subprocess.run(["git", "ls-files", "conf"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {f"runner/{name}" for name in files.split()} <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/"))]


def test_the_command_runs_all_stages_in_the_current_folder(installed):
    said = installed("leo", *TINY_GLYPHS)
    assert "test accuracy" in said
    assert {path.name for path in installed.folder.iterdir()} >= {"images", "features", "runs"}
    search = [*TINY_GLYPHS, "search.n_trials=2", "experiment=glyphs_1shot_prototypes"]
    installed("leo", "stage=search", *search)
    installed("leo", "stage=search_best", *search)
    found = Path("conf", "hparams", "search", "glyphs_1shot_prototypes-none.yaml")
    assert (installed.folder / found).is_file()
    use = ["experiment=glyphs_1shot_prototypes", "hparams=search/glyphs_1shot_prototypes-none"]
    assert "num_dimensions" in installed("leo", *use, "--cfg", "job", "-p", "model")
    installed("leo", "stage=report")
    (report,) = (installed.folder / "runs").glob("report*/*.html")
    assert "<code>leo " in report.read_text() or "leo data.source" in report.read_text()


def test_the_classifier_is_imported_from_anywhere(installed):
    code = "import fewshot; from fewshot import FewShotClassifier; print(fewshot.__file__)"
    assert "environment" in installed("python", "-c", code)
