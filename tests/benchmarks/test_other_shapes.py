"""The comparison on tasks of other shapes: fair tasks, competitors chosen on the val split, by hand the same."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from benchmarks.other_shapes import STRENGTHS, Choice, choose, draw, main
from leo.features import NORMALIZATIONS
from leo.run import meta_train
from runner.errors import InputError
from tests.leo.tables import make_table

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)


def test_support_and_queries_are_different_images_of_the_same_classes():
    table = make_table([20, 45, 30, 25], 6)
    owner = np.arange(4).repeat(table.class_sizes.numpy())
    for task in draw(table, 3, [1, 10], 20, seed=0):
        assert not set(task.support) & set(task.query)
        for i in range(3):
            support, query = task.support[task.labels.numpy() == i], task.query[task.truth.numpy() == i]
            assert len(np.unique(owner[[*support, *query]])) == 1
            assert 1 <= len(support) <= 10
            assert len(query) == min(30, (owner == owner[query[0]]).sum() - 10)
    with pytest.raises(InputError, match="--num-way=5, but this split has 4 classes"):
        next(draw(table, 5, [1, 10], 1, seed=0))


def test_competitors_are_chosen_on_the_val_split_as_by_hand():
    """Features far from zero: without their mean all cosines are nearly 1, and a weak penalty is needed."""
    train, val = (make_table([40] * 6, 6, seed=seed, spread=1.5) for seed in (0, 1))
    train, val = (table._replace(features=table.features * 3 + 10) for table in (train, val))
    chosen = choose(train, val, num_way=20, shots=[1, 5], num_tasks=15)
    x, mean = val.features.double().numpy(), train.features.double().numpy().mean(0)
    std = train.features.double().numpy().std(0, ddof=1)

    def unit(y):
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    by_hand = {"l2": unit(x), "centred_l2": unit(x - mean), "standardize": unit((x - mean) / std) * 6**0.5}
    accuracy = {}
    for kind, scaled in by_hand.items():
        for task in draw(val, 6, [1, 5], 15, seed=1):
            labels, truth = task.labels.numpy(), task.truth.numpy()
            centroids = unit(np.stack([unit(scaled[task.support[labels == i]]).mean(0) for i in range(6)]))
            best = (unit(scaled[task.query]) @ centroids.T).argmax(1)
            accuracy.setdefault(Choice("centroid", kind, None), []).append((best == truth).mean())
            for strength in STRENGTHS:
                fitted = LogisticRegression(C=strength, max_iter=1000).fit(scaled[task.support], labels)
                right = (fitted.predict(scaled[task.query]) == truth).mean()
                accuracy.setdefault(Choice("logistic", kind, strength), []).append(right)
    means = {choice: np.mean(values) for choice, values in accuracy.items()}
    assert [choice.name for choice in chosen] == ["centroid", "logistic"]
    for choice in chosen:
        best = max(value for other, value in means.items() if other.name == choice.name)
        assert means[choice] == pytest.approx(best, abs=2e-3)  # float32 against float64
        worst = min(value for other, value in means.items() if other.name == choice.name)
        assert best > worst + 0.02, "there is something to choose"
    assert chosen[0].scaling != "l2"


def test_the_table_says_what_was_chosen_where(composed, toy_overrides, tmp_path, monkeypatch):
    meta_train(composed(*toy_overrides))
    shown = []
    monkeypatch.setattr("benchmarks.other_shapes.show", lambda *table: shown.append(table))
    small = ["--num-way", "3", "--shots", "1", "4", "--num-tasks", "6", "--num-tuning-tasks", "3"]
    main([str(tmp_path / "toy"), str(tmp_path / "run" / "best.ckpt"), "--split", "test", *small])
    ((title, rows),) = shown
    assert title == "test: 3-way, 1 to 4 shots, 6 tasks"
    assert [row["classifier"] for row in rows] == ["summed", "by class", "counted", "centroid", "logistic"]
    assert {row["scaling"] for row in rows[:3]} == {"standardize"}
    assert rows[3]["scaling"] in NORMALIZATIONS
    assert ", C=" in rows[4]["scaling"]
    assert {row["chosen on"] for row in rows} == {"val"}
