"""The command on folders of images: its files, leave-one-out, what it skips and what it refuses."""

import csv
import os
import re
import shutil
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image

from fewshot import FewShotClassifier
from fewshot.predict import predict
from tests.fewshot.conftest import stripes, write_classes


@pytest.fixture
def run(world, composed, tmp_path):
    """A function from support, query and overrides to the rows of predictions.csv and the page."""

    def command(support, query, *overrides):
        checkpoint = [] if "checkpoint=" in str(overrides) else [f"checkpoint={world / 'package'}"]
        predict(composed("stage=predict", f"support='{support}'", f"query='{query}'", *checkpoint, *overrides))
        with (tmp_path / "run" / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return rows, (tmp_path / "run" / "predictions.html").read_text(encoding="utf-8")

    return command


def test_predictions_of_a_folder(run, world, tmp_path, capsys):
    support, query = tmp_path / "support", tmp_path / "query" / "deep"
    write_classes(support, [40, 41, 42], [3, 1, 5])
    (support / "class 41").rename(support / "class <41> & [b]")
    (support / "class 42" / "broken.png").write_bytes(b"")
    query.mkdir(parents=True)
    for label in (40, 41, 42):
        stripes(label, 9).save(query / f"<{label}>.png")
    (query / "notes.txt").write_text("no image")
    (query / ".hidden").write_text("nothing")
    rows, page = run(support, tmp_path / "query", "stage.num_shown=2", "stage.batch_size=2")
    assert list(rows[0]) == ["path", "class", "probability"]
    assert [row["path"] for row in rows] == [str(query / f"<{label}>.png") for label in (40, 41, 42)]
    paths = sorted(path for path in support.glob("*/[0-9].png"))
    classifier = FewShotClassifier.load(world / "package").fit(paths, [path.parent.name for path in paths])
    files = [query / f"<{label}>.png" for label in (40, 41, 42)]
    assert [row["class"] for row in rows] == list(classifier.predict(files))
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], classifier.predict_proba(files).max(1), atol=1e-4
    )
    out = capsys.readouterr().out
    assert "and 1 more in predictions.csv" in out
    assert "Skipped 2:" in out
    assert "broken.pngisempty" in "".join(out.split())  # lines break anywhere
    assert page.count("data:image/jpeg;base64,") == 3 + 9
    assert "class &lt;41&gt; &amp; [b]" in page
    assert "<41>" not in page
    assert "2 files skipped" in page
    assert "notes.txt is not an image" in page
    assert not re.search(r"<script|https?://", page)


@pytest.mark.parametrize("overrides", [[], ["stage.num_samples=2"]], ids=["means", "sampled"])
def test_leave_one_out_is_a_classifier_for_each_image(run, world, tmp_path, monkeypatch, capsys, overrides):
    monkeypatch.setattr("fewshot.leave_one_out.SCORES_PER_PART", 90)  # three images at a time
    folder = tmp_path / "labelled"
    write_classes(folder, [40, 41, 42], [2, 3, 5])
    rows, page = run(folder, folder, *overrides)
    paths, labels = [row["path"] for row in rows], [row["true_class"] for row in rows]
    assert labels == [f"class {label}" for label, count in ((40, 2), (41, 3), (42, 5)) for _ in range(count)]
    num_right = sum(row["class"] == row["true_class"] for row in rows)
    assert f"leave-one-out accuracy {10 * num_right:.1f} % ({num_right} of 10 images; 95 % interval" in page
    assert "leave-one-out accuracy" in capsys.readouterr().out
    if overrides:
        return
    for i, row in enumerate(rows):
        rest = [j for j in range(10) if j != i]
        classifier = FewShotClassifier.load(world / "package")
        classifier.fit([paths[j] for j in rest], [labels[j] for j in rest])
        assert row["class"] == classifier.predict([paths[i]])[0]
        assert float(row["probability"]) == pytest.approx(classifier.predict_proba([paths[i]]).max(), abs=1e-4)


