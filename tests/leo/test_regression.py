"""Learners of whole models: the layout of parameters, and gradients against a slow loop over tasks in float64."""

import math

import pytest
import torch
from torch.nn.functional import linear, mse_loss

from leo.functions import Functions, Lines
from leo.inference import MLP, squared_error
from leo.regression import ModelLEO, ModelMetaSGD
from tests.leo.test_functions import FAMILIES

SETTINGS = {
    "max_norm": 1.0,
    "num_inputs": 2,
    "num_latents": 3,
    "num_hidden": 4,
    "num_latent_steps": 2,
    "num_finetune_steps": 2,
    "latent_lr": 0.3,
    "finetune_lr": 0.05,
    "noise_scale": 0.5,
    "kl_weight": 0.5,
    "encoder_penalty_weight": 0.2,
    "l2_weight": 0.01,
    "orthogonality_weight": 0.1,
}


def make_leo(**changes):
    torch.manual_seed(0)
    return ModelLEO(model=MLP(sizes=[1, 4, 3, 1]), loss=squared_error, **SETTINGS | changes).double()


def make_tasks(num_tasks=3):
    functions = Functions(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3)
    tasks = functions.sample(num_tasks, 5, 4, torch.Generator().manual_seed(1))
    return type(tasks)(*(part.double() for part in tasks))


def gradients(learner, loss):
    parameters = dict(learner.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def test_the_papers_model_has_1761_parameters_layer_by_layer():
    mlp = MLP(sizes=[1, 40, 40, 1])
    assert len(mlp.scale) == 1761
    assert mlp.shapes == [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)]
    parts = mlp.split(torch.arange(2 * 1761.0).view(2, 1761))
    assert [list(part.shape) for part in parts] == [[2, *shape] for shape in mlp.shapes]
    assert [part[1].flatten()[0].item() - 1761 for part in parts] == [0, 40, 80, 1680, 1720, 1760]
    assert parts[2][0, 1, 0] == 80 + 40  # row by row
    assert mlp.scale[0].item() == pytest.approx(math.sqrt(2 / 41))
    assert mlp.scale[100].item() == pytest.approx(math.sqrt(2 / 80))


def test_the_model_is_the_perceptron_of_its_parameters():
    mlp, generator = MLP(sizes=[2, 4, 3, 2]), torch.Generator().manual_seed(0)
    parameters, x = torch.randn(3, len(mlp.scale), generator=generator), torch.randn(3, 5, 2, generator=generator)
    for row, inputs, actual in zip(parameters, x, mlp(parameters, x), strict=True):
        w1, b1, w2, b2, w3, b3 = row.split([8, 4, 12, 3, 6, 2])
        hidden = linear(inputs, w1.view(4, 2), b1).relu()
        expected = linear(linear(hidden, w2.view(3, 4), b2).relu(), w3.view(2, 3), b3)
        torch.testing.assert_close(actual, expected)


def test_the_generator_has_the_papers_sizes_and_no_bias():
    changes = {"num_latents": 16, "num_hidden": 32}
    leo = ModelLEO(model=MLP(sizes=[1, 40, 40, 1]), loss=squared_error, **SETTINGS | changes)
    shapes = {name: tuple(parameter.shape) for name, parameter in leo.named_parameters()}
    assert shapes == {
        "encoder.0.weight": (32, 2), "encoder.2.weight": (32, 32), "encoder.4.weight": (16, 32),
        "relation.first.weight": (32, 32), "relation.second.weight": (32, 32), "relation.third.weight": (32, 32),
        "decoder.0.weight": (32, 16), "decoder.2.weight": (32, 32), "decoder.4.weight": (2 * 1761, 32),
        "latent_lr": (16,), "finetune_lr": (1761,),
    }  # fmt: skip


def test_encoder_and_decoder_can_differ_in_width():
    """Table 3 lists 16 units for the encoder and 32 for the decoder."""
    changes = {"num_latents": 16, "num_hidden": 16, "num_decoder_hidden": 32}
    leo = ModelLEO(model=MLP(sizes=[1, 40, 40, 1]), loss=squared_error, **SETTINGS | changes)
    assert [tuple(leo.encoder[i].weight.shape) for i in (0, 2, 4)] == [(16, 2), (16, 16), (16, 16)]
    assert [tuple(leo.decoder[i].weight.shape) for i in (0, 2, 4)] == [(32, 16), (32, 32), (2 * 1761, 32)]


