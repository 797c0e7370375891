"""The run's checkpoints: begun, committed while the run goes on, and only so many kept."""

import logging
from pathlib import Path
from typing import Protocol

from entrostat.cluster import Commit
from entrostat.directory import RunDirectory, sync
from entrostat.learner import checkpoint as checkpoints
from entrostat.learner import recorded
from entrostat.protocol.errors import EntrostatError
from entrostat.rows import read_evaluations

log = logging.getLogger(__name__)


class Saves(Protocol):
    """Makes checkpoints: the cluster."""

    def save(self, folder: Path) -> Commit:
        """Begins one."""
        ...

    def committed(self, commit: Commit, *, wait: bool, watch: bool = True) -> bool:
        """Whether it is whole and in its place."""
        ...


class Saving:
    """At most one checkpoint is under way. What it failed with is raised where it is waited for or collected.

    Args:
        cluster: makes them.
        directory: where they go.
        keep: how many of the newest stay; the best by evaluation stays besides.
    """

    def __init__(self, cluster: Saves, directory: RunDirectory, keep: int) -> None:
        self._cluster = cluster
        self._directory = directory
        self._keep = keep
        self._commit: Commit | None = None

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self._directory.checkpoints / f"step-{step}"

    def begin(self, step: int) -> None:
        """Begins the checkpoint of the step the run stands at, unless there is one; waits for an earlier one first."""
        self.collect(wait=True)
        if not self.folder(step).exists():
            self._directory.check()
            for rows in (self._directory.metrics, self._directory.evaluations):
                if rows.exists():
                    sync(rows)  # a checkpoint that outlives a loss of power must not outlive its rows
            self._commit = self._cluster.save(self.folder(step))

    def collect(self, *, wait: bool, watch: bool = True) -> None:
        """Sees whether the checkpoint under way is committed, waiting if asked; if so, removes what is kept no more."""
        commit, self._commit = self._commit, None
        if commit is None:
            return
        if not self._cluster.committed(commit, wait=wait, watch=watch):
            self._commit = commit
            return
        log.info("committed %s", commit.folder)
        scores = {row.step: row.pass_at_1 for row in read_evaluations(self._directory.evaluations)}
        checkpoints.retain(self._directory.checkpoints, self._keep, scores)
        recorded.prune(self._directory.recorded, checkpoints.oldest_step(self._directory.checkpoints) or 0)

    def settle(self) -> None:
        """Waits for the checkpoint under way in a run that ends for another reason, which matters more than its own."""
        try:
            self.collect(wait=True, watch=False)
        except EntrostatError as error:
            log.error("the checkpoint under way: %s", error)
