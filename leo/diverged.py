"""Diverged tasks: what an update does about them, and how many a run may meet.

A task diverges where its adapted parameters, its loss or its share of the meta-gradient is not finite: a step too far
in latent space makes the next step longer, until exp overflows. ``skip`` leaves such tasks out of the batch, ``decay``
is what the released code does, ``stop`` ends the run.
"""

from collections import deque
from typing import Any

from runner.errors import InputError

ANSWERS = ("skip", "decay", "stop")
NUM_RECENT = 1000  # updates in which the share of diverged tasks is limited
NUM_FIRST = 100  # updates that a run counts as having made at least: a bad start alone does not end it
REMEDY = "lower the learning rate or the initial inner rates"


class DivergedTasks:
    """Counts the diverged tasks of a run, in all and in its last ``NUM_RECENT`` updates.

    Args:
        max_share: of the tasks of the last ``NUM_RECENT`` updates that may diverge (of ``NUM_FIRST``, while fewer were
            made).
        tasks_per_update: the batch size.
    """

    def __init__(self, max_share: float, tasks_per_update: int) -> None:
        if not 0 <= max_share <= 1:
            raise InputError(f"max_diverged={max_share} is a share of tasks; it must be between 0 and 1")
        self.max_share, self.tasks_per_update, self.total = max_share, tasks_per_update, 0
        self.recent: deque[int] = deque(maxlen=NUM_RECENT)

    def add(self, count: int, step: int) -> None:
        """Add the ``count`` of the update ``step``; raise where too many of the last ones diverged."""
        self.total += count
        self.recent.append(count)
        num_diverged, num_tasks = sum(self.recent), len(self.recent) * self.tasks_per_update
        if num_diverged > self.max_share * max(num_tasks, NUM_FIRST * self.tasks_per_update):
            raise InputError(
                f"{num_diverged} of the {num_tasks} tasks of the last {len(self.recent)} updates diverged, at step "
                f"{step}: more than max_diverged={self.max_share} allows; {REMEDY}, or raise max_diverged"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"total": self.total, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.total = state["total"]
        self.recent = deque(state["recent"], maxlen=NUM_RECENT)