def oracle_loss(leo, tasks, noise):
    """Eq. 6 one task at a time: pairs one after another, plain functions, autograd through every step."""
    p = dict(leo.named_parameters())

    def network(name, x):
        return linear(
            linear(linear(x, p[f"{name}.0.weight"]).relu(), p[f"{name}.2.weight"]).relu(), p[f"{name}.4.weight"]
        )

    def model(w, x):
        w1, b1, w2, b2, w3, b3 = w.split([4, 4, 12, 3, 3, 1])
        return linear(linear(linear(x, w1.view(4, 1), b1).relu(), w2.view(3, 4), b2).relu(), w3.view(1, 3), b3)

    def step(start, rate, loss_of):
        (gradient,) = torch.autograd.grad(loss_of(start), start, create_graph=True)
        norm = (gradient * gradient).sum().sqrt()
        limit = math.inf if leo.max_norm is None else leo.max_norm
        return start - rate * (gradient if norm <= limit else gradient / norm * limit)

    scale = 0.5 * torch.tensor([(2 / 5) ** 0.5] * 8 + [(2 / 7) ** 0.5] * 15 + [(2 / 4) ** 0.5] * 4, dtype=torch.float64)

    def loss_of_task(i):
        x, y = tasks.support_x[i], tasks.support_y[i]
        codes = network("encoder", torch.cat([x, y], 1))
        related = []
        for a in codes:
            for b in codes:
                hidden = linear(torch.cat([a, b]), p["relation.first.weight"]).relu()
                related.append(linear(linear(hidden, p["relation.second.weight"]).relu(), p["relation.third.weight"]))
        mean, u = torch.stack(related).mean(0).chunk(2)
        sd = (1 + u.exp()).log() / math.log(2)
        z = first = mean + sd * noise.latents[i, 0, 0]

        def decode(z, s):
            mean, u = network("decoder", z).chunk(2)
            return mean + scale * (1 + u.exp()).log() / math.log(2) * noise.weights[s, i]

        for s in range(leo.num_latent_steps):
            z = step(z, p["latent_lr"], lambda z, s=s: mse_loss(model(decode(z, s), x), y))
        w = decode(z, leo.num_latent_steps)
        for _ in range(leo.num_finetune_steps):
            w = step(w, p["finetune_lr"], lambda w: mse_loss(model(w, x), y))
        posterior = torch.distributions.Normal(mean, sd)
        kl = (posterior.log_prob(first) - torch.distributions.Normal(0.0, 1.0).log_prob(first)).mean()
        query = mse_loss(model(w, tasks.query_x[i]), tasks.query_y[i])
        return query + leo.kl_weight * kl + leo.encoder_penalty_weight * (z.detach() - first).square().mean()

    losses = [loss_of_task(i) for i in range(len(tasks.support_x))]
    matrices = [value for value in p.values() if value.ndim == 2]
    l2 = sum(matrix.square().sum() for matrix in matrices) / 2
    distances = []
    for matrix in (p["decoder.0.weight"], p["decoder.2.weight"], p["decoder.4.weight"]):
        unit = matrix / matrix.norm(dim=0)
        distances.append((unit.T @ unit - torch.eye(matrix.shape[1], dtype=torch.float64)).square().mean())
    return torch.stack(losses).mean() + leo.l2_weight * l2 + leo.orthogonality_weight * sum(distances) / 3


@pytest.mark.parametrize(
    "changes",
    [
        {"max_norm": 1.0},
        {"max_norm": 1e6, "latent_lr": 0.01, "finetune_lr": 0.001},
        {"max_norm": None, "latent_lr": 0.01, "finetune_lr": 0.001},
    ],
    ids=["limited", "free", "without a limit"],
)
def test_loss_and_meta_gradient_are_those_of_a_slow_loop(changes):
    leo, tasks = make_leo(**changes), make_tasks()
    noise = leo.draw_noise(tasks, torch.Generator().manual_seed(2))
    loss, expected = leo.objective(tasks, noise)["loss"], oracle_loss(leo, tasks, noise)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    for name, gradient in gradients(leo, expected).items():
        torch.testing.assert_close(gradients(leo, leo.objective(tasks, noise)["loss"])[name], gradient, msg=name)


def test_finite_differences_of_the_meta_loss():
    """Along a random direction; the stop-gradient of the encoder penalty is left out."""
    leo, tasks = make_leo(encoder_penalty_weight=0.0), make_tasks()
    noise = leo.draw_noise(tasks, torch.Generator().manual_seed(2))
    exact = gradients(leo, leo.objective(tasks, noise)["loss"])
    start = {name: p.detach().clone() for name, p in leo.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in start.items()}
    losses = []
    for sign in (1, -1):
        leo.load_state_dict({name: start[name] + sign * 1e-6 * direction[name] for name in start})
        losses.append(leo.objective(tasks, noise)["loss"].item())
    slope = sum((exact[name] * direction[name]).sum() for name in start).item()
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_evaluation_takes_the_same_steps_without_keeping_them():
    leo, tasks = make_leo(), make_tasks()
    noise = leo.draw_noise(tasks, torch.Generator().manual_seed(2))
    path = leo.adaptation(tasks.support, noise)
    with torch.no_grad():
        sampled = leo.sample(tasks.support_x, tasks.support_y, torch.Generator().manual_seed(2))
    assert not sampled.requires_grad
    torch.testing.assert_close(sampled, path.weights.detach())
    other = leo.sample(tasks.support_x, tasks.support_y, torch.Generator().manual_seed(3))
    assert (other - sampled).abs().max() > 0.01  # evaluation samples too


@pytest.mark.parametrize("learn_rates", [True, False], ids=["Meta-SGD", "MAML"])
def test_meta_sgd_on_a_line_by_hand(learn_rates):
    """y = w x + b from (w, b), the loss (w x + b - y)^2 of one point: one step with rates (r, s), by hand."""
    functions = Functions(families=[Lines(slope=[-3.0, 3.0], intercept=[-3.0, 3.0])], inputs=[-5.0, 5.0], noise=0.0)
    tasks = functions.sample(2, 1, 1, torch.Generator().manual_seed(0))
    learner = ModelMetaSGD(
        model=MLP(sizes=[1, 1]), loss=squared_error, max_norm=1e6, num_steps=1, inner_lr=0.01, learn_rates=learn_rates
    )
    (w, b), (x, y, query_x, query_y) = learner.initial_parameters, (part[:, 0, 0] for part in tasks[:4])
    error = w * x + b - y
    adapted_w, adapted_b = w - 0.02 * error * x, b - 0.02 * error
    expected = (adapted_w * query_x + adapted_b - query_y).square().mean()
    loss = learner.meta_loss(tasks, torch.Generator())["loss"]
    torch.testing.assert_close(loss, expected)
    ours, by_hand = (torch.autograd.grad(value, learner.initial_parameters) for value in (loss, expected))
    torch.testing.assert_close(ours, by_hand)
    assert learner.inner_lr.requires_grad is learn_rates
