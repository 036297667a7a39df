"""Meta-SGD against autograd, the metric methods against arithmetic."""

import pytest
import torch
import torch.nn.functional as F

from leo import softmax
from leo.meta_sgd import MetaSGD
from leo.prototypes import LinearPrototypes, NearestCentroid
from tests.leo.test_leo import make_tasks


def test_the_softmax_gradient_and_hessian_are_autograds():
    tasks = make_tasks(3)
    weights = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    loss = softmax.cross_entropy(softmax.logits(weights, tasks.support)).sum()
    (expected,) = torch.autograd.grad(loss, weights, create_graph=True)
    images = tasks.support.flatten(1, 2)
    p = softmax.probabilities(weights, images)
    torch.testing.assert_close(softmax.loss_gradient(p, images), expected)
    v = torch.randn_like(weights)
    (expected,) = torch.autograd.grad(expected, weights, v)
    torch.testing.assert_close(softmax.hessian_product(p, images, v), expected)


def test_cross_entropy_and_accuracy_by_hand():
    # one task of two classes and one image each: logits (1, 0) and (3, 1)
    logits = torch.tensor([[[[1.0, 0.0]], [[3.0, 1.0]]]])
    expected = torch.tensor([[[0.31326169], [2.12692801]]])  # log(1 + e^-1), log(1 + e^2)
    torch.testing.assert_close(softmax.cross_entropy(logits), expected)
    assert softmax.accuracy(logits).tolist() == [0.5]


def test_meta_sgd_is_second_order():
    torch.manual_seed(0)
    learner = MetaSGD(num_features=12, num_way=3, num_steps=4, inner_lr=0.4, l2_weight=0.1).double()
    torch.nn.init.normal_(learner.initial_weights)
    tasks = make_tasks(2)

    def plain_loss(order):
        losses = []
        for support, query in zip(*tasks, strict=True):
            labels = torch.arange(3)
            weights = learner.initial_weights
            for _ in range(4):
                inner = F.cross_entropy(
                    (support @ weights.T).flatten(0, 1), labels.repeat_interleave(2), reduction="sum"
                )
                (gradient,) = torch.autograd.grad(inner, weights, create_graph=order == 2, retain_graph=True)
                weights = weights - learner.inner_lr * gradient
            losses.append(F.cross_entropy((query @ weights.T).flatten(0, 1), labels.repeat_interleave(query.shape[1])))
        return torch.stack(losses).mean() + 0.1 * 0.5 * learner.initial_weights.square().sum()

    loss = learner.meta_loss(tasks, torch.Generator())["loss"]
    torch.testing.assert_close(loss, plain_loss(2))
    parameters = list(learner.parameters())
    exact = torch.autograd.grad(loss, parameters)
    for actual, expected in zip(exact, torch.autograd.grad(plain_loss(2), parameters), strict=True):
        torch.testing.assert_close(actual, expected)
    first_order = torch.autograd.grad(plain_loss(1), parameters)
    assert (exact[0] - first_order[0]).norm() / exact[0].norm() > 1e-2


def test_nearest_centroid_by_hand():
    """Centroid of (1, 0) and (0, 1) is (1, 1) / sqrt 2, whatever the lengths of the images."""
    support = torch.tensor([[[[3.0, 0.0], [0.0, 0.5]], [[-1.0, 0.0], [-7.0, 0.0]]]])
    learner = NearestCentroid(num_features=2)
    expected = torch.tensor([[[0.70710678, 0.70710678], [-1.0, 0.0]]])
    torch.testing.assert_close(learner.adapt(support), expected)
    torch.testing.assert_close(learner.embed(torch.tensor([0.0, 4.0])), torch.tensor([0.0, 1.0]))
    assert not list(learner.parameters())


def test_linear_prototypes_are_scaled_cosines_of_mapped_features():
    torch.manual_seed(0)
    learner, tasks = (
        LinearPrototypes(num_features=12, num_dimensions=5, scale=7.0, l2_weight=0.2).double(),
        make_tasks(2),
    )
    mapped = F.normalize(tasks.support @ learner.linear.weight.T, dim=-1).mean(2)
    query = tasks.query @ learner.linear.weight.T
    cosines = F.cosine_similarity(query.unsqueeze(3), mapped[:, None, None], dim=-1)
    loss = F.cross_entropy(7 * cosines.flatten(0, 2), torch.arange(3).repeat_interleave(2).repeat(2))
    expected = loss + 0.2 * 0.5 * learner.linear.weight.square().sum()
    assert learner.meta_loss(tasks, torch.Generator())["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
