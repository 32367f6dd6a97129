"""RunPod's production protocol: the worker polls OwnPod for jobs, and posts chunks and results.

Here is the node's side: the node offers a run, and the worker takes it with its next request. The API
(:mod:`ownpod.api.workers.protocol`) answers the worker. docs/architecture.md describes what real workers do.

Each wait follows from what the SDK does (the package runpod, 1.7.0 and 1.12.0):

==============================================================  =======================================================================
the SDK                                                         OwnPod
==============================================================  =======================================================================
checks every 1 s whether it has a free slot, and then asks      withdraws an offer after 6 s (:data:`OFFER_S`)
pings every 10 s and lists its jobs                             a job on no list for 35 s was not begun (:data:`BEGIN_S`)
asks again when its request is answered; the API holds it 20 s  a worker that has not asked for 40 s takes no jobs (:data:`ASK_S`)
repeats a request that was cut off after about 1 s              a worker is unhealthy 5 s after its node began (:data:`AWAIT_S`)
posts a result once                                             keeps it 120 s; a node is restarted within 30 s (:data:`RESULT_KEPT_S`)
sends nothing when it is killed                                 checks a run every 5 s (:data:`CHECK_INTERVAL_S`)
closes its request when it ends                                 is notified; checks every 60 s, too (:data:`FOLLOW_S`)
==============================================================  =======================================================================
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable

from ownpod.errors import AttemptLost, RedisUnavailable, WorkerAwaited, WorkerUnavailable
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.jobs import JobStatus
from ownpod.rules.offers import Contact, RunState
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.store.retry import patient
from ownpod.workers.driver import Exchange, RunListener

log = logging.getLogger(__name__)

OFFER_S = 6.0
"""Seconds after which an offer is withdrawn; a worker with a free slot asks sooner."""

BEGIN_S = 35.0
"""Seconds after which a delivered run that no ping lists was not begun; three of the SDK's intervals and a little."""

ASK_S = 40.0
"""Seconds without a request after which a worker with a free slot takes no jobs; requests are held for 20 s."""

RESULT_KEPT_S = 120.0
"""Seconds for which a result is kept after a node has read it, for the next node should this one end."""

AWAIT_S = 5.0
"""Seconds after a node's start until the node counts its worker as unhealthy, if the worker has not
asked for a job since."""

STOPPING = (
    "the worker requested a restart of its container (refresh_worker), which has not happened yet"
)

LEFT = "the worker closed its request for a job, and has not sent another"

WORKER = "@worker"
"""The id of the worker itself among the notices of its runs, published by ``offers.lua``. No run's id begins with ``@``."""

CHECK_INTERVAL_S = 5.0
"""Seconds between checks of a run without notices."""

FOLLOW_S = 60.0
"""Seconds between checks whether the worker has left, in case a notice is lost."""


