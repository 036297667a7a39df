"""The figures' numbers on small cases that are known by hand, and against slow and plain forms."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch.autograd.functional import hessian
from torchmetrics.functional.classification import multiclass_calibration_error

from leo.analysis.calibration import confidence_and_success, predictions, reliability, sampled_predictions
from leo.analysis.codes import code_map
from leo.analysis.curvature import curvature, hessian_eigenvalues
from leo.analysis.decoder import singular_values
from leo.analysis.inner_steps import accuracy_after, trained_steps
from leo.analysis.learned_rates import Rate, final_rates, logged_rates
from leo.analysis.step_lengths import step_lengths
from leo.analysis.trajectory import trajectory
from leo.episodes import Tasks, sample_tasks
from leo.evaluate import Scorer
from leo.leo import Noise
from leo.meta_sgd import MetaSGD
from leo.prototypes import NearestCentroid
from tests.leo.tables import make_table
from tests.leo.test_leo import make, make_tasks


def meta_sgd(**changes):
    torch.manual_seed(0)
    settings = {"num_features": 12, "num_way": 3, "num_steps": 4, "inner_lr": 0.4, "l2_weight": 0.0} | changes
    learner = MetaSGD(**settings).double()
    torch.nn.init.normal_(learner.initial_weights)
    return learner


def support_loss(weights, support):
    """Summed cross-entropy of one task, [N, K, D]."""
    labels = torch.arange(len(support)).repeat_interleave(support.shape[1])
    return F.cross_entropy((support @ weights.T).flatten(0, 1), labels, reduction="sum")


def dense_eigenvalues(function, point):
    """All eigenvalues of the whole Hessian, largest first."""
    size = point.numel()
    return torch.linalg.eigvalsh(hessian(function, point).reshape(size, size)).flip(0)


def test_curvature_of_a_task_by_hand():
    """Two orthogonal images of lengths 2 and 3, both classes at p = 1/2: p (1 - p) [[1, -1], [-1, 1]] has eigenvalues
    1/2 and 0, so the Hessian's are 4/2 and 9/2, and 0."""
    images = torch.tensor([[[[2.0, 0.0, 0.0]], [[0.0, 3.0, 0.0]]]])
    expected = torch.tensor([[4.5, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(hessian_eigenvalues(torch.zeros(1, 2, 3), images), expected)


@pytest.mark.parametrize(
    ("num_shot", "latents"), [(1, "class"), (2, "class"), (2, "example"), (5, "class")]
)  # with 5 shots there are more images than dimensions
def test_curvature_is_the_whole_hessians(num_shot, latents):
    leo, tasks = make(latents=latents).eval(), make_tasks(num_shot)
    found = curvature(leo, tasks.support)
    codes = leo.encode(tasks.support).mean.detach()
    matrix = leo.decoder.matrix(sampled=False).detach()

    def decoded(z):
        weights = z.flatten(0, 1) @ matrix.T
        return weights.unflatten(0, z.shape[:2]).mean(1)

    for task in range(2):
        support = tasks.support[task]
        expected = {
            "latent": dense_eigenvalues(lambda z, support=support: support_loss(decoded(z), support), codes[task]),
            "weight": dense_eigenvalues(lambda w, support=support: support_loss(w, support), decoded(codes[task])),
        }
        for space, eigenvalues in expected.items():
            rank = found[space].shape[1]
            assert rank == 2 * min(3 * num_shot, {"latent": 4, "weight": 12}[space])
            torch.testing.assert_close(found[space][task], eigenvalues[:rank], rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(eigenvalues[rank:], torch.zeros_like(eigenvalues[rank:]), rtol=0, atol=1e-10)


def test_curvature_of_a_learned_start_and_of_a_learner_without_steps():
    learner, tasks = meta_sgd(), make_tasks(1)
    found = curvature(learner, tasks.support)
    assert list(found) == ["weight"]
    start = learner.initial_weights.detach()
    expected = dense_eigenvalues(lambda w: support_loss(w, tasks.support[0]), start)
    torch.testing.assert_close(found["weight"][0], expected[:6])
    assert curvature(NearestCentroid(num_features=12), tasks.support) == {}


def test_singular_values_of_a_decoder_by_hand():
    leo = make(num_features=3, num_latents=2)
    with torch.no_grad():  # means [3 z_2, 0, 0.5 z_1]; what makes standard deviations does not count
        leo.decoder.linear.weight.copy_(torch.tensor([[0.0, 3], [0, 0], [0.5, 0], [7, 7], [7, 7], [7, 7]]))
    torch.testing.assert_close(singular_values(leo), torch.tensor([3.0, 0.5], dtype=torch.float64))


def test_diverged_tasks_have_no_confidence():
    probabilities = torch.tensor([[[[0.2, 0.8]], [[0.4, 0.6]]], [[[torch.nan, torch.nan]], [[0.5, 0.5]]]])
    confidence, correct = confidence_and_success(probabilities)
    assert (confidence.tolist(), correct.tolist()) == (pytest.approx([0.8, 0.6]), [False, True])


@pytest.mark.parametrize("latents", ["class", "example"])
def test_the_trajectory_is_that_of_the_adaptation(latents):
    leo, tasks = make(latents=latents).eval(), make_tasks(2)
    path = trajectory(leo, tasks.support)
    assert path.loops == ["latent"] * 3 + ["weight"] * 2
    torch.testing.assert_close(path.weights[-1], leo.adapt(tasks.support))
    adaptation = leo.adaptation(tasks.support, Noise())
    for decoded, codes in zip(path.weights, adaptation.latents, strict=False):
        torch.testing.assert_close(decoded, (codes @ leo.decoder.matrix(False).T).mean(2))
    lengths = step_lengths(path)
    assert lengths.shape == (5, 2)
    code_step = (adaptation.latents[1] - adaptation.latents[0])[1] @ leo.decoder.matrix(False).T
    assert lengths[0, 1].item() == pytest.approx(code_step.mean(1).square().sum().sqrt().item())
    last = adaptation.finetuned[2][0] - adaptation.finetuned[1][0]
    assert lengths[4, 0].item() == pytest.approx(last.square().sum().sqrt().item())


def test_the_steps_of_meta_sgd_by_autograd():
    learner, tasks = meta_sgd(), make_tasks(2)
    path = trajectory(learner, tasks.support)
    assert path.codes is None
    weights, lengths = learner.initial_weights.detach(), []
    for _ in range(4):
        weights = weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(support_loss(weights, tasks.support[1]), weights)
        lengths.append((0.4 * gradient).norm().item())
        weights = weights - 0.4 * gradient
    assert step_lengths(path)[:, 1].tolist() == pytest.approx(lengths)
    assert trajectory(NearestCentroid(num_features=12), tasks.support) is None


def test_calibration_by_hand():
    """Of three predictions at 0.75 two are right, the one at 0.25 is wrong: (3 |2/3 - 0.75| + 0.25) / 4 = 0.125."""
    curve = reliability(torch.tensor([0.75, 0.75, 0.25, 0.75]), torch.tensor([True, False, False, True]), 5)
    assert curve.num_predictions.tolist() == [0, 1, 0, 3, 0]
    assert curve.confidence[[1, 3]].tolist() == [0.25, 0.75]
    assert curve.accuracy[[1, 3]].tolist() == pytest.approx([0, 2 / 3])
    assert curve.accuracy.isnan().tolist() == [True, False, True, False, True]
    assert curve.expected_calibration_error == pytest.approx(0.125)
    certain = reliability(torch.ones(2), torch.tensor([True, True]), 5)
    assert certain.num_predictions.tolist() == [0, 0, 0, 0, 2]
    assert certain.expected_calibration_error == 0


def test_calibration_error_is_torchmetrics():
    probabilities = torch.randn(40, 3, 5, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    curve = reliability(*confidence_and_success(probabilities), 15)
    labels = torch.arange(3).repeat_interleave(5).repeat(40)
    expected = multiclass_calibration_error(probabilities.flatten(0, 2), labels, num_classes=3, n_bins=15)
    assert curve.expected_calibration_error == pytest.approx(expected.item(), abs=1e-6)


def test_predictions_are_the_scorers_and_samples_differ_from_them():
    table = make_table([12] * 5, num_features=12)
    leo = make().float().eval()
    tasks = sample_tasks(table, 20, 3, 12, torch.Generator().manual_seed(0))  # all images of each class
    support, query = table.features[tasks.images[:, :, :2]], table.features[tasks.images[:, :, 2:]]
    batch = Tasks(support, query)
    confidence, correct = predictions(leo, batch)
    torch.testing.assert_close(correct.view(20, -1).float().mean(1), Scorer(leo, table, 2)(tasks).accuracy)
    sampled, _ = sampled_predictions(leo, batch, 3, torch.Generator().manual_seed(0))
    assert (sampled - confidence).abs().mean() > 1e-3
    generator, total = torch.Generator().manual_seed(0), 0
    for _ in range(3):
        weights = leo.adaptation(support, leo.draw_noise(batch, generator)).weights
        total = total + torch.einsum("bnd,bcqd->bcqn", weights, query).softmax(-1)
    torch.testing.assert_close(sampled, (total / 3).max(-1).values.flatten().detach())


def test_silhouettes_of_mixed_and_of_separated_codes():
    """Before, both classes are the points 0 and 1 on a line. After, they are far apart."""
    before = torch.tensor([[0.0, 3], [1, 3], [0, 3], [1, 3]])
    after = torch.tensor([[0.0, 3], [1, 3], [100, 3], [101, 3]])
    found = code_map(before, after, torch.tensor([7, 7, 9, 9]), PCA(n_components=2))
    # to the other of its class: 1; to the other class on average: 0.5. (0.5 - 1) / 1
    assert found.silhouettes[0].tolist() == pytest.approx([-0.5] * 4)
    expected = [1 - 1 / 100.5, 1 - 1 / 99.5, 1 - 1 / 99.5, 1 - 1 / 100.5]
    assert found.silhouettes[1].tolist() == pytest.approx(expected)


def test_codes_keep_their_order_and_the_typical_class_has_the_median_gain():
    """Class 4 moves from one point to apart, class 5 stays, class 6 in between."""
    before = torch.tensor([[0.0, 0], [0, 0], [9, 0], [9, 0], [0, 5], [0, 7]])
    after = torch.tensor([[50.0, 0], [50, 0], [9, 0], [9, 2], [0, 5], [0, 5.5]])
    found = code_map(before, after, torch.tensor([4, 4, 5, 5, 6, 6]), PCA(n_components=2))
    both = torch.cat([before, after])
    places = torch.as_tensor(found.places).flatten(0, 1)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(both, both))
    gains = [(found.silhouettes[1] - found.silhouettes[0])[found.classes == label].mean() for label in (4, 5, 6)]
    assert sorted(gains)[1] == gains[[4, 5, 6].index(found.typical_class)]


def test_rates_are_read_from_the_log_and_from_the_learner(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("step,name,value\n9,train/loss,1.5\n9,train/latent_lr,0.25\n9,val/loss,2\n19,train/latent_lr,0.5\n")
    assert logged_rates(log) == [Rate(9, "latent_lr", 0.25), Rate(19, "latent_lr", 0.5)]
    assert logged_rates(tmp_path / "none.csv") == []
    assert {name: len(rates) for name, rates in final_rates(make()).items()} == {"latent_lr": 4, "finetune_lr": 12}
    assert final_rates(meta_sgd())["inner_lr"].tolist() == pytest.approx([0.4] * 36)


def test_accuracy_after_other_numbers_of_steps():
    table = make_table([9] * 5, num_features=12)
    tasks = sample_tasks(table, 30, 3, 1, torch.Generator().manual_seed(0))
    leo = make().float().eval()
    assert trained_steps(leo) == {"num_latent_steps": 3, "num_finetune_steps": 2}
    assert trained_steps(make(num_latent_steps=0)) == {"num_finetune_steps": 2}
    assert trained_steps(meta_sgd()) == {"num_steps": 4}
    assert trained_steps(NearestCentroid(num_features=12)) == {}
    for loop, steps in (("num_latent_steps", 0), ("num_finetune_steps", 7)):
        other = make(**{loop: steps}).float().eval()
        other.load_state_dict(leo.state_dict() if steps else other.state_dict() | without(leo, "latent_lr"))
        expected = Scorer(other, table, 1)(tasks).accuracy
        torch.testing.assert_close(accuracy_after(leo, loop, steps, table, tasks, 1), expected)
    assert (leo.num_latent_steps, leo.num_finetune_steps) == (3, 2)  # the learner itself is left as it was
    learner = meta_sgd().float().eval()
    none, trained, many = (accuracy_after(learner, "num_steps", n, table, tasks, 1).mean() for n in (0, 4, 20))
    torch.testing.assert_close(trained, Scorer(learner, table, 1)(tasks).accuracy.mean())
    assert none < trained <= many + 0.1


def without(learner, name):
    """The learner's state less one entry."""
    return {key: value for key, value in learner.state_dict().items() if key != name}
