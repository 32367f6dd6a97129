"""The end of sessions and of one-off tasks' workers, and what becomes of the jobs that wait for one that has ended.

The decision is :func:`ownpod.rules.sessions.decide`; the Lua step that ends the worker checks again, so that no job is lost
that came in between. Nothing is remembered here that a successor needs.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from ownpod.errors import OwnPodError, RedisUnavailable
from ownpod.registry import Registry
from ownpod.rules.about import about_of
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import SERVING, ManagedWorker, Phase, Role, new_worker_id
from ownpod.rules.session_moves import Move, moves_to_idle
from ownpod.rules.sessions import (
    End,
    Reason,
    Session,
    again,
    code_of,
    decide,
    ended_in_words,
    may_move,
)
from ownpod.rules.spill import spilled
from ownpod.store.private import WaitingJob
from ownpod.store.sessions import Sessions

log = logging.getLogger(__name__)

GONE = "session {} ended: its record is gone"

STUCK_S = 15.0
"""Seconds for which a handler may go on after its job has ended."""

_HOW = {
    Reason.IDLE_TIMEOUT: "idle",
    Reason.MAX_LIFETIME: "life",
    Reason.NO_DEVICE: "wait",
    Reason.MODEL_FAILED: "wait",
}
"""How the Lua step checks a reason again."""


class PrivateWorkers:
    """Ends private workers, and settles the jobs that wait for one that has ended.

    Args:
        registry: the endpoints.
        sessions: the private workers.
        clock: seconds, for how long a handler has gone on after its job.
    """

    def __init__(
        self, registry: Registry, sessions: Sessions, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._clock = clock
        self._lingering_since = dict[str, float]()
        self._endpoints = set[str]()
        """Endpoints that had private workers in the last round; their jobs may be left."""

    def once(self, workers: Sequence[ManagedWorker]) -> None:
        """One round. Raises: RedisUnavailable.

        Args:
            workers: the private workers that are not stopped.
        """
        sessions = self._end_due([worker for worker in workers if worker.phase in SERVING])
        presets = {e.id for e in self._registry.endpoints.values() if e.preset is not None}
        here = {worker.endpoint for worker in workers}
        if asked := presets | here | self._endpoints:
            waiting = self._sessions.jobs.waiting(sorted(asked))
            self._endpoints = here | waiting.keys()
            for endpoint, jobs in waiting.items():
                self._settle(endpoint, jobs)
            self._use_idle(sessions, [job for jobs in waiting.values() for job in jobs])
        self._replace_stuck([s for s in sessions if s.worker.role is Role.SESSION])

    def _end_due(self, workers: Sequence[ManagedWorker]) -> Sequence[Session]:
        """Ends workers. Returns those that stay."""
        tasks = [worker for worker in workers if worker.role is Role.TASK]
        over = dict(
            zip(
                (worker.id for worker in tasks),
                self._sessions.jobs.over([worker.job for worker in tasks]) if tasks else (),
                strict=True,
            )
        )
        views, ended = self._sessions.views(workers), set[str]()
        for session in views:
            end = decide(session, job_over=over.get(session.id))
            if (pools := spilled(session.worker, session.now_ms)) is not None:
                self._sessions.spill(session.id, pools)
            if end is not None and self._end(session.worker, end):
                ended.add(session.id)
                log.info(
                    "endpoint %s: %s %s ends: %s",
                    session.worker.endpoint,
                    session.worker.role,
                    session.id,
                    end.words,
                )
        return [session for session in views if session.id not in ended]

    def _replace_stuck(self, sessions: Sequence[Session]) -> None:
        """Has sessions started again whose handler goes on for :data:`STUCK_S` after its job's time has passed, because no further task
        could run there.
        """
        free = [s.id for s in sessions if s.worker.phase is Phase.READY and not s.running]
        lingering, now = self._sessions.jobs.lingering(free) if free else set(), self._clock()
        self._lingering_since = {i: self._lingering_since.get(i, now) for i in lingering}
        for session_id, since in list(self._lingering_since.items()):
            if now - since > STUCK_S and self._sessions.managed.restart(session_id):
                del self._lingering_since[session_id]
                log.warning("session %s is started again: its handler does not end", session_id)

    def _use_idle(self, sessions: Sequence[Session], jobs: Sequence[WaitingJob]) -> None:
        """Moves tasks from sessions without a device to idle ones, and ends sessions that have none left."""
        of_session: defaultdict[str, list[WaitingJob]] = defaultdict(list)
        for job in jobs:
            of_session[job.worker_id].append(job)
        for move in moves_to_idle(sessions, of_session):
            try:
                self._move_to_idle(move)
            except RedisUnavailable:
                raise
            except OwnPodError:
                # A record that cannot be read must not stop the others.
                log.exception("job %s does not move to session %s", move.job, move.new.id)

    def _move_to_idle(self, move: Move) -> None:
        old, new = move.old, move.new
        if not self._sessions.jobs.move(move.job, old.id, new.id):
            return
        log.info("job %s waits for session %s now, which is idle", move.job, new.id)
        if move.last:
            words = f"its task runs on session {new.id}"
            self._sessions.end_private(old.worker, Reason.MANUAL, how="empty", words=words)

    def _end(self, worker: ManagedWorker, end: End) -> bool:
        how = _HOW.get(end.reason, "drain")
        return self._sessions.end_private(worker, end.reason, how=how, words=end.words)

    def _settle(self, endpoint: str, jobs: Sequence[WaitingJob]) -> None:
        """Ends or moves the jobs whose private worker takes none any more."""
        mine: defaultdict[str, list[WaitingJob]] = defaultdict(list)
        for job in jobs:
            mine[job.worker_id].append(job)
        for worker_id, waiting in mine.items():
            try:
                worker = self._sessions.managed.get(worker_id)
                if worker is not None and worker.phase in SERVING:
                    continue
                self._settle_of(endpoint, worker_id, worker, waiting)
            except RedisUnavailable:
                raise
            except OwnPodError:
                # A record that cannot be read must not stop the others.
                log.exception("session %s: its tasks are not settled", worker_id)

    def _settle_of(
        self,
        endpoint: str,
        worker_id: str,
        worker: ManagedWorker | None,
        jobs: Sequence[WaitingJob],
    ) -> None:
        for job in jobs:
            # A task that waits again has attempts left.
            movable = job.movable or (worker is not None and worker.role is Role.TASK)
            if (
                worker is not None
                and may_move(worker, movable=movable, moves=job.moves)
                and self._move(worker, job)
            ):
                continue
            error = GONE.format(worker_id) if worker is None else ended_in_words(worker)
            code = "session_ended" if worker is None else code_of(worker)
            if self._sessions.jobs.end(job.id, worker_id, error, code, running=False):
                log.warning("job %s of %s: %s", job.id, endpoint, error)

    def _move(self, worker: ManagedWorker, job: WaitingJob) -> bool:
        """Moves a waiting job to another private worker of the same preset. False: there can be none."""
        endpoint = self._registry.endpoints.get(worker.endpoint)
        if endpoint is None:
            return False
        try:
            if worker.role is Role.TASK:
                other = self._another_task(worker, endpoint, job.id)
            else:
                wish = again(worker, endpoint)
                other = self._sessions.open(
                    wish, owner=worker.owner, worker_id=new_worker_id(), reuse=True
                ).id
        except RedisUnavailable:
            raise
        except OwnPodError as error:
            log.warning("job %s has no other %s: %s", job.id, worker.role, error)
            return False
        moved = other is not None and self._sessions.jobs.move(job.id, worker.id, other)
        if moved:
            log.info(
                "job %s waits for %s %s now: %s has ended", job.id, worker.role, other, worker.id
            )
        return moved

    def _another_task(self, worker: ManagedWorker, endpoint: Endpoint, job_id: str) -> str | None:
        """Wants another worker for the job of a one-off task, which may be a retry of the first worker's job.

        Returns:
            The worker's id; None: what it is started from is not known any more, as for custom tasks.
        """
        preset, known = endpoint.preset, about_of(worker)
        spec = None if preset is None else preset.one_off
        if preset is None or spec is None or not (spec.template.image or spec.template.command):
            return None
        difficulty, worker_id = str(known.get("difficulty") or preset.difficulty), new_worker_id()
        self._sessions.open_task(
            worker_id,
            worker.endpoint,
            spec=preset.for_difficulty(spec, difficulty, at_once=True),
            job_id=job_id,
            owner=worker.owner,
            model_id=preset.model_id,
            preset=preset.name,
            difficulty=difficulty,
            output=preset.output.value,
            spill=preset.later(difficulty),
            wait_s=worker.wait_s,
        )
        return worker_id
