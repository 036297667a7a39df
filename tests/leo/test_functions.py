"""Distributions of functions, their families' fits, and what is ambiguous, on cases worked out by hand."""

import math

import pytest
import torch

from leo.families import FamilyShares
from leo.functions import Functions, Lines, Sinusoids, fit, nearest_family

SINUSOIDS = Sinusoids(amplitude=[0.1, 5.0], phase=[0.0, math.pi])
LINES = Lines(slope=[-3.0, 3.0], intercept=[-3.0, 3.0])
FAMILIES = [SINUSOIDS, LINES]


def sample(num_tasks=20_000, families=FAMILIES, noise=0.3, num_query=3):
    tasks = Functions(families=families, inputs=[-5.0, 5.0], noise=noise)
    return tasks.sample(num_tasks, 5, num_query, torch.Generator().manual_seed(0))


def grid(num_tasks=1):
    return torch.linspace(-5, 5, 101, dtype=torch.float64).view(1, -1, 1).expand(num_tasks, -1, -1)


def test_coefficients_are_uniform_in_amplitude_phase_slope_and_intercept():
    generator = torch.Generator().manual_seed(0)
    a, b = SINUSOIDS.draw(40_000, generator).unbind(1)
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    slope, intercept = LINES.draw(40_000, generator).unbind(1)
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, math.pi), (slope, -3, 3), (intercept, -3, 3)):
        assert low - 1e-5 <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-5
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
        assert values.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([amplitude, phase]))[0, 1]) < 0.02


def test_half_the_tasks_are_of_each_family():
    tasks = sample(num_query=20)
    share = nearest_family(FAMILIES, tasks.query_x.double(), tasks.truth.double()).double().mean()
    assert share.item() == pytest.approx(0.5, abs=0.015)  # four standard deviations of 20,000 coins


def test_inputs_noise_and_shapes():
    tasks = sample()
    assert [list(part.shape[1:]) for part in tasks] == [[5, 1], [5, 1], [3, 1], [3, 1], [3, 1]]
    x = torch.cat([tasks.support_x, tasks.query_x], 1)
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    assert x.std().item() == pytest.approx(10 / 12**0.5, rel=0.01)
    error = tasks.query_y - tasks.truth
    assert error.mean().item() == pytest.approx(0, abs=0.005)
    assert error.std().item() == pytest.approx(0.3, rel=0.02)
    clean = sample(100, [LINES], noise=0.0)  # support and queries are of one function
    x, y = torch.cat([clean.support_x, clean.query_x], 1), torch.cat([clean.support_y, clean.query_y], 1)
    assert fit([LINES], x, y).residual.max() < 1e-6
    assert torch.equal(clean.truth, clean.query_y)


def test_a_phase_shifts_a_sinusoid_to_the_right():
    x = torch.tensor([[0.0], [1.0]])
    coefficients = torch.tensor([2 * math.cos(1.0), -2 * math.sin(1.0)])  # amplitude 2, phase 1
    assert SINUSOIDS.contains(coefficients)
    expected = torch.tensor([2 * math.sin(-1.0), 0.0])
    torch.testing.assert_close((SINUSOIDS.basis(x) @ coefficients), expected)


@pytest.mark.parametrize(
    ("function", "family"),
    [
        (lambda x: 3 * torch.sin(x - 0.5), 0),
        (lambda x: 3 * torch.sin(x - 0.5) + 0.5, 0),
        (lambda x: 2 * x - 1, 1),
        (lambda x: 0 * x + 2.5, 1),
        (lambda x: 2 * x + torch.sin(x), 1),
    ],
    ids=["sinusoid", "lifted sinusoid", "line", "constant", "bent line"],
)
def test_a_function_belongs_to_the_nearest_family(function, family):
    assert nearest_family(FAMILIES, grid(), function(grid())).tolist() == [family]


