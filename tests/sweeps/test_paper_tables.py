"""The paper's tables: ours beside theirs, what is incomplete, and what is never averaged together."""

import csv
import io
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sweeps import table_pictures
from sweeps.paper_tables import as_csv, cells, markdown, published
from sweeps.report import report
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
    for table in published()[:2]:
        for row in (row for row in table["rows"] if "experiment" in row):
            for column, (mean, deviation) in row["paper"].items():
                text = Path(ROOT, "conf/experiment", row["experiment"].format(column=column) + ".yaml").read_text()
                assert f"{mean:.2f} +- {deviation:.2f} %" in text.splitlines()[1]


def test_rows_name_experiments_and_ablations_that_exist():
    for table in published():
        for row in table["rows"]:
            if "experiment" in row:
                assert Path(ROOT, "conf/ablation", row.get("ablation", "none") + ".yaml").exists()
                for column in row.get("columns", table["columns"]):
                    assert Path(ROOT, "conf/experiment", row["experiment"].format(column=column) + ".yaml").exists()


@pytest.mark.parametrize(
    ("sweep", "num_runs"), [("five_seeds", 5), ("ablations", 30), ("table1", 40), ("table2", 120), ("paper_mini", 10)]
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
