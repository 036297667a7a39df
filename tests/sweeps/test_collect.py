"""The table of results: seeds together, other differences separately, the two kinds of +- never mixed."""

import json

import pytest
from rich.console import Console

from runner.record import group, scored
from sweeps.collect import Row, collect, read_results, tables


def write(
    runs, folder, seed, accuracy, experiment="glyphs_1shot", ablation="none", hparams="manual/x", more=(), **config
):
    """A result as a run writes it, of a command with the overrides ``more``."""
    path = runs / folder / "result.json"
    path.parent.mkdir(parents=True)
    config = {
        "seed": seed,
        "names": {"experiment": experiment, "ablation": ablation, "hparams": hparams},
        "model": {"learner": {"_target_": "leo.leo.LEO"}},
        "features": {"normalize": "l2"},
        **config,
    }
    result = {
        **config["names"],
        "seed": seed,
        "num_way": 5,
        "num_shot": 1,
        "data": "glyphs",
        "layer": "9",
        "num_tasks": 100,
        "accuracy": accuracy,
        "interval95": 0.002 * (seed + 1),
        "seconds": {"train": 10.0, "test": 2.0},
        "config": config,
        "stage": "meta",
        "overrides": [f"experiment={experiment}", *more, f"seed={seed}"],
        "group": group(config),
        **scored("accuracy", accuracy),
        "summary": f"test accuracy {accuracy}",
    }
    path.write_text(json.dumps(result))
    return result


def collected(runs, select="*"):
    """The rows, where ``run_dir`` changes no result."""
    return collect(read_results(runs, select), ["run_dir"])


def test_seeds_are_averaged_and_intervals_kept_apart(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        write(tmp_path, f"glyphs_1shot-none-seed{seed}", seed, accuracy)
    (row,) = collected(tmp_path)
    assert row.mean == pytest.approx(0.72)
    assert row.std_over_seeds == pytest.approx(0.02)  # deviations -0.02, 0, 0.02; n - 1 = 2
    assert row.interval95 == pytest.approx(0.006)
    with Console(width=120, record=True) as console:
        console.print(*tables([row]))
    text = console.export_text()
    assert "72.00" in text
    assert " l2 " in text
    assert "2.00 (3)" in text
    assert "+- 0.60" in text


def test_diverged_tasks_of_all_seeds_have_a_column_where_there_are_some(tmp_path):
    for seed in range(2):
        write(tmp_path, f"a{seed}", seed, 0.7)
    (row,) = collected(tmp_path)
    with Console(width=120, record=True) as console:
        console.print(*tables([row]))
    assert "diverged" not in console.export_text().split("interval: 95")[0]
    for seed, counts in enumerate(({"train_diverged": 1200, "num_diverged": 3}, {"train_diverged": 31})):
        path = tmp_path / f"a{seed}" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | counts))
    (row,) = collected(tmp_path)
    assert row.num_diverged == 1234
    with Console(width=120, record=True) as console:
        console.print(*tables([row]))
    assert "1,234" in console.export_text()


def test_ablations_and_variants_are_rows_of_their_own(tmp_path):
    write(tmp_path, "glyphs_1shot-none-seed0", 0, 0.7)
    write(tmp_path, "glyphs_1shot-no_finetuning-seed0", 0, 0.6, ablation="no_finetuning")
    write(tmp_path, "any name", 0, 0.5, more=["num_way=9", "run_dir=x"], num_way=9)
    rows = collected(tmp_path)
    assert sorted(row.mean for row in rows) == [0.5, 0.6, 0.7]
    assert all(row.std_over_seeds is None for row in rows)
    assert {row.mean: row.changes for row in rows}[0.5] == ["num_way=9"]
    assert [row.mean for row in collected(tmp_path, "*-no_finetuning-*")] == [0.6]


def test_seeds_with_other_settings_are_not_mixed(tmp_path):
    write(tmp_path, "glyphs_1shot-none-seed0", 0, 0.7, max_steps=100)
    write(tmp_path, "glyphs_1shot-none-seed1", 1, 0.8, max_steps=200)
    assert [(row.mean, row.std_over_seeds) for row in collected(tmp_path)] == [(0.7, None), (0.8, None)]


def test_folders_may_have_any_name_and_a_run_that_is_there_twice_counts_once(tmp_path, caplog):
    for seed, folder in enumerate(("test-mine", "x-seed7-y", "z")):
        write(tmp_path, folder, seed, 0.7 + 0.01 * seed)
    write(tmp_path, "zz", 1, 0.71)
    (row,) = collected(tmp_path)
    assert [result["seed"] for result in row.results] == [0, 1, 2]
    assert row.mean == pytest.approx(0.71)
    assert "zz is left out" in caplog.text


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[1]", "\x00"])
def test_a_damaged_result_is_named_and_the_others_are_read(tmp_path, caplog, text):
    write(tmp_path, "whole", 0, 0.7)
    path = tmp_path / "broken/result.json"
    path.parent.mkdir()
    path.write_text(text)
    found = read_results(tmp_path, "*")
    assert list(found.results) == [tmp_path / "whole"]
    assert list(found.unreadable) == [tmp_path / "broken"]
    assert f"{path} is left out" in caplog.text
    assert len(collect(found, [])) == 1


@pytest.mark.parametrize(
    ("layer", "config", "shown"),
    [
        ("9", {}, "layer 9"),
        ("pixels", {}, "pixels"),
        ("9", {"extractor": {"start": "stage_1"}}, "layer 9, joint from stage 1"),
        ("9", {"extractor": {"start": "random"}}, "layer 9, joint from random"),
    ],
)
def test_features_say_whether_the_extractor_was_trained_with_the_learner(layer, config, shown):
    assert Row([{"layer": layer, "config": config}], [], []).features == shown
