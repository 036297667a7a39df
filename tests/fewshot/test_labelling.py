"""Labelling without the page: events, their journal, methods, orders, the board, exports."""

import csv
import errno
import json
import os
import shutil
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from fewshot.labelling import features, pictures
from fewshot.labelling.board import CENTROID, LOGISTIC, Board
from fewshot.labelling.export import EXPORTS, folder_names, table
from fewshot.labelling.journal import Journal
from fewshot.labelling.labels import History, StaleError, clean_name
from fewshot.labelling.methods import STRENGTH, Centroid, Logistic, Trained, centred, unit_length
from fewshot.labelling.order import NONE, order, unlike_each_other
from fewshot.model import nearest_centroid
from runner.errors import InputError
from tests.fewshot.conftest import stripes


def new(number, name):
    return {"kind": "new", "class": number, "name": name}


def label(**classes):
    return {"kind": "label", "labels": classes}


def played(*events):
    history = History()
    for event in events:
        history.check(event, history.version)
        history.add(event)
    return history


def test_events_change_the_labels_and_undo_takes_the_last_one_back():
    events = [
        new(1, "cat"), new(2, "dog"), label(a=1, b=1, c=2), label(a=2), {"kind": "rename", "class": 2, "name": "wolf"},
        label(b=None), {"kind": "remove", "class": 2},
    ]  # fmt: skip
    history = played(*events)
    assert history.labels == ({1: "cat"}, {})
    for names, examples in [
        ({1: "cat", 2: "wolf"}, {"c": 2, "a": 2}),
        ({1: "cat", 2: "wolf"}, {"b": 1, "c": 2, "a": 2}),
        ({1: "cat", 2: "dog"}, {"b": 1, "c": 2, "a": 2}),
        ({1: "cat", 2: "dog"}, {"a": 1, "b": 1, "c": 2}),
    ]:
        history.add({"kind": "undo"})
        assert history.labels == (names, examples)
    assert list(history.labels.examples) == ["a", "b", "c"]
    assert history.version == len(events) + 4
    history = played(new(1, "cat"), {"kind": "undo"}, new(2, "dog"))
    assert history.labels.names == {2: "dog"}
    with pytest.raises(InputError, match="there is nothing to undo"):
        played({"kind": "undo"})


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "a class needs a name"), ("x" * 101, "has 101 letters; the limit is 100"), ("a\0b", "cannot be shown"),
     ("Cat", "there is a class 'cat' already; take another name"), ("dog\ud800", "cannot be shown")],
)  # fmt: skip
def test_names_of_classes_that_cannot_be(name, message):
    history = played(new(1, "cat"), new(2, "dog"))
    with pytest.raises(InputError, match=message):
        history.check(new(3, clean_name(name)), history.version)
    with pytest.raises(InputError, match=message):
        history.check({"kind": "rename", "class": 2, "name": clean_name(name)}, history.version)


def test_a_class_may_change_the_case_of_its_own_name():
    played(new(1, "cat"), {"kind": "rename", "class": 1, "name": "Cat"})
    assert clean_name("  a \n cafe\u0301 ") == "a caf\u00e9"


def test_two_windows_do_not_overwrite_each_other():
    history = played(new(1, "cat"), new(2, "dog"), label(a=1))
    base = history.version
    history.add(label(b=2))  # by the other window
    for merged in (label(a=2), label(b=2), label(c=1), new(3, "bird"), {"kind": "rename", "class": 2, "name": "wolf"}):
        history.check(merged, base)
    for stale in (label(b=1), label(a=1, b=None), {"kind": "remove", "class": 2}, {"kind": "undo"}):
        with pytest.raises(StaleError, match="another window has changed"):
            history.check(stale, base)
    history.check({"kind": "remove", "class": 1}, base)
    history.add({"kind": "remove", "class": 2})
    for gone in (label(a=2), {"kind": "rename", "class": 2, "name": "wolf"}):
        with pytest.raises(StaleError, match="no longer there"):
            history.check(gone, base)
    base = history.version
    history.add({"kind": "undo"})
    with pytest.raises(StaleError, match="1 of these images"):
        history.check(label(b=1), base)


