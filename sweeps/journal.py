"""Optuna's journal storage with the heartbeat that only its databases have."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class JournalWithHeartbeat(JournalStorage, BaseHeartbeat):
    """A journal file at ``path``; the age of an empty file beside it is that of a trial's last heartbeat.

    Args:
        path: of the journal.
        heartbeat_interval, grace_period, heartbeat_stale_trial_callback: as of ``optuna.storages.RDBStorage``; seconds.
    """

    def __init__(
        self,
        path: str,
        *,
        heartbeat_interval: int,
        grace_period: int,
        heartbeat_stale_trial_callback: Callable[[Study, FrozenTrial], None],
    ) -> None:
        lock = JournalFileSymlinkLock(path)
        drop_unfinished_line(Path(path), lock)
        super().__init__(JournalFileBackend(path, lock))
        self.beats = Path(path).with_suffix(".heartbeats")
        self.beats.mkdir(exist_ok=True)
        self.heartbeat_interval, self.grace_period = heartbeat_interval, grace_period
        self.callback = heartbeat_stale_trial_callback

    def record_heartbeat(self, trial_id: int) -> None:
        """Touch the trial's file."""
        (self.beats / str(trial_id)).touch()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now_file = self.beats / "now"  # a shared file system has its own clock
        now_file.touch()
        oldest = now_file.stat().st_mtime - self.grace_period
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        beats = {trial._trial_id: self.beats / str(trial._trial_id) for trial in running}
        return [trial_id for trial_id, beat in beats.items() if beat.exists() and beat.stat().st_mtime < oldest]

    def get_heartbeat_interval(self) -> int:
        """Seconds."""
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None]:
        """What to do with a dead trial: queue it again."""
        return self.callback


def drop_unfinished_line(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off what follows the last whole line of ``path``: a full disk or a power cut has ended its writing.

    Left there, the next line would be glued to it, and the journal could not be read any more. Raises ValueError where
    the file is no journal.
    """
    if not path.exists():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.startswith(b"{"):
            raise ValueError("it does not begin as a journal does")
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            json.loads(whole.splitlines()[-1])  # Optuna does not mind a last line that it cannot read, until it writes
        if len(whole) < len(content):
            os.truncate(path, len(whole))
    finally:
        lock.release()
