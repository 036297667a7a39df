"""The page in a real browser: from an empty folder to an export, by mouse and by keyboard; narrow, dark, long."""

import csv
import json
import time

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from fewshot.labelling.board import Board
from fewshot.labelling.journal import Journal
from fewshot.labelling.pictures import Picture, find
from fewshot.model import nearest_centroid
from tests.fewshot.conftest import stripes
from tests.fewshot.test_labelling import blobs
from tests.fewshot.test_labelling_server import SECRET, serving

pytestmark = pytest.mark.slow
EACH = 12


class Page:
    """What a user sees and does."""

    def __init__(self, browser, board, port):
        self.browser, self.board, self.address = browser, board, f"http://127.0.0.1:{port}/{SECRET}/"
        self.num_refused = 0
        browser.get(self.address)
        self.wait(lambda: self.all("button.tile"), "the images")

    def wait(self, condition, what):
        return WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition(), f"waited for {what}")

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def type(self, *keys):
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def classes(self):
        return [(one["name"], one["examples"]) for one in self.board.view(0)["classes"]]

    def until(self, *classes):
        self.wait(lambda: self.classes() == list(classes), f"{classes}, not {self.classes()}")
        self.wait(self.is_current, "the page to show it")

    def is_current(self):
        counts = self.script("return [...document.querySelectorAll('#classes .count')].map(one => one.textContent)")
        view = self.board.view(0)
        return counts == [f"{one['examples']} + {one['predicted']}" for one in view["classes"]]

    def click_image(self, index, key):
        """Scrolls to it first, as a hand does; retried where everything was sorted in between."""
        place = f"button.tile[data-list='{key}'][data-index='{index}']"
        self.wait(lambda: not self.all(".held"), "everything to be sorted")
        time.sleep(0.3)  # a click at once is not taken for what is there now
        self.wait(lambda: self.all(place), f"image {index} in {key}")
        self.script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", place)
        ActionChains(self.browser).move_to_element(self.all(place)[0]).click().perform()

    def focused(self):
        return self.script("return document.activeElement.dataset.index ?? null")


