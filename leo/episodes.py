"""Tasks (episodes): exact sampling of classes and images, and the tensors of a batch of tasks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leo.features import FeatureTable

TASKS_PER_DRAW = 1536  # sampled in one go: enough to make the cost of a draw vanish, a few MB of table


class TaskIndices(NamedTuple):
    """Which classes a task has, and which rows of the feature table; the first K images are the support."""

    classes: Int[Tensor, "B N"]
    images: Int[Tensor, "B N m"]


class Tasks(NamedTuple):
    """A batch of tasks. The label of an image is its position along the class axis."""

    support: Float[Tensor, "B N K D"]
    query: Float[Tensor, "B N Q D"]


def sample_without_replacement(
    sizes: Int[Tensor, " R"], count: int, generator: torch.Generator
) -> Int[Tensor, "R {count}"]:
    """For each row r an ordered sample of ``count`` of ``range(sizes[r])``: every ordered sample is equally likely.

    The first ``count`` swaps of a Fisher-Yates shuffle, over all rows at once. A float64 uniform number picks the
    swap, so probabilities are exact to sizes[r] / 2^53.
    """
    uniform = torch.rand(count, len(sizes), dtype=torch.float64, device=sizes.device, generator=generator)
    shuffled = torch.arange(int(sizes.max()), device=sizes.device).repeat(len(sizes), 1)
    picks = torch.empty(len(sizes), count, dtype=torch.int64, device=sizes.device)
    for i in range(count):
        position = (i + (uniform[i] * (sizes - i)).long()).unsqueeze(1)
        picks[:, i : i + 1] = shuffled.gather(1, position)
        shuffled.scatter_(1, position, shuffled[:, i : i + 1].clone())
    return picks


def sample_tasks(
    table: FeatureTable, num_tasks: int, num_way: int, num_images: int, generator: torch.Generator
) -> TaskIndices:
    """``num_tasks`` tasks of ``num_way`` different classes with ``num_images`` different images each."""
    num_classes = torch.full((num_tasks,), len(table.class_names), device=table.offsets.device)
    classes = sample_without_replacement(num_classes, num_way, generator)
    within_class = sample_without_replacement(table.class_sizes[classes.flatten()], num_images, generator)
    return TaskIndices(classes, within_class.view(num_tasks, num_way, num_images) + table.offsets[classes].unsqueeze(2))


def gather(table: FeatureTable, tasks: TaskIndices, num_shot: int) -> Tasks:
    """The features of ``tasks``: the first ``num_shot`` images of a class are its support, the rest its queries."""
    num_tasks, num_way, _ = tasks.images.shape
    # Apart, so that both are contiguous; index_select takes a quarter of the time of indexing.
    support, query = (
        table.features.index_select(0, images.flatten()).view(num_tasks, num_way, -1, table.features.shape[1])
        for images in (tasks.images[:, :, :num_shot], tasks.images[:, :, num_shot:])
    )
    return Tasks(support, query)


def check_task_size(table: FeatureTable, split: str, num_way: int, num_shot: int, num_query: int) -> None:
    """Raise where a task of this size cannot be drawn from ``table``."""
    if num_way > len(table.class_names):
        raise ValueError(
            f"num_way={num_way} exceeds the {len(table.class_names)} classes of the {split} split; lower num_way"
        )
    smallest = int(table.class_sizes.argmin())
    if num_shot + num_query > table.class_sizes[smallest]:
        raise ValueError(
            f"class {table.class_names[smallest]!r} of the {split} split has {int(table.class_sizes[smallest])} "
            f"images, num_shot + num_query needs {num_shot} + {num_query} = {num_shot + num_query}; "
            f"lower one of them or drop the class"
        )


class TaskStream:
    """An endless stream of training batches, in epochs of ``batches_per_epoch``, in lists of ``batches_per_step``.

    Tasks are drawn in blocks, ahead of use. ``state_dict`` is the generator before the current block and the place
    in it, so a resumed stream goes on exactly where it was.
    """

    def __init__(
        self,
        table: FeatureTable,
        *,
        num_way: int,
        num_shot: int,
        num_query: int,
        batch_size: int,
        batches_per_epoch: int,
        batches_per_step: int,
        generator: torch.Generator,
    ) -> None:
        check_task_size(table, "training", num_way, num_shot, num_query)
        self.table, self.num_shot, self.generator = table, num_shot, generator
        self.num_way, self.num_images = num_way, num_shot + num_query
        self.batch_size = batch_size
        self.batches_per_epoch, self.batches_per_step = batches_per_epoch, batches_per_step
        self.batches_per_block = max(1, TASKS_PER_DRAW // batch_size)
        self.start_block()

    def start_block(self) -> None:
        """Draw the next block of batches."""
        self.state_before_block, self.position = self.generator.get_state(), 0
        self.block = sample_tasks(
            self.table,
            self.batches_per_block * self.batch_size,
            self.num_way,
            self.num_images,
            self.generator,
        )

    def __len__(self) -> int:
        return self.batches_per_epoch // self.batches_per_step

    def __iter__(self) -> Iterator[list[TaskIndices]]:
        for _ in range(len(self)):
            yield [self.next_batch() for _ in range(self.batches_per_step)]

    def next_batch(self) -> TaskIndices:
        """The tasks of one update."""
        if self.position == self.batches_per_block:
            self.start_block()
        batch = slice(self.position * self.batch_size, (self.position + 1) * self.batch_size)
        self.position += 1
        return TaskIndices(self.block.classes[batch], self.block.images[batch])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is."""
        return {"generator": self.state_before_block, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where ``state`` was taken."""
        self.generator.set_state(state["generator"].cpu())
        self.start_block()
        self.position = state["position"]