class PullWorker:
    """A worker in production mode. Implements :class:`ownpod.workers.Worker`.

    Args:
        spec: the worker.
        exchange: the offers and their notices.
        gone_s: see ``OWNPOD_WORKER_GONE_S``.
        await_s: seconds for which a worker that has not asked for a job counts as one that starts.
    """

    def __init__(
        self, spec: WorkerSpec, exchange: Exchange, *, gone_s: float, await_s: float = AWAIT_S
    ) -> None:
        self._id = spec.id
        self._offers = patient(exchange.offers)
        self._offers_now = exchange.offers
        """The offers without waiting for Redis: a call raises RedisUnavailable at once."""
        self._subscribe = exchange.subscribe
        self._gone_s = gone_s
        self._await_s = await_s
        self._begun: dict[str, Attempt] = {}
        """Runs between :meth:`start` and :meth:`wait`."""
        self._cancelled: set[str] = set()
        self._awaited: set[str] = set()
        """Runs that :meth:`wait` waits for."""
        self._began = time.monotonic()
        self._seen = False
        """Whether the worker has requested a job since this object was made."""
        self._freed = time.monotonic()
        """Monotonic time at which the worker last ended a run; while it ran, it may have been too busy to send requests."""
        self._refused = float("-inf")
        """Monotonic time at which the worker last left an offer untaken."""

    def start(self, attempt: Attempt) -> str:
        # The run is offered in `wait`, after it was recorded for a later node.
        self._contact()
        # The id is the job's, because handlers see it. Later attempts get a suffix, so that a late result of an
        # earlier attempt matches no run.
        suffix = f"-{attempt.number}" if attempt.number > 1 else ""
        run_id = f"{attempt.job_id}{suffix}"
        self._begun[run_id] = attempt
        return run_id

    def wait(self, run_id: str, listener: RunListener, *, adopted: bool = False) -> Outcome:
        attempt = self._begun.pop(run_id, None)
        self._awaited.add(run_id)
        with self._subscribe(run_id) as next_notice:
            if attempt is not None and not adopted:
                listener.set_check(RunCheck.POLL)
                self._offer(run_id, attempt)
            offered = time.monotonic()
            try:
                while True:
                    run = self._offers.run(self._id, run_id)
                    outcome = self._end(run_id, run, time.monotonic() - offered)
                    if outcome is not None:
                        return outcome
                    left_s = offered + OFFER_S - time.monotonic()
                    next_notice(
                        left_s + 0.05 if 0 < left_s < CHECK_INTERVAL_S else CHECK_INTERVAL_S
                    )
            finally:
                self._freed = time.monotonic()
                self._cancelled.discard(run_id)
                self._awaited.discard(run_id)

    def _offer(self, run_id: str, attempt: Attempt) -> None:
        body = f'{{"id": {json.dumps(run_id)}, "input": {attempt.input}'
        if attempt.s3_config is not None:
            body += f', "s3Config": {attempt.s3_config}'
        self._offers.offer(
            self._id,
            run_id,
            job_id=attempt.job_id,
            attempt=attempt.number,
            body=f"{body}}}",
            time_s=attempt.execution_timeout_ms / 1000,
        )

    def _end(self, run_id: str, run: RunState | None, offered_s: float) -> Outcome | None:
        """The outcome; None: the run continues. Raises as :meth:`wait` does, and WorkerUnavailable."""
        stopped = Outcome(JobStatus.FAILED, error="the worker was asked to stop it")
        if run is None:
            if run_id in self._cancelled:
                return stopped
            raise AttemptLost("the run's record in Redis has expired or was removed")
        if run.outcome is not None:
            # Kept for the next node, because this node may be killed before it has written the result.
            self._offers.settle(self._id, run_id, keep_s=RESULT_KEPT_S)
            return run.outcome
        if run_id in self._cancelled:
            # Repeated on every check, because the SDK ignores a stop of a job that it has received but not started.
            self.cancel(run_id)
        if run.state == "offered":
            self._check_offer(run_id, offered_s, left=run.left)
            return None
        if run.state in {"unbegun", "gone"} or self._vanished(run):
            self._offers.settle(self._id, run_id)
            if run_id in self._cancelled:
                # A worker posts nothing after a stop.
                return stopped
            if run.state in {"unbegun", "delivered"}:
                raise WorkerUnavailable("the worker took the job and did not begin it")
            raise AttemptLost("the worker no longer runs the job, and posted no result")
        return None

    def _check_offer(self, run_id: str, offered_s: float, *, left: bool) -> None:
        """Raises: WorkerUnavailable, when the worker has not taken the offer, and will not."""
        if not left and offered_s <= OFFER_S:
            return
        if self._offers.withdraw(self._id, run_id):
            if left:
                raise WorkerUnavailable(LEFT)
            self._refused = time.monotonic()
            raise WorkerUnavailable(f"the worker asked for no job within {OFFER_S:g} s")

    def _vanished(self, run: RunState) -> bool:
        """Whether the worker has been silent for so long that it cannot have the run any more."""
        contact = self._offers.contact(self._id)
        last_s = min(s for s in (contact.requested_s, contact.pinged_s, 1e9) if s is not None)
        if last_s > self._gone_s:
            # A sync handler blocks all requests but the pings, and not every worker pings.
            return contact.pinged_s is not None or run.left_s + self._gone_s < 0
        return (
            run.state == "delivered"
            and contact.pinged_s is not None
            and min(run.taken_s, contact.pinged_s) > BEGIN_S
        )

    def is_running(self, run: Run, patience_s: float) -> bool:  # noqa: ARG002
        state = self._offers.run(self._id, run.id)
        if state is None:
            return False
        if state.state == "offered":
            return not self._offers.withdraw(self._id, run.id)
        if state.state in {"done", "unbegun", "gone"} or self._vanished(state):
            self._offers.settle(self._id, run.id)
            return False
        return True

    def cancel(self, run_id: str) -> bool:
        self._cancelled.add(run_id)
        try:
            if self._offers_now.withdraw(self._id, run_id):
                return True
            return self._offers_now.stop(self._id, run_id)
        except RedisUnavailable as error:
            log.info("stop of %s not sent: %s", run_id, error)
            return False

    def _contact(self) -> Contact:
        """The worker's last requests. Raises: WorkerUnavailable, also if the worker is to be restarted."""
        try:
            contact = self._offers_now.contact(self._id)
        except RedisUnavailable as error:
            raise WorkerUnavailable(str(error)) from error
        if contact.stopping:
            raise WorkerUnavailable(STOPPING)
        if contact.left:
            raise WorkerUnavailable(LEFT)
        return contact

    def follow(self, left: Callable[[str], None], asked: Callable[[], None]) -> None:
        threading.Thread(
            target=self._follow, args=(left, asked), name="follow", daemon=True
        ).start()

    def _follow(self, left: Callable[[str], None], asked: Callable[[], None]) -> None:
        with self._subscribe(WORKER) as next_notice:
            while True:
                next_notice(FOLLOW_S)
                if self._offers.contact(self._id).left:
                    left(LEFT)
                else:
                    asked()

    def probe(self) -> None:
        now, asked_s = time.monotonic(), self._contact().asked_s
        if not self._seen:
            self._seen = asked_s is not None and asked_s < now - self._began
            # A worker with a sync handler asks for nothing while it runs a job that an earlier node offered.
            if not self._seen and now - self._began > self._await_s and not self._awaited:
                raise WorkerUnavailable("the worker has asked for no job since its node began")
            if not self._seen:
                # The API may hold a request that came before this node began.
                with contextlib.suppress(RedisUnavailable):
                    self._offers_now.await_worker(self._id)
                raise WorkerAwaited("its node has begun, and waits for the worker's next request")
        if (
            asked_s is None
            or asked_s > now - self._refused
            or min(asked_s, now - self._freed) > ASK_S
        ):
            since = "" if asked_s is None else f" for {asked_s:.0f} s"
            raise WorkerUnavailable(f"the worker has asked for no job{since}")
