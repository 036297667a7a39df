"""Tasks of sequences: damped, driven oscillators, seen through noise for a few steps; and what is fitted to them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo.functions import ModelTasks, check_limits, uniform
from leo.inference import squared_error
from leo.model_problem import Sampled
from leo.regression import ModelLearner
from runner.errors import InputError


class Oscillators:
    """Sequences of x'' + 2 damping frequency x' + frequency^2 x = frequency^2 drive cos(drive_frequency t + phase).

    A task is one oscillator and one drive; its sequences start at random: x and x' / frequency are normal numbers, the
    phase is uniform. They are the exact solution at t = 0, 1, 2, ... An example is one sequence: its first
    ``num_seen`` numbers are the input, the ``num_predicted`` that follow the target. All that a learner sees has noise.

    Args:
        frequency, drive_frequency: limits in radians a step, positive.
        damping: limits of the damping ratio, between 0 and 1.
        drive: limits of the displacement that the drive's force would have at rest, not negative.
        num_seen, num_predicted: X and Y.
        noise: standard deviation of the Gaussian noise on every number.
    """

    def __init__(
        self,
        *,
        frequency: Sequence[float],
        damping: Sequence[float],
        drive: Sequence[float],
        drive_frequency: Sequence[float],
        num_seen: int,
        num_predicted: int,
        noise: float,
    ) -> None:
        check_limits(frequency=frequency, damping=damping, drive=drive, drive_frequency=drive_frequency)
        if min(frequency[0], drive_frequency[0], damping[0]) <= 0 or damping[1] >= 1 or drive[0] < 0:
            raise InputError(
                f"frequency={list(frequency)}, drive_frequency={list(drive_frequency)} and damping={list(damping)} "
                f"must be positive, damping below 1, and drive={list(drive)} must not be negative"
            )
        if num_seen < 1 or num_predicted < 1 or noise < 0:
            raise InputError(
                f"num_seen={num_seen} and num_predicted={num_predicted} must be at least 1, and noise={noise} not "
                f"negative"
            )
        self.frequency, self.damping, self.drive, self.drive_frequency = frequency, damping, drive, drive_frequency
        self.num_seen, self.num_predicted, self.noise = num_seen, num_predicted, noise

    def sample(self, num_tasks: int, num_shot: int, num_query: int, generator: torch.Generator) -> ModelTasks:
        """``num_tasks`` tasks; their tensors lie on the device of ``generator``."""
        shape, device = (num_tasks, num_shot + num_query, 1), generator.device
        ranges = (self.frequency, self.damping, self.drive, self.drive_frequency)
        frequency, *others = (uniform(limits, num_tasks, generator).view(-1, 1, 1) for limits in ranges)
        start, velocity = (torch.randn(shape, device=device, generator=generator) for _ in range(2))
        phase = uniform((0.0, 2 * torch.pi), num_tasks * shape[1], generator).view(shape)
        t = torch.arange(self.num_seen + self.num_predicted, device=device, dtype=torch.float32)
        damping, drive, drive_frequency = others
        true = motion(frequency, damping, drive, drive_frequency, start, velocity * frequency, phase, t)
        seen = true + self.noise * torch.randn(true.shape, device=device, generator=generator)
        x, y = seen.split([self.num_seen, self.num_predicted], -1)
        truth = true[..., self.num_seen :]
        return ModelTasks(x[:, :num_shot], y[:, :num_shot], x[:, num_shot:], y[:, num_shot:], truth[:, num_shot:])


def motion(
    frequency: Tensor,
    damping: Tensor,
    drive: Tensor,
    drive_frequency: Tensor,
    start: Tensor,
    velocity: Tensor,
    phase: Tensor,
    t: Float[Tensor, " T"],
) -> Float[Tensor, "*any T"]:
    """x(t) of the oscillator from x(0) = ``start`` and x'(0) = ``velocity``: what the drive keeps up, and a decay.

    All but ``t`` end in a dimension of one.
    """
    ratio = drive_frequency / frequency
    amplitude = drive / torch.hypot(1 - ratio**2, 2 * damping * ratio)
    angle = phase - torch.atan2(2 * damping * ratio, 1 - ratio**2)
    lasting = amplitude * torch.cos(drive_frequency * t + angle)
    rest = start - amplitude * torch.cos(angle)
    rest_velocity = velocity + amplitude * drive_frequency * torch.sin(angle)
    damped = frequency * (1 - damping**2).sqrt()
    second = (rest_velocity + damping * frequency * rest) / damped
    decay = torch.exp(-damping * frequency * t)
    return lasting + decay * (rest * torch.cos(damped * t) + second * torch.sin(damped * t))


class Recurrence(nn.Module):
    """An inference model: each number is a linear function of the last ``order`` ones and 1; it runs on by itself.

    Its parameters are the intercept, then the coefficients, of the last number first.
    """

    scale: Tensor

    def __init__(self, order: int, num_predicted: int) -> None:
        super().__init__()
        self.order, self.num_predicted = order, num_predicted
        self.register_buffer("scale", torch.ones(order + 1), persistent=False)

    def forward(self, parameters: Float[Tensor, "B P"], x: Float[Tensor, "B n X"]) -> Float[Tensor, "B n Y"]:
        """What follows each sequence."""
        last = list(x[..., -self.order :].unbind(-1)) if self.order else []
        intercept, coefficients = parameters[:, :1], parameters[:, 1:].unsqueeze(-1)
        predictions = []
        for _ in range(self.num_predicted):
            window = torch.stack(last[: -self.order - 1 : -1], -1) if self.order else x[..., :0]
            predictions.append(intercept + (window @ coefficients).squeeze(-1))
            last.append(predictions[-1])
        return torch.stack(predictions, -1)


class Autoregression(ModelLearner):
    """The linear recurrence that fits each task's support best one step ahead (least squares). Nothing else is learned.

    Args:
        order: numbers that the next one depends on; 0: the mean of the support's numbers alone.
        num_predicted: Y.
    """

    def __init__(self, *, order: int, num_predicted: int) -> None:
        super().__init__()
        if order < 0:
            raise InputError(f"order={order} must not be negative")
        self.order, self.model, self.loss = order, Recurrence(order, num_predicted), squared_error

    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Intercept and coefficients of each task. Nothing is drawn: samples are equal."""
        if self.order >= x.shape[2]:
            raise InputError(f"order={self.order} needs more numbers than the {x.shape[2]} seen; lower it")
        windows = torch.cat([x, y], -1).double().unfold(-1, self.order + 1, 1).flatten(1, 2)
        past, following = windows[..., : self.order].flip(-1), windows[..., self.order :]
        regressors = torch.cat([torch.ones_like(following), past], -1)
        return torch.linalg.lstsq(regressors, following).solution.squeeze(-1).to(x)


