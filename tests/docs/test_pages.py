"""The documentation as its readers use it: the site builds, its commands compose, its code runs, its numbers agree."""

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from leo.run import meta_train
from pretrain.run import pretrain
from pretrain.store import SPLITS, write_split
from runner.checkpoints import load_checkpoint
from runner.config import check_keys, check_overrides
from sweeps.paper_tables import published
from sweeps.search import values_of
from tests.conftest import ROOT
from tests.docs.pages import PAGES, commands, write_files

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]


class Loaded(HTMLParser):
    """Addresses of what a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "img", "iframe"):
            self.addresses.append(values.get("src"))
        if tag == "link" and values["rel"] not in ("canonical", "prev", "next"):
            self.addresses.append(values["href"])


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    """Strict: also broken links, links to missing headings, pages missing in the navigation, unknown API names.

    Not with ``--quiet``, which keeps strict builds from counting warnings.
    """
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = {path.name for path in (tmp_path / "site").rglob("*.html")}
    assert pages >= {f"{path.stem}.html" for path in PAGES if path.name != "README.md"} | {"learners.html"}
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in loaded.addresses if address and "//" in address], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_and_named_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert ":" in link or (page.parent / link).exists(), f"{page.name} links to {link}"
    for name in re.findall(r"`((?:leo|pretrain|runner|sweeps|benchmarks|tests|conf|examples)/[\w/]+\.\w+)`", text):
        own = f"`{name}`:\n\n```" in text  # shown there, to be copied
        assert own or (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_composes(composed, page, tmp_path):
    """Groups, choices and keys exist and have an effect; of what is swept, the first. What a search finds is not there
    yet."""
    write_files(page.relative_to(ROOT / "docs") if page.name != "README.md" else "../README.md", tmp_path)
    for arguments in commands(page):
        plain = [argument for argument in arguments if not argument.startswith(("-", "hparams=search/"))]
        for override in OverridesParser.create().parse_overrides(plain):
            if override.is_sweep_override():
                is_interval = override.is_interval_sweep()  # of an optuna sweep: its lower end
                first = override.value().start if is_interval else next(override.sweep_string_iterator())
                plain[plain.index(override.input_line)] = f"{override.key_or_group}={first}"
        check_overrides(composed(*(argument.replace("FOLDER", str(tmp_path)) for argument in plain)))


def test_the_papers_numbers_are_those_of_the_tables():
    """Each number that an experiment file reproduces stands in its row of the page, the paper's and the released."""
    lines = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8").splitlines()
    numbers = 0
    for table in published():
        for row in table["rows"]:
            for column in table["columns"]:
                for source in ("paper", "released"):
                    if "experiment" not in row or column not in row.get(source, {}):
                        continue
                    mean, deviation = row[source][column]
                    ablation = row.get("ablation")
                    experiment = row["experiment"].format(column=column)
                    key = f"`{ablation}`" if ablation else f"`{experiment}`"
                    of_row = [line for line in lines if line.startswith("|") and key in line]
                    assert f"{mean:.2f} ± {deviation:.2f}" in "".join(of_row), (table["title"], row["model"], column)
                    numbers += 1
    assert numbers == 46


def test_every_function_that_the_table_of_equations_names_is_there():
    """And every equation and line of Algorithm 1 has a row."""
    page = (ROOT / "docs/reading-the-code.md").read_text(encoding="utf-8")
    table = page[page.index("| paper | function |") :].split("\n\n")[0]
    links = re.findall(r"\[`([\w.]+)`\]\(api/(\w+)\.md#([\w.]+)\)", table)
    assert len(links) >= 15
    for shown, page_of, name in links:
        module = ".".join(name.split(".")[:2])
        found = import_module(module)
        for part in name.removeprefix(f"{module}.").split("."):
            found = getattr(found, part)
        assert callable(found), name
        assert name.endswith(shown), name
        assert f"::: {module}\n" in (ROOT / f"docs/api/{page_of}.md").read_text(encoding="utf-8") + "\n"
    for named in [f"Eq. {i}" for i in range(1, 8)] + ["line 7", "lines 8 and 13", "line 11", "lines 5 and 6",
                  "lines 9 to 14", "line 15", "line 17", "Section 4.2.3", "B.4", "B.5 and B.7"]:  # fmt: skip
        assert named in table, named


