"""The report's page: looked at in a real browser, from runs, a search, and files as analyses write them."""

import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from selenium.webdriver.common.by import By

from leo.run import meta_train
from runner.csv_log import CSVLog
from sweeps import commands
from sweeps.chart import BOTTOM, LEFT, MAX_POINTS, RIGHT, TOP, Line, chart, short, thinned
from sweeps.collect import collect
from sweeps.curves import charts, without_seed
from sweeps.paper_tables import Cell
from sweeps.report import report
from sweeps.search import search
from sweeps.searches import searches
from tests.sweeps.test_collect import write
from tests.sweeps.test_search import ONE_VALUE

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore::optuna.exceptions.ExperimentalWarning",
)

HOSTILE = "<script>document.title='taken'</script>"
LOOK = """
const page = document.documentElement;
return {
  title: document.title,
  width: page.scrollWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  images: [...document.images].map(image => image.naturalWidth),
  cells: [...document.querySelectorAll("td")].map(cell => cell.textContent.trim()),
  links: [...document.querySelectorAll("a")].map(link => link.href),
  missing: [...document.querySelectorAll("a")].map(link => link.getAttribute("href"))
    .filter(href => href.startsWith("#") && !document.getElementById(href.slice(1))),
};
"""


@pytest.fixture
def runs(composed, toy_overrides, tmp_path):
    """Run folders: trained, searched, looked into, broken off, and named by someone who means harm."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        meta_train(composed(*toy_overrides, f"seed={seed}", f"run_dir={folder}/glyphs_1shot-none-seed{seed}"))
    study = ["search.name='search-glyphs_1shot-none-seed0-max_steps=30'", "search.n_trials=2", "search.pruner=null"]
    search(composed(*toy_overrides, *ONE_VALUE, *study))
    for seed in range(5):
        write(folder, f"mini_1shot-none-seed{seed}", seed, 0.61 + 0.001 * seed, "mini_1shot")
    write(folder, 'a "b" #?%25<i>-none-seed0-x=[1,2],y=<i>', 0, 0.3, HOSTILE, HOSTILE, HOSTILE)
    broken = CSVLog(folder / "glyphs_1shot-random_prior-seed0")
    broken.path.parent.mkdir()
    broken.log_metrics({"train/loss": 0.5}, 9)
    broken.log_metrics({"train/loss": float("nan")}, 19)
    stage_1 = {"stage": "pretrain", "data": "glyphs", "backbone": "wrn_10_2", "val_accuracy": 0.4321}
    errors = {"num_shot": 5, "mean": 1.25, "mean_interval95": 0.125}
    lines = {"experiment": "lines", "ablation": "none", "hparams": "manual/lines", "seed": 3, "by_num_shot": [errors]}
    tested = {"experiment": "mini_1shot", "accuracy": 0.5432, "interval95": 0.01, "checkpoint": "runs/a=b/best.ckpt"}
    figures = {"checkpoints": {}, "figures": {"codes": {}, "decoder": {}}}
    for path, content in {
        "pretrain-glyphs/result.json": stage_1,
        "test-mini_1shot-none-seed0/result.json": tested,
        "lines-none-seed3/result.json": lines,
        "analyze-glyphs_1shot-none-seed0/analysis.json": figures,
        "sines_and_lines-none-seed0/figure3.json": {},
    }.items():
        (folder / path).parent.mkdir()
        (folder / path).write_text(json.dumps(content))
    for name in ("analyze-glyphs_1shot-none-seed0/codes", "analyze-glyphs_1shot-none-seed0/decoder"):
        Figure((6, 2)).savefig(folder / f"{name}.png")
        (folder / f"{name}.csv").touch()
    Figure((15, 4)).savefig(folder / "sines_and_lines-none-seed0/figure3.png")
    return folder


def look(browser, page, width, scheme):
    """What the page is like in a window of ``width`` pixels, in light or dark."""
    window = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    medium = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", medium)
    browser.get(page.as_uri())
    return browser.execute_script(LOOK)


def test_the_page_in_a_browser(browser, runs, composed):
    report(composed("stage=report", f"run_dir={runs / 'report'}"))
    page = runs / "report/index.html"
    light, dark = (look(browser, page, 1280, scheme) for scheme in ("light", "dark"))
    narrow = look(browser, page, 360, "light")
    assert light["title"] == f"Report of {runs}/*"
    assert (light["ground"], dark["ground"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    assert narrow["width"] <= 360
    browser.execute_script("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert browser.execute_script(LOOK)["width"] <= 360, "with everything unfolded"
    assert light["images"] == [600, 600, 1500]  # inches of 100 dots
    assert len(light["cells"]) > 100
    assert all(light["cells"])
    assert light["missing"] == []
    files = [unquote(urlsplit(link).path) for link in light["links"] if "#" not in link]
    assert all(Path(file).exists() for file in files)
    assert {file for file in files if file.endswith("result.json")} == set(map(str, runs.glob("*/result.json")))
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert all(url.startswith(("file:", "data:")) for url in asked)
    check_texts(browser, runs)
    assert browser.get_log("browser") == []


def check_texts(browser, runs):
    """What stands in the page that the browser shows, everything unfolded."""
    result = json.loads((runs / "glyphs_1shot-none-seed1/result.json").read_text())

    def text(selector):
        return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]

    rows = text("#runs-table tbody tr")
    (paper_row,) = [row for row in rows if "mini_1shot" in row]
    assert re.search(r"61.20\s+0.16\s+± 1.00", paper_row), "mean, s.d. of 0 to 4 tenths, the widest interval"
    assert "python train.py -m experiment=mini_1shot seed=0,1,2,3,4" in paper_row
    (row,) = [row for row in rows if "ablation none" in row and "toy" in row]
    assert f"1: {100 * result['accuracy']:.2f} ± {100 * result['interval95']:.2f}" in row
    assert any(HOSTILE in row and "'x=[1,2]' 'y=<i>'" in row for row in rows)
    table_1, table_2 = [cell.splitlines()[:5] for cell in text(".paper td") if cell.startswith("61.20 ± 0.16")]
    published = ["paper 61.76 ± 0.08", "released 61.89 ± 0.16"]
    assert table_1 == table_2 == ["61.20 ± 0.16", "seeds 0 1 2 3 4", *published, "difference -0.56!"]
    everything = text("body")[0]
    assert "43.21 % of held-out images" in everything
    assert "54.32 % ± 1.00 (95 % over tasks)" in everything
    (command,) = [line for line in everything.splitlines() if "stage=test" in line]
    assert shlex.split(command)[2:] == ["experiment=mini_1shot", "stage=test", "checkpoint='runs/a=b/best.ckpt'"]
    assert "mean squared error (95 % over tasks) by shots 5: 1.25 ± 0.12" in everything
    assert "Without a result, because not finished or ended by an error: 1" in everything
    groups = dict(zip(text(".group > summary"), browser.find_elements(By.CLASS_NAME, "group"), strict=True))
    terms = [caption.text for caption in groups["glyphs_1shot-none"].find_elements(By.TAG_NAME, "figcaption")]
    assert terms == [
        "accuracy, %", "loss", "query loss", "encoder penalty", "l2", "orthogonality", "kl",
        "latent lr, mean learned rate", "finetune lr, mean learned rate",
    ]  # fmt: skip
    accuracy, *_ = groups["glyphs_1shot-none"].find_elements(By.TAG_NAME, "svg")
    assert [len(accuracy.find_elements(By.CLASS_NAME, split)) for split in ("train", "val")] == [2, 2]
    assert "glyphs_1shot-random_prior without a result" in groups
    searched = "python train.py experiment=glyphs_1shot stage=search max_steps=30 search.n_trials=2 search.seed=0"
    assert searched in everything
    assert "2 trials complete, 0 pruned, 0 failed." in everything
    assert f"python {result['machine']['python']}; system {result['machine']['system']}" in everything
    assert "leo 0.1.0; torch " in everything


def test_an_empty_report_says_what_makes_its_parts(composed, tmp_path):
    report(composed("stage=report"))
    page = (tmp_path / "run/index.html").read_text()
    said = re.findall(r'<p class="empty">[^<]* <code>python train.py([^<]*)</code></p>', page)
    assert said == [
        "", " -m sweep=ablations experiment=glyphs_1shot", " -m sweep=ablations", "",
        " stage=analyze checkpoint=runs/glyphs_1shot-none-seed0/best.ckpt",
        " stage=search experiment=glyphs_1shot search.n_trials=40", "",
    ]  # fmt: skip
    assert not re.search("<table|<figure|<details", page)


def test_a_search_in_a_journal(tmp_path):
    """Trials 0 and 2 complete, 1 pruned after two validations, 3 failed: the best so far is the first."""
    (tmp_path / "a=b").mkdir()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "a=b/study.journal")))
    study = optuna.create_study(storage=storage, study_name="mine", direction="maximize")
    distribution = optuna.distributions.FloatDistribution(0, 1)
    for state, value, steps in (("COMPLETE", 0.8, {}), ("PRUNED", None, {10: 0.5, 20: 0.6}), ("COMPLETE", 0.7, {})):
        trial = optuna.trial.create_trial(
            state=TrialState[state], value=value, intermediate_values=steps, params={"lr": 0.1},
            distributions={"lr": distribution}, user_attrs={"folder": "/elsewhere/trial-000"},
        )  # fmt: skip
        study.add_trial(trial)
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    (found,) = searches(tmp_path)
    assert (found.name, found.folder, found.command) == ("mine", tmp_path / "a=b", None)
    assert [len(part) for part in found.state[:4]] == [2, 1, 1, 0]
    assert found.best_file == tmp_path / "a=b", "the trial left nothing"
    (tmp_path / "a=b/trial-000").mkdir()
    (tmp_path / "a=b/trial-000/trained.json").touch()
    assert found.best_file == tmp_path / "a=b/trial-000/trained.json"
    by_trial, by_step = found.charts
    assert [line.label for line in by_trial.lines] == [
        "the best so far", "trial 1, pruned: 0.6000", "trial 0, complete: 0.8000", "trial 2, complete: 0.7000",
    ]  # fmt: skip
    best, _, first, last = (line.points for line in by_trial.lines)
    assert {y for _, y in best} == {first[0][1]}
    assert (best[0][0], best[-1][0]) == (first[0][0], last[0][0]) == (LEFT, RIGHT)
    assert [len(line.points) for line in by_step.lines] == [2, 0, 0]


def test_points_become_pixels():
    """x from 0 to 10 over the width, y on round values around 1 and 5: 0 to 6 or the like, downwards."""
    drawn = chart("t", [Line("train", "a", [(0, 1), (10, 5)]), Line("val", "b", [(5, float("nan")), (5, 3)])])
    (first, last), (middle,) = (line.points for line in drawn.lines)
    assert (first[0], last[0]) == (LEFT, RIGHT)
    assert middle == pytest.approx(((LEFT + RIGHT) / 2, (first[1] + last[1]) / 2), abs=0.1)
    ticks = drawn.y.marks
    assert (ticks[0][0], ticks[-1][0]) == (BOTTOM, TOP)
    assert float(ticks[0][1]) <= 1 < 5 <= float(ticks[-1][1])
    assert chart("t", [Line("train", "a", [(0, float("inf"))])]) is None
    texts = {0.105: "0.105", 3000.0: "3000", 0.0: "0", 0.00015: "1.5e-4", 5e-05: "5e-5", 1250000.0: "1.2e6"}
    assert {value: short(value) for value in texts} == texts


def test_a_long_line_keeps_its_spikes():
    points = [(i, 0.0) for i in range(10_000)]
    points[1234], points[5678] = (1234, 9.0), (5678, -9.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert {(1234, 9.0), (5678, -9.0)} < set(kept)
    assert kept == sorted(kept)
    assert thinned(points[:MAX_POINTS]) == points[:MAX_POINTS]


def test_seeds_share_charts(tmp_path):
    for seed in (0, 1):
        log = CSVLog(tmp_path / f"x-seed{seed}-y")
        log.path.parent.mkdir()
        log.log_metrics({"train/inner_lr": 0.1, "train/loss": 1.0, "train/accuracy": 0.25 * (seed + 1)}, 0)
        log.log_metrics({"val/accuracy": 0.75, "epoch": 3}, 9)
    with log.path.open("a") as file:
        file.write("19")  # a run that is writing
    assert without_seed("x-seed1-y") == ("x-y", "seed 1")
    assert without_seed("other") == ("other", "run")
    accuracy, loss, rate = charts({f"seed {seed}": tmp_path / f"x-seed{seed}-y" for seed in (0, 1)})
    assert [drawn.title for drawn in (accuracy, loss, rate)] == ["accuracy, %", "loss", "inner lr, mean learned rate"]
    assert [line.label for line in accuracy.lines] == ["train, seed 0", "train, seed 1", "val, seed 0", "val, seed 1"]
    bottom, top = accuracy.y.low, accuracy.y.high
    expected = [(value - bottom) / (top - bottom) * (TOP - BOTTOM) + BOTTOM for value in (25, 50, 75, 75)]
    assert [line.points[0][1] for line in accuracy.lines] == pytest.approx(expected, abs=0.1)
    assert [line.points[0][0] for line in accuracy.lines] == [LEFT, LEFT, RIGHT, RIGHT]


def test_commands_make_the_same_folders_again(tmp_path, composed):
    """The folder of a command's configuration is the one that the command was read from."""
    overrides = [
        "ablation=generator_only",
        "hparams=paper/mini_1shot",
        "num_way=9",
        "train_splits=[train,val]",
        "seed=3",
    ]
    name = composed("experiment=mini_1shot", *overrides).stage.folder
    write(tmp_path, name, 3, 0.5, "mini_1shot", "generator_only", "paper/mini_1shot")
    (row,) = collect(tmp_path, "*")
    command = commands.of_row(row)
    assert command == (
        "python train.py experiment=mini_1shot ablation=generator_only hparams=paper/mini_1shot "
        "num_way=9 'train_splits=[train,val]' seed=3"
    )
    cell = Cell("Table 2", "LEO (ours)", "search", "mini_1shot", "mini_1shot", "random_prior", None, None, None, None)
    rest = "experiment=mini_1shot ablation=random_prior {}seed=0,1,2"
    assert commands.of_cell(cell, 3) == f"python train.py -m {rest.format('stage=paper ')}"
    released = f"python train.py -m {rest.format('hparams=released/mini_1shot ')}"
    assert commands.of_cell(cell._replace(source="released"), 3) == released
    assert commands.of_cell(cell._replace(source="none"), 3) == f"python train.py -m {rest.format('')}"
    words = [word.strip("'") for word in command.split()[2:]]
    assert composed(*words).stage.folder == name
