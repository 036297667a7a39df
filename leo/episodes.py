"""Tasks (episodes): exact sampling of classes and images, and the tensors of a batch of tasks."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leo.features import AnyTable
from leo.stream import BatchStream
from runner.errors import InputError


@runtime_checkable
class Classes(Protocol):
    """What tasks are sampled from: classes that own rows of a table, of features or of images."""

    @property
    def offsets(self) -> Int[Tensor, " C_plus_1"]:
        """Class c owns the rows ``offsets[c]:offsets[c + 1]``."""

    @property
    def class_sizes(self) -> Int[Tensor, " C"]:
        """Number of images of each class."""

    @property
    def class_names(self) -> list[str]:
        """Of each class."""

    @property
    def device(self) -> torch.device:
        """Where the tasks are made."""


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
    table: Classes, num_tasks: int, num_way: int, num_images: int, generator: torch.Generator
) -> TaskIndices:
    """``num_tasks`` tasks of ``num_way`` different classes with ``num_images`` different images each."""
    num_classes = torch.full((num_tasks,), len(table.class_names), device=table.offsets.device)
    classes = sample_without_replacement(num_classes, num_way, generator)
    within_class = sample_without_replacement(table.class_sizes[classes.flatten()], num_images, generator)
    return TaskIndices(classes, within_class.view(num_tasks, num_way, num_images) + table.offsets[classes].unsqueeze(2))


def gather(table: AnyTable, tasks: TaskIndices, num_shot: int) -> Tasks:
    """The features of ``tasks``: the first ``num_shot`` images of a class are its support, the rest its queries."""
    num_tasks, num_way, _ = tasks.images.shape
    support, query = (  # two tensors, each without gaps in memory
        table.take(images.flatten()).unflatten(0, (num_tasks, num_way, -1))
        for images in (tasks.images[:, :, :num_shot], tasks.images[:, :, num_shot:])
    )
    return Tasks(support, query)


def check_task_size(table: Classes, split: str, num_way: int, num_shot: int, num_query: int) -> None:
    """Raise where a task of this size cannot be drawn from ``table``."""
    if num_way > len(table.class_names):
        raise InputError(
            f"num_way={num_way} exceeds the {len(table.class_names)} classes of the {split} split; lower num_way"
        )
    smallest = int(table.class_sizes.argmin())
    if num_shot + num_query > table.class_sizes[smallest]:
        raise InputError(
            f"class {table.class_names[smallest]!r} of the {split} split has {int(table.class_sizes[smallest])} "
            f"images, num_shot + num_query needs {num_shot} + {num_query} = {num_shot + num_query}; "
            f"lower one of them or drop the class"
        )


class ClassStream(BatchStream):
    """The stream of tasks of different classes of ``table``: indices, gathered when they are used."""

    def __init__(
        self,
        table: Classes,
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
        self.classes, self.num_shot = table, num_shot
        self.num_way, self.num_images = num_way, num_shot + num_query
        super().__init__(
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            batches_per_step=batches_per_step,
            device=table.device,
            generator=generator,
        )

    def draw(self, num_tasks: int) -> Any:
        """Classes and images of ``num_tasks`` tasks."""
        return sample_tasks(self.classes, num_tasks, self.num_way, self.num_images, self.generator)


class TaskStream(ClassStream):
    """The stream of classification tasks of the features of ``table``."""

    def __init__(self, table: AnyTable, **settings: Any) -> None:
        super().__init__(table, **settings)
        self.table = table

    def gather(self, batch: TaskIndices) -> Tasks:
        """The features of ``batch``."""
        return gather(self.table, batch, self.num_shot)
