"""The state of a worker that polls, and of a run that it was offered, as values. Pure."""

from dataclasses import dataclass

from ownpod.rules.runs import Outcome


@dataclass(frozen=True)
class Contact:
    """Seconds since a worker sent any request, asked for jobs, and pinged; None: never."""

    requested_s: float | None
    asked_s: float | None
    pinged_s: float | None
    stopping: bool
    """The worker requested a restart of its container, which has not happened yet."""
    left: bool = False
    """The worker closed its last request for jobs, and has not sent another."""


@dataclass(frozen=True)
class RunState:
    """The state of an offered run: offered, delivered, begun, done, unbegun, gone."""

    state: str
    left_s: float
    """Seconds left of the time that the job may run; negative after its end."""
    taken_s: float
    """Seconds since the worker took the run."""
    outcome: Outcome | None
    left: bool = False
    """As of :class:`Contact`."""
