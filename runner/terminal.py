"""Where the output of this process goes."""

import multiprocessing

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Rate(ProgressColumn):
    """How many images a second."""

    def render(self, task: Task) -> Text:
        """Nothing before the first ones."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="progress.data.speed")


def image_columns() -> list[ProgressColumn]:
    """Of a bar that counts images: how many, how fast, and the time that is left."""
    return [TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()]


def shares_terminal() -> bool:
    """Whether this process is one of several that a launcher started here."""
    return multiprocessing.parent_process() is not None
