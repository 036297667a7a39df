"""Any module as the model that learners generate: its predictions, derivatives, initial spread, and what is refused."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from leo.any_module import AnyModule
from leo.inference import MLP, squared_error
from leo.recurrent import FreeRunning
from leo.regression import ModelLEO, ModelMetaSGD
from runner.errors import InputError


def perceptron():
    return nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 3))


def attention():
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 4), block, nn.Flatten(), nn.Linear(20, 2))


class Recurrent(nn.Module):
    """Torch's own recurrent layers, for which vmap has no rule."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.readout = kind(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.readout(self.layer(x.unsqueeze(-1))[0][:, -1])


class Cell(nn.Module):
    """A recurrent cell, for which vmap takes the tasks apart by itself."""

    def __init__(self):
        super().__init__()
        self.cell, self.readout = nn.GRUCell(1, 4), nn.Linear(4, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 4)
        for number in x.split(1, dim=1):
            state = self.cell(number, state)
        return self.readout(state)


def loaded(module, parameters):
    """``module`` with its own parameters set to ``parameters``, one after another."""
    with torch.no_grad():
        for own in module.parameters():
            part, parameters = parameters[: own.numel()], parameters[own.numel() :]
            own.copy_(part.view(own.shape))
    assert not len(parameters)
    return module


@pytest.mark.parametrize(
    ("make", "num_inputs", "one_by_one"),
    [
        (perceptron, 2, False),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)), 5, False),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten()),
            5,
            False,
        ),
        (attention, 5, False),
        (partial(FreeRunning, num_hidden=3, num_predicted=4), 5, False),
        (partial(Recurrent, nn.LSTM), 5, True),
        (partial(Recurrent, nn.GRU), 5, True),
        (Cell, 5, True),
    ],
)
def test_each_task_has_the_module_with_its_own_parameters(make, num_inputs, one_by_one, caplog):
    """Predictions, and their first and second derivatives, of modules that hold the parameters themselves."""
    model = AnyModule(make=make).double()
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, len(model.scale), dtype=torch.float64, generator=generator).mul_(0.5).requires_grad_()
    x = torch.randn(3, 4, num_inputs, dtype=torch.float64, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictions = model(parameters, x)
    assert model.one_by_one is one_by_one
    assert ("one task after another" in caplog.text) is one_by_one
    (slope,) = torch.autograd.grad(predictions.square().sum(), parameters, create_graph=True)
    (curve,) = torch.autograd.grad(slope.square().sum(), parameters)
    for task in range(3):
        module = loaded(make().double(), model.centre + parameters[task].detach())
        expected = module(x[task])
        torch.testing.assert_close(predictions[task], expected)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            own = list(module.parameters())
            first = torch.autograd.grad(module(x[task]).square().sum(), own, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), own)
        torch.testing.assert_close(slope[task], torch.cat([g.flatten() for g in first]))
        torch.testing.assert_close(curve[task], torch.cat([g.flatten() for g in second]))


def test_learners_do_with_a_module_what_they_do_with_the_written_perceptron():
    """The same network as ``MLP``, whose parameters have the same order; other spread, so scale is set equal."""
    settings = {"loss": squared_error, "max_norm": 1.0}
    leo = {
        "num_inputs": 5, "num_latents": 4, "num_hidden": 6, "num_latent_steps": 2, "num_finetune_steps": 2,
        "latent_lr": 0.1, "finetune_lr": 0.1, "noise_scale": 0.5, "kl_weight": 0.1, "encoder_penalty_weight": 0.1,
        "l2_weight": 0.0, "orthogonality_weight": 0.0,
    }  # fmt: skip
    meta_sgd = {"num_steps": 3, "inner_lr": 0.1, "learn_rates": True}
    x, y = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 3).double()
    for kind, more in ((ModelLEO, leo), (ModelMetaSGD, meta_sgd)):
        adapted = []
        for model in (MLP(sizes=[2, 7, 3]), AnyModule(make=perceptron)):
            model.scale = torch.full_like(model.scale, 0.3)
            torch.manual_seed(1)
            learner = kind(model=model, **settings, **more).double()
            adapted.append(learner.sample(x, y, torch.Generator().manual_seed(2)))
        torch.testing.assert_close(*adapted)