def test_the_journal_is_replayed_without_an_unfinished_last_line(tmp_path):
    path, events = tmp_path / "labels.jsonl", [new(1, "caf\u00e9"), label(a=1, b=None), {"kind": "undo"}]
    journal = Journal(path)
    for event in events:
        journal.append(event)
    journal.close()
    whole = path.read_bytes()
    assert all(json.loads(line) for line in whole.splitlines())
    for end in range(len(whole) - 1, whole.rfind(b"\n", 0, -1), -1):
        path.write_bytes(whole[:end])  # killed while it wrote
        again = Journal(path)
        assert again.events == events[:2]
        again.append(events[2])
        again.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}", b"not JSON", b'{"kind":"label","labels":{"a":"cat"}}', b'{"kind":"new"}'])
def test_a_damaged_journal_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "labels.jsonl"
    journal = Journal(path)
    journal.append(new(1, "cat"))
    journal.close()
    path.write_bytes(path.read_bytes() + line + b"\n" + b'{"kind":"undo"}\n')
    with pytest.raises(InputError, match="labels.jsonl, line 3 is damaged or of another version"):
        Journal(path)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_of_a_full_disk_nothing_stays_in_the_journal(tmp_path, monkeypatch, call):
    board = make_board(tmp_path)
    board.act({"kind": "new", "name": "cat"}, 0)
    before, kept = (tmp_path / "labels.jsonl").read_bytes(), getattr(os, call)

    def full(file, *rest):
        if call == "pwrite":
            kept(file, rest[0][:5], rest[1])  # a part went to the disk
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match="this was not kept, as .*labels.jsonl cannot be written .No space left.*make"):
        board.act({"kind": "label", "labels": {"0": 1}}, 1)
    assert (tmp_path / "labels.jsonl").read_bytes() == before
    assert board.view(9)["version"] == 1
    monkeypatch.undo()
    board.act({"kind": "label", "labels": {"0": 1}}, 1)
    assert board.view(9)["by_hand"] == 1
    board.close()


