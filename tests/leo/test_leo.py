"""LEO and each of its ablations against a plain implementation that differentiates twice by autograd."""

import pytest
import torch

from benchmarks import reference
from leo.episodes import Tasks
from leo.leo import LEO, Noise

DEFAULTS = {
    "num_features": 12,
    "num_latents": 4,
    "latents": "class",
    "initial_code": "encoder",
    "stochastic": True,
    "num_latent_steps": 3,
    "num_finetune_steps": 2,
    "latent_lr": 0.5,
    "finetune_lr": 0.05,
    "dropout": 0.0,
    "kl_weight": 0.3,
    "encoder_penalty_weight": 0.2,
    "l2_weight": 0.01,
    "orthogonality_weight": 0.5,
}
ABLATIONS = {
    "full": {},
    "generator_only": {"num_latent_steps": 0, "num_finetune_steps": 0},
    "generator_finetuning": {"num_latent_steps": 0},
    "no_finetuning": {"num_finetune_steps": 0},
    "random_prior": {"initial_code": "prior"},
    "deterministic": {"stochastic": False},
    "dropout": {"dropout": 0.3},
}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    leo = LEO(**(DEFAULTS | changes)).double()
    with torch.no_grad():
        for name, parameter in leo.named_parameters():
            if name.endswith("_lr"):
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    return leo


def make_tasks(num_shot, num_tasks=2, num_way=3, num_query=2, num_features=12):
    generator = torch.Generator().manual_seed(7)
    shape = (num_tasks, num_way, num_shot + num_query, num_features)
    images = torch.nn.functional.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
    return Tasks(images[:, :, :num_shot], images[:, :, num_shot:])


def noise_of(leo, tasks, seed):
    """The draws that ``meta_loss`` makes from a generator with this seed."""
    return leo.draw_noise(tasks, torch.Generator().manual_seed(seed))


def gradients(leo, loss):
    leo.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in leo.named_parameters()}


def dropout_of(leo, noise, task):
    """The reference's dropout with the masks of ``noise``: encoder input, each inner step, then the queries."""
    if noise.support_bits is None:
        return reference.same
    masks = iter([*noise.support_bits[:, task], noise.query_bits[task]])
    dropped = round(leo.dropout * 2**16) / 2**16  # of the 2^16 numbers, those from the smallest up
    return lambda x: torch.where((next(masks).double() + 2**15) / 2**16 >= dropped, x / (1 - dropped), 0.0)


def oracle_loss(leo, tasks, noise, second_order=True):
    losses = []
    for i, (support, query) in enumerate(zip(*tasks, strict=True)):
        draws = None if noise.latents is None else reference.TaskNoise(noise.latents[i], noise.weights[:, i])
        drop = dropout_of(leo, noise, i)
        losses.append(reference.task_loss(leo, support, query, draws, drop, second_order=second_order))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("num_shot", [1, 5])
@pytest.mark.parametrize("latents", ["class", "example"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_loss_and_gradients_are_the_references(ablation, latents, num_shot):
    leo, tasks = make(latents=latents, **ABLATIONS[ablation]), make_tasks(num_shot)
    loss = leo.meta_loss(tasks, torch.Generator().manual_seed(3))["loss"]
    expected = oracle_loss(leo, tasks, noise_of(leo, tasks, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    expected_gradients = gradients(leo, expected)
    for name, gradient in gradients(leo, loss).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("detached", ["latent_lr", "finetune_lr"])
def test_gradients_go_through_every_inner_step(detached):
    """Detaching the gradient of either loop changes the meta-gradient of the networks by far more than rounding."""
    steps = {"num_finetune_steps": 0} if detached == "latent_lr" else {"num_latent_steps": 0}
    leo, tasks = make(**steps), make_tasks(2)
    noise = noise_of(leo, tasks, 3)
    exact = gradients(leo, leo.meta_loss(tasks, torch.Generator().manual_seed(3))["loss"])
    first_order = gradients(leo, oracle_loss(leo, tasks, noise, second_order=False))
    difference = (exact["decoder.linear.weight"] - first_order["decoder.linear.weight"]).norm()
    assert difference / exact["decoder.linear.weight"].norm() > 1e-2


def test_finite_differences_of_the_meta_loss():
    """Along a random direction of all parameters; the stop-gradient of the encoder penalty is left out."""
    leo, tasks = make(encoder_penalty_weight=0.0), make_tasks(2)
    exact = gradients(leo, leo.meta_loss(tasks, torch.Generator().manual_seed(3))["loss"])
    direction = {name: torch.randn_like(p) for name, p in leo.named_parameters()}
    start = {name: p.detach().clone() for name, p in leo.named_parameters()}
    losses = []
    for sign in (1, -1):
        leo.load_state_dict({name: start[name] + sign * 1e-6 * direction[name] for name in start})
        losses.append(leo.meta_loss(tasks, torch.Generator().manual_seed(3))["loss"].item())
    slope = sum((exact[name] * direction[name]).sum() for name in start)
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope.item(), rel=1e-6)


def test_evaluation_neither_samples_nor_drops():
    tasks = make_tasks(2)
    weights = make(dropout=0.5).adapt(tasks.support)
    torch.testing.assert_close(weights, make(dropout=0.0).adapt(tasks.support), rtol=0, atol=0)
    noise = noise_of(make(), tasks, 0)
    zero_noise = Noise(torch.zeros_like(noise.latents), torch.zeros_like(noise.weights))
    torch.testing.assert_close(weights, make().adaptation(tasks.support, zero_noise).weights)


def test_latents_of_class_and_example_agree_for_one_shot():
    tasks = make_tasks(1)
    by_class, by_example = (make(latents=latents).adapt(tasks.support) for latents in ("class", "example"))
    torch.testing.assert_close(by_class, by_example)
    more = make_tasks(3)
    by_class, by_example = (make(latents=latents).adapt(more.support) for latents in ("class", "example"))
    assert (by_class - by_example).abs().max() > 1e-3  # M vectors share the gradient: smaller steps
