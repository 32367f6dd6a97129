"""RunPod's production protocol: the worker asks OwnPod for jobs, and posts chunks and results.

Here is the node's side: a run is offered, and the worker takes it with its next request. The API
(:mod:`ownpod.api.worker_protocol`) answers the worker. What real workers do stands in docs/architecture.md.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from ownpod.errors import AttemptLost, RedisUnavailable, WorkerAwaited, WorkerUnavailable
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.store.retry import until_available
from ownpod.workers import Watch

log = logging.getLogger(__name__)

OFFER_S = 6.0
"""A worker with a free slot asks within this: the SDK looks once a second whether it has one."""

BEGIN_S = 35.0
"""A worker that pings has listed a job within this: three times the SDK's interval, and a little."""

ASK_S = 40.0
"""A worker with a free slot asks anew within this: its requests are held for 20 s."""

RESULT_KEPT_S = 120.0
"""A result stays so long after a node has heard it; that is started again within 30 s."""

AWAIT_S = 5.0
"""Seconds after a node's start until the node counts its worker as unhealthy, if the worker has not
asked for a job since."""

STOPPING = "the worker wants its container to be restarted (refresh_worker), and was not yet"

LEFT = "the worker closed its request for a job, and has not asked again"

WORKER = "@worker"
"""The worker itself, where news of its runs have a run's id; published by ``pull.lua``. No id begins with ``@``."""

LOOK_S = 5.0
"""Between looks at a run that nothing was heard of."""

FOLLOW_S = 60.0
"""Seconds between checks whether the worker has left, in case a notification is lost."""


class RunLike(Protocol):
    """See :class:`ownpod.store.offers.RunState`."""

    @property
    def state(self) -> str: ...
    @property
    def left_s(self) -> float: ...
    @property
    def taken_s(self) -> float: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def left(self) -> bool: ...


class ContactLike(Protocol):
    """See :class:`ownpod.store.offers.Contact`."""

    @property
    def heard_s(self) -> float | None: ...
    @property
    def asked_s(self) -> float | None: ...
    @property
    def pinged_s(self) -> float | None: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def left(self) -> bool: ...


class GateLike(Protocol):
    """See :class:`ownpod.node.breaker.Gate`."""

    @property
    def open(self) -> bool: ...
    def trip(self, reason: str) -> None: ...
    def recheck(self) -> None: ...


class Desk(Protocol):
    """Where worker and node meet, see :class:`ownpod.store.offers.Offers`."""

    def offer(
        self, worker_id: str, run_id: str, *, job_id: str, attempt: int, body: str, time_s: float
    ) -> None: ...
    def withdraw(self, worker_id: str, run_id: str) -> bool: ...
    def settle(self, worker_id: str, run_id: str, *, keep_s: float = 0) -> None: ...
    def stop(self, worker_id: str, run_id: str) -> bool: ...
    def run(self, worker_id: str, run_id: str) -> RunLike | None: ...
    def contact(self, worker_id: str) -> ContactLike: ...
    def await_worker(self, worker_id: str) -> None: ...


Expect = Callable[[str], AbstractContextManager[Callable[[float], object]]]
"""Watches a run: yields a function that waits for news of it, at most so many seconds."""


