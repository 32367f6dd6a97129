"""Private workers in Redis: sessions and the workers of one-off tasks; the commands are in ``sessions.lua``.

A session is a managed worker with the role SESSION, so its record, its moves and its devices are those of
:class:`ownpod.store.managed.Managed`. Here are its creation, its end, and the jobs that wait for it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ownpod.errors import NoDeviceFree, SessionEnded, SessionNotFound
from ownpod.rules.about import about
from ownpod.rules.managed import SERVING, WORKER_ID, ManagedWorker, Phase, Role
from ownpod.rules.presets import longest_wait_s
from ownpod.rules.residents import HOLD_LEAST_S
from ownpod.rules.sessions import (
    KEEPALIVE_FACTOR,
    KEPT_S,
    WORDS,
    Reason,
    Session,
    SessionWish,
    reason_of,
)
from ownpod.rules.templates import ManagedSpec
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.client import ms_of, redis_errors, redis_reads
from ownpod.store.loads import broken_managed
from ownpod.store.managed import (
    MANAGED_CONSTANTS,
    MANAGED_FILES,
    Managed,
    one_line,
    wanted_arguments,
)
from ownpod.store.private import PrivateJobs
from ownpod.store.rooms import Endpoints, Rooms
from ownpod.store.scripts import Scripts, constants
from ownpod.store.store import Store

PICKED_MS = 2000
"""Ms for which a session that was given to one task is not given to another as an idle one: the first one's job comes
with the next command."""

MOST_TRIES = 10
"""Number of times that :meth:`Sessions.open` reads the devices again because others took some meanwhile."""


@dataclass(frozen=True)
class Opened:
    """The session for a task. ``created``: it is new."""

    id: str
    created: bool


class Sessions:
    """Sessions, and the workers of one-off tasks. Any call may raise RedisUnavailable.

    Args:
        store: the jobs.
        result_ttl_s: seconds for which a finished job's record is kept.
        endpoints: all endpoints, whose idle workers may give their devices to a new private worker.
        hold_least_s: see :data:`ownpod.rules.residents.HOLD_LEAST_S`.
    """

    def __init__(
        self,
        store: Store,
        *,
        result_ttl_s: int,
        endpoints: Endpoints = dict,
        hold_least_s: float = HOLD_LEAST_S,
    ) -> None:
        self._redis = store.client
        self._store = store
        self.jobs = PrivateJobs(store, result_ttl_s=result_ttl_s)
        self.managed = Managed(store.client)
        self._rooms = Rooms(
            store.client,
            self.managed,
            Agents(store.client),
            endpoints,
            hold_least_s=hold_least_s,
        )
        self._script = Scripts(
            store.client,
            *MANAGED_FILES,
            "sessions.lua",
            constants=MANAGED_CONSTANTS + constants(PICKED_MS=PICKED_MS),
            # The id of the worker is the fence: a second execution finds the worker of the first.
            repeatable=("open", "open_task", "keepalive", "end_private", "spill"),
        )

    # Creation.

    def open(self, wish: SessionWish, *, owner: str, worker_id: str, reuse: bool) -> Opened:
        """A session for a task: one of the same owner, preset and difficulty, or a new one, in one step.

        With ``reuse`` an idle one, the last used first; otherwise a new one if a device is free or freeable; otherwise the one
        with the fewest tasks whose queue has room; otherwise a new one, which waits for a device. The session may end before its
        task is created: :meth:`ownpod.store.jobs.Jobs.create` raises SessionEnded then, and the caller opens again.

        Args:
            wish: from :func:`ownpod.rules.sessions.wish_for`.
            owner: the digest of the client's key; "": no key is needed.
            worker_id: the id of a new one, random, see :data:`ownpod.rules.managed.WORKER_ID`.
            reuse: one that is there will do.

        Raises:
            NoDeviceFree: no device is free or freeable, and ``wait_s`` is 0.
        """
        device, seen = "ask", (0, 0)
        for left in reversed(range(MOST_TRIES)):
            reply = self._open(wish, owner, worker_id, int(reuse), device, *seen)
            match reply:
                case ["created" | "reused" as how, session_id]:
                    return Opened(session_id, created=how == "created")
                case ["full"]:
                    break
            free, seen = self._rooms.find(wish.endpoint, wish.spec)
            # At the end the choice counts as it was made, because others may go on taking devices.
            device = ("free" if left > 1 else "any") if free else "taken"
        raise NoDeviceFree(wish.difficulty)

    @broken_managed
    @redis_errors
    def _open(
        self, wish: SessionWish, owner: str, worker_id: str, *devices: str | int
    ) -> Sequence[str]:
        _check_id(worker_id)
        found: Sequence[str] = self._script(
            "open",
            worker_id,
            *wanted_arguments(wish.endpoint, wish.spec, None),
            *(owner, wish.about, wish.queue_max, wish.idle_s, wish.life_s),
            *(int(wish.hard_life), int(wish.from_created), longest_wait_s(wish.wait_s)),
            self._store.messages.own_queue(wish.endpoint, ""),
            *devices,
            int(wish.wait_s != 0),
        )
        return found

    def has_room(self, endpoint: str, spec: ManagedSpec) -> bool:
        """Whether devices for one more worker are free or freeable now, besides those of the workers that wait already."""
        return self._rooms.find(endpoint, spec)[0]

    @broken_managed
    @redis_errors
    def open_task(
        self,
        worker_id: str,
        endpoint: str,
        *,
        spec: ManagedSpec,
        job_id: str,
        owner: str,
        model_id: str = "",
        preset: str = "",
        difficulty: str = "",
        labels: Mapping[str, Any] | None = None,
        output: str = "",
        spill: Mapping[str, Any] | None = None,
        wait_s: int = 0,
    ) -> bool:
        """Wants the worker of a one-off task, which runs this job only. Its job is created afterwards, with the worker's id
        as ``private``; housekeeping ends a worker whose job never came.

        Args:
            worker_id: a new random id.
            endpoint: the endpoint's id.
            spec: what it is started from.
            job_id: the job.
            owner: the digest of the client's key.
            model_id: for people, as the others.
            preset: its name.
            difficulty: its pool.
            labels: the client's own words about it.
            output: what its plain lines are, a word of :class:`ownpod.rules.presets.OutputMode`; "": the default.
            spill: from :meth:`ownpod.rules.presets.Preset.later`.
            wait_s: seconds for which it may wait for a device; 0: any time.

        Returns:
            False: another worker has this id.
        """
        _check_id(worker_id)
        words = about(model_id, preset, difficulty, labels or {}, output=output, **(spill or {}))
        arguments = (*wanted_arguments(endpoint, spec, None), owner, words, job_id, wait_s)
        return bool(self._script("open_task", worker_id, *arguments))

    # Reads.

    def get(self, session_id: str, owner: str | None = None) -> Session | None:
        """A session, also one that has ended within :data:`ownpod.rules.sessions.KEPT_S`; None: there is none.

        Args:
            session_id: its id.
            owner: the digest of the client's key, which only sees its own sessions; None: any.

        Raises:
            WorkerRecordBroken: its record cannot be read.
        """
        worker = self.managed.get(session_id)
        if worker is None or worker.role is not Role.SESSION:
            return None
        if owner is not None and worker.owner != owner:
            return None
        (found,) = self.views([worker])
        return found if _is_shown(found) else None

    @broken_managed
    @redis_reads
    def takes_tasks(self, session_id: str, endpoint: str, owner: str | None = None) -> bool:
        """Whether this is a session of the endpoint that takes tasks of a client, by one command because each task asks it.
        :meth:`get` has the reason why not.
        """
        if not WORKER_ID.fullmatch(session_id):
            return False
        names = ("role", "endpoint", "owner", "phase")
        values: Any = self._redis.hmget(keys.managed(session_id), *names)
        role, of_endpoint, of_owner, phase = values
        if role != Role.SESSION or of_endpoint != endpoint:
            return False
        return owner in {None, of_owner or ""} and phase in list(SERVING)

    def list(
        self, *, owner: str | None = None, endpoint: str | None = None, ended: bool = False
    ) -> list[Session]:
        """Sessions, the oldest first.

        Args:
            owner: only those of this key; None: all.
            endpoint: only those of this endpoint; None: all.
            ended: also those that have ended within :data:`ownpod.rules.sessions.KEPT_S`.
        """
        workers = self.managed.list(endpoint)
        if ended:
            known = {worker.id for worker in workers}
            workers += [w for w in self.managed.recent(endpoint) if w.id not in known]
        mine = [
            worker
            for worker in sorted(workers, key=lambda w: (w.created_ms, w.id))
            if worker.role is Role.SESSION and owner in {None, worker.owner}
        ]
        return [session for session in self.views(mine) if _is_shown(session)]

    @redis_reads
    def views(self, workers: Sequence[ManagedWorker]) -> Sequence[Session]:
        """Private workers with their jobs, all of one instant, in two round trips at most."""
        if not workers:
            return []
        endpoints = sorted({worker.endpoint for worker in workers})
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            for worker in workers:
                pipe.zrange(keys.waiting(self._own(worker)), 0, -1)
            for endpoint in endpoints:
                pipe.hgetall(keys.running(endpoint))
            time, *found = pipe.execute()
        running: defaultdict[str, list[str]] = defaultdict(list)
        for of_endpoint in found[len(workers) :]:
            for job_id, worker_id in of_endpoint.items():
                running[worker_id].append(job_id)
        now_ms = ms_of(time)
        return [
            Session(worker, tuple(queued), tuple(sorted(running[worker.id])), now_ms)
            for worker, queued in zip(workers, found, strict=False)
        ]

    def _own(self, worker: ManagedWorker) -> str:
        return self._store.messages.own_queue(worker.endpoint, worker.id)

    # What clients do.

    @broken_managed
    @redis_errors
    def keepalive(
        self, session_id: str, owner: str | None, seconds: float | None = None
    ) -> Session:
        """Restarts a session's idle time.

        Args:
            session_id: its id.
            owner: as of :meth:`get`.
            seconds: for which it stays although it is idle, at most :data:`KEEPALIVE_FACTOR` times its idle time; None: only
                its idle time begins again.

        Raises:
            SessionNotFound: there is none.
            SessionEnded: it ends, or has ended.
        """
        session = self._find(session_id, owner)
        keep_ms = ""
        if seconds is not None and session.worker.idle_s:
            longest_s = session.worker.idle_s * KEEPALIVE_FACTOR
            keep_ms = str(int(min(max(seconds, 0), longest_s) * 1000))
        if not self._script("keepalive", session_id, keep_ms):
            raise SessionEnded(session_id, reason_of(session.worker) or "")
        return self._find(session_id, owner)

    def end(
        self,
        session_id: str,
        reason: Reason = Reason.MANUAL,
        *,
        drain: bool,
        owner: str | None = None,
    ) -> Session:
        """Ends a session. Its waiting tasks are settled by housekeeping; see :mod:`ownpod.housekeeping.sessions`.

        Args:
            session_id: its id.
            reason: why.
            drain: a task that runs ends by itself; otherwise it is FAILED at once, and the worker is stopped.
            owner: as of :meth:`get`.

        Returns:
            The session as it is then. One that ends already is left as it is, unless it drained and is to end at once.

        Raises:
            SessionNotFound: there is none.
        """
        session = self._find(session_id, owner)
        self.end_private(session.worker, reason, how="drain" if drain else "kill")
        return self._find(session_id, owner)

    def _find(self, session_id: str, owner: str | None) -> Session:
        session = self.get(session_id, owner)
        if session is None:
            raise SessionNotFound(session_id)
        return session

    # What housekeeping does.

    @broken_managed
    @redis_errors
    def spill(self, worker_id: str, pools: Sequence[str]) -> bool:
        """A wanted private worker may have devices of these pools from now on. False: an agent has taken it."""
        _check_id(worker_id)
        return bool(self._script("spill", worker_id, json.dumps(pools)))

    @broken_managed
    @redis_errors
    def end_private(
        self, worker: ManagedWorker, reason: Reason, *, how: str, words: str = ""
    ) -> bool:
        """Ends a private worker in one step, which checks again whether it is to end.

        Args:
            worker: its record.
            reason: why.
            how: ``idle``, ``life``, ``wait`` or ``empty`` (wanted, without jobs): only if this still is so; ``drain``: a job that runs ends by itself;
                ``kill``: it is ended.
            words: for the worker's record; "": those of the reason.

        Returns:
            False: it is not to end, or ends already.
        """
        said = one_line(words or WORDS.get(reason, reason))
        ended = self._script("end_private", worker.id, self._own(worker), reason, said, how)
        if ended and (how == "kill" or (how == "life" and worker.hard_life)):
            self.end_running(worker, reason)
        return bool(ended)

    def end_running(self, worker: ManagedWorker, reason: Reason) -> None:
        """Ends the jobs that a worker runs, as FAILED with the code ``session_ended``."""
        (session,) = self.views([worker])
        for job_id in session.running:
            self.jobs.end(
                job_id, worker.id, f"session {worker.id} ended: {reason}", "session_ended"
            )


def _check_id(worker_id: str) -> None:
    if not WORKER_ID.fullmatch(worker_id):
        raise SessionNotFound(worker_id[:100])


def _is_shown(session: Session) -> bool:
    stopped_ms = session.worker.stopped_ms
    if session.worker.phase is not Phase.STOPPED or stopped_ms is None:
        return True
    return session.now_ms - stopped_ms < KEPT_S * 1000
