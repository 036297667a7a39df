"""The report's page: looked at in a real browser, from runs, a search, and files as analyses write them."""

import hashlib
import json
import re
import shlex
import subprocess
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
from runner.folder import write_json
from runner.record import group, scored
from sweeps import commands
from sweeps.chart import BOTTOM, LEFT, MAX_POINTS, RIGHT, TOP, Line, chart, short, thinned
from sweeps.curves import charts, curves
from sweeps.paper_tables import Cell
from sweeps.report import report
from sweeps.search import search
from sweeps.searches import searches
from tests.sweeps.test_collect import collected, write
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
    searched = ["search.name='any name'", "search.n_trials=2", "search.worker=1", "search.pruner=null"]
    search(composed(*toy_overrides, *ONE_VALUE, *searched))
    for seed in range(5):
        write(folder, f"mini_1shot-none-seed{seed}", seed, 0.61 + 0.001 * seed, "mini_1shot")
    write(folder, 'a "b" #?%25<i>', 0, 0.3, HOSTILE, HOSTILE, HOSTILE, more=["x=[1,2]", "y=<i>"])
    broken = CSVLog(folder / "glyphs_1shot-random_prior-seed0")
    broken.path.parent.mkdir()
    broken.log_metrics({"train/loss": 0.5}, 9)
    broken.log_metrics({"train/loss": float("nan")}, 19)
    record = {"group": "0", "config": {}, **scored("accuracy", 0.5)}
    stage_1 = {**record, "stage": "pretrain", "summary": "43.21 % of held-out images", "overrides": ["stage=x", "a=b"]}
    words = ["experiment=mini_1shot", "stage=test", "checkpoint='runs/a=b/best.ckpt'"]
    tested = {**record, "stage": "test", "summary": "54.32 % ± 1.00", "overrides": words}
    old = {"experiment": "lines", "accuracy": 0.25, "seed": 3, "config": {}}
    figures = {"checkpoints": {}, "overrides": ["stage=analyze"], "figures": {"codes": {}, "decoder": {}}}
    for path, content in {
        "pretrain-glyphs/result.json": stage_1,
        "test-mini_1shot-none-seed0/result.json": tested,
        "lines-none-seed3/result.json": old,
        "analyze-glyphs_1shot-none-seed0/analysis.json": figures,
        "sines_and_lines-none-seed0/figure3.json": {},
    }.items():
        (folder / path).parent.mkdir()
        (folder / path).write_text(json.dumps(content))
    for path in ("empty/result.json", "half/analysis.json", "damaged/study.db"):
        (folder / path).parent.mkdir()
        (folder / path).write_text("" if "empty" in path else "{not what it should be" * 100)
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
    assert len(light["cells"]) > 80
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
    assert re.search(r"61.20\s+%\s+0.16\s+± 1.00", paper_row), "mean, s.d. of 0 to 4 tenths, the widest interval"
    assert "python train.py -m experiment=mini_1shot seed=0,1,2,3,4" in paper_row
    (row,) = [row for row in rows if "ablation none" in row and "toy" in row]
    assert f"1: {100 * result['accuracy']:.2f} ± {100 * result['interval95']:.2f}" in row
    assert any(HOSTILE in row and "'x=[1,2]' 'y=<i>'" in row for row in rows)
    table_1, table_2 = [cell.splitlines()[:5] for cell in text(".paper td") if cell.startswith("61.20 ± 0.16")]
    published = ["paper 61.76 ± 0.08", "released 61.89 ± 0.16"]
    assert table_1 == table_2 == ["61.20 ± 0.16", "seeds 0 1 2 3 4", *published, "difference -0.56!"]
    everything = text("body")[0]
    assert "43.21 % of held-out images" in everything
    assert "54.32 % ± 1.00" in everything
    said = everything.splitlines()
    (command,) = [line for line in said if "stage=test" in line]
    assert shlex.split(command)[2:] == ["experiment=mini_1shot", "stage=test", "checkpoint='runs/a=b/best.ckpt'"]
    assert [line for line in said if "stage=pretrain" in line] == ["python train.py a=b stage=pretrain"]
    assert "python train.py stage=analyze" in said
    assert "of an earlier version, which did not say what it is" in everything
    assert "accuracy 0.25" in everything
    assert "empty/result.json: the file is empty" in everything
    assert "half/analysis.json: Expecting property name" in everything
    assert "damaged/study.db: (sqlite3.DatabaseError) file is not a database" in everything
    assert "Without a result, because not finished or ended by an error: 1" in everything
    groups = dict(zip(text(".group > summary"), browser.find_elements(By.CLASS_NAME, "group"), strict=True))
    terms = [caption.text for caption in groups["glyphs_1shot-none"].find_elements(By.TAG_NAME, "figcaption")]
    assert terms == [
        "accuracy, %", "loss", "query loss", "kl", "encoder penalty", "l2", "orthogonality", "diverged",
        "latent lr, mean learned rate", "finetune lr, mean learned rate",
    ]  # fmt: skip
    accuracy, *_ = groups["glyphs_1shot-none"].find_elements(By.TAG_NAME, "svg")
    assert [len(accuracy.find_elements(By.CLASS_NAME, split)) for split in ("train", "val")] == [2, 2]
    assert "glyphs_1shot-random_prior-seed0 without a result" in groups, "it has no config.yaml: by its folder"
    (searched,) = [shlex.split(line) for line in said if "search/space=none" in line]
    assert searched[-3:] == ["search.name='any name'", "search.pruner=null", "search.n_trials=2"]
    assert "+search.space.model.optimizer.lr='interval(1e-4, 1e-2)'" in searched
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
    (found,) = searches(tmp_path, {})
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
    accuracy, loss, rate = charts({f"seed {seed}": tmp_path / f"x-seed{seed}-y" for seed in (0, 1)})
    assert [drawn.title for drawn in (accuracy, loss, rate)] == ["accuracy, %", "loss", "inner lr, mean learned rate"]
    assert [line.label for line in accuracy.lines] == ["train, seed 0", "train, seed 1", "val, seed 0", "val, seed 1"]
    bottom, top = accuracy.y.low, accuracy.y.high
    expected = [(value - bottom) / (top - bottom) * (TOP - BOTTOM) + BOTTOM for value in (25, 50, 75, 75)]
    assert [line.points[0][1] for line in accuracy.lines] == pytest.approx(expected, abs=0.1)
    assert [line.points[0][0] for line in accuracy.lines] == [LEFT, LEFT, RIGHT, RIGHT]


