"""Updates on batches with diverged tasks: against the batch without them, the released formula, and their count."""

import copy

import pytest
import torch

from leo.captured_update import OptimisticUpdate
from leo.diverged import DivergedTasks
from leo.episodes import Tasks
from leo.functions import Functions
from leo.inference import MLP, squared_error
from leo.learner import MetaLearner
from leo.meta_sgd import MetaSGD
from leo.noise import NO_NOISE
from leo.regression import ModelLEO
from leo.stream import BatchStream
from leo.update import MetaUpdate, take
from tests.leo.test_functions import FAMILIES
from tests.leo.test_leo import make, make_tasks
from tests.leo.test_regression import SETTINGS


class Given(BatchStream):
    """Batches that are there already."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)

    def draw(self, num_tasks):
        raise NotImplementedError

    def gather(self, batch):
        return batch


def updating(kind, learner, **changes):
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    settings = {"stream": Given(), "clip_value": 0.1, "clip_norm": 0.1, "diverged": "skip"} | changes
    return kind(learner, optimizer, schedule, generator=torch.Generator().manual_seed(5), **settings)


def spoil(tasks, row, value):
    """The same tasks with a support that makes one of them diverge, and nothing else."""
    support = tasks.support.clone()
    support[row] *= value
    return tasks._replace(support=support)


def noise_without(learner, tasks, rows, seed=5):
    """The noise that an update of all ``tasks`` draws, of some of them."""
    return learner.draw_noise(tasks, torch.Generator().manual_seed(seed)).of_tasks(rows)


CASES = {"overflow": 1e200, "infinite": float("inf"), "not a number": float("nan")}


@pytest.mark.parametrize("learner", ["closed_form", "autograd", "example", "meta_sgd"])
@pytest.mark.parametrize("value", CASES.values(), ids=CASES)
def test_a_batch_of_twelve_with_a_diverged_task_is_the_batch_of_eleven(learner, value):
    """Loss, gradients and the step, bit for bit: nothing of the task leaks through what all tasks share."""
    if learner == "meta_sgd":
        torch.manual_seed(0)
        ours = MetaSGD(num_features=12, num_way=3, num_steps=3, inner_lr=0.3, l2_weight=0.01).double()
    else:
        changes = {"latents": "example"} if learner == "example" else {"inner_loops": learner}
        ours = make(dropout=0.2, **changes)
    tasks, theirs = make_tasks(2, num_tasks=12), copy.deepcopy(ours)
    kept = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    eleven = updating(MetaUpdate, theirs)
    terms = eleven.differentiate(take(tasks, kept), noise_without(theirs, tasks, kept))
    eleven.descend()
    (outcome,) = updating(MetaUpdate, ours)([spoil(tasks, 5, value)])
    assert outcome.num_diverged == 1
    assert outcome.terms.keys() == terms.keys()
    for name, value in terms.items():
        assert torch.equal(outcome.terms[name], value), name
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
        assert torch.equal(one, other), name


def test_a_batch_without_a_finite_task_changes_neither_weights_nor_adams_state():
    learner, tasks = make(), make_tasks(2, num_tasks=3)
    update = updating(MetaUpdate, learner)
    update([tasks])
    weights = copy.deepcopy(learner.state_dict())
    state = copy.deepcopy(update.optimizer.state_dict()["state"])
    (outcome,) = update([tasks._replace(support=tasks.support * float("nan"))])
    assert outcome == (None, 3)
    for name, value in learner.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for i, of_parameter in update.optimizer.state_dict()["state"].items():
        for name, value in of_parameter.items():
            assert torch.equal(value, state[i][name]), name
    assert update.schedule.last_epoch == 2  # the schedule counts updates


class Root(MetaLearner):
    """The loss of a task is the square root of the distance of a weight, 2, from its support."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def objective(self, tasks, noise):
        return {"loss": (self.weight - tasks.support).abs().sqrt().mean()}


def test_a_task_whose_gradient_alone_is_not_finite_is_found():
    """Distances 1, 0 and 4: the second loss is 0, and has no gradient."""
    tasks = Tasks(torch.tensor([1.0, 2.0, -2.0]), torch.zeros(3))
    update = updating(MetaUpdate, Root())
    assert update.finite_tasks(tasks, NO_NOISE).tolist() == [True, False, True]
    (outcome,) = update([tasks])
    assert outcome.num_diverged == 1
    assert outcome.terms["loss"].item() == pytest.approx((1 + 2) / 2)
    assert update.learner.weight.grad.item() == pytest.approx(0.1)  # (1/2 + 1/4) / 2, clipped


def test_a_model_whose_parameters_are_not_finite_diverges_though_its_loss_is():
    """tanh hides an infinite weight from the loss, not from the update."""

    class Bounded(torch.nn.Module):
        scale = torch.ones(1)

        def forward(self, parameters, x):
            return torch.tanh(parameters.unsqueeze(1) * x)

    torch.manual_seed(0)
    leo = ModelLEO(model=Bounded(), loss=squared_error, **SETTINGS | {"max_norm": None})
    tasks = Functions(families=FAMILIES, inputs=[1.0, 5.0], noise=0.0).sample(4, 3, 2, torch.Generator())
    infinite = torch.tensor([[1.0], [torch.inf], [1.0], [1.0]])
    assert leo.loss(leo.model(infinite, tasks.query_x), tasks.query_y).isfinite().all()
    assert leo.query_loss(infinite, tasks.query).isfinite().tolist() == [True, False, True, True]