@pytest.fixture
def board(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        for seed in range(EACH):
            stripes(number, seed, 40).save(images / f"{number}-{seed:02d}.png")
    found, _ = find(images, tmp_path / "files.csv")
    made = Board(images, found, blobs(3, EACH)[0], Journal(tmp_path / "labels.jsonl"), nearest_centroid(40))
    yield made
    made.close()


@pytest.fixture
def page(board, tmp_path, browser):
    with serving(board, tmp_path) as port:
        shown = Page(browser, board, port)
        yield shown
        said = [line["message"] for line in browser.get_log("browser") if line["level"] != "INFO"]
        refused = [line for line in said if "/act - " in line and "status of 400" in line]  # what is said on the page
        assert said == refused[: shown.num_refused]


def truth(index):
    return int(index) // EACH


def is_right(board):
    view = board.view(500)
    return all(
        truth(item[0]) == item[1] - 1
        for key, one in view["lists"].items()
        if key.startswith("predicted")
        for item in one["items"]
    )


def test_by_mouse_from_empty_to_export(page, board, tmp_path):
    page.all("#new")[0].click()
    page.all("#new-name")[0].send_keys("red", Keys.ENTER)
    page.until(("red", 0))
    page.click_image(0, "unsorted")
    page.until(("red", 1))
    page.click_image(1, "unsorted")  # the list stays as it is for a moment
    page.until(("red", 2))
    page.all("#new")[0].click()
    page.all("#new-name")[0].send_keys("RED", Keys.ENTER)
    page.wait(lambda: "there is a class 'red' already" in page.all("#new-error")[0].text, "the error")
    page.num_refused = 1
    page.all("#new-name")[0].clear()
    page.all("#new-name")[0].send_keys("green", Keys.ENTER)
    page.until(("red", 2), ("green", 0))
    index = next(i[0] for i in board.view(60)["lists"]["uncertain"]["items"] if truth(i[0]) == 1)
    page.click_image(index, "uncertain")
    page.until(("red", 2), ("green", 1))
    assert page.all("section.ask h2")[0].text == "Ask next"
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()  # no active class: a click selects
    chosen = [i for i in range(24, 36) if page.all(f"button.tile[data-index='{i}']")][:3]
    for i in chosen:
        key = page.all(f"button.tile[data-index='{i}']")[0].get_attribute("data-list")
        page.click_image(i, key)
    assert page.all("#actions b")[0].text == "3 selected:"
    page.script(
        "[...document.querySelectorAll('#actions button')].find(one => one.textContent === '+ New class').click()"
    )
    page.all("#new-name")[0].send_keys("blue", Keys.ENTER)
    page.until(("red", 2), ("green", 1), ("blue", 3))
    assert is_right(board)
    page.click_image(chosen[0], "examples-3")  # selects
    page.script("document.querySelector('#actions .chip').click()")  # a mistake
    page.until(("red", 3), ("green", 1), ("blue", 2))
    page.all("#undo")[0].click()
    page.until(("red", 2), ("green", 1), ("blue", 3))
    page.script(
        "[...document.querySelectorAll('section.class button')].find(one => one.textContent === 'Rename').click()"
    )
    page.all("#new-name")[0].send_keys("crimson", Keys.ENTER)
    page.until(("crimson", 2), ("green", 1), ("blue", 3))
    page.all("#export")[0].click()
    for kind, path in (("labels", "labels.csv"), ("links", "links-1"), ("copies", "copies-1")):
        page.all(f"[data-export={kind}]")[0].click()
        page.wait(lambda p=path: page.all("#export-result")[0].text == f"Written: {tmp_path / p}", path)
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * EACH
    of_path = {row["path"]: row["label"] for row in rows}
    assert of_path == {path: ["crimson", "green", "blue"][int(path[0])] for path in of_path}
    assert len(list((tmp_path / "links-1" / "crimson").iterdir())) == EACH


def test_by_keyboard_from_empty_to_export(page, board, tmp_path):
    names = ["red", "green", "blue"]
    page.type("n", "x", Keys.BACKSPACE, "green", Keys.ENTER)
    page.until(("green", 0))
    made = ["green"]
    given = dict.fromkeys(made, 0)
    for _ in range(6):
        page.wait(page.focused, "an image to have the focus")
        name = names[truth(page.focused())]
        if name not in made:
            page.type("n", name, Keys.ENTER)
            made.append(name)
            given[name] = 0
            page.until(*given.items())
            page.wait(page.focused, "an image to have the focus")
            name = names[truth(page.focused())]
        page.type(str(made.index(name) + 1))
        given[name] += 1
        page.until(*given.items())
    assert len(made) > 1
    page.type("?")
    assert page.all("#help-dialog")[0].is_displayed()
    page.type(Keys.ESCAPE)
    first = page.focused()
    page.type(" ")
    page.wait(
        lambda: page.script("return document.getElementById('large-image').naturalWidth") == 40, "the large image"
    )
    page.wait(lambda: ".png" in page.all("#large-names")[0].text, "its name")
    page.type(" ")
    page.wait(lambda: page.focused() == first, "the focus to be back")
    page.type(Keys.ARROW_RIGHT)
    assert page.focused() != first
    page.type(Keys.ARROW_LEFT)
    assert page.focused() == first
    page.type(Keys.ENTER)  # confirms
    page.wait(lambda: board.view(0)["by_hand"] == 7, "the confirmation")
    page.type("u")
    page.until(*given.items())
    page.type("c", made[1][:2], Keys.ENTER)
    given[made[1]] += 1
    page.until(*given.items())
    page.type("u")
    given[made[1]] -= 1
    page.until(*given.items())
    page.type("j")  # the next row
    assert page.script("return document.activeElement.dataset.list") == "examples-1"
    page.type("x", Keys.BACKSPACE)
    given[made[0]] -= 1
    page.until(*given.items())
    page.type("u")
    given[made[0]] += 1
    page.until(*given.items())
    while page.script("return document.activeElement.dataset.list") not in ("predicted-1", "examples-1"):
        page.type("j")
    page.type("r", "verde", Keys.ENTER)
    given = {"verde" if name == made[0] else name: count for name, count in given.items()}
    page.until(*given.items())
    page.type("m")
    page.wait(lambda: board.method == "logistic regression", "another method")
    page.type("o")
    page.wait(lambda: page.script("return document.querySelectorAll('main section').length") == 1, "one list")
    page.type("o", "a", Keys.ESCAPE, "e")
    page.wait(lambda: page.all("#export-dialog")[0].is_displayed(), "the export")
    page.type(Keys.ENTER)  # its first button has the focus
    page.wait(lambda: "labels.csv" in page.all("#export-result")[0].text, "the table")
    assert (tmp_path / "labels.csv").is_file()


def test_two_windows_show_the_same(page, board):
    page.type("n", "red", Keys.ENTER)
    page.until(("red", 0))
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("window")
    page.browser.get(page.address)
    page.wait(lambda: page.all(".chip"), "the class")
    page.type("n", "green", Keys.ENTER)
    page.until(("red", 0), ("green", 0))
    page.browser.close()
    page.browser.switch_to.window(first)
    page.until(("red", 0), ("green", 0))


def test_a_server_that_stops_is_said_and_the_page_goes_on(board, tmp_path, browser):
    with serving(board, tmp_path) as port:
        page = Page(browser, board, port)
        page.script("window.kept = true; const real = window.fetch; window.fetch = () => Promise.reject(new Error());"
                    "window.back = () => { window.fetch = real; }")  # fmt: skip
        page.wait(lambda: "does not answer" in page.all("#notice")[0].text, "the notice")
        page.script("window.back()")
        page.wait(lambda: not page.all("#notice")[0].is_displayed(), "it to go")
        page.type("n", "red", Keys.ENTER)
        page.until(("red", 0))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_telephone_and_dark_mode(page, board, dark):
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for name in ("a class with a long name", "another " * 8, "green"):
        board.act({"kind": "new", "name": name}, board.view(0)["version"])
    for index, number in ((0, 1), (12, 2), (24, 3)):
        board.act({"kind": "label", "labels": {str(index): number}}, board.view(0)["version"])
    page.browser.refresh()
    page.wait(page.is_current, "the classes")
    width = "return document.documentElement.scrollWidth"
    assert page.script(width) <= 360
    for button, dialog in (("help", "help-dialog"), ("export", "export-dialog"), ("new", "new-dialog")):
        page.all(f"#{button}")[0].click()
        box = page.all(f"#{dialog}")[0].rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        page.type(Keys.ESCAPE)
    page.click_image(int(page.all("[data-list=uncertain] button.tile")[0].get_attribute("data-index")), "uncertain")
    page.wait(lambda: page.all("#actions")[0].is_displayed(), "the bar")
    assert page.script(width) <= 360
    red, green, blue = page.script(
        "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert (max(red, green, blue) < 60) == dark


def test_fifty_thousand_images_are_few_in_the_document(tmp_path, browser):
    X = np.random.default_rng(0).normal(size=(50_000, 8)).astype(np.float32)
    (tmp_path / "images").mkdir()
    stripes(0, 0, 40).save(tmp_path / "images" / "0.png")
    found, _ = find(tmp_path / "images", tmp_path / "files.csv")
    many = [*found, *(Picture(f"{i:032x}", [f"{i}.png"]) for i in range(1, 50_000))]
    board = Board(tmp_path / "images", many, X, Journal(tmp_path / "labels.jsonl"), nearest_centroid(8))
    for name in ("red", "green"):
        board.act({"kind": "new", "name": name}, board.view(0)["version"])
    board.act({"kind": "label", "labels": {"0": 1, "1": 2}}, 2)
    board.hide = lambda index: None  # that the others have no file is not the question
    with serving(board, tmp_path) as port:
        page = Page(browser, board, port)
        page.script("document.querySelector('[data-list=predicted-1] button.tile').focus()")
        page.type("o")
        page.wait(lambda: page.script("return document.querySelectorAll('main section').length") == 1, "one list")
        total = board.view(0)["classes"][0]["predicted"]
        for share in (0.3, 0.9, 1):
            page.script("scrollTo(0, arguments[0] * document.documentElement.scrollHeight)", share)
            page.wait(lambda: page.all("button.tile") and not page.all("span.tile"), "the images")
            assert len(page.all("button.tile")) < 400
        last = page.script("return [...document.querySelectorAll('button.tile')].at(-1).dataset.place")
        assert int(last) == total - 1
        expected = json.loads(json.dumps(board.window("predicted-1", total - 1, 1)))["items"][0][0]
        assert int(page.script("return [...document.querySelectorAll('button.tile')].at(-1).dataset.index")) == expected
    board.close()
