"""The endless stream of training batches that meta-training goes through, whatever a task is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

TASKS_PER_DRAW = 1536  # sampled in one go: enough to make the cost of a draw vanish, a few MB


class BatchStream(ABC):
    """An endless stream of training batches, in epochs of ``batches_per_epoch``, in lists of ``batches_per_step``.

    Tasks are drawn in blocks, ahead of use. ``state_dict`` is the generator before the current block and the place
    in it, so a resumed stream goes on exactly where it was. A block, and so a batch, is a NamedTuple of tensors
    whose first dimension is tasks; all tensors lie on ``device``.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        batches_per_epoch: int,
        batches_per_step: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.device, self.generator, self.batch_size = device, generator, batch_size
        self.batches_per_epoch, self.batches_per_step = batches_per_epoch, batches_per_step
        self.batches_per_block = max(1, TASKS_PER_DRAW // batch_size)
        self.start_block()

    @abstractmethod
    def draw(self, num_tasks: int) -> Any:
        """``num_tasks`` tasks by ``generator``."""

    @abstractmethod
    def gather(self, batch: Any) -> Any:
        """What a learner's ``meta_loss`` takes, from what ``next_batch`` returned."""

    def start_block(self) -> None:
        """Draw the next block of batches."""
        self.state_before_block, self.position = self.generator.get_state(), 0
        self.block = self.draw(self.batches_per_block * self.batch_size)

    def __len__(self) -> int:
        return self.batches_per_epoch // self.batches_per_step

    def __iter__(self) -> Iterator[list[Any]]:
        for _ in range(len(self)):
            yield [self.next_batch() for _ in range(self.batches_per_step)]

    def next_batch(self) -> Any:
        """The tasks of one update."""
        if self.position == self.batches_per_block:
            self.start_block()
        batch = slice(self.position * self.batch_size, (self.position + 1) * self.batch_size)
        self.position += 1
        return type(self.block)(*(part[batch] for part in self.block))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is."""
        return {"generator": self.state_before_block, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where ``state`` was taken."""
        self.generator.set_state(state["generator"].cpu())
        self.start_block()
        self.position = state["position"]