def test_curves_of_one_configuration_share_charts_whatever_their_folders_are_called(tmp_path):
    names = {"experiment": "glyphs_1shot", "ablation": "none"}
    for folder, config in {
        "a": {"seed": 0, "names": names, "num_way": 5},
        "b": {"seed": 1, "names": names, "num_way": 5},
        "c": {"seed": 1, "names": names, "num_way": 9},
        "d": None,
    }.items():
        log = CSVLog(tmp_path / folder)
        log.path.parent.mkdir()
        log.log_metrics({"val/accuracy": 0.5}, 9)
        if config is not None:
            (tmp_path / folder / "config.yaml").write_text(json.dumps(config))
    found = [(group.name, {seed: path.name for seed, path in group.folders.items()}) for group in curves(tmp_path, "*")]
    assert found == [
        ("glyphs_1shot-none", {"seed 0": "a", "seed 1": "b"}),
        ("glyphs_1shot-none (num_way: 5 -> 9)", {"seed 1": "c"}),
        ("d", {"run": "d"}),
    ]


def test_a_command_is_the_one_that_was_given(tmp_path):
    """With all seeds; quoted so that a shell gives the same words again."""
    more = ["ablation=generator_only", "hparams=paper/mini_1shot", "train_splits=[train,val]", "dirs.runs='it''s (a)'"]
    for seed in (3, 0):
        write(tmp_path, f"x{seed}", seed, 0.5, "mini_1shot", "generator_only", "paper/mini_1shot", more=more)
    (row,) = collected(tmp_path)
    command = commands.of_row(row)
    said = subprocess.run(["bash", "-c", f"set -- {command}; printf '%s\\n' \"$@\""], capture_output=True, text=True)
    assert said.stdout.splitlines() == ["python", "train.py", "-m", "experiment=mini_1shot", *more, "seed=0,3"]
    one = row._replace(results=row.results[:1])
    assert commands.of_row(one) == commands.line("experiment=mini_1shot", *more, "seed=0")
    other = {**row.results[0], "seed": 5, "overrides": ["stage=paper", "seed=5"]}
    lines = commands.of_row(row._replace(results=[*row.results, other])).splitlines()
    assert lines == [command, "python train.py stage=paper seed=5"]


