"""A cloud worker: an endpoint of RunPod, or of another OwnPod, that runs a job as a job of its own.

Source: RunPod's v2 API, as its clients use it. It has neither an idempotency key nor a list of ids, so a job whose submission
was not answered may run there: that attempt is lost, and its reservation is spent. A result is kept there for 30 minutes.

A run's id here is "<job id>:<attempt>:<id there>", because a later node settles the money of the run by its first two parts.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from ownpod.errors import AttemptLost, JobRejected, WorkerStandsBy, WorkerUnavailable
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.overflow import (
    HOPS_HEADER,
    TTL_EXTRA_MS,
    CloudSpec,
    LanUrls,
    lan_host,
    refusal,
)
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.settings import Settings, of_environment
from ownpod.workers.answers import Answer
from ownpod.workers.driver import Purse, RunListener
from ownpod.workers.http import CannotConnect, Reply, WorkerHTTPError
from ownpod.workers.local_api import LocalApi
from ownpod.workers.other_side import Ended, Follower, Hold, is_name
from ownpod.workers.polling import reason_of
from ownpod.workers.traits import WorkerTraits

log = logging.getLogger(__name__)

PROBE_S = 60.0
"""Seconds for which a good answer to ``/health`` there counts."""

CHECK_S = 1.0
"""Seconds between two checks whether a run has ended whose result is of no use."""

LEAST_KEY = 6
"""Number of characters of the shortest key that is removed from answers."""

LEAST_TTL_MS, LEAST_TIMEOUT_MS = 10_000, 5_000
"""RunPod's least values of ``ttl`` and ``executionTimeout``, in ms."""


