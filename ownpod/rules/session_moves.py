"""Tasks that wait for a session without a device although another session that could run them is idle. Pure.

Such a session is made for a task when all others are busy. When one of them becomes idle first, it keeps its device until its idle
time is over, and the new session may wait for that device in vain.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ownpod.rules.about import ANY_SESSION
from ownpod.rules.managed import Phase, Role
from ownpod.rules.sessions import MOST_MOVES, Session


class MovableJob(Protocol):
    """A job that waits for a session, see :class:`ownpod.store.private.WaitingJob`."""

    @property
    def id(self) -> str: ...
    @property
    def movable(self) -> bool: ...
    @property
    def moves(self) -> int: ...


class Move(NamedTuple):
    """The job moves from one session to another. ``last``: no other job waits for the first."""

    job: str
    old: Session
    new: Session
    last: bool


def moves_to_idle(
    sessions: Sequence[Session], jobs: Mapping[str, Sequence[MovableJob]]
) -> list[Move]:
    """Which waiting jobs move to idle sessions, at most one to each: the oldest sessions' first.

    Args:
        sessions: those of all endpoints.
        jobs: those that wait, by the session's id, the first one first.
    """
    idle = sorted((s for s in sessions if s.is_idle), key=lambda s: s.worker.active_ms or 0)
    waiting = [
        s
        for s in sessions
        if s.worker.phase is Phase.WANTED and s.about.get("for_task") == ANY_SESSION
    ]
    moves = []
    for session in sorted(waiting, key=lambda s: (s.worker.created_ms, s.id)):
        mine = list(jobs.get(session.id, ()))
        while mine and mine[0].movable and mine[0].moves < MOST_MOVES:
            # The last used first, as for a new task.
            fits = [other for other in idle if _serves(other, session)]
            if not fits:
                break
            idle.remove(fits[-1])
            moves.append(Move(mine.pop(0).id, session, fits[-1], last=not mine))
    return moves


def _serves(idle: Session, wanted: Session) -> bool:
    """Whether a task of a wanted session could have got the idle one."""
    one, other = idle.worker, wanted.worker
    if one.role is not Role.SESSION or idle.about.get("difficulty") != wanted.about.get(
        "difficulty"
    ):
        return False
    # One of them may have spilled.
    fits = one.pools == other.pools or "spill" in wanted.about
    return fits and (one.endpoint, one.owner) == (other.endpoint, other.owner)