def test_mistakes_get_one_clear_message_before_work(run, composed, world, tmp_path):
    good, query = tmp_path / "good", tmp_path / "query"
    write_classes(good, [40, 41], [2, 2])
    query.mkdir()

    def refused(message, support, query, *overrides, error=ValueError):
        with pytest.raises(error, match=message):
            run(support, query, *overrides)
        assert not (tmp_path / "run").exists()

    refused("query=.*query is empty; put images into it", good, query)
    (query / "text.png").write_text("no image")
    refused("none of the 1 files of query=.* can be read; image .*text.png is not an image", good, query)
    refused("support=.*none is not a folder", tmp_path / "none", query, error=FileNotFoundError)
    refused("query=.*none is not a folder", good, tmp_path / "none", error=FileNotFoundError)
    refused("support=.*query has no class folders; it needs at least two", query, good)
    write_classes(tmp_path / "one", [40], [2])
    refused("support=.*one has one class folder only .class 40.; it needs", tmp_path / "one", good)
    bad = shutil.copytree(good, tmp_path / "bad")
    (bad / "empty").mkdir()
    refused("class folder .*empty is empty; put images into it", bad, good)
    (bad / "empty" / "broken.png").write_bytes(b"\x89PNG")
    refused("class 'empty' of support=.*bad has no image that can be read; image .*broken.png is", bad, good)
    shutil.rmtree(bad / "empty")
    (bad / "class 40" / "1.png").unlink()
    refused("class 'class 40' of support=.* has 1 image.s. that can be read, and leave-one-out", bad, bad)
    alone = tmp_path / "alone" / "learner" / "best.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(world / "runs" / "learner" / "best.ckpt", alone)
    refused("without its extractor, which images need", good, good, f"checkpoint={alone}")
    refused("none.ckpt is missing; meta-training writes it", good, good, f"checkpoint={tmp_path / 'none.ckpt'}",
            error=FileNotFoundError)  # fmt: skip
    with pytest.raises(FileNotFoundError, match="runs/glyphs_1shot-none-seed0/best.ckpt is missing; meta-training"):
        predict(composed("stage=predict", f"support={good}", f"query={good}"))
    with pytest.raises(ValueError, match="stage=predict needs support=DIR, .* and query=DIR"):
        predict(composed("stage=predict", f"support={good}"))
    refused("stage.batch_size=0 must be a whole number of at least 1", good, good, "stage.batch_size=0")


def test_a_loose_file_beside_the_class_folders_is_listed(run, tmp_path, capsys):
    folder = tmp_path / "labelled"
    write_classes(folder, [40, 41], [2, 2])
    stripes(40, 5).save(folder / "loose.png")
    _, page = run(folder, folder)
    assert "loose.pngisnotinaclassfolder" in "".join(capsys.readouterr().out.split())  # lines break anywhere
    assert "loose.png is not in a class folder" in page


def malformed_exif(orientation):
    """An Exif block with an orientation, and a rational number without a denominator, as some editors leave it."""
    entries = pack("<HHL", 0x112, 3, 1) + bytes([orientation, 0, 0, 0]) + pack("<HHLL", 0x11A, 10, 1, 38)
    return b"Exif\0\0II*\0" + pack("<L", 8) + pack("<H", 2) + entries + pack("<L", 0) + pack("<ll", -1, 0)


