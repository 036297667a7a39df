"""One meta-update: gather, Eq. 6, backward, clipping, optimiser, schedule (Algorithm 1, line 17)."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leo.clipping import clip_gradients
from leo.diverged import ANSWERS, REMEDY
from leo.learner import MetaLearner
from leo.noise import Noise
from leo.stream import BatchStream
from runner.errors import InputError

DECAY = 1e-4  # of the released code: the rate at which matrices shrink in place of an update


class Outcome(NamedTuple):
    """Of one update: the terms of its objective, None where no task was finite; and how many tasks diverged."""

    terms: dict[str, Tensor] | None
    num_diverged: int


class MetaUpdate:
    """Updates ``learner`` on batches of ``stream``.

    Args:
        learner, optimizer, schedule: what is trained, and how; None: a constant rate.
        stream: its batches are updated on; it lies on the device of the learner.
        clip_value, clip_norm: see ``leo.clipping``.
        generator: draws the noise, on the device of the stream.
        diverged: what is done about tasks that diverge (``leo.diverged``).
        num_updates: that were made before, for messages.
    """

    def __init__(
        self,
        learner: MetaLearner,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        *,
        stream: BatchStream,
        clip_value: float,
        clip_norm: float,
        generator: torch.Generator,
        diverged: str,
        num_updates: int = 0,
    ) -> None:
        if diverged not in ANSWERS:
            raise InputError(f"diverged={diverged!r} is unknown; choose one of {', '.join(ANSWERS)}")
        self.learner, self.optimizer, self.schedule = learner, optimizer, schedule
        self.parameters = list(learner.parameters())
        self.stream, self.generator = stream, generator
        self.clip_value, self.clip_norm = clip_value, clip_norm
        self.diverged, self.num_updates = diverged, num_updates
        self.last_loss: Tensor | None = None

    def __call__(self, batches: list[Any]) -> list[Outcome]:
        """An update for each of ``batches``."""
        return [self.update(batch) for batch in batches]

    def update(self, batch: Any) -> Outcome:
        """One update. It waits for the device: what follows depends on whether all is finite."""
        tasks = self.stream.gather(batch)
        noise = self.learner.draw_noise(tasks, self.generator)
        outcome = Outcome(self.differentiate(tasks, noise), 0)
        assert outcome.terms is not None
        if not self.is_sound(outcome.terms):
            outcome = self.answer(outcome.terms, tasks, noise)
        if outcome.terms is not None or self.diverged == "decay":
            self.descend()
        self.count(outcome.terms)
        return outcome

    def differentiate(self, tasks: Any, noise: Noise) -> dict[str, Tensor]:
        """The terms of the objective; its gradient is left in the parameters."""
        self.optimizer.zero_grad()
        terms = self.learner.objective(tasks, noise)
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}

    def descend(self) -> None:
        """Clip the gradient and take the optimiser's step."""
        clip_gradients(self.parameters, self.clip_value, self.clip_norm)
        self.optimizer.step()

    def count(self, terms: dict[str, Tensor] | None) -> None:
        """Step the schedule, which counts updates that changed nothing too."""
        self.num_updates += 1
        self.last_loss = self.last_loss if terms is None else terms["loss"]
        if self.schedule is None:
            return
        if terms is not None:
            self.schedule.step()
            return
        with warnings.catch_warnings():  # of a schedule that is ahead of the optimiser
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()

    def gradients(self) -> list[Tensor]:
        """The gradients that there are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def norms(self, terms: dict[str, Tensor]) -> Tensor:
        """The size of the loss and the norm of each gradient: where these are finite, all is."""
        return torch.stack([terms["loss"].abs(), *torch._foreach_norm(self.gradients())])

    def is_sound(self, terms: dict[str, Tensor]) -> bool:
        """Whether loss and gradient are finite; with ``decay``, as in the released code, whether none is NaN."""
        if self.norms(terms).isfinite().all().item():
            return True
        values = [terms["loss"], *self.gradients()]  # a norm overflows before its elements do
        if self.diverged == "decay":
            return not any(value.isnan().any() for value in values)
        return all(value.isfinite().all() for value in values)

    def answer(self, terms: dict[str, Tensor], tasks: Any, noise: Noise) -> Outcome:
        """What is done about a batch whose loss or gradient is not finite; leaves a gradient where a step follows."""
        if self.diverged == "stop":
            loss = terms["loss"].item()
            what = "gradient is not finite" if math.isfinite(loss) else f"loss is not finite ({loss})"
            last = None if self.last_loss is None else self.last_loss.item()
            raise InputError(
                f"the training {what} at step {self.num_updates} (last finite loss {last}); {REMEDY}, or go on "
                f"with diverged=skip"
            )
        finite = self.finite_tasks(tasks, noise)
        num_tasks, rows = len(finite), finite.nonzero().flatten()
        if self.diverged == "decay":
            self.set_decay()
            return Outcome(None, num_tasks - len(rows) or num_tasks)
        if 0 < len(rows) < num_tasks:
            kept = self.differentiate(take(tasks, rows), noise.of_tasks(rows))
            if self.is_sound(kept):
                return Outcome(kept, num_tasks - len(rows))
        return Outcome(None, num_tasks)

    def finite_tasks(self, tasks: Any, noise: Noise) -> Bool[Tensor, " B"]:
        """Whether the loss of each task and its gradient are finite, one task after another."""
        finite = []
        for row in torch.arange(len(tasks[0]), device=self.stream.device).split(1):
            terms = self.differentiate(take(tasks, row), noise.of_tasks(row))
            finite.append(torch.stack([value.isfinite().all() for value in [terms["loss"], *self.gradients()]]).all())
        return torch.stack(finite)

    def set_decay(self) -> None:
        """The released code's gradient in place of one that is NaN: that of 1e-4 times the L2 term alone."""
        penalized = {id(parameter) for parameter in self.learner.penalized()}
        for parameter in self.parameters:
            share = DECAY if id(parameter) in penalized else 0.0
            parameter.grad = share * parameter.detach()


def take(tasks: Any, rows: Tensor) -> Any:
    """Some tasks of a batch, which is a NamedTuple of tensors whose first dimension is tasks."""
    return type(tasks)(*(part.index_select(0, rows) for part in tasks))
