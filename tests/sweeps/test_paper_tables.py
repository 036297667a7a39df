"""The paper's tables: ours beside theirs, what is incomplete, and what is never averaged together."""

import csv
import io
from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sweeps import table_pictures
from sweeps.paper_tables import as_csv, cells, markdown, published
from sweeps.report import report
from sweeps.search import values_of
from sweeps.space import space
from tests.conftest import ROOT
from tests.sweeps.test_collect import collected, write


def found(runs):
    """The cells by table, model, source and column."""
    return {(cell.table, cell.model, cell.source, cell.column): cell for cell in cells(collected(runs), published())}


def test_ours_stand_beside_the_papers_and_the_released_codes(tmp_path):
    for seed, accuracy in enumerate((0.616, 0.618, 0.617, 0.615, 0.619)):
        write(tmp_path, f"mini_1shot-none-seed{seed}", seed, accuracy, "mini_1shot")
    write(tmp_path, "mini_1shot-random_prior-seed0", 0, 0.63, "mini_1shot", "random_prior")
    table = found(tmp_path)
    leo = table["Table 2", "LEO (ours)", "manual", "mini_1shot"]
    assert leo.lines(5) == [
        "61.70 +- 0.16 (5)",  # deviations -.1 .1 0 -.2 .2: sqrt(0.1 / 4)
        "paper 61.76 +- 0.08",
        "released 61.89 +- 0.16",
        "difference -0.06",
    ]
    prior = table["Table 2", "LEO (random prior)", "manual", "mini_1shot"]
    assert prior.lines(5) == ["63.00 (1)*", "paper 61.01 +- 0.12", "difference +1.99"]
    assert table["Table 2", "LEO (no fine-tuning)", "none", "mini_1shot"].lines(5) == ["none*", "paper 61.62 +- 0.15"]
    assert table["Table 1, miniImageNet", "SNAIL (Mishra et al., 2018)", "", "mini_5shot"].lines(5) == ["68.88 +- 0.92"]
    assert table["Table 1, miniImageNet", "PLATIPUS (Finn et al., 2018)", "", "mini_5shot"].lines(5) == []
    assert not any(title == "Table 1, tieredImageNet" for title, *_ in table), "nothing of it was run"
    text = markdown(list(table.values()), 5)
    assert (
        "| LEO (ours)<br>(hparams: manual) | l2 | 61.70 ± 0.16 (5)<br>paper 61.76 ± 0.08<br>released 61.89 ± 0.16<br>"
        "difference -0.06 | none\\*<br>paper 77.59 ± 0.12<br>released 77.65 ± 0.09 |" in text
    )
    lines = list(csv.DictReader(io.StringIO(as_csv(list(table.values()), 5))))
    (line,) = [x for x in lines if (x["table"], x["model"], x["column"]) == ("Table 2", "LEO (ours)", "mini_1shot")]
    assert (line["ours"], line["ours_deviation"], line["num_seeds"]) == ("61.7", "0.1581", "5")
    assert (line["paper"], line["released_deviation"], line["difference"]) == ("61.76", "0.16", "-0.06")
    assert (line["is_complete"], line["is_apart"], line["scaling"]) == ("True", "False", "l2")


@pytest.mark.parametrize(("shift", "is_apart"), [(0.002, False), (0.004, True)])
def test_differences_of_more_than_two_standard_deviations_are_marked(tmp_path, shift, is_apart):
    """Both deviations are 0.1 points, so that of a difference is 0.141, and twice that 0.283."""
    for seed, accuracy in enumerate((0.699, 0.700, 0.701)):
        write(tmp_path, f"glyphs_1shot-none-seed{seed}", seed, accuracy)
        write(tmp_path, f"glyphs_1shot-random_prior-seed{seed}", seed, accuracy - shift, ablation="random_prior")
    cell = found(tmp_path)["The rows of Table 2 on glyphs", "LEO (random prior)", "manual", "glyphs_1shot"]
    assert cell.lines(3) == ["69.80 +- 0.10 (3)" if shift == 0.002 else "69.60 +- 0.10 (3)",
                             f"difference {-100 * shift:+.2f}" + ("!" if is_apart else "")]  # fmt: skip


