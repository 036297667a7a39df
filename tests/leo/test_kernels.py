"""The C kernels against the same steps in torch; their random numbers; and a machine without a compiler."""

import os
import subprocess
import sys

import pytest
import torch

from leo import kernels, steps
from leo.episodes import Tasks
from leo.meta_sgd import MetaSGD
from tests.leo.test_leo import make

SIZES = {  # B, N, M, K, D: one more than a vector holds, fewer, classes beyond one tile
    "usual": (4, 5, 1, 1, 64),
    "codes of examples": (3, 5, 4, 4, 33),
    "many classes": (2, 13, 1, 2, 19),
    "small": (1, 2, 3, 3, 3),
}


@pytest.fixture(autouse=True)
def _kernels_are_there():
    assert kernels.library(torch.float32) is not None, "these tests need a C compiler, as the kernels do"


@pytest.fixture(params=[1, 2])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_decoding():
    torch.manual_seed(0)
    parameters, eps = draw(7, 2 * 21), draw(7, 21)
    parameters[0, 21:] = -5.0  # at the floor of the standard deviation
    for ours, theirs in zip(kernels.decode(parameters, eps, 5), steps.decode(parameters, eps, 5), strict=True):
        close(ours, theirs)


def test_exp_in_float32():
    """Through a decoding: w = mean + (exp(u) - offset) eps, with mean 0 and eps 1."""
    u = torch.cat([torch.linspace(-100, 100, 20_001), torch.tensor([0.0, float("inf"), -float("inf"), float("nan")])])
    parameters, eps = torch.stack([torch.zeros_like(u), u], 1), torch.ones(len(u), 1)
    _, slope = kernels.decode(parameters, eps, 1)
    exact = u.double().exp().float()
    expected = torch.where(exact <= 1e-10, 0.0, exact)  # D = N = 1: an offset of 0, and the slope is 0 at the floor
    torch.testing.assert_close(slope.flatten(), expected, rtol=3e-7, atol=0, equal_nan=True)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_gradient_and_hessian(sizes, sampled):
    torch.manual_seed(0)
    num_tasks, num_way, num_codes, num_shot, num_features = sizes
    num_rows, width = num_tasks * num_way * num_codes, num_features * (2 if sampled else 1)
    weights, images = draw(num_rows, num_features), draw(num_tasks, num_way * num_shot, num_features)
    slope, to_factor = draw(num_rows, num_features) if sampled else None, draw(num_rows, width)
    found = []
    for form in (kernels, steps):
        factor, out = draw(num_rows, width), draw(num_rows, width)
        p = form.gradient(weights, slope, images, num_tasks, num_way, factor, None)
        form.hessian(to_factor, slope, images, p, factor, out, None)
        found.append((factor, out, p if form is steps else p.mT))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("rates_of", ["features", "weights"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_step_of_fine_tuning(sizes, rates_of):
    torch.manual_seed(0)
    num_tasks, num_way, _, num_shot, num_features = sizes
    weights, images = draw(num_tasks, num_way, num_features), draw(num_tasks, num_way * num_shot, num_features)
    rate = draw(num_features) if rates_of == "features" else draw(num_way, num_features)
    to_weights, to_rate = draw(*weights.shape), draw(*weights.shape)
    found = []
    for form in (kernels, steps):
        stepped, before, of_rate = torch.empty_like(weights), to_weights.clone(), to_rate.clone()
        p, gradient = form.weight_step(weights, rate, images, stepped, None)
        form.weight_step_backward(before, of_rate, rate, images, p, gradient, None)
        found.append((stepped, gradient, before, of_rate))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("num_query", [1, 7])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_queries(sizes, num_query, dropped):
    torch.manual_seed(0)
    num_tasks, num_way, _, _, num_features = sizes
    weights, images = draw(num_tasks, num_way, num_features), draw(num_tasks, num_way, num_query, num_features)
    generator = torch.Generator().manual_seed(1)
    bits = kernels.random_bits(*images.shape, device=images.device, generator=generator) if dropped else None
    for ours, theirs in zip(
        kernels.query(weights, images, bits, 0.3), steps.query(weights, images, bits, 0.3), strict=True
    ):
        close(ours, theirs)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_pairs_of_images(sizes):
    torch.manual_seed(0)
    num_tasks, num_way, _, num_shot, width = sizes
    num_images = num_way * num_shot
    halves, hidden = draw(num_tasks, num_images, 2 * width), draw(num_tasks, num_images, num_images, width)
    to_means, to_pairs = draw(num_tasks, num_way, width), draw(*hidden.shape)
    found = []
    for form in (kernels, steps):
        met = form.pairs(halves)
        found.append((
            met, form.pairs_backward(to_pairs.clone(), met), form.pair_means(hidden, num_way),
            form.pair_means_backward(to_means, hidden),
        ))  # fmt: skip
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs)


@pytest.mark.usefixtures("_threads")
def test_dropout_under_several_masks():
    x = torch.randn(3, 4, 5)
    bits = kernels.random_bits(6, *x.shape, device=x.device, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kernels.dropout(x, 0.3, bits), steps.dropout(x, 0.3, bits))


def objective_and_gradients(learner, tasks, noise):
    terms = learner.objective(tasks, noise)
    gradients = torch.autograd.grad(terms["loss"], list(learner.parameters()))
    return [*terms.values(), *gradients]


@pytest.mark.parametrize("num_shot", [1, 3])
@pytest.mark.parametrize("latents", ["class", "example", "meta_sgd"])
def test_a_learners_objective_is_the_same_without_them(latents, num_shot, monkeypatch):
    torch.manual_seed(0)
    if latents == "meta_sgd":
        learner = MetaSGD(num_features=12, num_way=3, num_steps=3, inner_lr=0.3, l2_weight=0.01).double()
    else:
        learner = make(latents=latents, dropout=0.2)
    tasks = Tasks(0.3 * draw(4, 3, num_shot, 12), 0.3 * draw(4, 3, 5, 12))
    noise = learner.draw_noise(tasks, torch.Generator().manual_seed(1))
    called = []
    monkeypatch.setattr(
        kernels, "call", lambda name, *a, call=kernels.call, **k: (called.append(name), call(name, *a, **k))
    )
    ours = objective_and_gradients(learner, tasks, noise)
    assert "leo_query" in called
    monkeypatch.setattr(kernels, "_wanted", False)
    called.clear()
    theirs = objective_and_gradients(learner, tasks, noise)
    assert not called
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_stays_so(value):
    """A diverged task must be seen as one."""
    learner, tasks = make(dropout=0.2).float(), Tasks(torch.randn(4, 3, 2, 12), torch.randn(4, 3, 5, 12))
    tasks.support[1, 0, 0] = value
    terms = learner.objective(tasks, learner.draw_noise(tasks, torch.Generator().manual_seed(0)))
    assert not terms["query_loss"].isfinite()


def test_normal_draws():
    """Moments, tails and independence of neighbours, of lanes and of seeds, each within four standard deviations."""
    like, generator, count = torch.empty(0), torch.Generator().manual_seed(0), 2_000_003
    x, y = (kernels.normal(count, like=like, generator=generator).double() for _ in range(2))
    powers = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # of a standard normal number: mean and variance
    for power, (mean, variance) in powers.items():
        assert abs((x**power).mean() - mean) < 4 * (variance / count) ** 0.5, power
    for bound, share in ((1, 0.317311), (2, 0.0455003), (3, 0.0026998), (4, 6.3342e-5)):
        assert abs((x.abs() > bound).double().mean() - share) < 4 * (share / count) ** 0.5, bound
    pairs = [(x, y), *((x[lag:], x[:-lag]) for lag in (1, 2, 16, 31, 32, 64))]
    for a, b in pairs:
        for of_a, of_b in ((a, b), (a.square(), b.square())):
            assert abs(torch.corrcoef(torch.stack([of_a, of_b]))[0, 1]) < 4 / count**0.5
    again = kernels.normal(count, like=like, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(x, again)


def test_random_bits():
    """Each of the sixteen bits is set half of the time, and none goes with another or with its neighbour's."""
    count = 1_000_001
    drawn = kernels.random_bits(count, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0)).int()
    bits = torch.stack([(drawn >> i) & 1 for i in range(16)]).double()
    assert (bits.mean(1) - 0.5).abs().max() < 4 * 0.5 / count**0.5
    together = torch.cat([bits[:, 1:], bits[:, :-1]])
    others = torch.corrcoef(together) - torch.eye(32)
    assert others.abs().max() < 5 / count**0.5  # of 496 pairs


PROGRAM = """
import logging, torch
logging.basicConfig(level="INFO")
from leo import kernels, steps
assert (kernels.steps_for(torch.zeros(2)) is steps) == {alone}
"""


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "there is no C compiler"), ("false", "")])
def test_without_a_compiler_torch_does_it_all(compiler, reason, tmp_path):
    environment = os.environ | {"CC": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(alone=True)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("torch alone does the updates") == 1
    assert reason in done.stderr


def test_they_are_compiled_once(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", PROGRAM.format(alone=False)], env=environment, check=True)
        (made,) = (tmp_path / "leo").iterdir()
        assert made.suffix == ".so"
        environment["CC"] = os.environ.get("CC", "cc")  # the same one, said


def test_those_who_do_not_want_them_get_torch(monkeypatch):
    monkeypatch.setattr(kernels, "_wanted", True)
    kernels.use(False)
    assert kernels.steps_for(torch.zeros(2)) is steps


def test_they_take_dense_tensors_of_one_type_alone():
    x = torch.zeros(4, 4)
    assert kernels.steps_for(x, x) is kernels
    for other in (x.T[:, :2], x.double(), x.half()):
        assert kernels.steps_for(x, other) is steps
    assert kernels.steps_for(x.half()) is steps