def blobs(num_classes=4, each=30, width=40, seed=0):
    """Features of classes that lie apart, and the classes."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(num_classes), each)
    noise = rng.normal(size=(len(truth), width))
    return (3 + 2 * rng.normal(size=(num_classes, width))[truth] + noise).astype(np.float32), truth


def test_centroid_is_the_softmax_of_cosines_to_means():
    X, truth = blobs()
    unit, rows = centred(X), np.array([0, 1, 30, 60, 61, 62, 90])
    mean = (X / np.linalg.norm(X, axis=1, keepdims=True)).mean(0)
    by_hand = np.array([x / np.linalg.norm(x) - mean for x in X])
    np.testing.assert_allclose(unit, by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True), atol=1e-5)
    found = Centroid(unit)(rows, truth[rows], 4)
    means = np.array([unit[rows[truth[rows] == c]].mean(0) for c in range(4)])
    cosines = unit @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    logs = np.log(found.astype(float))
    ratio = (logs[:, 1] - logs[:, 0])[30:] / (cosines[:, 1] - cosines[:, 0])[30:]
    assert found.sum(1) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(ratio, ratio[0], rtol=0.01)  # one scale for all
    assert (found.argmax(1) == truth).all()


def test_the_scale_of_cosines_is_lower_where_examples_contradict_each_other():
    X, truth = blobs(each=60)
    rows = np.arange(0, 240, 4)
    wrong = truth.copy()
    wrong[rows[::2]] = np.random.default_rng(1).permutation(truth[rows[::2]])
    good, bad = (Centroid(centred(X))(rows, classes[rows], 4).max(1).mean() for classes in (truth, wrong))
    assert good > 0.999 > 0.95 > bad


@pytest.mark.parametrize("num_classes", [2, 4])
def test_logistic_regression_in_few_dimensions_is_the_one_in_all(num_classes):
    X, truth = blobs(num_classes)
    unit, rows = centred(X), np.arange(0, len(X), 7)
    whole = LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-8, max_iter=9999)
    expected = whole.fit(unit[rows], truth[rows]).predict_proba(unit)
    np.testing.assert_allclose(Logistic(unit)(rows, truth[rows], num_classes), expected, atol=5e-3)


def test_a_trained_learner_gives_the_probabilities_of_the_classifier():
    from fewshot import FewShotClassifier

    X, truth = blobs()
    rows, model = np.arange(0, 120, 9), nearest_centroid(40)
    expected = FewShotClassifier(model).fit(X[rows], truth[rows]).predict_proba(X)
    np.testing.assert_allclose(Trained(X, model)(rows, truth[rows], 4), expected, atol=1e-5)


def test_everything_is_under_its_most_probable_class_and_the_least_certain_are_asked():
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.ones(3), 50).astype(np.float32)
    by_hand, hidden, columns = np.full(50, NONE), np.zeros(50, bool), np.array([0, 2, 3])  # class 1 has no example
    by_hand[[3, 4]], hidden[[4, 5]] = [2, 0], True
    now = order(by_hand, found, columns, 4, 10, hidden)
    shown = [*range(3), *range(6, 50)]
    assert sorted(np.concatenate(now.predicted)) == shown
    for number, images in enumerate(now.predicted):
        assert all(columns[found[i].argmax()] == number for i in images)
        assert all(found[i].max() >= found[j].max() for i, j in pairwise(images))
    assert not len(now.predicted[1])
    margins = {i: np.sort(found[i])[-1] - np.sort(found[i])[-2] for i in shown}
    assert list(now.uncertain) == sorted(shown, key=margins.__getitem__)[:10]
    assert (now.classes[3], now.probabilities[3], now.by_hand[3]) == (2, 1, True)


def test_images_unlike_each_other_are_of_all_kinds():
    X, truth = blobs(8, 40)
    chosen = unlike_each_other(unit_length(centred(X)), 8)
    assert sorted(truth[chosen]) == list(range(8))
    assert len(set(unlike_each_other(centred(X)[:5], 60))) == 5


def make_board(folder, num_classes=3, each=6):
    """A board of drawn images in ``folder``/images, its journal in ``folder``."""
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        for number in range(num_classes):
            for seed in range(each):
                stripes(number, seed).save(images / f"{number}-{seed}.png")
    found, _ = pictures.find(images, folder / "files.csv")
    X, _ = blobs(num_classes, each)
    return Board(images, found, X[: len(found)], Journal(folder / "labels.jsonl"), nearest_centroid(X.shape[1]))


def give(board, **classes):
    board.act({"kind": "label", "labels": {k[1:]: number for k, number in classes.items()}}, board.view(0)["version"])


def start(board, *names):
    for name in names:
        board.act({"kind": "new", "name": name}, board.view(0)["version"])


def test_a_board_goes_on_where_it_was(tmp_path):
    board = make_board(tmp_path)
    assert board.view(99)["lists"]["unsorted"]["total"] == 18
    start(board, "red", "green")
    give(board, i0=1, i1=1)
    view = board.view(99)
    assert view["lists"]["unsorted"]["items"][0][0] in range(2, 6)  # those like the examples first
    assert view["lists"]["unsorted"]["total"] == 16
    give(board, i6=2)
    start(board, "blue")
    view = board.view(99)
    assert [(one["examples"], one["predicted"]) for one in view["classes"]][2] == (0, 0)
    give(board, i12=3)
    view = board.view(99)
    assert [(one["name"], one["examples"], one["predicted"]) for one in view["classes"]] == [
        ("red", 2, 4), ("green", 1, 5), ("blue", 1, 5),
    ]  # fmt: skip
    assert view["undo"] == "1 image as blue"
    assert [item[0] for item in view["lists"]["examples-1"]["items"]] == [1, 0]  # the latest first
    board.close()
    again = make_board(tmp_path)
    assert again.view(99)["classes"] == view["classes"]
    assert again.view(99)["lists"] == {key: one | {"order": again.num_orders} for key, one in view["lists"].items()}
    give(again, i2=2)  # a correction
    assert again.view(99)["classes"][1]["examples"] == 2
    again.act({"kind": "undo"}, again.view(0)["version"])
    assert again.view(99)["classes"] == view["classes"]
    again.close()


def test_methods_can_be_changed(tmp_path):
    board = make_board(tmp_path)
    start(board, "red", "green", "blue")
    give(board, i0=1, i6=2, i12=3)
    assert board.methods == [CENTROID, LOGISTIC]
    board.choose(LOGISTIC)
    assert [one["predicted"] for one in board.view(0)["classes"]] == [5, 5, 5]
    with pytest.raises(InputError, match="there is no method 'magic'; there are nearest centroid, logistic regression"):
        board.choose("magic")
    board.close()


def test_a_learner_that_diverges_is_said_and_the_centroid_sorts(tmp_path):
    board = make_board(tmp_path)

    def diverges(rows, classes, num_classes):
        raise InputError("the learner diverged")

    board._methods[CENTROID], board._methods[LOGISTIC] = Centroid(board._unit), diverges
    start(board, "red", "green")
    board.choose(LOGISTIC)
    give(board, i0=1, i6=2)
    assert board.view(0)["problem"] == "sorted by nearest centroid: the learner diverged"
    assert board.view(0)["classes"][0]["predicted"] > 3
    board.close()


def test_files_are_known_by_their_content(tmp_path):
    board = make_board(tmp_path)
    start(board, "red", "green")
    give(board, i0=1, i6=2)
    board.close()
    images = tmp_path / "images"
    (images / "deep").mkdir()
    (images / "0-0.png").rename(images / "deep" / "moved.png")
    shutil.copy(images / "1-0.png", images / "copy.png")
    again = make_board(tmp_path)
    by_hand = {
        row["path"]: row["label"] for row in csv.DictReader(table(again).splitlines()) if row["how"] == "by hand"
    }
    assert by_hand == {"deep/moved.png": "red", "1-0.png": "green", "copy.png": "green"}
    assert len(again.pictures) == 18
    again.close()


def test_a_deleted_image_is_left_out_and_stays_learned(tmp_path):
    board = make_board(tmp_path)
    start(board, "red", "green")
    give(board, i0=1, i6=2)
    (tmp_path / "images" / "0-0.png").unlink()
    (tmp_path / "images" / "0-1.png").unlink()
    for index, name in ((0, "0-0"), (1, "0-1")):
        with pytest.raises(pictures.GoneError, match=f"{name}.png was deleted, moved or changed"):
            pictures.thumbnail(board.folder, board.pictures[index], tmp_path / "thumbnails")
        board.hide(index)
    view = board.view(99)
    assert view["gone"] == 2
    assert 1 not in [item[0] for one in view["lists"].values() for item in one["items"]]
    assert view["classes"][0]["examples"] == 1
    give(board, i1=1)  # a window that still showed it
    assert "0-1" not in table(board)
    path = EXPORTS["copies"](board, tmp_path)
    assert len(list(path.rglob("*.png"))) == 16
    board.close()


def test_exports(tmp_path):
    board = make_board(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "images").iterdir()}
    rows = list(csv.DictReader(table(board).splitlines()))
    assert {row["label"] for row in rows} == {""}
    with pytest.raises(InputError, match="a package needs examples of at least two classes"):
        EXPORTS["package"](board, tmp_path)
    start(board, "../red", "green")
    give(board, i0=1, i6=2)
    path = EXPORTS["labels"](board, tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(path.name for path in before)
    assert rows[0] == {"path": "0-0.png", "label": "../red", "how": "by hand", "probability": "1.0000"}
    assert rows[1]["how"] == "predicted"
    assert 0.5 <= float(rows[1]["probability"]) <= 1
    labels = {row["path"]: row["label"] for row in rows}
    for kind in ("links", "copies"):
        path = EXPORTS[kind](board, tmp_path)
        assert path.name == f"{kind}-1"
        assert EXPORTS[kind](board, tmp_path).name == f"{kind}-2"
        found = {file.name: file for file in path.rglob("*.png")}
        assert {name: file.parent.name for name, file in found.items()} == {
            name: {"../red": "_red", "green": "green"}[of] for name, of in labels.items()
        }
        for name, file in found.items():
            assert file.is_symlink() == (kind == "links")
            assert file.read_bytes() == before[tmp_path / "images" / name][0]
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "images").iterdir()}
    board.close()


def test_folders_of_classes_have_names_that_every_file_system_takes():
    names = folder_names(["a/b", "a:b", "CON", "..", "x" * 300, "Ünï", "without a class", "trail. "])
    assert len({name.casefold() for name in names.values()}) == len(names)
    assert names["a/b"] == "a_b"
    assert names["a:b"] == "a_b-2"
    assert names["CON"] == "CON_"
    assert names[".."] == "_"
    assert names["without a class"] == "without a class-2"
    assert all(len(name.encode()) <= 210 and not name.startswith(".") for name in names.values())


def test_images_of_one_name_do_not_replace_each_other_in_an_export(tmp_path):
    images = tmp_path / "images"
    for number in range(3):
        (images / str(number)).mkdir(parents=True)
        for seed in range(2):
            stripes(number, seed).save(images / str(number) / f"{seed}.png")
    board = make_board(tmp_path, 3, 2)
    start(board, "red", "green")
    give(board, i0=1, i2=2, i4=1)
    path = EXPORTS["copies"](board, tmp_path)
    assert len(list(path.rglob("*.png"))) == 6
    board.close()


def test_links_that_lead_out_of_the_folder_are_left_out(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    stripes(0, 0).save(images / "0.png")
    stripes(0, 1).save(tmp_path / "secret.png")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "inner.png").symlink_to(images / "0.png")
    (tmp_path / "elsewhere").mkdir()
    stripes(0, 2).save(tmp_path / "elsewhere" / "2.png")
    (images / "folder").symlink_to(tmp_path / "elsewhere")
    found, unreadable = pictures.find(images, tmp_path / "files.csv")
    assert [one.names for one in found] == [["0.png", "inner.png"]]
    assert sorted(one.path.name for one in unreadable) == ["2.png", "link.png"]
    assert all("is a link that leads out of the folder" in one.reason for one in unreadable)
    (images / "0.png").unlink()  # and takes the place of an image that was there
    (images / "0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(pictures.GoneError):
        pictures.content(images, found[0])
    (images / "0.png").unlink()
    shutil.copy(tmp_path / "secret.png", images / "0.png")  # nor another content
    with pytest.raises(pictures.GoneError):
        pictures.content(images, found[0])


class Colours:
    """In place of an extractor: the mean colour of an image, and how many images it has seen."""

    image_size, mode, framing, mean, seen = 16, "RGB", None, np.zeros(3), 0

    def __init__(self):
        import torch

        self.mean = torch.zeros(3)

    def at_a_time(self):
        return 4

    def in_parts(self, images):
        self.seen += len(images)
        if self.seen > getattr(self, "limit", 99):
            raise KeyboardInterrupt
        return images.float().mean((1, 2))


def test_features_are_computed_once_and_go_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PER_FILE", 8)
    images, store, extractor = tmp_path / "images", tmp_path / "features", Colours()
    images.mkdir()
    for seed in range(20):
        stripes(seed, seed).save(images / f"{seed:02d}.png")
    (images / "broken.png").write_bytes((images / "00.png").read_bytes()[:60])
    found, _ = pictures.find(images, tmp_path / "files.csv")
    extractor.limit = 13
    with pytest.raises(KeyboardInterrupt):
        features.compute(images, found, extractor, store)
    assert extractor.seen == 16
    extractor = Colours()
    readable, rows, unreadable = features.compute(images, found, extractor, store)
    assert extractor.seen == 12  # eight were kept
    assert [one.path.name for one in unreadable] == ["broken.png"]
    for one, row in zip(readable, rows, strict=True):
        with Image.open(images / one.names[0]) as image:
            np.testing.assert_allclose(row, np.asarray(image).mean((0, 1)), rtol=1e-5)
    for path in images.glob("0*.png"):
        path.rename(images / f"renamed-{path.name}")
    (store / f"{readable[0].key}.safetensors").write_bytes(b"damaged")
    found, _ = pictures.find(images, tmp_path / "files.csv")
    extractor = Colours()
    assert len(features.compute(images, found, extractor, store)[0]) == 20
    assert extractor.seen == 8


def test_a_film_is_not_read_to_know_its_content(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    stripes(0, 0).save(images / "0.png")
    with (images / "film.mkv").open("wb") as file:
        file.write(b"\x1aE\xdf\xa3")
        file.truncate(64 << 30)
    found, unreadable = pictures.find(images, tmp_path / "files.csv")
    assert len(found) == 1
    assert "it is a film" in unreadable[0].reason


def test_fifty_thousand_images(tmp_path):
    X = np.random.default_rng(0).normal(size=(50_000, 16)).astype(np.float32)
    many = [pictures.Picture(f"{i:032x}", [f"{i}.png"]) for i in range(len(X))]
    board = Board(tmp_path, many, X, Journal(tmp_path / "labels.jsonl"), nearest_centroid(16))
    start(board, "red", "green")
    board.act({"kind": "label", "labels": {str(i): 1 + i % 2 for i in range(30_000)}}, 2)
    view = board.view(40)
    assert view["by_hand"] == 30_000
    assert len(json.dumps(view)) < 20_000
    total = view["lists"]["predicted-1"]["total"]
    last = board.window("predicted-1", total - 3, 100)
    assert len(last["items"]) == 3
    board.act({"kind": "undo"}, 3)
    assert board.view(0)["by_hand"] == 0
    board.close()