class Coverage:
    """How often the truth lies within the central band of a learner's samples: its share, for each of ``levels``.

    Where S samples and the truth are exchangeable, the truth's rank among them is uniform, and the band between the
    r-th lowest and the r-th highest sample holds it with probability (S + 1 - 2 r) / (S + 1): with S = 19, 50 % and
    90 % are exact.

    Args:
        levels: nominal shares, as 0.5.
        num_samples: S, of the problem.
    """

    def __init__(self, *, levels: Sequence[float], num_samples: int) -> None:
        self.ranks = {level: (num_samples + 1) * (1 - level) / 2 for level in levels}
        for level, rank in self.ranks.items():
            if not 0 < level < 1 or abs(rank - round(rank)) > 1e-9:
                raise InputError(
                    f"levels={list(levels)}: a band of {level:g} has no whole number of {num_samples} samples outside "
                    f"it; with tasks.num_samples=19 bands of 0.1, 0.2, ..., 0.9 have"
                )

    def __call__(self, tasks: ModelTasks, learner: ModelLearner, sampled: Sampled) -> dict[str, Tensor]:
        """Of each task: the share of the queries' true numbers within each band."""
        samples = sampled.predictions.sort(0).values
        found = {}
        for level, exact in self.ranks.items():
            rank = round(exact)
            inside = (samples[rank - 1] <= tasks.truth) & (tasks.truth <= samples[-rank])
            found[f"within_{100 * level:.0f}"] = inside.float().mean((1, 2))
        return found
