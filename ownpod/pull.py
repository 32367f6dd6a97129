"""Between workers that pull and their nodes, in Redis: the API speaks for the worker, the node for the
job. Every change is one call of ``pull.lua``.
"""

from dataclasses import dataclass
from typing import Any

import redis

from ownpod import keys
from ownpod.connection import redis_errors
from ownpod.jobs import JobStatus, Outcome
from ownpod.scripts import Scripts

KEPT_MS = 8 * 86_400_000
"""What is known of a run or a worker is forgotten after this; no job runs longer."""

GRACE_MS = 2000
"""A ping may have been on its way when the worker took a job."""

MISSES = 2
"""Pings in a row that do not list a run which the worker took: it has not got it."""

RESTART_MS = 1500
"""A worker's process that lives asks again within this: the SDK pauses 1 s. One that was restarted
does not, it has to import first.
"""


def worker_environment(endpoint_url: str, worker_id: str, *, key: str) -> dict[str, str]:
    """What makes an unmodified RunPod container a worker of an endpoint.

    Args:
        endpoint_url: as the container reaches it, like ``http://10.0.0.5:8000/v2/local-ep``.
        worker_id: the worker's id, of letters, digits, - and _.
        key: one of ``OWNPOD_WORKER_KEYS``; without any the SDK does not ping, so any other text.
    """
    # The SDK appends "&..." and so needs a "?"; $ID is the worker's in the first, a job's in others.
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{endpoint_url}/job-take/$ID?gpu=0",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{endpoint_url}/job-done/$RUNPOD_POD_ID/$ID?gpu=0",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{endpoint_url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=0",
        "RUNPOD_WEBHOOK_PING": f"{endpoint_url}/ping/$RUNPOD_POD_ID?gpu=0",
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": key,
        # Else the worker ends where it cannot reach the internet.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }


@dataclass(frozen=True)
class Result:
    """What a worker posted. ``stopping``: it wants its container to be restarted (``stopPod``)."""

    outcome: Outcome
    stopping: bool


@dataclass(frozen=True)
class Taken:
    """What a worker that asks is given: jobs, JSON texts. ``stopping``: none before its restart."""

    jobs: list[str]
    stopping: bool


def _ms(time: tuple[int, int]) -> int:
    """Of Redis's clock."""
    return time[0] * 1000 + time[1] // 1000


def _taken(found: Any) -> Taken | None:
    return None if found is None else Taken(list(found[1]), stopping=bool(found[0]))


@dataclass(frozen=True)
class Contact:
    """How long ago, in s, a worker said anything, asked for jobs, and pinged; None: never."""

    heard_s: float | None
    asked_s: float | None
    pinged_s: float | None
    stopping: bool


@dataclass(frozen=True)
class RunState:
    """Where a run is: offered, delivered, begun, done, unbegun, gone. ``left_s`` of its time."""

    state: str
    left_s: float
    taken_s: float
    """How long ago the worker took it."""
    outcome: Outcome | None


class Pulls:
    """Workers that pull, and their runs.

    Args:
        client: from :func:`ownpod.store.connect`.
        gone_s: see ``OWNPOD_WORKER_GONE_S``.
    """

    def __init__(self, client: redis.Redis, *, gone_s: float) -> None:
        self._redis = client
        self._gone_ms = int(gone_s * 1000)
        constants = (
            f'local PULL, PULLING, HEARD = "{keys.PULL}", "{keys.PULLING}", "{keys.HEARD}"\n'
            f'local EVENTS, KEPT_MS = "{keys.PULL_EVENTS}", {KEPT_MS}\n'
            f"local GRACE_MS, MISSES, RESTART_MS = {GRACE_MS}, {MISSES}, {RESTART_MS}\n"
        )
        self._script = Scripts(client, "pull.lua", constants)

    @redis_errors
    def _call(self, command: str, worker_id: str, *arguments: str | float) -> Any:
        return self._script(command, worker_id, *arguments)

    # What a worker says; the API's part.

    def take(
        self, worker_id: str, endpoint: str, token: str, *, most: int, in_progress: bool
    ) -> Taken | None:
        """It asks for at most so many jobs; ``in_progress``: beside others that it has.

        None: a worker of another endpoint goes by this id.
        """
        options = (most, int(in_progress), self._gone_ms)
        return _taken(self._call("take", worker_id, endpoint, token, *options))

    def collect(self, worker_id: str, token: str, *, most: int) -> Taken | None:
        """Looks again for a request that waits. None: it is not the worker's last."""
        return _taken(self._call("collect", worker_id, token, most))

    def left(self, worker_id: str, token: str) -> None:
        """Who made that request has closed the connection: its process has ended."""
        self._call("left", worker_id, token)

    def ping(self, worker_id: str, runs: list[str]) -> None:
        """It lives, and has these in hand."""
        self._call("ping", worker_id, *runs)

    def heard_of(self, worker_id: str, run_id: str) -> tuple[str, int] | None:
        """It says something about a run: job and attempt; None: that has ended."""
        found = self._call("heard", worker_id, run_id)
        return None if found is None else (found[0], int(found[1]))

    def done(self, worker_id: str, run_id: str, result: Result) -> bool:
        """It has a result. False: nobody waits for that."""
        outcome = result.outcome
        said = (outcome.status, outcome.output or "", outcome.error or "")
        return bool(self._call("done", worker_id, run_id, int(result.stopping), *said))

    def stops(self, worker_id: str) -> list[str] | None:
        """Runs that it is to stop; each is told once. None: it is to be restarted."""
        found = self._call("stops", worker_id)
        return None if found is None else list(found)

    # What a node says.

    def offer(
        self, worker_id: str, run_id: str, *, job_id: str, attempt: int, body: str, time_s: float
    ) -> None:
        """Lets the worker take a run; it has so many s for it."""
        self._call("offer", worker_id, run_id, job_id, attempt, body, int(time_s * 1000))

    def withdraw(self, worker_id: str, run_id: str) -> bool:
        """Takes an offer back. False: the worker has taken it."""
        return bool(self._call("withdraw", worker_id, run_id))

    def settle(self, worker_id: str, run_id: str, *, keep_s: float = 0) -> None:
        """The node knows how the run ended; a later one can still see it for so long."""
        self._call("settle", worker_id, run_id, int(keep_s * 1000))

    def stop(self, worker_id: str, run_id: str) -> bool:
        """The worker is to stop a run. False: it has not got it."""
        return bool(self._call("stop", worker_id, run_id))

    @redis_errors
    def run(self, worker_id: str, run_id: str) -> RunState | None:
        """Where a run is; None: settled, or withdrawn."""
        key = f"{keys.pull(worker_id)}:run:{run_id}"
        names = ("state", "until_ms", "taken_ms", "ended_ms", "status", "output", "error")
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(key, names)
            pipe.time()
            found, time = pipe.execute()
        state, until_ms, taken_ms, ended_ms, status, output, error = found
        if state is None:
            return None
        outcome = None
        if state == "done":
            outcome = Outcome(
                JobStatus(status),
                output=output or None,
                error=error or None,
                execution_ms=int(ended_ms) - int(taken_ms),
            )
        now = _ms(time)
        return RunState(
            state=state,
            left_s=(int(until_ms or 0) - now) / 1000,
            taken_s=(now - int(taken_ms or now)) / 1000,
            outcome=outcome,
        )

    @redis_errors
    def contact(self, worker_id: str) -> Contact:
        """How it was last heard of."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zscore(keys.HEARD, worker_id)
            pipe.hmget(keys.pull(worker_id), "asked_ms", "ping_ms", "stopping")
            pipe.time()
            heard_ms, (asked_ms, ping_ms, stopping), time = pipe.execute()
        now = _ms(time)
        heard_s, asked_s, pinged_s = (
            None if ms is None else (now - int(ms)) / 1000 for ms in (heard_ms, asked_ms, ping_ms)
        )
        return Contact(heard_s, asked_s, pinged_s, stopping=stopping is not None)

    def forget_gone(self) -> list[str]:
        """Forgets workers that were gone for too long and have nothing in hand; answers their ids."""
        return list(self._call("forget", "", self._gone_ms))
