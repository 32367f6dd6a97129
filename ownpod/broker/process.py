"""What this Celery process is: a worker's node, the housekeeping node, or neither.

The one global of a Celery process. The node's name decides it before Celery starts (:mod:`ownpod.node.signals`,
:mod:`ownpod.housekeeping.signals`); tasks, remote commands and the pool read it.
"""

import abc
from typing import Any, TypeVar

R = TypeVar("R")


class WorkerNode(abc.ABC):
    """A worker's node, as remote commands and the pool use it."""

    @property
    @abc.abstractmethod
    def queue(self) -> str:
        """The endpoint's queue."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The state of the node and its worker, for ``celery inspect ownpod_node``."""

    @abc.abstractmethod
    def check_runs(self) -> None:
        """Checks at once which of the node's jobs were cancelled."""

    @abc.abstractmethod
    def pause(self, reason: str) -> None:
        """Takes no more jobs, also after a restart; running jobs are finished."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Takes jobs again."""

    @abc.abstractmethod
    def cancel(self, job_id: str, reason: str) -> None:
        """Cancels a job, also one of another node."""

    @abc.abstractmethod
    def stop_soon(self) -> bool:
        """Begins to drain. False: the node drains already."""

    @abc.abstractmethod
    def drain(self) -> None:
        """Blocks until running jobs have ended or their time is over; requeues the rest."""


_current: object = None


def become(role: object) -> None:
    """Sets the role of this process, in place of an earlier role."""
    global _current  # noqa: PLW0603 - one process has one role
    _current = role


def current(kind: type[R]) -> R | None:
    """The role of this process, if it has this class; otherwise None."""
    return _current if isinstance(_current, kind) else None


def worker_node() -> WorkerNode | None:
    """This process, if it is a worker's node."""
    return _current if isinstance(_current, WorkerNode) else None