def test_the_spread_is_that_of_the_modules_own_initialisation():
    """A linear layer: uniform to +-1/sqrt(in). A layer norm: weights 1, biases 0, always. Torch's generator stays."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = AnyModule(make=lambda: nn.Sequential(nn.Linear(400, 50), nn.LayerNorm(50)))
    assert torch.equal(torch.rand(1), expected)
    linear, norm = model.scale.split([401 * 50, 100])
    torch.testing.assert_close(linear, torch.full_like(linear, 1 / math.sqrt(3 * 400)), rtol=0.05, atol=0)
    assert not norm.any()
    assert torch.equal(model.centre, torch.cat([torch.zeros(401 * 50), torch.ones(50), torch.zeros(50)]))


def test_a_mean_that_is_no_chance_is_the_centre():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(3 + 0.1 * torch.randn(100, 1))

        def forward(self, x):
            return x @ self.weight

    model = AnyModule(make=Shifted)
    torch.testing.assert_close(model.centre, torch.full((100,), 3.0), rtol=0, atol=0.01)
    torch.testing.assert_close(model.scale, torch.full((100,), 0.1), rtol=0.1, atol=0)


def test_what_is_tied_is_generated_once_and_what_is_frozen_is_kept():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight
            self.frozen = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
            self.register_buffer("shift", torch.tensor([5.0, 0.0, 0.0]))

        def forward(self, x):
            return self.second(self.first(x)) * self.frozen + self.shift

    model = AnyModule(make=Tied)
    assert len(model.scale) == 9
    assert not list(model.parameters())
    weights, x = torch.randn(2, 3, 3), torch.randn(2, 4, 3)
    expected = x @ weights.mT @ weights.mT * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([5.0, 0.0, 0.0])
    torch.testing.assert_close(model(weights.flatten(1), x), expected)


def test_the_order_of_the_parameters_is_in_the_checkpoint(tmp_path):
    model = AnyModule(make=perceptron)
    state = model.state_dict()
    assert state["_extra_state"] == {
        "names": ["0.weight", "0.bias", "2.weight", "2.bias"], "shapes": [[7, 2], [7], [3, 7], [3]],
    }  # fmt: skip
    torch.save(state, tmp_path / "state.pt")
    model.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other = AnyModule(make=lambda: nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 4)))
    assert len(other.scale) != len(model.scale)
    swapped = AnyModule(make=lambda: nn.Sequential(nn.Linear(2, 7), nn.Linear(7, 3)))
    with pytest.raises(InputError, match=r"generates 0.weight \[7, 2\].* has 0.weight \[7, 2\].*1.weight \[3, 7\]"):
        swapped.load_state_dict(state)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(nn.functional.dropout(x, 0.5, training=True))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), r"BatchNorm1d \(1\) keeps running means"),
        (lambda: nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.1)), r"Dropout \(1\) drops out at random"),
        (lambda: nn.LSTM(1, 2, num_layers=2, dropout=0.2), "LSTM drops out at random"),
        (lambda: nn.LazyLinear(3), "holds a lazy layer"),
        (nn.ReLU, "no parameter that could be generated"),
        (nn.Linear(2, 1), "make must be what makes a fresh module"),
        (lambda: nn.Linear(3, 1), r"cannot be computed .* on inputs \[n, X\] = \[4, 2\]"),
        (lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), r"gives \[4\] for inputs \[4, 2\]"),
        (Random, "is random: two passes over the same inputs differ"),
        (Counting, "changes its buffers"),
    ],
)
def test_what_cannot_be_a_tasks_own_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        AnyModule(make=make)(torch.zeros(2, 3), torch.randn(2, 4, 2))
