"""One meta-update: gather, Eq. 6, backward, clipping, optimiser, schedule. On CUDA, one captured graph replayed."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leo.clipping import clip_gradients
from leo.learner import MetaLearner
from leo.stream import BatchStream

EAGER_UPDATES = 3  # before the capture, so that every library has made its buffers


class MetaUpdate:
    """Updates ``learner`` on one batch of ``stream`` at each call; returns the terms of its objective.

    ``generator`` draws the noise; it lies on the device of the stream, as all tensors do.
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
    ) -> None:
        self.learner, self.optimizer, self.schedule = learner, optimizer, schedule
        self.stream, self.generator = stream, generator
        self.clip_value, self.clip_norm = clip_value, clip_norm

    def __call__(self, tasks: Any) -> dict[str, Tensor]:
        """Eq. 6 and its terms before the update. The tensors may be overwritten by the next call."""
        terms = self.compute(tasks)
        if self.schedule is not None:
            self.schedule.step()
        return terms

    def compute(self, tasks: Any) -> dict[str, Tensor]:
        """All but the schedule: nothing here waits for the device, and no shape depends on data."""
        self.optimizer.zero_grad()
        terms = self.learner.meta_loss(self.stream.gather(tasks), self.generator)
        terms["loss"].backward()
        clip_gradients(self.learner.parameters(), self.clip_value, self.clip_norm)
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}


class CapturedUpdate(MetaUpdate):
    """The same on CUDA, where launching hundreds of small kernels would take longer than running them.

    The first ``EAGER_UPDATES`` run one kernel after another; the next one is captured as a CUDA graph, which reads
    its tasks and its learning rate from fixed places, and from then on the graph is replayed.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.num_updates, self.graph = 0, torch.cuda.CUDAGraph()
        self.cuda_stream = torch.cuda.Stream()
        # The graph holds the rates' addresses; the schedule goes on with plain numbers, which need no waiting.
        self.rates = [
            torch.tensor(float(group["lr"]), device=self.stream.device) for group in self.optimizer.param_groups
        ]
        for group in self.optimizer.param_groups:
            group["capturable"] = True

    def compute(self, tasks: Any) -> dict[str, Tensor]:
        numbers = [group["lr"] for group in self.optimizer.param_groups]
        for rate, number in zip(self.rates, numbers, strict=True):
            rate.fill_(number)
        if self.num_updates <= EAGER_UPDATES:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
            if self.num_updates < EAGER_UPDATES:
                self.cuda_stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.cuda_stream):
                    self.terms = super().compute(tasks)
                torch.cuda.current_stream().wait_stream(self.cuda_stream)
            else:
                self.tasks = type(tasks)(*(part.clone() for part in tasks))
                self.optimizer.zero_grad()
                self.graph.register_generator_state(self.generator)
                with torch.cuda.graph(self.graph, stream=self.cuda_stream):
                    self.terms = super().compute(self.tasks)
            for group, number in zip(self.optimizer.param_groups, numbers, strict=True):
                group["lr"] = number
        if self.num_updates >= EAGER_UPDATES:
            for place, part in zip(self.tasks, tasks, strict=True):
                place.copy_(part)
            self.graph.replay()
        self.num_updates += 1
        return self.terms


def update_for(device: torch.device) -> type[MetaUpdate]:
    """The kind of update that is fastest on ``device``."""
    return CapturedUpdate if device.type == "cuda" else MetaUpdate
