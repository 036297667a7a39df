"""The table of results: seeds together, other differences apart, the two kinds of +- never mixed."""

import json

import pytest
from rich.console import Console

from sweeps.collect import collect, table


def write(runs, folder, seed, accuracy, experiment="glyphs_1shot", ablation="none", hparams="manual/x", **config):
    path = runs / folder / "result.json"
    path.parent.mkdir(parents=True)
    result = {
        "experiment": experiment,
        "ablation": ablation,
        "hparams": hparams,
        "seed": seed,
        "num_way": 5,
        "num_shot": 1,
        "data": "glyphs",
        "layer": "9",
        "num_tasks": 100,
        "accuracy": accuracy,
        "interval95": 0.002 * (seed + 1),
        "seconds": {"train": 10.0, "test": 2.0},
        "config": {"seed": seed, "model": {"learner": {"_target_": "leo.leo.LEO"}}, **config},
    }
    path.write_text(json.dumps(result))


def test_seeds_are_averaged_and_intervals_kept_apart(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        write(tmp_path, f"glyphs_1shot-none-seed{seed}", seed, accuracy)
    (row,) = collect(tmp_path, "*")
    assert row.accuracy == pytest.approx(0.72)
    assert row.std_over_seeds == pytest.approx(0.02)  # deviations -0.02, 0, 0.02; n - 1 = 2
    assert row.interval95 == pytest.approx(0.006)
    with Console(width=120, record=True) as console:
        console.print(table([row]))
    text = console.export_text()
    assert "72.00" in text
    assert "2.00 (3)" in text
    assert "+- 0.60" in text


def test_ablations_and_variants_are_rows_of_their_own(tmp_path):
    write(tmp_path, "glyphs_1shot-none-seed0", 0, 0.7)
    write(tmp_path, "glyphs_1shot-no_finetuning-seed0", 0, 0.6, ablation="no_finetuning")
    write(tmp_path, "glyphs_1shot-none-seed0-num_way=9", 0, 0.5, num_way=9)
    rows = collect(tmp_path, "*")
    assert sorted(row.accuracy for row in rows) == [0.5, 0.6, 0.7]
    assert all(row.std_over_seeds is None for row in rows)
    assert [row.accuracy for row in collect(tmp_path, "*-no_finetuning-*")] == [0.6]


def test_seeds_with_other_settings_are_not_mixed(tmp_path):
    write(tmp_path, "glyphs_1shot-none-seed0", 0, 0.7, max_steps=100)
    write(tmp_path, "glyphs_1shot-none-seed1", 1, 0.7, max_steps=200)
    with pytest.raises(ValueError, match=r"differ in more than the seed \(max_steps: 100 -> 200\)"):
        collect(tmp_path, "*")