@pytest.mark.parametrize("l2_weight", [0.0, 0.01])
def test_decay_is_the_released_codes_gradient(l2_weight):
    """In place of a NaN gradient that of 1e-4 / lambda_1 * (lambda_1 / 2 * sum of W^2) by autograd; clipped; Adam."""
    learner, tasks = make(l2_weight=l2_weight), make_tasks(2, num_tasks=4)
    theirs, update = copy.deepcopy(learner), updating(MetaUpdate, learner, diverged="decay")
    (outcome,) = update([spoil(tasks, 1, float("nan"))])
    assert outcome == (None, 1)
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim == 2]
    weight = l2_weight or 1.0  # which cancels out
    (1e-4 / weight * sum(weight * matrix.square().sum() / 2 for matrix in matrices)).backward()
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.1)
    for parameter in theirs.parameters():
        torch.nn.utils.clip_grad_norm_(parameter, 0.1)
    torch.optim.Adam(theirs.parameters(), lr=0.01).step()
    for (name, one), other in zip(learner.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(one, other[1], msg=name)
    assert torch.equal(learner.latent_lr, make(l2_weight=l2_weight).latent_lr)  # 0 for the learned rates


def test_an_infinite_gradient_is_clipped_by_the_released_answer_and_skipped_by_ours():
    released, ours = updating(MetaUpdate, Root(), diverged="decay"), updating(MetaUpdate, Root())
    for update, sound in ((released, (True, True, False)), (ours, (True, False, False))):
        for gradient, expected in zip((1e30, torch.inf, torch.nan), sound, strict=True):  # the square of 1e30 overflows
            update.learner.weight.grad = torch.tensor(gradient)
            assert update.is_sound({"loss": torch.tensor(1.0)}) is expected
            assert update.is_sound({"loss": torch.tensor(gradient)}) is expected


def test_stop_names_the_step_and_the_last_finite_loss():
    update = updating(MetaUpdate, make(), diverged="stop", num_updates=100)
    tasks = make_tasks(2, num_tasks=3)
    last = update([tasks])[0].terms["loss"].item()
    with pytest.raises(
        ValueError, match=rf"the training loss is not finite \(nan\) at step 101 \(last finite loss {last}"
    ):
        update([spoil(tasks, 0, float("nan"))])


@pytest.mark.parametrize("diverged", ["skip", "decay"])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_looking_once_after_several_updates_gives_the_same_weights(diverged, place):
    """An update that cannot look goes back and makes them again: weights, Adam's state, noise and schedule."""
    tasks = make_tasks(2, num_tasks=3)
    batches = [spoil(tasks, 1, float("nan")) if i == place else tasks for i in range(6)]
    one, other = make(dropout=0.2), make(dropout=0.2)
    plain, optimistic = (
        updating(MetaUpdate, one, diverged=diverged),
        updating(OptimisticUpdate, other, diverged=diverged),
    )
    expected = plain(batches[:3]) + plain(batches[3:])
    actual = optimistic(batches[:3]) + optimistic(batches[3:])
    assert [outcome.num_diverged for outcome in actual] == [outcome.num_diverged for outcome in expected]
    for (name, parameter), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same), name
    assert plain.schedule.state_dict() == optimistic.schedule.state_dict()
    assert torch.equal(plain.generator.get_state(), optimistic.generator.get_state())


def test_the_share_of_diverged_tasks_is_of_the_last_thousand_updates():
    counted = DivergedTasks(0.1, 10)
    for step in range(1000):
        counted.add(1, step)  # exactly one tenth
    with pytest.raises(ValueError, match="1001 of the 10000 tasks of the last 1000 updates diverged, at step 1000"):
        counted.add(2, 1000)
    calm = DivergedTasks(0.1, 10)
    for step in range(5000):
        calm.add(10 if step % 100 == 50 else 0, step)
    assert calm.total == 500
    bad = DivergedTasks(0.1, 10)
    for step in range(10):
        bad.add(10, step)  # all of them, but no more than a tenth of a hundred updates
    with pytest.raises(ValueError, match="110 of the 110 tasks of the last 11 updates diverged, at step 10"):
        bad.add(10, 10)


def test_the_count_goes_on_from_a_checkpoint():
    counted = DivergedTasks(0.1, 10)
    for step in range(1500):
        counted.add(step % 2, step)
    resumed = DivergedTasks(0.1, 10)
    resumed.load_state_dict(counted.state_dict())
    assert (resumed.total, sum(resumed.recent), len(resumed.recent)) == (750, 500, 1000)


def test_the_plain_generator_of_a_whole_model_trains_without_a_limit():
    """One task whose targets overflow among four: the others train as if it were not there."""
    torch.manual_seed(0)
    leo = ModelLEO(model=MLP(sizes=[1, 4, 3, 1]), loss=squared_error, **SETTINGS | {"max_norm": None}).double()
    tasks = Functions(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3).sample(
        4, 5, 4, torch.Generator().manual_seed(1)
    )
    tasks = type(tasks)(*(part.double() for part in tasks))
    support_y = tasks.support_y.clone()
    support_y[2] = 1e200
    update = updating(MetaUpdate, leo)
    (outcome,) = update([tasks._replace(support_y=support_y)])
    assert outcome.num_diverged == 1
    assert all(parameter.isfinite().all() for parameter in leo.parameters())
