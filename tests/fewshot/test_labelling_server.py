"""The page's server: who may ask, what is served, two windows; and the command from start to kill and again."""

import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from fewshot import FewShotClassifier
from fewshot.labelling.board import Board
from fewshot.labelling.journal import Journal
from fewshot.labelling.pictures import find
from fewshot.labelling.run import label
from fewshot.labelling.server import Guard, application, hosts_of, listening, secret_at
from fewshot.model import nearest_centroid
from tests.conftest import ROOT
from tests.fewshot.conftest import stripes
from tests.fewshot.test_labelling import blobs

SECRET = "s3cret"


@contextmanager
def serving(board, output, host="127.0.0.1"):
    """The port of a real server in a thread."""
    opened = listening("127.0.0.1", 0)
    app = Guard(application(board, output), SECRET, hosts_of(host))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


@pytest.fixture
def board(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        for seed in range(4):
            stripes(number, seed, 40).save(images / f"{number}-{seed}.png")
    found, _ = find(images, tmp_path / "files.csv")
    made = Board(images, found, blobs(3, 4)[0], Journal(tmp_path / "labels.jsonl"), nearest_centroid(40))
    yield made
    made.close()


@pytest.fixture
def ask(board, tmp_path):
    """A function from an address, a body and headers to the status, the headers and the body of the answer."""
    with serving(board, tmp_path) as port:

        def call(path, body=None, headers=None, method=None, secret=SECRET, content_type="application/json"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            sent = {"Content-Type": content_type} if body is not None else {}
            text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(
                method or ("GET" if body is None else "POST"), f"/{secret}{path}", text, sent | (headers or {})
            )
            answer = connection.getresponse()
            found = answer.status, dict(answer.getheaders()), answer.read()
            connection.close()
            return found

        call.port = port
        yield call


def event(board, base=None, **what):
    return {"catalogue": board.catalogue, "base": board.view(0)["version"] if base is None else base, "event": what}


def test_the_page_and_all_it_loads(ask, board):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, headers, body = ask(path)
        assert status == 200
        assert headers["content-type"].startswith(kind)
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in headers
        assert b"http://" not in body.replace(b"http://www.w3.org", b"")
        assert b"https://" not in body
    status, headers, body = ask(f"/small/{board.catalogue}/0")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert body.startswith(b"\xff\xd8")
    assert ask(f"/large/{board.catalogue}/11")[0] == 200
    assert json.loads(ask(f"/names/{board.catalogue}/11")[2]) == ["2-3.png"]


def test_nothing_without_the_secret(ask, board):
    for secret in ("", "s3cre", "s3cret0", "S3CRET", "s%33cre", "%C3%A9", "..", "."):
        for path in ("/", "/state", f"/small/{board.catalogue}/0", "/page.js"):
            assert ask(path, secret=secret)[0] == 403
    body = event(board, kind="new", name="cat")
    assert ask("/act", body, secret="guess")[0] == 403
    assert board.view(0)["classes"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that was made to lead here
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},  # another server of this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_no_request_from_another_site_does_anything(ask, board, headers):
    headers = {name: value.format(port=ask.port) for name, value in headers.items()}
    assert ask("/act", event(board, kind="new", name="cat"), headers)[0] == 403
    for path in ("/", "/state", f"/small/{board.catalogue}/0", "/labels.csv"):
        assert ask(path, headers=headers)[0] == 403
    assert board.view(0)["version"] == 0


def test_what_the_page_itself_asks_is_answered(ask, board):
    own = f"http://127.0.0.1:{ask.port}"
    assert ask("/act", event(board, kind="new", name="cat"), {"Origin": own, "Sec-Fetch-Site": "same-origin"})[0] == 200
    assert ask("/", headers={"Host": f"localhost:{ask.port}", "Sec-Fetch-Site": "none"})[0] == 200
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):  # what a form can send
        assert ask("/act", event(board, kind="new", name="dog"), content_type=content_type)[0] == 403
    for path in ("/act", "/export", "/method"):
        assert ask(path)[0] == 405
    assert [one["name"] for one in board.view(0)["classes"]] == ["cat"]


def test_a_server_that_others_may_reach_goes_by_addresses_alone(board, tmp_path):
    with serving(board, tmp_path, "0.0.0.0") as port:
        for host, status in (("192.168.1.7", 200), ("[fe80::1]", 200), ("localhost", 200), ("evil.example", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", f"/{SECRET}/state", headers={"Host": f"{host}:{port}"})
            assert connection.getresponse().status == status
            connection.close()


def test_no_file_outside_the_folder_is_served(ask, board, tmp_path):
    (tmp_path / "private.png").write_bytes((tmp_path / "images" / "0-0.png").read_bytes())
    for path in ("/../private.png", "/..%2f..%2fetc/passwd", "/small/../../files.csv", "/labels.jsonl",
                 "/static/page.js", "/page.js/../../server.py", "/%2e%2e/server.py", "/secret",
                 f"/small/{board.catalogue}/..%2f..",
                 f"/small/{board.catalogue}/12", f"/small/{board.catalogue}/-1", "/small/other/0",
                 f"/large/{board.catalogue}/99999999999999999999"):  # fmt: skip
        assert ask(path)[0] in (404, 405)
    image = tmp_path / "images" / "0-0.png"
    image.unlink()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    image.symlink_to(tmp_path / "red.png")
    status, _, body = ask(f"/large/{board.catalogue}/0")
    assert (status, b"deleted, moved or changed" in body) == (410, True)


def test_an_image_that_is_deleted_between_two_clicks(ask, board, tmp_path):
    assert ask(f"/small/{board.catalogue}/1")[0] == 200  # and is in the cache
    (tmp_path / "images" / "0-1.png").unlink()
    assert ask(f"/small/{board.catalogue}/1")[0] == 410
    status, _, body = ask("/act", event(board, kind="new", name="cat"))
    assert (status, json.loads(body)["gone"]) == (200, 1)
    status, _, body = ask("/act", event(board, kind="label", labels={"1": 1}))
    assert (status, json.loads(body)["by_hand"]) == (200, 1)
    assert b"0-1.png" not in ask("/labels.csv")[2]


def test_two_windows_see_each_other_and_do_not_overwrite(ask, board):
    first = json.loads(ask("/act", event(board, kind="new", name="cat"))[2])
    other = json.loads(ask("/act", event(board, kind="new", name="dog"))[2])
    key = f"{other['catalogue']}-{other['order']}"
    assert ask(f"/state?order={key}")[0] == 204
    assert ask("/act", event(board, other["version"], kind="label", labels={"0": 1}))[0] == 200
    status, _, body = ask(f"/state?order={key}")
    assert (status, json.loads(body)["by_hand"]) == (200, 1)
    status, _, body = ask("/act", event(board, other["version"], kind="label", labels={"0": 2}))
    assert (status, "another window has changed 1 of these" in json.loads(body)["error"]) == (409, True)
    assert ask("/act", event(board, first["version"], kind="label", labels={"4": 2}))[0] == 200  # merged
    assert ask("/act", event(board, first["version"], kind="undo"))[0] == 409
    body = event(board, kind="undo") | {"catalogue": "of another start"}
    assert ask("/act", body)[0] == 409
    assert [(one["name"], one["examples"]) for one in board.view(0)["classes"]] == [("cat", 1), ("dog", 1)]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", {"event": 3}, {"event": {}, "base": 0}, {"event": {"kind": "label"}, "base": 0},
     {"event": {"kind": "label", "labels": {"99": 1}}, "base": 0},
     {"event": {"kind": "label", "labels": []}, "base": 0},
     {"event": {"kind": "label", "labels": {"-1": None}}, "base": 0}, {"event": {"kind": "new"}, "base": 0},
     {"event": {"kind": "undo"}, "base": "x"}, {"event": {"kind": "drop"}, "base": 0}],
    ids=str,
)  # fmt: skip
def test_requests_that_cannot_be_understood(ask, board, body):
    body = body if isinstance(body, bytes) else {"catalogue": board.catalogue} | body
    status, _, said = ask("/act", body)
    assert status == 400
    assert json.loads(said)["error"] == "this cannot be understood; reload the page"
    assert board.view(0)["version"] == 0


def test_a_request_that_is_too_large_is_not_read_whole(ask, board):
    with suppress(BrokenPipeError, ConnectionResetError):  # it may stop listening
        assert ask("/act", b"[" * (9 << 20))[0] == 413
    assert ask("/state")[0] == 200


def test_mistakes_are_said(ask, board, tmp_path, monkeypatch):
    ask("/act", event(board, kind="new", name="cat"))
    ask("/act", event(board, kind="new", name="dog"))

    def said(path, body):
        status, _, text = ask(path, body)
        assert status == 400
        return json.loads(text)["error"]

    assert "there is a class 'cat' already" in said("/act", event(board, kind="rename", **{"class": 2}, name=" CAT "))
    assert "needs examples of at least two classes" in said(
        "/export", {"catalogue": board.catalogue, "kind": "package"}
    )
    assert "there is no export 'all'" in said("/export", {"catalogue": board.catalogue, "kind": "all"})
    assert "there is no method" in said("/method", {"catalogue": board.catalogue, "method": "magic"})
    monkeypatch.setattr("fewshot.labelling.export.shutil.copyfile", full)
    assert "copies-1 cannot be written: No space left on device; make room" in said(
        "/export", {"catalogue": board.catalogue, "kind": "copies"}
    )
    assert not list(tmp_path.glob("*copies*"))
    monkeypatch.setattr(os, "fsync", full)
    assert "this was not kept, as" in said("/act", event(board, kind="label", labels={"0": 1}))
    assert ask(f"/small/{board.catalogue}/0")[0] == 200  # without its copy
    monkeypatch.undo()
    assert board.view(0)["by_hand"] == 0


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_secret_is_its_owners_alone_and_stays(tmp_path):
    secret = secret_at(tmp_path / "secret")
    assert len(secret) == 43
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert secret_at(tmp_path / "secret") == secret
    (tmp_path / "secret").write_text("short")
    assert secret_at(tmp_path / "secret") not in ("short", secret)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def photos(tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for number in (40, 41, 42):
        for seed in range(3):
            stripes(number, seed).save(images / f"{number}-{seed}.png")
    return images


def test_bad_input_is_one_line_before_any_work(composed, world, tmp_path, photos):
    package = f"checkpoint={world / 'package'}"

    def refused(message, *overrides):
        with pytest.raises(ValueError, match=message):
            label(composed("stage=label", package, *overrides))
        assert not (tmp_path / "run").exists()

    refused("stage=label needs folder=DIR, with the images to label")
    refused("folder=.*none is not a folder; give one with images", f"folder={tmp_path / 'none'}", "stage.port=0")
    (tmp_path / "empty").mkdir()
    refused("folder=.*empty is empty; put images into it", f"folder={tmp_path / 'empty'}", "stage.port=0")
    refused("run_dir=.*run is inside folder=.*, where nothing may be written", f"folder={tmp_path}")
    refused("stage.port=-1 must be a whole number", f"folder={photos}", "stage.port=-1")
    refused("stage.port=99999 is no port; the limit is 65535", f"folder={photos}", "stage.port=99999")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(f"stage.port={port} cannot be listened at .Address already in use.*another one, or stage.port=0",
                f"folder={photos}", f"stage.port={port}")  # fmt: skip
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="folder=.*empty has no image that can be read; image .*notes.txt is not an"):
        label(composed("stage=label", package, f"folder={tmp_path / 'empty'}", "stage.port=0"))


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@contextmanager
def started(package, photos, folder, *overrides):
    """The command in a process of its own, its port and the path of its page."""
    command = [sys.executable, "-u", ROOT / "train.py", "stage=label", f"folder={photos}", f"checkpoint={package}",
               f"dirs.runs={folder / 'runs'}", "stage.port=0", *overrides]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    try:
        for line in process.stdout:
            said += line
            if "http://" in line:
                break
        assert "http://127.0.0.1:" in said, said
        port, secret = said.split("http://127.0.0.1:")[1].split("/")[:2]
        yield process, int(port), secret
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def post(port, secret, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", f"/{secret}/{path}", json.dumps(body), {"Content-Type": "application/json"})
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def get(port, secret, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{secret}/{path}")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


@pytest.mark.slow
def test_a_killed_server_goes_on_and_a_second_one_is_refused(world, photos, tmp_path):
    package, before = world / "package", contents(photos)
    with started(package, photos, tmp_path) as (process, port, secret):
        state = get(port, secret, "state")
        for what in ({"kind": "new", "name": "a"}, {"kind": "new", "name": "b"}, {"kind": "label", "labels": {"0": 1}},
                     {"kind": "label", "labels": {"4": 2, "5": 2}}):  # fmt: skip
            state = post(
                port, secret, "act", {"catalogue": state["catalogue"], "base": state["version"], "event": what}
            )
            assert "error" not in state
        (run,) = (tmp_path / "runs").iterdir()
        assert len((run / "labels.jsonl").read_bytes().splitlines()) == 5
        second = subprocess.run(
            [sys.executable, ROOT / "train.py", "stage=label", f"folder={photos}", f"checkpoint={package}",
             f"dirs.runs={tmp_path / 'runs'}", "stage.port=0"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert "is being labelled by another process already" in second.stderr
        process.send_signal(signal.SIGKILL)
    with started(package, photos, tmp_path) as (process, port, again):
        assert again == secret
        now = get(port, secret, "state")
        assert now["classes"] == state["classes"]
        assert now["methods"] == ["nearest centroid", "logistic regression", "LEO"]
        assert now["method"] == "LEO"
        path = Path(post(port, secret, "export", {"catalogue": now["catalogue"], "kind": "package"})["path"])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert "stopped; the same command goes on" in process.stdout.read()
    assert before == contents(photos)
    from safetensors import safe_open

    with safe_open(path / "examples.safetensors", framework="np") as file:
        names = json.loads(file.metadata()["names"])
        features, classes = file.get_tensor("features"), file.get_tensor("classes")
    assert [names[i] for i in classes] == ["a", "b", "b"]
    by_package = FewShotClassifier.load(path).fit(features, classes)
    by_images = FewShotClassifier.load(package).fit([sorted(photos.iterdir())[i] for i in (0, 4, 5)], [0, 1, 1])
    new = [stripes(label, 9) for label in (40, 41, 42)]
    assert by_package.predict_proba(new) == pytest.approx(by_images.predict_proba(new), abs=1e-3)
    assert "safe_open" in (path / "README.md").read_text(encoding="utf-8")