def test_sources_of_hyperparameters_are_lines_of_their_own(tmp_path):
    write(tmp_path, "mini_1shot-none-seed0", 0, 0.6, "mini_1shot", hparams="paper/mini_1shot")
    released = {"hparams": "released/mini_1shot", "more": ["hparams=released/mini_1shot"]}
    write(tmp_path, "other", 0, 0.61, "mini_1shot", **released)
    nine = {"hparams": "paper/mini_1shot", "more": ["num_way=9"], "num_way": 9}
    write(tmp_path, "nine", 0, 0.4, "mini_1shot", **nine)
    table = found(tmp_path)
    shown = {source: cell.ours.mean for (title, model, source, column), cell in table.items()
             if (title, model, column) == ("Table 2", "LEO (ours)", "mini_1shot")}  # fmt: skip
    assert shown == {"paper": pytest.approx(60), "released": pytest.approx(61)}, "num_way=9 is another experiment"


def test_the_scaling_that_a_row_sees_is_a_column(tmp_path):
    scaled = {"mini_1shot": "l2", "mini_5shot": "centred_l2"}
    for experiment, kind in scaled.items():
        write(tmp_path, experiment, 0, 0.6, experiment, features={"normalize": kind})
    write(tmp_path, "released", 0, 0.6, "mini_1shot", hparams="released/mini_1shot", features={"normalize": "l2"})
    text = markdown(list(found(tmp_path).values()), 5)
    assert "| LEO (ours)<br>(hparams: manual) | 1-shot: l2<br>5-shot: centred_l2 | 60.00" in text
    assert "| LEO (ours)<br>(hparams: released) | l2 | 60.00" in text
    assert "| MAML (Finn et al., 2017) |  | 48.70" in text
    lines = csv.DictReader(io.StringIO(as_csv(list(found(tmp_path).values()), 5)))
    assert {(line["hparams"], line["column"], line["scaling"]) for line in lines if line["ours"]} == {
        ("manual", "mini_1shot", "l2"), ("manual", "mini_5shot", "centred_l2"), ("released", "mini_1shot", "l2"),
    }  # fmt: skip


def test_runs_that_differ_in_more_than_the_seed_are_not_one_number(tmp_path):
    write(tmp_path, "mini_1shot-none-seed0", 0, 0.6, "mini_1shot", max_steps=100)
    write(tmp_path, "mini_1shot-none-seed1", 1, 0.6, "mini_1shot", max_steps=200)
    with pytest.raises(ValueError, match=r"differ in more than the seed \(max_steps: 100 -> 200\); .*stage.select"):
        found(tmp_path)