def test_files_as_people_have_them(run, tmp_path, capsys, caplog):
    """Malformed Exif, names that are not UTF-8, links to folders in a loop, litter, films, pipes, dead links."""
    support, query = tmp_path / "support", tmp_path / "query"
    write_classes(support, [40, 41], [2, 2])
    write_classes(tmp_path / "elsewhere", [42], [2])
    (support / "class 42").symlink_to(tmp_path / "elsewhere" / "class 42")
    (support / "class 40").rename(os.fsdecode(os.fsencode(support) + b"/\xe9toile"))
    for folder in (support, support / "class 41", query / "@eaDir", query / "__MACOSX", support / "__MACOSX"):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (folder / "desktop.ini").write_text("[.ShellClassInfo]")
    stripes(41, 9).save(query / os.fsdecode(b"caf\xe9.png"))
    tall = stripes(41, 9, size=24)
    tall.crop((0, 0, 24, 12)).save(query / "turned.jpg", exif=malformed_exif(6), quality=100, subsampling=0)
    tall.crop((0, 0, 24, 12)).transpose(Image.Transpose.ROTATE_270).save(query / "upright.png")
    (query / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    (query / "dead.png").symlink_to("/nowhere/dead.png")
    os.mkfifo(query / "pipe.png")
    (tmp_path / "album").mkdir()
    stripes(42, 9).save(tmp_path / "album" / "linked.png")
    (query / "album").symlink_to(tmp_path / "album")
    (tmp_path / "album" / "back").symlink_to(query)
    (query / "again").symlink_to(tmp_path / "album")
    rows, page = run(support, query)
    assert [Path(row["path"]).name for row in rows] == ["linked.png", "caf\ufffd.png", "turned.jpg", "upright.png"]
    assert float(rows[2]["probability"]) == pytest.approx(float(rows[3]["probability"]), abs=0.02)
    assert "\ufffdtoile" in page
    assert "caf\ufffd.png" in page
    out = "".join(capsys.readouterr().out.split())
    assert "Skipped3:" in out
    assert "clip.mp4isnotanimage:itisafilm" in out
    assert "dead.pngcannotbeopened:itleadsto/nowhere/dead.png,Nosuchfileordirectory" in out
    assert "pipe.pngisapipe,asocketoradevice,notafile" in out
    assert "Thumbs.db" not in page
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("3 files will be skipped: ")
    shutil.rmtree(tmp_path / "run")  # which holds the prediction of the other folder
    rows, _ = run(support, support)
    assert len(rows) == 6


def test_of_a_large_file_that_is_no_image_little_is_read(run, tmp_path):
    """A film of 64 GB, most of it a hole: it could not be read whole."""
    write_classes(tmp_path / "support", [40, 41], [2, 2])
    write_classes(tmp_path / "query", [40], [1])
    with (tmp_path / "query" / "film.mkv").open("wb") as file:
        file.write(b"\x1aE\xdf\xa3")
        file.truncate(64 << 30)
    rows, page = run(tmp_path / "support", tmp_path / "query")
    assert len(rows) == 1
    assert "film.mkv is not an image: it is a film (Matroska or WebM)" in page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_a_browser(run, tmp_path, browser, dark):
    folder = tmp_path / "labelled"
    write_classes(folder, [40, 41, 42], [10, 2, 2])
    (folder / "class 42").rename(folder / "<img src=x onerror=document.title='taken'>")
    run(folder, folder)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get((tmp_path / "run" / "predictions.html").as_uri())
    assert browser.get_log("browser") == []
    assert browser.title == "Predictions"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert sizes == [16] * (14 + 8 + 2 + 2)
    red, green, blue = browser.execute_script(
        "const canvas = document.createElement('canvas').getContext('2d');"
        "canvas.fillStyle = getComputedStyle(document.documentElement).color; canvas.fillRect(0, 0, 1, 1);"
        "return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)"
    )
    assert (min(red, green, blue) > 200) == dark  # light letters on dark ground
    assert (max(red, green, blue) < 50) != dark


def test_what_is_predicted_from_what_has_its_own_folder(world, composed, tmp_path):
    """By model, support and query, and by what they hold; another content is no longer the folder's."""
    for name in ("support", "query", "other"):
        write_classes(tmp_path / name, [40, 41], [2, 2])
    given = [f"checkpoint={world / 'package'}", *(f"{name}='{tmp_path / name}'" for name in ("support", "query"))]

    def folder(*overrides):
        return composed("stage=predict", *given, *overrides).stage.folder

    first = folder()
    assert folder() == first
    assert folder("stage.device=cuda", "stage.batch_size=3", "stage.num_shown=1") == first
    by_run = folder(f"checkpoint={world / 'runs' / 'learner'}")
    others = {folder(f"query={tmp_path / 'other'}"), folder(f"support={tmp_path / 'other'}"), by_run}
    assert by_run.startswith("predict-learner-")
    predict(composed("stage=predict", *given))
    (tmp_path / "query" / "class 40" / "0.png").unlink()
    assert len({first, folder(), *others}) == 5
    with pytest.raises(ValueError, match="run holds a run with other settings .query.sha256: .* delete it, or"):
        predict(composed("stage=predict", *given))


def test_a_name_that_is_not_utf_8_is_classified_and_shown_with_a_replacement(run, tmp_path):
    write_classes(tmp_path / "support", [40, 41], [2, 2])
    (tmp_path / "query").mkdir()
    image = (tmp_path / "support" / "class 40" / "0.png").read_bytes()
    with open(os.fsencode(tmp_path / "query") + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(image)
    rows, page = run(tmp_path / "support", tmp_path / "query")
    assert [row["path"] for row in rows] == [str(tmp_path / "query" / "caf\ufffd.png")]
    assert "caf\ufffd.png" in page


def test_a_device_that_is_not_there_is_refused_before_work(run, tmp_path):
    write_classes(tmp_path / "support", [40, 41], [2, 2])
    with pytest.raises(
        ValueError, match="stage.device=cuda:99 cannot be used on this machine .*; use stage.device=cpu"
    ):
        run(tmp_path / "support", tmp_path / "support", "stage.device='cuda:99'")
    assert not (tmp_path / "run").exists()
