"""A run of a one-off task, as its node and its agent know it. Pure."""

from dataclasses import dataclass
from typing import Self

from ownpod.rules.task_ending import Ending

LIVE = ("starting", "ready", "draining")
"""Phases in which a task worker may have a container."""


@dataclass(frozen=True)
class TaskRun:
    """An attempt of a job in a container of its own."""

    job_id: str
    attempt: int

    @property
    def id(self) -> str:
        """Names the run: ``<job id>:<attempt>``."""
        return f"{self.job_id}:{self.attempt}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The run of an id; None for a text that is none."""
        job_id, _, attempt = text.rpartition(":")
        known = job_id and attempt.isascii() and attempt.isdecimal()
        return cls(job_id, int(attempt)) if known else None


@dataclass(frozen=True)
class TaskState:
    """A task worker, as its node sees it.

    Attributes:
        phase: of :class:`ownpod.rules.managed.Phase`; "": there is no such worker.
        reason: why it is in its phase.
        run: the id of the last run that was begun.
        ending: how that has ended; None: it has not.
    """

    phase: str
    reason: str = ""
    run: str = ""
    ending: Ending | None = None

    @property
    def lives(self) -> bool:
        """The worker may have a container."""
        return self.phase in LIVE
