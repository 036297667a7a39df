"""Classification by learners that generate a whole classifier: its tasks, judge, network and runs."""

import pytest
import torch
from torch import nn

from leo.any_module import AnyModule
from leo.convolutional import SmallConvNet
from leo.features import FeatureTable
from leo.functions import ModelTasks
from leo.model_problem import Sampled
from leo.regression import ModelLearner
from leo.run import meta_train
from leo.whole_classifiers import ClassTasks, cross_entropy, judge
from runner.errors import InputError
from runner.files import read_json


class Anything(ModelLearner):
    """A learner of which only the loss is asked."""

    loss = staticmethod(cross_entropy)

    def sample(self, x, y, generator):
        raise NotImplementedError


def test_tasks_hold_different_images_and_the_class_of_each():
    """Each image says its class and its number."""
    classes, images = torch.arange(6).repeat_interleave(7), torch.arange(42)
    table = FeatureTable(
        torch.stack([classes, images], 1).float(), torch.arange(0, 43, 7), list("abcdef"), {"data": "x"}
    )
    tasks = ClassTasks(table, 4).sample(50, 2, 3, torch.Generator().manual_seed(0))
    assert [part.shape for part in tasks] == [(50, 8, 2), (50, 8, 4), (50, 12, 2), (50, 12, 4), (50, 12, 4)]
    for support_x, support_y, query_x, query_y, truth in zip(*tasks, strict=True):
        assert torch.equal(query_y, truth)
        seen = torch.cat([support_x, query_x])
        assert len(seen[:, 1].unique()) == 20
        labels = torch.cat([support_y, query_y]).argmax(1)
        assert torch.equal(torch.cat([support_y, query_y]).sum(1), torch.ones(20))
        of_label = {label: set(seen[labels == label, 0].tolist()) for label in range(4)}
        assert all(len(found) == 1 for found in of_label.values())
        assert len(set.union(*of_label.values())) == 4


def test_the_loss_is_torchs():
    prediction, label = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    expected = nn.functional.cross_entropy(prediction.flatten(0, 1), label.flatten(), reduction="none")
    found = cross_entropy(prediction, nn.functional.one_hot(label, 4).float())
    torch.testing.assert_close(found, expected.view(3, 5).mean(1))


def test_samples_are_judged_by_their_mean_probability_and_a_diverged_task_is_wrong():
    """The first task: two samples of three say class 0 by a little, the third class 1 for sure, which is right."""
    logits = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 9.0]]).view(3, 1, 1, 2).repeat(1, 2, 1, 1)
    logits[1, 1] = torch.nan
    truth = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
    nothing = torch.zeros(2, 1, 1)
    scores = judge(
        Anything(), ModelTasks(nothing, nothing, nothing, truth, truth), Sampled(torch.zeros(3, 2, 1), logits)
    )
    probability = logits[:, 0, 0].softmax(1).mean(0)[1]
    assert scores.score.tolist() == [1.0, 0.0]
    assert scores.loss[0].item() == pytest.approx(-probability.log().item())
    assert scores.loss[1].isnan()
    assert scores.diverged.tolist() == [False, True]


def test_the_network_is_as_large_as_it_says_and_sees_channels_last():
    make = lambda: SmallConvNet(image_size=32, in_channels=1, num_channels=16, num_classes=5)  # noqa: E731
    assert len(AnyModule(make=make).scale) == 14_693
    colour = SmallConvNet(image_size=16, in_channels=3, num_channels=2, num_classes=4)
    images = torch.randn(2, 16, 16, 3)
    maps = images.permute(0, 3, 1, 2)
    for convolution in colour.convolutions:
        maps = nn.functional.conv2d(maps, convolution.weight, convolution.bias, stride=2, padding=1).relu()
    assert maps.shape == (2, 4, 2, 2)
    torch.testing.assert_close(colour(images.flatten(1)), colour.classifier(maps.flatten(1)))
    with pytest.raises(InputError, match="image_size=20 must be a multiple of 16"):
        SmallConvNet(image_size=20, in_channels=1, num_channels=2, num_classes=4)


def test_runs_of_each_method(tmp_path, composed, toy_overrides):
    """On the toy features, with a perceptron: validation and test name accuracy, as other classification does."""
    model = ["model/inference@model.learner.model=mlp", "model.learner.model.sizes=[8,8,3]"]
    small = ["max_steps=4", "val.every=2", "test.num_tasks=20", "val.num_tasks=20", "tasks_per_batch=2"]
    toy = [override for override in toy_overrides if not override.startswith("model.")]
    for method in ("", "_meta_sgd", "_maml"):
        folder = tmp_path / f"run{method}"
        inputs = ["model.learner.num_inputs=11"] if not method else []
        overrides = [f"experiment=glyphs_pixels_1shot{method}", *model, *inputs, *toy, *small]
        meta_train(composed(*overrides, f"run_dir={folder}"))
        result = read_json(folder / "result.json", ("accuracy", "val_accuracy"), "")
        assert (result["num_way"], result["num_shot"], result["num_tasks"]) == (3, 1, 20)
        assert 0 <= result["accuracy"] <= 1
