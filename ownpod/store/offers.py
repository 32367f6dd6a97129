"""Offers of runs to workers that pull, in Redis: nodes write offers, and the API takes them for its workers.

Every change is one command: the node's are in ``offers.lua``, the worker's in ``pulling.lua``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from ownpod.errors import BadRequest, TooManyWorkers, WorkerConflict, WorkerRecordBroken
from ownpod.rules.endpoints import DEFAULT_MAX_WORKERS
from ownpod.rules.jobs import JobStatus
from ownpod.rules.offers import Contact, RunState
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.client import broken_records, clock_ms, ms_of, redis_errors, redis_reads
from ownpod.store.scripts import Scripts, constants
from ownpod.validation import NAME

log = logging.getLogger(__name__)

KEPT_MS = 8 * 86_400_000
"""Ms after which the keys of a run or a worker expire; no job runs longer."""

GRACE_MS = 2000
"""Ms after a run was taken in which a ping need not list it, because the ping may have been on its way."""

MISSES = 2
"""Number of pings in a row without a run after which the run counts as lost."""

RESTART_MS = 1500
"""Ms within which a living worker process sends its next request for jobs, because the SDK pauses 1 s. A process that
was restarted needs longer, because it imports its modules first.
"""

WITHDRAWN_MS = 60_000
"""Ms for which a withdrawn run is kept, because its node may repeat the call while Redis does not answer."""

MOST_RUNS = 1000
"""Maximum number of runs that one request takes, or one ping lists; further ones are ignored."""

MOST_REFUSED = 32
"""Number of refused workers that are stored for an endpoint; the oldest is removed first."""

NAMED_MS = 60_000
"""Ms for which a refused worker is shown after its last request; a refused SDK asks every 5 s."""

MOST_FORGOTTEN = 1000
"""Number of workers that one call of :meth:`Offers.forget_gone` checks."""

OFFER_CONSTANTS = constants(
    PULL=keys.PULL,
    PULLING=keys.PULLING,
    HEARD=keys.HEARD,
    EVENTS=keys.PULL_EVENTS,
    ENDPOINT=keys.ENDPOINT,
    MANAGED=keys.MANAGED,
    NOTICES=keys.MANAGED_NOTICES,
    KEPT_MS=KEPT_MS,
    MOST_REFUSED=MOST_REFUSED,
    NAMED_MS=NAMED_MS,
    GRACE_MS=GRACE_MS,
    MISSES=MISSES,
    RESTART_MS=RESTART_MS,
    WITHDRAWN_MS=WITHDRAWN_MS,
)
"""Lua in front of ``offers.lua``."""

_broken_records = broken_records("the keys of a worker that pulls")


@dataclass(frozen=True)
class Result:
    """A result that a worker posted. ``stopping``: the worker requests a restart of its container (``stopPod``)."""

    outcome: Outcome
    stopping: bool


@dataclass(frozen=True)
class Taken:
    """The answer to a request for jobs: JSON texts. ``stopping``: the worker gets no jobs before its restart."""

    jobs: list[str]
    stopping: bool


def _taken(reply: Any) -> Taken | None:
    return None if reply is None else Taken(list(reply[1]), stopping=bool(reply[0]))


def _attempt(reply: Any) -> tuple[str, int] | None:
    return None if reply is None else (reply[0], int(reply[1]))


@dataclass(frozen=True)
class Refusal:
    """The reason why a worker of an endpoint gets no jobs, and seconds since its last request."""

    worker_id: str
    reason: str
    ago_s: float


class Offers:
    """Workers that pull, and their runs.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        gone_s: see ``OWNPOD_WORKER_GONE_S``.
    """

    def __init__(self, client: redis.Redis, *, gone_s: float) -> None:
        self._redis = client
        self._gone_ms = int(gone_s * 1000)
        self._script = Scripts(
            client,
            "offers.lua",
            "pulling.lua",
            constants=OFFER_CONSTANTS,
        )

    @_broken_records
    @redis_errors
    def _call(self, command: str, worker_id: str, *arguments: str | float) -> Any:
        """Raises: BadRequest, for an id that would be part of another key; WorkerRecordBroken."""
        if not NAME.fullmatch(worker_id):
            raise BadRequest(f"{worker_id[:100]!r} cannot be a worker's id")
        return self._script(command, worker_id, *arguments)

    # The API's part, for the worker.

    def take(
        self,
        worker_id: str,
        endpoint: str,
        token: str,
        *,
        limit: int,
        in_progress: bool,
        key: str = "",
        max_workers: int = DEFAULT_MAX_WORKERS,
    ) -> Taken:
        """Takes offers for a worker's request for jobs, and registers the worker.

        Args:
            worker_id: the worker's id.
            endpoint: the endpoint in the request's URL.
            token: the id of this request.
            limit: the maximum number of jobs.
            in_progress: the worker runs other jobs; False: those that it took before have ended without a result.
            key: digest of the request's key; results of these jobs are accepted with the same key.
            max_workers: the maximum number of pulling workers of the endpoint.

        Raises:
            WorkerConflict: a worker of another endpoint uses this id, or a managed worker that counts as stopped.
            TooManyWorkers: the endpoint has ``max_workers`` other workers.
        """
        limit = min(max(limit, 1), MOST_RUNS)
        options = (limit, int(in_progress), self._gone_ms, key, max_workers)
        reply = self._call("take", worker_id, endpoint, token, *options)
        if reply[0] == -1:
            raise WorkerConflict(
                f"a worker of the endpoint {reply[2]!r} has the id {worker_id!r}; the id is free "
                f"when that worker has sent no request for {self._gone_ms / 1000:g} s"
            )
        if reply[0] == -2:
            raise TooManyWorkers(max_workers)
        if reply[0] == -3:
            raise WorkerConflict(
                f"OwnPod has stopped the managed worker {worker_id!r}, or its host was silent"
            )
        if reply[0] == -4:
            raise WorkerConflict(f"the managed worker {worker_id!r} gets requests, and no jobs")
        return Taken(list(reply[1]), stopping=bool(reply[0]))

    def collect(self, worker_id: str, endpoint: str, token: str, *, limit: int) -> Taken | None:
        """Takes offers for a request that is held. None: the worker has sent another request since."""
        limit = min(max(limit, 1), MOST_RUNS)
        return _taken(self._call("collect", worker_id, endpoint, token, limit))

    def left(self, worker_id: str, token: str) -> None:
        """Records that the connection of a request is closed: the worker gets no jobs before its next request."""
        self._call("left", worker_id, token)

    def ping(self, worker_id: str, endpoint: str, runs: list[str]) -> None:
        """Records a worker's ping with its list of runs. Changes nothing for a worker of another endpoint."""
        listed = [run for run in runs if NAME.fullmatch(run)][:MOST_RUNS]
        self._call("ping", worker_id, endpoint, *listed)

    def reported(self, worker_id: str, endpoint: str, run_id: str) -> tuple[str, int] | None:
        """Records a request of the worker about a run, and returns the run's job and attempt.

        None: the run has ended, or is another worker's.
        """
        return _attempt(self._call("reported", worker_id, endpoint, run_id))

    def all_reported(self, runs: Sequence[tuple[str, str, str]]) -> list[tuple[str, int] | None]:
        """As :meth:`reported`, of several runs at once, each with its worker and endpoint, whose ids were checked before. None also where Redis
        has refused the request.

        Raises:
            AnswerLost: some requests may have been recorded.
            RedisUnavailable: none was recorded.
        """
        replies = self._script.all("reported", runs)
        return [None if isinstance(reply, Exception) else _attempt(reply) for reply in replies]

    def spoil(self, worker_id: str, endpoint: str, run_id: str, reason: str) -> None:
        """Lets the run end as FAILED with any result, because a part of its output is lost."""
        self._call("spoil", worker_id, endpoint, run_id, reason)

    def done(self, worker_id: str, endpoint: str, run_id: str, result: Result) -> bool:
        """Writes the worker's result. False: the result is no longer needed, or the run is another worker's."""
        outcome = result.outcome
        values = (outcome.status, outcome.output or "", outcome.error or "")
        return bool(self._call("done", worker_id, endpoint, run_id, int(result.stopping), *values))

    def stops(self, worker_id: str, endpoint: str) -> list[str] | None:
        """Runs that the worker must stop; each is returned once. None: the worker must restart."""
        reply = self._call("stops", worker_id, endpoint)
        return None if reply is None else list(reply)

    def refuse(self, worker_id: str, endpoint: str, reason: str) -> None:
        """Stores for a while why the worker gets no jobs of an endpoint, see :meth:`refusals`."""
        self._call("refuse", worker_id, endpoint, reason)

    @_broken_records
    @redis_reads
    def refusals(self, endpoint: str) -> list[Refusal]:
        """Workers that sent a request to the endpoint within the last minute and got no jobs."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.of_endpoint(endpoint, "refused"))
            pipe.time()
            reasons, time = pipe.execute()
        now, refused = ms_of(time), []
        for worker_id, text in sorted(reasons.items()):
            at, _, reason = text.partition(" ")
            ago_ms = now - int(at)
            if ago_ms < NAMED_MS:
                refused.append(Refusal(worker_id, reason, ago_ms / 1000))
        return refused

    @_broken_records
    @redis_reads
    def key_of(self, worker_id: str, run_id: str | None = None) -> str | None:
        """Digest of the key with which the worker took a run. For an unknown run, and without one, of the
        key of its last request for jobs. None: not known.
        """
        base = keys.pull(worker_id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(f"{base}:run:{run_id}", "key")
            pipe.hget(base, "key")
            of_run, last = pipe.execute()
        return of_run or last or None

    # The node's part.

    def offer(
        self, worker_id: str, run_id: str, *, job_id: str, attempt: int, body: str, time_s: float
    ) -> None:
        """Lets the worker take a run, which may last ``time_s`` seconds."""
        self._call("offer", worker_id, run_id, job_id, attempt, body, int(time_s * 1000))

    def withdraw(self, worker_id: str, run_id: str) -> bool:
        """Withdraws an offer. False: the worker has taken it."""
        return bool(self._call("withdraw", worker_id, run_id))

    def settle(self, worker_id: str, run_id: str, *, keep_s: float = 0) -> None:
        """Ends an offer whose result the node has read. The next node of the worker can read it for ``keep_s`` seconds."""
        self._call("settle", worker_id, run_id, int(keep_s * 1000))

    def stop(self, worker_id: str, run_id: str) -> bool:
        """Requests the worker to stop a run. False: the worker does not run it."""
        return bool(self._call("stop", worker_id, run_id))

    @_broken_records
    @redis_reads
    def run(self, worker_id: str, run_id: str) -> RunState | None:
        """The state of a run; None: settled, or withdrawn."""
        key = f"{keys.pull(worker_id)}:run:{run_id}"
        names = ("state", "until_ms", "taken_ms", "ended_ms", "status", "output", "error")
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(key, names)
            pipe.hmget(keys.pull(worker_id), "asked_ms", "take")
            pipe.time()
            values, asked, time = pipe.execute()
        state, until_ms, taken_ms, ended_ms, status, output, error = values
        if state in {None, "withdrawn"}:
            return None
        outcome = None
        if state == "done":
            outcome = Outcome(
                JobStatus(status),
                output=output or None,
                error=error or None,
                execution_ms=int(ended_ms) - int(taken_ms),
            )
        now = ms_of(time)
        return RunState(
            state=state,
            left_s=(int(until_ms or 0) - now) / 1000,
            taken_s=(now - int(taken_ms or now)) / 1000,
            outcome=outcome,
            left=asked[0] is not None and asked[1] is None,
        )

    @_broken_records
    @redis_reads
    def contact(self, worker_id: str) -> Contact:
        """The times of the worker's last requests."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zscore(keys.HEARD, worker_id)
            pipe.hmget(keys.pull(worker_id), "asked_ms", "ping_ms", "stopping", "take")
            pipe.time()
            requested_ms, (asked_ms, ping_ms, stopping, take), time = pipe.execute()
        now = ms_of(time)
        requested_s, asked_s, pinged_s = (
            None if ms is None else (now - int(ms)) / 1000
            for ms in (requested_ms, asked_ms, ping_ms)
        )
        return Contact(
            requested_s,
            asked_s,
            pinged_s,
            stopping=stopping is not None,
            left=asked_ms is not None and take is None,
        )

    def await_worker(self, worker_id: str) -> None:
        """Asks the API to renew the time of the worker's request, if the API holds one."""
        self._call("await", worker_id)

    def forget_gone(self) -> list[str]:
        """Removes workers that have sent nothing for ``gone_s`` seconds and have no runs; returns their ids.

        A worker whose keys cannot be used is logged and removed too.
        """
        gone = []
        for worker_id in self._silent():
            try:
                how = self._call("forget", worker_id, self._gone_ms)
            except (BadRequest, WorkerRecordBroken) as error:
                log.error("worker %r is dropped: %s", worker_id, error)  # noqa: TRY400 - one line
                self._drop(worker_id)
                continue
            if how == 2:
                log.warning("worker %s: keys of the wrong type were deleted", worker_id)
            if how:
                gone.append(worker_id)
        return gone

    @redis_reads
    def _silent(self) -> list[str]:
        """Workers that have sent nothing for ``gone_s`` seconds, at most :data:`MOST_FORGOTTEN`, the oldest first."""
        until = clock_ms(self._redis) - self._gone_ms
        ids: Any = self._redis.zrangebyscore(keys.HEARD, "-inf", until, 0, MOST_FORGOTTEN)
        return list(ids)

    @redis_errors
    def _drop(self, worker_id: str) -> None:
        """Removes a worker whose keys cannot be used from the lists."""
        self._redis.zrem(keys.HEARD, worker_id)
        self._redis.hdel(keys.PULLING, worker_id)