def test_the_report_writes_its_tables(composed, tmp_path, capsys):
    write(tmp_path / "runs", "glyphs_1shot-none-seed0", 0, 0.7)
    report(composed("stage=report"))
    assert "70.00 (1)*" in capsys.readouterr().out
    assert "| LEO<br>(hparams: manual) | l2 | 70.00 (1)\\* | none\\* |" in (tmp_path / "run/tables.md").read_text()
    assert (tmp_path / "run/tables.csv").read_text().startswith("table,model,hparams,column,scaling,num_seeds,")
    assert (tmp_path / "run/table1.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_shows_the_rows_that_were_run_with_their_deviations(tmp_path):
    """One column and one row here: mean 70 % and standard deviation 2 / sqrt 2 points of two seeds, 69 and 71 %."""
    write(tmp_path, "glyphs_1shot-none-seed0", 0, 0.69)
    write(tmp_path, "glyphs_1shot-none-seed1", 1, 0.71)
    drawn = cells(collected(tmp_path), published())
    (axis,) = table_pictures.picture("The rows of Table 2 on glyphs", list(drawn)).axes
    (bar,) = axis.containers
    assert bar.lines[0].get_xdata()[0] == pytest.approx(70)
    (((low, _), (high, _)),) = bar.lines[2][0].get_segments()
    assert (high - low) / 2 == pytest.approx(2**0.5)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["LEO"]


def test_published_numbers_are_those_that_the_experiment_files_name():
    """Each number stands in the first comment of its experiment file too."""
    for table in published()[:3]:
        for row in (row for row in table["rows"] if "experiment" in row):
            for column, (mean, deviation) in row["paper"].items():
                text = Path(ROOT, "conf/experiment", row["experiment"].format(column=column) + ".yaml").read_text()
                assert f"{mean:.2f} +- {deviation:.2f} %" in text.splitlines()[1]


# Written by hand from the paper: Tables 1 and 2, and the text's numbers of multi-view features. Columns by name.
PAPER = """
mini_1shot mini_5shot
Matching networks: 43.56 0.84, 55.31 0.73
Meta-learner LSTM: 43.44 0.77, 60.60 0.71
MAML: 48.70 1.84, 63.11 0.92
LLAMA: 49.40 1.83,
REPTILE: 49.97 0.32, 65.99 0.58
PLATIPUS: 50.13 1.86,
Meta-SGD (our features): 54.24 0.03, 70.86 0.04
SNAIL: 55.71 0.99, 68.88 0.92
Gidaris: 56.20 0.86, 73.00 0.64
Bauer: 56.30 0.40, 73.90 0.30
Munkhdalai: 57.10 0.70, 70.04 0.63
DEML + Meta-SGD: 58.49 0.91, 71.28 0.69
TADAM: 58.50 0.30, 76.70 0.30
Qiao: 59.60 0.41, 73.74 0.19
LEO: 61.76 0.08, 77.59 0.12

tiered_1shot tiered_5shot
MAML: 51.67 1.81, 70.30 0.08
Prototypical Nets: 53.31 0.89, 72.69 0.74
Relation Net: 54.48 0.93, 71.32 0.78
Transductive Prop. Nets: 57.41 0.94, 71.55 0.74
Meta-SGD (our features): 62.95 0.03, 79.34 0.06
LEO: 66.33 0.05, 81.44 0.09

mini_1shot mini_5shot
LEO (multi-view features): 63.97 0.20, 79.49 0.70

mini_1shot mini_5shot tiered_1shot tiered_5shot
Meta-SGD (our features): 54.24 0.03, 70.86 0.04, 62.95 0.03, 79.34 0.06
Conditional generator only: 60.33 0.11, 74.53 0.11, 65.17 0.15, 78.77 0.03
Conditional generator + fine-tuning: 60.62 0.31, 76.42 0.09, 65.74 0.28, 80.65 0.07
Previous SOTA: 59.60 0.41, 76.70 0.30, 57.41 0.94, 72.69 0.74
LEO (random prior): 61.01 0.12, 77.27 0.05, 65.39 0.10, 80.83 0.13
LEO (deterministic): 61.48 0.05, 76.53 0.24, 66.18 0.17, 82.06 0.08
LEO (no fine-tuning): 61.62 0.15, 77.46 0.12, 66.14 0.17, 80.89 0.11
LEO (ours): 61.76 0.08, 77.59 0.12, 66.33 0.05, 81.44 0.09
"""


def test_published_numbers_are_the_papers():
    blocks = PAPER.strip().split("\n\n")
    for table, block in zip(published()[:4], blocks, strict=True):
        columns, *lines = block.splitlines()
        assert columns.split() == list(table["columns"])
        for row, line in zip(table["rows"], lines, strict=True):
            name, _, numbers = line.partition(": ")
            assert row["model"].startswith(name)
            by_hand = {
                column: [float(x) for x in cell.split()]
                for column, cell in zip(columns.split(), numbers.split(","), strict=True)
                if cell.strip()
            }
            assert row["paper"] == by_hand, name


def sweep_jobs(sweep, *overrides):
    """The overrides of each job of a sweep of rows."""
    cfg = compose("train", [f"sweep={sweep}"], return_hydra_config=True)
    sweeper = instantiate(cfg.hydra.sweeper, _convert_="all")
    loader = GlobalHydra.instance().config_loader()
    sweeper.hydra_context = HydraContext(config_loader=loader, callbacks=Callbacks())
    given = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    (jobs,) = sweeper.split_arguments(given, None)
    return jobs


def cells_of(*titles):
    """The experiment and ablation of each cell of tables that can be run."""
    return {
        (row["experiment"].format(column=column), row.get("ablation", "none"))
        for table in published() if table["title"].startswith(titles)
        for row in table["rows"] if "experiment" in row
        for column in row.get("columns", table["columns"])
    }  # fmt: skip


SWEEPS = {
    ("Table 1", "Table 2", "Multi-view"): (["paper"], 150),
    ("The rows of Table 2 on glyphs",): (["table1_glyphs", "table2_glyphs"], 91),
    ("The rows of Table 2 on miniImageNet small",): (["table1_mini_small", "table2_mini_small"], 91),
}


@pytest.mark.usefixtures("composed")
@pytest.mark.parametrize("titles", SWEEPS, ids=str)
def test_each_cell_has_its_jobs(titles):
    sweeps, num_jobs = SWEEPS[titles]
    jobs = {tuple(text.partition("=")[2] for text in job[:3]) for sweep in sweeps for job in sweep_jobs(sweep)}
    assert {(experiment, ablation) for experiment, ablation, _ in jobs} == cells_of(*titles)
    assert len(jobs) == num_jobs


@pytest.mark.slow
@pytest.mark.parametrize("titles", SWEEPS, ids=str)
def test_each_cell_composes_with_a_search_of_its_own(composed, titles):
    sweeps, _ = SWEEPS[titles]
    jobs = {tuple(job[:2]): [f"sweep={sweep}", *job] for sweep in sweeps for job in sweep_jobs(sweep)}
    names = set()
    for (experiment, ablation), job in jobs.items():
        cfg = composed(*job, "data.source=null")
        choices = f"experiment={cfg.names.experiment}", f"ablation={cfg.names.ablation}"
        assert choices == (experiment, ablation)
        assert "sweeps.search.search" in cfg.stage.tasks
        assert cfg.search.best.endswith(f"hparams/search/{cfg.names.experiment}-{cfg.names.ablation}.yaml")
        assert "features.normalize" in dict(space(cfg.search.space))
        for source in cfg.search.enqueue:
            assert values_of(cfg, source), source
        names.add(cfg.search.name)
    assert len(names) == len(jobs), "no two rows share a search"


@pytest.mark.usefixtures("composed")
def test_the_command_line_selects_jobs_and_adds_to_them():
    jobs = sweep_jobs("paper", "experiment=mini_5shot,mini_5shot_meta_sgd", "seed=3", "search.n_trials=7", "threads=1")
    assert len(jobs) == 7
    assert all({"seed=3", "search.n_trials=7", "threads=1"} < set(job) for job in jobs)
    assert sum("experiment=mini_5shot_meta_sgd" in job for job in jobs) == 1
    with pytest.raises(ConfigCompositionException, match="no row of this sweep has experiment=glyphs_1shot; choose"):
        sweep_jobs("paper", "experiment=glyphs_1shot")


def test_rows_name_experiments_and_ablations_that_exist():
    for table in published():
        for row in table["rows"]:
            if "experiment" in row:
                assert Path(ROOT, "conf/ablation", row.get("ablation", "none") + ".yaml").exists()
                for column in row.get("columns", table["columns"]):
                    assert Path(ROOT, "conf/experiment", row["experiment"].format(column=column) + ".yaml").exists()


@pytest.mark.parametrize(
    ("sweep", "num_runs"),
    [("five_seeds", 5), ("ablations", 30), ("table1", 40), ("table2", 120), ("paper_mini", 10)],
)
def test_sweeps_name_files_that_exist(composed, sweep, num_runs):
    params = OmegaConf.load(ROOT / "conf/sweep" / f"{sweep}.yaml").hydra.sweeper.params
    product = 1
    for group, values in params.items():
        choices = str(values).split(",")
        product *= len(choices)
        if group != "seed":
            assert all(Path(ROOT, "conf", group, f"{choice.strip()}.yaml").exists() for choice in choices)
    assert product == num_runs
    composed(f"sweep={sweep}", *(f"{group}={str(values).split(',')[0]}" for group, values in params.items()))


def test_the_sweep_of_all_stages_searches_once_for_all_seeds(composed):
    first, second = (composed("sweep=paper_mini", "experiment=mini_5shot", f"seed={seed}") for seed in (0, 3))
    assert "sweeps.search.search" in first.stage.tasks
    assert first.search.folder == second.search.folder
    assert first.stage.folder.startswith("mini_5shot-none-seed0-hparams=search_mini_5shot-none")
    assert second.stage.folder.startswith("mini_5shot-none-seed3-hparams=search_mini_5shot-none")


def test_the_sweep_of_all_stages_on_glyphs_shares_no_folder_with_the_tables(composed):
    """It trains on train + val with values of a short search."""
    params = OmegaConf.load(ROOT / "conf/sweep/paper_glyphs.yaml").hydra.sweeper.params
    assert str(params.seed).count(",") == 4
    ours = composed("sweep=paper_glyphs", f"train_splits={params.train_splits}", "seed=3")
    assert (ours.train_splits, ours.search.set.train_splits) == (["train", "val"], ["train"])
    assert (ours.search.n_trials, ours.search.pruner._target_) == (20, "optuna.pruners.MedianPruner")
    assert ours.search.best.startswith(ours.search.folder), "the values of the repository are kept"
    search, folder = ours.search.name, ours.stage.folder
    table = composed("sweep=table2_glyphs", "experiment=glyphs_1shot", "seed=3")
    assert search == f"{table.search.name}-train_splits=[train,val]"
    assert folder == f"{table.stage.folder}-train_splits=[train,val]"
