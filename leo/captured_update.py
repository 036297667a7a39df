"""Meta-updates that do not wait for their device: on CUDA, one captured graph replayed."""

from typing import Any

import torch
from torch import Tensor

from leo.update import MetaUpdate, Outcome

EAGER_UPDATES = 3  # before the capture, so that every library has made its buffers


class OptimisticUpdate(MetaUpdate):
    """The same where a look at the device would hold it up: it looks once, after all updates of a call.

    Where one of them met a task that diverged, it goes back to before them and makes them again, one by one.
    """

    def __call__(self, batches: list[Any]) -> list[Outcome]:
        before = self.state()
        launched = [self.launch(batch) for batch in batches]
        if torch.stack([norms for _, norms in launched]).isfinite().all().item():
            return [Outcome(terms, 0) for terms, _ in launched]
        self.restore(before)
        return super().__call__(batches)

    def launch(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """An update whatever comes out; its terms, and their ``norms``. Nothing here waits for the device."""
        terms, norms = self.compute(self.stream.gather(batch))
        self.count(terms)
        return terms, norms

    def compute(self, tasks: Any) -> tuple[dict[str, Tensor], Tensor]:
        """All but the schedule. No shape depends on data."""
        terms = self.differentiate(tasks, self.learner.draw_noise(tasks, self.generator))
        norms = self.norms(terms)
        self.descend()
        return terms, norms

    def tensors(self) -> list[Tensor]:
        """What an update changes in place."""
        states = (self.optimizer.state[parameter] for parameter in self.parameters)
        return [*self.parameters, *(value for state in states for value in state.values() if torch.is_tensor(value))]

    def state(self) -> tuple[Any, ...]:
        """What ``restore`` takes."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        copies = [tensor.detach().clone() for tensor in self.tensors()]
        return copies, self.generator.get_state(), schedule, rates, self.num_updates, self.last_loss

    @torch.no_grad()
    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to ``state``, in place."""
        copies, generator, schedule, rates, self.num_updates, self.last_loss = state
        now = self.tensors()
        # What an optimiser adds at its first step begins at zero.
        for i, tensor in enumerate(now):
            tensor.copy_(copies[i]) if len(copies) == len(now) or i < len(self.parameters) else tensor.zero_()
        self.generator.set_state(generator)
        if self.schedule is not None:
            self.schedule.load_state_dict(schedule)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class CapturedUpdate(OptimisticUpdate):
    """The same on CUDA, where launching hundreds of small kernels would take longer than running them.

    The first ``EAGER_UPDATES`` run one kernel after another; the next one is captured as a CUDA graph, which reads
    its tasks and its learning rate from fixed places, and from then on the graph is replayed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_launched, self.graph = 0, torch.cuda.CUDAGraph()
        self.cuda_stream = torch.cuda.Stream()
        # The graph holds the rates' addresses; the schedule goes on with plain numbers, which need no waiting.
        self.rates = [
            torch.tensor(float(group["lr"]), device=self.stream.device) for group in self.optimizer.param_groups
        ]
        for group in self.optimizer.param_groups:
            group["capturable"] = True

    def launch(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        numbers = [group["lr"] for group in self.optimizer.param_groups]
        for rate, number in zip(self.rates, numbers, strict=True):
            rate.fill_(number)
        if self.num_launched <= EAGER_UPDATES:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
            if self.num_launched < EAGER_UPDATES:
                self.cuda_stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.cuda_stream):
                    self.results = self.compute(self.stream.gather(batch))
                torch.cuda.current_stream().wait_stream(self.cuda_stream)
            else:
                self.batch = type(batch)(*(part.clone() for part in batch))
                self.optimizer.zero_grad()
                self.graph.register_generator_state(self.generator)
                with torch.cuda.graph(self.graph, stream=self.cuda_stream):
                    self.results = self.compute(self.stream.gather(self.batch))
            for group, number in zip(self.optimizer.param_groups, numbers, strict=True):
                group["lr"] = number
        if self.num_launched >= EAGER_UPDATES:
            for place, part in zip(self.batch, batch, strict=True):
                place.copy_(part)
            self.graph.replay()
        self.num_launched += 1
        # The next replay writes over these.
        terms = {name: value.clone() for name, value in self.results[0].items()}
        self.count(terms)
        return terms, self.results[1].clone()