class PullWorker:
    """A worker in production mode. Implements :class:`ownpod.workers.Worker`."""

    def __init__(self, spec: WorkerSpec, desk: Desk, expect: Expect, *, gone_s: float) -> None:
        self._id = spec.id
        self._desk = desk
        self._expect = expect
        self._gone_s = gone_s
        self._begun: dict[str, Attempt] = {}
        self._over: set[str] = set()
        self._awaited: set[str] = set()
        """Runs that :meth:`wait` waits for."""
        self._began = time.monotonic()
        self._seen = False
        """The worker has asked for a job since this object was made."""
        self._freed = time.monotonic()
        """When it was last done with a run: it may have been too busy to ask before."""
        self._refused = float("-inf")
        """When it last did not take what was offered; both on the monotonic clock."""

    def start(self, attempt: Attempt) -> str:
        # The worker gets it in `wait`, when a later node can know of it.
        self._contact()
        # The job's own id, so that handlers see it; another for each attempt, so that late answers
        # of an earlier one are nobody's.
        again = f"-{attempt.number}" if attempt.number > 1 else ""
        run_id = f"{attempt.job_id}{again}"
        self._begun[run_id] = attempt
        return run_id

    def wait(self, run_id: str, watch: Watch, *, resumed: bool = False) -> Outcome:
        attempt = self._begun.pop(run_id, None)
        self._awaited.add(run_id)
        with self._expect(run_id) as wait:
            if attempt is not None and not resumed:
                watch.look(RunCheck.POLL)
                until_available(lambda: self._offer(run_id, attempt))
            offered = time.monotonic()
            try:
                while True:
                    found = until_available(lambda: self._desk.run(self._id, run_id))
                    outcome = self._end(run_id, found, time.monotonic() - offered)
                    if outcome is not None:
                        return outcome
                    left_s = offered + OFFER_S - time.monotonic()
                    wait(left_s + 0.05 if 0 < left_s < LOOK_S else LOOK_S)
            finally:
                self._freed = time.monotonic()
                self._over.discard(run_id)
                self._awaited.discard(run_id)

    def _offer(self, run_id: str, attempt: Attempt) -> None:
        body = f'{{"id": {json.dumps(run_id)}, "input": {attempt.input}'
        if attempt.s3_config is not None:
            body += f', "s3Config": {attempt.s3_config}'
        self._desk.offer(
            self._id,
            run_id,
            job_id=attempt.job_id,
            attempt=attempt.number,
            body=f"{body}}}",
            time_s=attempt.execution_timeout_ms / 1000,
        )

    def _end(self, run_id: str, found: RunLike | None, offered_s: float) -> Outcome | None:
        """How it ended; None: it goes on. Raises as :meth:`wait` does, and WorkerUnavailable."""
        stopped = Outcome(JobStatus.FAILED, error="the worker was told to stop it")
        if found is None:
            if run_id in self._over:
                return stopped
            raise AttemptLost("nothing is known of this run any more")
        if found.outcome is not None:
            # Should this node die before it has written that, the next one finds it.
            self._settle(run_id, keep_s=RESULT_KEPT_S)
            return found.outcome
        if run_id in self._over:
            # Again each time: the SDK does not hear it of a job that it is just about to begin.
            self.cancel(run_id)
        if found.state == "offered":
            self._check_offer(run_id, offered_s, left=found.left)
            return None
        if found.state in {"unbegun", "gone"} or self._vanished(found):
            self._settle(run_id)
            if run_id in self._over:
                # After a stop the worker says no more.
                return stopped
            if found.state in {"unbegun", "delivered"}:
                raise WorkerUnavailable("the worker took the job and did not begin it")
            raise AttemptLost("the worker has not got the job any more, and posted no result")
        return None

    def _check_offer(self, run_id: str, offered_s: float, *, left: bool) -> None:
        """Raises: WorkerUnavailable, when the worker has not taken it, and will not."""
        if not left and offered_s <= OFFER_S:
            return
        if until_available(lambda: self._desk.withdraw(self._id, run_id)):
            if left:
                raise WorkerUnavailable(LEFT)
            self._refused = time.monotonic()
            raise WorkerUnavailable(f"the worker asked for no job within {OFFER_S:g} s")

    def _vanished(self, found: RunLike) -> bool:
        """Nothing was heard of the worker for so long that it cannot have the run any more."""
        contact = until_available(lambda: self._desk.contact(self._id))
        last_s = min(s for s in (contact.heard_s, contact.pinged_s, 1e9) if s is not None)
        if last_s > self._gone_s:
            # A sync handler blocks all but the pings, and not every worker pings.
            return contact.pinged_s is not None or found.left_s + self._gone_s < 0
        return (
            found.state == "delivered"
            and contact.pinged_s is not None
            and min(found.taken_s, contact.pinged_s) > BEGIN_S
        )

    def _settle(self, run_id: str, *, keep_s: float = 0) -> None:
        until_available(lambda: self._desk.settle(self._id, run_id, keep_s=keep_s))

    def is_at(self, run: Run, patience_s: float) -> bool:  # noqa: ARG002
        found = until_available(lambda: self._desk.run(self._id, run.id))
        if found is None:
            return False
        if found.state == "offered":
            return not until_available(lambda: self._desk.withdraw(self._id, run.id))
        if found.state in {"done", "unbegun", "gone"} or self._vanished(found):
            self._settle(run.id)
            return False
        return True

    def cancel(self, run_id: str) -> bool:
        self._over.add(run_id)
        try:
            if self._desk.withdraw(self._id, run_id):
                return True
            return self._desk.stop(self._id, run_id)
        except RedisUnavailable as error:
            log.info("stop of %s not told: %s", run_id, error)
            return False

    def _contact(self) -> ContactLike:
        """How the worker was last heard of. Raises: WorkerUnavailable, also if it is to be restarted."""
        try:
            contact = self._desk.contact(self._id)
        except RedisUnavailable as error:
            raise WorkerUnavailable(str(error)) from error
        if contact.stopping:
            raise WorkerUnavailable(STOPPING)
        if contact.left:
            raise WorkerUnavailable(LEFT)
        return contact

    def follow(self, gate: GateLike) -> None:
        """Starts a thread that closes the gate at once when the worker leaves, and has it probed when
        the worker asks again.
        """
        threading.Thread(target=self._follow, args=(gate,), name="follow", daemon=True).start()

    def _follow(self, gate: GateLike) -> None:
        with self._expect(WORKER) as wait:
            while True:
                wait(FOLLOW_S)
                left = until_available(lambda: self._desk.contact(self._id)).left
                if not left:
                    gate.recheck()
                elif gate.open:
                    gate.trip(LEFT)

    def probe(self) -> None:
        now, asked_s = time.monotonic(), self._contact().asked_s
        if not self._seen:
            self._seen = asked_s is not None and asked_s < now - self._began
            # A worker with a sync handler asks for nothing while it runs a job that an earlier node offered.
            if not self._seen and now - self._began > AWAIT_S and not self._awaited:
                raise WorkerUnavailable("the worker has asked for no job since its node began")
            if not self._seen:
                # The API may hold a request that came before this node began.
                with contextlib.suppress(RedisUnavailable):
                    self._desk.await_worker(self._id)
                raise WorkerAwaited("its node has begun, and waits for the worker's next request")
        if (
            asked_s is None
            or asked_s > now - self._refused
            or min(asked_s, now - self._freed) > ASK_S
        ):
            since = "" if asked_s is None else f" for {asked_s:.0f} s"
            raise WorkerUnavailable(f"the worker has asked for no job{since}")