def cells(text, start):
    """The cells after the first one of each line of a table that begins with ``start``."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")[1:]] for line in lines]


def test_the_projected_minutes_follow_from_the_measured_rates():
    """Of one run of LEO: 100,000 updates, 100 validations, a test of 50,000 tasks."""
    page, speed = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("reproduce.md", "speed.md"))
    starts = ("updates, 1/s", "×", "+ 100 validations", "+ a test", "minutes, mini", "minutes, tiered")
    texts = [cells(page.replace("**", ""), start)[0] for start in starts]
    larger = 256 / 146
    (growth,) = cells(speed, "test of 500 tasks, images a class")
    assert growth[:2] == ["150, 300, 600, 1200", "66, 90, 146, 256"]
    for i, shots in enumerate(("1-shot", "5-shot")):
        measured = cells(speed, f"{shots}, 1 thread")
        rate, share, validation, test = (row[i] for row in texts[:4])
        assert [rate, share, validation, test] == [measured[0][1], *measured[1][:2], measured[2][0]]
        updates, rest = 100_000 / (float(rate) * float(share)), 100 * float(validation) + float(test)
        projected = [(updates + rest) / 60, (updates + larger * rest) / 60]
        assert [f"{minutes:.1f}" for minutes in projected] == [row[i] for row in texts[4:]]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The reader's folder, with the files of the page on changing the method."""
    folder = tmp_path / "mine"
    assert write_files("change-the-method.md", folder) == [
        "check_gradient.py",
        "conf/ablation/hinge.yaml",
        "conf/ablation/no_relation.yaml",
        "conf/ablation/one_latent_step.yaml",
        "conf/ablation/two_layers.yaml",
        "conf/backbone/conv4.yaml",
        "conf/model/inference/tanh_net.yaml",
        "conv4.py",
        "no_relation.py",
        "tanh_net.py",
        "two_layers.py",
    ]
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.parametrize("ablation", ["one_latent_step", "no_relation", "two_layers", "hinge"])
def test_the_ablations_of_the_documentation_learn(composed, mine, toy_overrides, ablation):
    cfg = composed(
        f"hydra.searchpath=[file://{mine / 'conf'}]", f"ablation={ablation}", *toy_overrides,
        "features.normalize=standardize", "max_steps=100",
    )  # fmt: skip
    check_keys(cfg)
    assert meta_train(cfg) > 0.5, "three ways: 0.33 by guessing"


@pytest.mark.parametrize("method", ["sines_and_lines", "sines_and_lines_meta_sgd"])
def test_the_model_of_the_documentation_is_generated(composed, mine, tmp_path, method):
    small = [
        "max_steps=4",
        "val={every: 2, num_tasks: 4}",
        "test.num_tasks=4",
        "tasks.num_shots=[5]",
        "tasks_per_batch=2",
    ]
    network = "model/inference@model.learner.model=tanh_net"
    cfg = composed(f"hydra.searchpath=[file://{mine / 'conf'}]", f"experiment={method}", network, *small)
    check_keys(cfg)
    meta_train(cfg)
    state = load_checkpoint(tmp_path / "run/best.ckpt", "")["state_dict"]
    assert state["learner.model._extra_state"]["names"][:2] == ["first.weight", "first.bias"]


def test_the_gradient_check_of_the_documentation_finds_the_gradient_whole(mine, capsys):
    runpy.run_path(str(mine / "check_gradient.py"))
    assert "meta-gradient" in capsys.readouterr().out


def test_the_backbone_of_the_documentation_goes_through_all_stages(composed, mine, tmp_path):
    for seed, split in enumerate(SPLITS):
        images = torch.randint(
            255, (5 * 8, 16, 16, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        names = [f"{split} {i}" for i in range(5)]
        write_split(tmp_path / "toy", split, images, torch.arange(6) * 8, names, "glyphs", {})
    cfg = composed(
        f"hydra.searchpath=[file://{mine / 'conf'}]", "backbone=conv4", f"data.folder={tmp_path / 'toy'}",
        "data.source=null", "data.pretrain.batch_size=8", "data.pretrain.max_steps=4", "data.pretrain.val_every=4",
        "data.pretrain.schedule.num_warmup=1", "max_steps=20", "val={every: 10, num_tasks: 20}", "test.num_tasks=30",
        "num_query=3", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2",
    )  # fmt: skip
    check_keys(cfg)
    pretrain(cfg)
    meta_train(cfg)
    result = OmegaConf.load(tmp_path / "run/result.json")
    assert (result.layer, result.config.features_origin.extractor) == ("3", "Conv-4-64")


def test_values_to_enqueue_may_stand_in_the_readers_folder(composed, mine):
    file = mine / "conf/hparams/own/glyphs_1shot.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\ndefaults: [/hparams/manual/glyphs_1shot, _self_]\nmodel: {optimizer: {lr: 0.003}}\n"
    )
    cfg = composed("stage=search", f"hydra.searchpath=[file://{mine / 'conf'}]", "backbone=conv4")
    assert values_of(cfg, "own")["model.optimizer.lr"] == 0.003