def test_the_fit_is_that_of_the_normal_equations():
    x = torch.tensor([[[0.0], [1.0], [2.0]]])
    y = torch.tensor([[[0.0], [1.0], [0.0]]])  # the best line is 1/3, so the residual is 2/3
    assert fit([LINES], x, y).residual.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("points", "explained"),
    [
        ([(-1.0, -0.85), (0.0, 0.0), (1.0, 0.85)], [True, True]),  # sin x and 0.85 x
        ([(-3.0, -6.0), (0.0, 0.0), (3.0, 6.0)], [False, True]),  # sinusoids above 5
        ([(0.0, -2.0), (math.pi / 2, 0.0), (math.pi, 2.0), (2 * math.pi, -2.0)], [True, False]),
        ([(-1.0, -4.5), (0.0, 0.0), (1.0, 4.5)], [False, False]),  # slope 4.5, amplitude 5.3
    ],
    ids=["both", "line", "sinusoid", "neither"],
)
def test_what_explains_points(points, explained):
    shares = FamilyShares(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3)
    x, y = torch.tensor(points, dtype=torch.float64).unsqueeze(0).split(1, -1)
    assert shares.explained(x, y).tolist() == [explained]
    assert shares.ambiguous(x, y).tolist() == [all(explained)]


def test_the_limit_is_the_quantile_of_chi_squared():
    """The middle of three points is d above a line: the best line misses by 2/3 d^2. chi^2_0.95(3) = 7.815."""
    shares = FamilyShares(families=[LINES], inputs=[-5.0, 5.0], noise=0.3)
    limit = (7.815 * 0.09 * 1.5) ** 0.5
    for d, expected in ((0.99 * limit, True), (1.01 * limit, False)):
        x, y = torch.tensor([[[-1.0], [0.0], [1.0]]]), torch.tensor([[[0.0], [d], [0.0]]])
        assert shares.explained(x, y).tolist() == [[expected]]


def test_the_probability_of_a_family_is_that_of_an_integral_by_hand():
    """At x = 0 a line is its intercept, of density 1/6, and a sinusoid is -A sin(phase): never above 0, and at -2 of
    density 2 / (4.9 pi) * the integral of dA / sqrt(A^2 - 4) from 2 to 5."""
    shares = FamilyShares(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.1)
    x, y = torch.zeros(2, 1, 1), torch.tensor([2.0, -2.0]).view(2, 1, 1)
    sinusoid = 2 / (4.9 * math.pi) * math.acosh(2.5)
    expected = [0.0, sinusoid / (sinusoid + 1 / 6)]
    assert shares.probability(x, y, 100_000)[:, 0].tolist() == pytest.approx(expected, abs=0.01)


def test_a_family_is_less_probable_by_its_distance_to_the_points():
    """Lines that are 0 and lines that are 1, seen at 0 with noise 0.5: odds of exp(-1^2 / (2 * 0.5^2))."""
    zero, one = (Lines(slope=[-1e-4, 1e-4], intercept=[c - 1e-4, c + 1e-4]) for c in (0, 1))
    shares = FamilyShares(families=[zero, one], inputs=[-5.0, 5.0], noise=0.5)
    odds = math.exp(-2)
    actual = shares.probability(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 100)
    assert actual[0].tolist() == pytest.approx([1 / (1 + odds), odds / (1 + odds)], abs=1e-3)


def test_nearly_every_task_is_explained_by_its_own_family():
    tasks = sample(4000, num_query=20)
    shares = FamilyShares(families=FAMILIES, inputs=[-5.0, 5.0], noise=0.3)
    own = nearest_family(FAMILIES, tasks.query_x, tasks.truth)
    best = fit(FAMILIES, tasks.support_x, tasks.support_y).residual.gather(1, own.unsqueeze(1))
    assert (best <= 0.09 * 11.07).double().mean() > 0.95  # chi^2_0.95(5) = 11.07
    explained = shares.explained(tasks.support_x, tasks.support_y).gather(1, own.unsqueeze(1))
    assert explained.double().mean() > 0.75  # less: a best fit outside the limits does not count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lines(slope=[3.0, -3.0], intercept=[-3.0, 3.0]), r"slope=\[3.0, -3.0\] must be two rising numbers"),
        (lambda: Sinusoids(amplitude=[-1.0, 5.0], phase=[0.0, 3.0]), r"amplitude=\[-1.0, 5.0\] must not be negative"),
        (lambda: Functions(families=[LINES], inputs=[-5.0, 5.0], noise=-0.3), "noise=-0.3 is a standard deviation"),
    ],
)
def test_limits_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
