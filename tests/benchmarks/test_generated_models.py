"""The benchmark of generated models runs, and its contestants are as large as they say."""

import pytest

from benchmarks.generated_models import contestants, main, make_update


@pytest.mark.slow
def test_the_table_has_a_row_for_each_model(tmp_path):
    rows = main(["--updates", "1", "--repeats", "1", "--json", str(tmp_path / "rows.json")])
    assert len(rows) == len(contestants())
    assert all(row["ms an update"] > 0 and row["MB an update"] > 0 for row in rows)


def test_the_written_perceptron_and_the_module_are_as_large():
    first, second, third = (make_update(make, shape)[1] for _, make, shape in contestants()[:3])
    assert first == second == third == 481
