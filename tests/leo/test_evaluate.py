"""The class-by-class test against scoring each task on its own."""

import pytest
import torch
import torch.nn.functional as F

from leo.episodes import sample_tasks
from leo.evaluate import PAIRS_PER_ADAPTATION, Scorer, correct_and_loss, evaluate, fixed_tasks, interval95
from leo.meta_sgd import MetaSGD
from leo.prototypes import LinearPrototypes, NearestCentroid
from tests.leo.tables import make_table
from tests.leo.test_leo import make


def naive_scores(learner, table, tasks, num_shot):
    """One task at a time: all images of its classes but the support, scored and compared."""
    accuracies, losses = [], []
    for classes, images in zip(tasks.classes, tasks.images, strict=True):
        weights = learner.adapt(table.features[images[:, :num_shot]].unsqueeze(0))[0]
        correct, cross_entropy = [], []
        for label, (c, support) in enumerate(zip(classes.tolist(), images[:, :num_shot].tolist(), strict=True)):
            for row in range(int(table.offsets[c]), int(table.offsets[c + 1])):
                if row not in support:
                    logits = weights @ learner.embed(table.features[row])
                    correct.append(logits.argmax().item() == label)
                    cross_entropy.append(F.cross_entropy(logits, torch.tensor(label)).item())
        accuracies.append(sum(correct) / len(correct))
        losses.append(sum(cross_entropy) / len(cross_entropy))
    return torch.tensor(accuracies), torch.tensor(losses)


@pytest.mark.parametrize("num_shot", [1, 3])
@pytest.mark.parametrize(
    "make_learner",
    [
        lambda: make(num_features=6).float(),
        lambda: MetaSGD(num_features=6, num_way=3, num_steps=3, inner_lr=0.3, l2_weight=0.0),
        lambda: NearestCentroid(num_features=6),
        lambda: LinearPrototypes(num_features=6, num_dimensions=4, scale=5.0, l2_weight=0.0),
    ],
    ids=["leo", "meta_sgd", "centroid", "prototypes"],
)
def test_scores_equal_the_naive_test_task_by_task(make_learner, num_shot):
    torch.manual_seed(0)
    table, learner = make_table([5, 9, 4, 12, 7]), make_learner().eval()
    tasks = sample_tasks(table, 30, 3, num_shot, torch.Generator().manual_seed(1))
    with torch.no_grad():
        accuracy, loss = naive_scores(learner, table, tasks, num_shot)
    scores = evaluate(learner, table, [tasks], num_shot)
    torch.testing.assert_close(scores.accuracy, accuracy)
    torch.testing.assert_close(scores.loss, loss, rtol=1e-4, atol=1e-5)


def test_a_classifier_without_opinion_is_at_chance_not_at_one():
    """All scores equal: ties must not count as correct for every class."""
    learner = MetaSGD(num_features=6, num_way=4, num_steps=0, inner_lr=0.1, l2_weight=0.0)
    table = make_table([10] * 4)
    scores = evaluate(learner, table, fixed_tasks(table, 50, 4, 1, seed=0), 1)
    torch.testing.assert_close(scores.accuracy, torch.full((50,), 0.25))


def test_of_classes_that_score_the_same_the_first_is_the_best():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (40, 4, 11), generator=generator).float()  # of four numbers below 3 two are equal
    position = torch.randint(4, (40,), generator=generator)
    correct, loss = correct_and_loss(logits.clone(), position)
    best = logits.numpy().argmax(1)  # the first of them, as numpy documents
    assert correct.bool().tolist() == (best == position.numpy()[:, None]).tolist()
    labels = position.unsqueeze(1).expand(-1, 11)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize(("num_shot", "num_tasks"), [(1, 100), (8, 32), (70, 1)])
def test_few_tasks_are_adapted_together_where_they_have_many_pairs(num_shot, num_tasks):
    table, learner, sizes = make_table([90] * 4), NearestCentroid(num_features=6).eval(), []
    adapt = learner.adapt
    learner.adapt = lambda support: sizes.append(support.shape) or adapt(support)
    Scorer(learner, table, num_shot)(fixed_tasks(table, 200, 4, num_shot, seed=0)[0])
    assert sizes[0][0] == num_tasks
    assert num_tasks == 1 or num_tasks * (4 * num_shot) ** 2 <= PAIRS_PER_ADAPTATION
    assert sum(len_ for len_, *_ in sizes) == 200


def test_fixed_tasks_are_the_same_each_time_and_come_in_chunks():
    table = make_table([6] * 5)
    first, second = fixed_tasks(table, 1_100, 3, 1, seed=4), fixed_tasks(table, 1_100, 3, 1, seed=4)
    assert [len(chunk.classes) for chunk in first] == [500, 500, 100]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].images, fixed_tasks(table, 1_100, 3, 1, seed=5)[0].images)


def test_interval_by_hand():
    # mean 0.5, squared deviations 4 x 0.01, sample variance 0.04 / 3, over 4 tasks
    assert interval95(torch.tensor([0.4, 0.6, 0.4, 0.6])) == pytest.approx(1.96 * (0.04 / 3 / 4) ** 0.5)
