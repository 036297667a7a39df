"""Tasks of regression (Section 4.1): functions of one number, drawn from families, seen at a few noisy points."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from runner.errors import InputError


class Examples(NamedTuple):
    """Inputs and targets of each task. The last dimension is of one example."""

    x: Float[Tensor, "B n X"]
    y: Float[Tensor, "B n Y"]


class ModelTasks(NamedTuple):
    """A batch of tasks for learners that generate a whole model. The last dimension is of one example.

    ``truth`` is what the queries are judged by in testing: their targets without noise.
    """

    support_x: Float[Tensor, "B K X"]
    support_y: Float[Tensor, "B K Y"]
    query_x: Float[Tensor, "B Q X"]
    query_y: Float[Tensor, "B Q Y"]
    truth: Float[Tensor, "B Q Y"]

    @property
    def support(self) -> Examples:
        """What a learner adapts to."""
        return Examples(self.support_x, self.support_y)

    @property
    def query(self) -> Examples:
        """What it is judged by in training."""
        return Examples(self.query_x, self.query_y)


@runtime_checkable
class Family(Protocol):
    """Functions y = basis(x) . coefficients; linear in these, so that the best fit of points is least squares."""

    name: str

    def basis(self, x: Float[Tensor, "*any 1"]) -> Float[Tensor, "*any 2"]:
        """The two functions of x that are combined."""

    def draw(self, num_functions: int, generator: torch.Generator) -> Float[Tensor, "{num_functions} 2"]:
        """Coefficients of random functions."""

    def contains(self, coefficients: Float[Tensor, "*any 2"]) -> Tensor:
        """Whether a function can be drawn."""


def uniform(limits: Sequence[float], count: int, generator: torch.Generator) -> Float[Tensor, " {count}"]:
    """``count`` uniform numbers between the two ``limits``, on the device of ``generator``."""
    low, high = limits
    return low + (high - low) * torch.rand(count, device=generator.device, generator=generator)


def check_limits(**ranges: Sequence[float]) -> None:
    """Raise where a range is not two rising numbers."""
    for name, limits in ranges.items():
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise InputError(f"{name}={list(limits)} must be two rising numbers, as [-3, 3]")


class Sinusoids:
    """amplitude * sin(x - phase), both uniform in their limits; basis (sin x, cos x).

    Args:
        amplitude: limits, positive.
        phase: limits in radians, within [0, 2 pi].
    """

    name = "sinusoid"

    def __init__(self, *, amplitude: Sequence[float], phase: Sequence[float]) -> None:
        check_limits(amplitude=amplitude, phase=phase)
        if amplitude[0] < 0 or phase[0] < 0 or phase[1] > 2 * math.pi:
            raise InputError(
                f"amplitude={list(amplitude)} must not be negative, and phase={list(phase)} lie within [0, 2 pi], "
                f"so that a sinusoid is named by one pair of them"
            )
        self.amplitude, self.phase = amplitude, phase

    def basis(self, x: Float[Tensor, "*any 1"]) -> Float[Tensor, "*any 2"]:
        """sin x and cos x."""
        return torch.cat([x.sin(), x.cos()], -1)

    def draw(self, num_functions: int, generator: torch.Generator) -> Float[Tensor, "{num_functions} 2"]:
        """amplitude * (cos phase, -sin phase)."""
        amplitude, phase = (uniform(limits, num_functions, generator) for limits in (self.amplitude, self.phase))
        return torch.stack([amplitude * phase.cos(), -amplitude * phase.sin()], -1)

    def contains(self, coefficients: Float[Tensor, "*any 2"]) -> Tensor:
        """Whether amplitude and phase are within their limits."""
        a, b = coefficients.unbind(-1)
        amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a).remainder(2 * math.pi)
        return within(amplitude, self.amplitude) & within(phase, self.phase)


class Lines:
    """slope * x + intercept, both uniform in their limits; basis (x, 1)."""

    name = "line"

    def __init__(self, *, slope: Sequence[float], intercept: Sequence[float]) -> None:
        check_limits(slope=slope, intercept=intercept)
        self.slope, self.intercept = slope, intercept

    def basis(self, x: Float[Tensor, "*any 1"]) -> Float[Tensor, "*any 2"]:
        """x and 1."""
        return torch.cat([x, torch.ones_like(x)], -1)

    def draw(self, num_functions: int, generator: torch.Generator) -> Float[Tensor, "{num_functions} 2"]:
        """Slope and intercept."""
        return torch.stack([uniform(limits, num_functions, generator) for limits in (self.slope, self.intercept)], -1)

    def contains(self, coefficients: Float[Tensor, "*any 2"]) -> Tensor:
        """Whether slope and intercept are within their limits."""
        slope, intercept = coefficients.unbind(-1)
        return within(slope, self.slope) & within(intercept, self.intercept)


def within(values: Tensor, limits: Sequence[float]) -> Tensor:
    """Whether each value lies between the two ``limits``."""
    return (limits[0] <= values) & (values <= limits[1])


class Functions:
    """Tasks whose function comes from one of ``families``, each as likely as the others.

    Args:
        families: see ``Family``.
        inputs: limits of the uniform inputs.
        noise: standard deviation of the Gaussian noise on the targets.
    """

    def __init__(self, *, families: Sequence[Family], inputs: Sequence[float], noise: float) -> None:
        check_limits(inputs=inputs)
        if noise < 0:
            raise InputError(f"noise={noise} is a standard deviation; it must not be negative")
        self.families, self.inputs, self.noise = families, inputs, noise

    def sample(self, num_tasks: int, num_shot: int, num_query: int, generator: torch.Generator) -> ModelTasks:
        """``num_tasks`` tasks; their tensors lie on the device of ``generator``."""
        num_points = num_shot + num_query
        x = uniform(self.inputs, num_tasks * num_points, generator).view(num_tasks, num_points, 1)
        family = torch.randint(len(self.families), (num_tasks,), device=x.device, generator=generator)
        truth = torch.zeros_like(x)
        for i, kind in enumerate(self.families):  # every family draws for every task, so no shape depends on chance
            y = values(kind, x, kind.draw(num_tasks, generator))
            truth = torch.where((family == i).view(-1, 1, 1), y, truth)
        y = truth + self.noise * torch.randn(x.shape, device=x.device, generator=generator)
        return ModelTasks(x[:, :num_shot], y[:, :num_shot], x[:, num_shot:], y[:, num_shot:], truth[:, num_shot:])


def values(family: Family, x: Float[Tensor, "*#any n 1"], coefficients: Float[Tensor, "*#any 2"]) -> Tensor:
    """The functions with ``coefficients`` at x, [*any, n, 1]."""
    return family.basis(x) @ coefficients.unsqueeze(-1)


class Fit(NamedTuple):
    """The best function of each family by least squares; F families."""

    residual: Float[Tensor, "*any F"]  # sum of squares
    is_member: Tensor  # whether the family contains it, [*any, F]
    coefficients: Float[Tensor, "*any F 2"]


def fit(families: Sequence[Family], x: Float[Tensor, "*#any n 1"], y: Float[Tensor, "*#any n 1"]) -> Fit:
    """The best fit of each family to the points (x, y); where fewer than two do not settle it, the smallest one."""
    residuals, members, best = [], [], []
    for family in families:
        basis = family.basis(x)
        coefficients = torch.linalg.pinv(basis) @ y
        residuals.append((basis @ coefficients - y).square().sum((-2, -1)))
        best.append(coefficients.squeeze(-1))
        members.append(family.contains(best[-1]))
    return Fit(torch.stack(residuals, -1), torch.stack(members, -1), torch.stack(best, -2))


def nearest_family(
    families: Sequence[Family], x: Float[Tensor, "*#any n 1"], y: Float[Tensor, "*#any n 1"]
) -> Int[Tensor, "..."]:
    """The place in ``families`` of the one whose best fit to (x, y) is nearest."""
    return fit(families, x, y).residual.argmin(-1)