class CloudWorker:
    """An endpoint of another side. Implements :class:`ownpod.workers.Worker`.

    Args:
        spec: the worker.
        cloud: its rules.
        settings: time-outs and the largest answer.
        purse: its money.
    """

    def __init__(
        self, spec: WorkerSpec, cloud: CloudSpec, settings: Settings, purse: Purse
    ) -> None:
        self._cloud = cloud
        self._settings = settings
        self._purse = purse
        self._url = spec.url
        self._hold = Hold()
        key = _key(cloud)
        if key is None:
            name = cloud.key.removeprefix("env:")
            self._hold.forever(f"the variable {name} of its key is not set where its node runs")
        headers = {**spec.headers, **({"Authorization": f"Bearer {key}"} if key else {})}
        keyed = replace(spec, headers=headers)
        self._api = _DiscreetApi(keyed, settings, WorkerTraits(spec.capacity), key or "")
        self._follower = Follower(self._api, self._url, settings.worker_status_timeout_s)
        self._healthy_until = 0.0
        self._stopped = set[str]()
        """Ids of runs whose result is of no use, and which were asked to stop."""

    def start(self, attempt: Attempt) -> str:
        self._check_hold()
        why = refusal(attempt, self._cloud)
        if why is not None:
            self._purse.keep(attempt.job_id)
            raise WorkerStandsBy(f"job {attempt.job_id} stays here: {why}")
        if self._cloud.lan_urls is LanUrls.WARN and (host := lan_host(attempt.input)) is not None:
            log.warning(
                "job %s: its input names %s, which the other side may not reach",
                attempt.job_id,
                host,
            )
        name = f"{attempt.job_id}:{attempt.number}"
        if not self._purse.reserve(name, attempt.execution_timeout_ms):
            raise WorkerStandsBy("the day's budget has no room for another job")
        try:
            return f"{name}:{self._submit(attempt)}"
        except AttemptLost:
            # The job may run there.
            self._purse.settle(name, None)
            raise
        except Exception:
            self._purse.settle(name, 0)
            raise

    def wait(self, run_id: str, listener: RunListener, *, adopted: bool = False) -> Outcome:
        name, remote_id = _parts(run_id)
        if not adopted:
            listener.set_check(RunCheck.POLL)
        try:
            ended = self._follower.follow(remote_id, listener)
        except (AttemptLost, JobRejected):
            self._purse.settle(name, None)
            raise
        self._purse.settle(name, ended.ran_ms)
        if ended.outcome is None:
            raise self._hold.failed("a job waited too long at the other side, and did not begin")
        return ended.outcome

    def is_running(self, run: Run, patience_s: float) -> bool:
        name, remote_id = _parts(run.id)
        if run.id not in self._stopped and self.cancel(run.id):
            self._stopped.add(run.id)
        try:
            ended = self._follower.ended(remote_id)
        except (WorkerHTTPError, JobRejected):
            ended = None
        except AttemptLost:
            # It is not known there any more, and may have run, so its whole reservation counts as spent.
            ended = Ended(None, None)
        if ended is None:
            # Each question is a request over the internet.
            time.sleep(min(patience_s, CHECK_S))
            return True
        self._stopped.discard(run.id)
        self._purse.settle(name, ended.ran_ms)
        return False

    def cancel(self, run_id: str) -> bool:
        remote_id = _parts(run_id)[1]
        self._follower.cancelled(remote_id)
        return self._follower.cancel(remote_id, self._settings.worker_cancel_timeout_s)

    def blocked(self) -> WorkerUnavailable | None:
        """Why the other side takes no jobs, after its last answers; None: it may take some. Sends nothing."""
        return self._hold.error()

    def probe(self) -> None:
        """Checks that the other side answers; sends a request at most once in :data:`PROBE_S`."""
        self._check_hold()
        if time.monotonic() < self._healthy_until:
            return
        timeout_s = self._settings.worker_connect_timeout_s
        try:
            answer = self._api.answer("GET", "/health", timeout_s)
        except (WorkerHTTPError, JobRejected) as error:
            raise self._hold.failed(f"does not answer: {reason_of(error)}") from error
        if answer.status >= 300:
            raise self._hold.answered("/health", answer)
        self._healthy_until = time.monotonic() + PROBE_S

    def follow(self, left: Callable[[str], None], asked: Callable[[], None]) -> None:
        """Does nothing, because the other side sends no notices."""

    def _check_hold(self) -> None:
        if (error := self._hold.error()) is not None:
            raise error

    def _submit(self, attempt: Attempt) -> str:
        """Submits the job there. Returns: its id there. Raises as :meth:`start` does."""
        timeout_s = self._settings.worker_run_read_timeout_s
        headers = {HOPS_HEADER: str(attempt.hops + 1)}
        if attempt.request_id:
            headers["X-Request-ID"] = attempt.request_id
        try:
            reply = self._api.send(
                "POST", "/run", timeout_s, body=self._body(attempt), headers=headers
            )
            answer = self._api.whole(reply, timeout_s)
        except CannotConnect as error:
            raise self._hold.failed(f"cannot connect: {reason_of(error)}") from error
        except (WorkerHTTPError, JobRejected) as error:
            problem = f"the other side did not answer /run: {reason_of(error)}"
            raise AttemptLost(problem) from error
        return self._submitted(attempt, answer)

    def _submitted(self, attempt: Attempt, answer: Answer) -> str:
        if answer.status in {400, 413, 422}:
            # Another worker may run it: this side's limits are not those of the other one.
            self._purse.keep(attempt.job_id)
            raise WorkerStandsBy(
                f"job {attempt.job_id} stays here: the other side refused it: {answer}"
            )
        if answer.status in {500, 502, 504}:
            raise AttemptLost(f"/run at the other side answered {answer}")
        if answer.status >= 300:
            raise self._hold.answered("/run", answer)
        body = answer.json()
        remote_id = body.get("id")
        if not isinstance(remote_id, str) or not is_name(remote_id):
            raise AttemptLost(f"the answer to /run at the other side has no usable id: {answer}")
        self._hold.release()
        return remote_id

    def _body(self, attempt: Attempt) -> str:
        left_ms = attempt.expires_ms - attempt.started_ms
        policy: dict[str, object] = {
            "executionTimeout": max(attempt.execution_timeout_ms, LEAST_TIMEOUT_MS),
            "ttl": max(min(attempt.execution_timeout_ms + TTL_EXTRA_MS, left_ms), LEAST_TTL_MS),
        }
        if attempt.low_priority:
            policy["lowPriority"] = True
        parts = ['{"input": ', attempt.input, ', "policy": ', json.dumps(policy)]
        if attempt.s3_config is not None and self._cloud.allow_secrets:
            parts += [', "s3Config": ', attempt.s3_config]
        return "".join([*parts, "}"])


class _DiscreetApi(LocalApi):
    """Requests with a key, which no answer has: errors go to logs and to clients, and some servers repeat a key in them.

    Args:
        spec: as of :class:`LocalApi`.
        settings: as of :class:`LocalApi`.
        traits: as of :class:`LocalApi`.
        key: the key; a shorter one than :data:`LEAST_KEY` stays in answers, because it may be in any text.
    """

    def __init__(
        self, spec: WorkerSpec, settings: Settings, traits: WorkerTraits, key: str
    ) -> None:
        super().__init__(spec, settings, traits)
        self._key = key.encode() if len(key) >= LEAST_KEY else None

    def whole(self, response: Reply, body_s: float | None = None) -> Answer:
        answer = super().whole(response, body_s)
        if self._key is None or self._key not in answer.body:
            return answer
        return replace(answer, body=answer.body.replace(self._key, b"***"))


def _parts(run_id: str) -> tuple[str, str]:
    """Of a run's id: "<job id>:<attempt>", and the id there."""
    job_id, number, remote_id = run_id.split(":", 2)
    return f"{job_id}:{number}", remote_id


def _key(cloud: CloudSpec) -> str | None:
    """The API key there; "": none is needed; None: its variable is not set."""
    if not cloud.key.startswith("env:"):
        return cloud.key
    return of_environment(cloud.key.removeprefix("env:")) or None