def test_the_command_of_a_run_composes_the_same_run(tmp_path, composed, toy_overrides):
    given = [*toy_overrides, "model.learner.dropout=0.0", "seed=3", "experiment=glyphs_1shot"]
    cfg = composed(*given)
    meta_train(cfg)
    result = json.loads((tmp_path / "run/result.json").read_text())
    words = shlex.split(commands.line(*result["overrides"]))[2:]
    assert words[-len(given) :] == given
    assert composed(*words[4:]) == cfg
    assert result["stage"] == "meta"
    assert result["inputs"]["features_origin"] == result["config"]["features_origin"]
    checkpoint = tmp_path / "run/best.ckpt"
    assert result["inputs"]["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (result["score_name"], result["score_value"]) == ("accuracy", result["accuracy"])
    assert result["summary"].startswith("test accuracy ")
    other = composed(*[word for word in given if word != "seed=3"], "seed=4", f"run_dir={tmp_path / 'other'}")
    meta_train(other)
    second = json.loads((tmp_path / "other/result.json").read_text())
    assert second["group"] == result["group"]
    assert second["score_value"] != result["score_value"]


def test_cells_without_a_run_say_what_makes_one():
    cell = Cell("Table 2", "LEO (ours)", "search", "mini_1shot", "mini_1shot", "random_prior", None, None, None, None)
    rest = "experiment=mini_1shot ablation=random_prior {}seed=0,1,2"
    assert commands.of_cell(cell, 3) == f"python train.py -m {rest.format('stage=paper ')}"
    released = f"python train.py -m {rest.format('hparams=released/mini_1shot ')}"
    assert commands.of_cell(cell._replace(source="released"), 3) == released
    assert commands.of_cell(cell._replace(source="none"), 3) == f"python train.py -m {rest.format('')}"


def test_a_problem_of_your_own_has_its_own_score_and_name_in_the_report(composed, tmp_path, capsys):
    """docs/new-task.md's half-planes, two seeds; and one that gives nothing but its score."""
    for seed, score in ((0, -0.25), (1, -0.5)):
        config = {"seed": seed, "model": {"learner": {"_target_": "leo.regression.ModelLEO"}}}
        names = {"experiment": "half_planes", "ablation": "none", "hparams": "none"}
        result = {
            **names, "seed": seed, "num_shot": 5, "score": score, "seconds": {"train": 1.0, "test": None},
            "config": config, "stage": "meta", "overrides": ["experiment=half_planes", f"seed={seed}"],
            "group": group(config), **scored("score", score), "summary": f"loss to the truth {-score}",
        }  # fmt: skip
        if seed == 0:
            bare = result | {"experiment": "bare", "config": {}, "group": "1", **scored("reward", 12.0)}
            del bare["num_shot"]
            write_json(tmp_path / "runs/bare/result.json", bare)
            diverged = bare | {"experiment": "broken", "group": "2", **scored("reward", float("nan"))}
            write_json(tmp_path / "runs/diverged/result.json", diverged)
        write_json(tmp_path / f"runs/h{seed}/result.json", result)
    report(composed("stage=report"))
    printed = capsys.readouterr().out
    assert re.search(r"half_planes .*5s .* -0.375 .* 0.1768 \(2\)", printed)
    assert re.search(r"bare .* 12 ", printed)
    page = (tmp_path / "run/index.html").read_text()
    assert "score, higher is better" in page
    assert "reward, higher is better" in page
    assert "loss to the truth 0.25" in page
    assert "squared error" not in page
    assert "python train.py -m experiment=half_planes seed=0,1" in page
    assert "none</a>" in page, "of a score that is not a number"


def test_json_has_no_words_for_nan_and_infinity(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), (1.5, float("-inf"))], "b": {"c": float("inf"), "d": True}})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)) == {
        "a": [None, [1.5, None]],
        "b": {"c": None, "d": True},
    }
