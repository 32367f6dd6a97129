"""What the API needs of the workers that OwnPod starts: their records, and a report of their first request for jobs."""

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from ownpod.errors import WorkerConflict
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.managed import LOG_LINES, ManagedWorker, Phase
from ownpod.rules.managed_reports import post_mortem
from ownpod.rules.managed_states import ManagedView, StartFailures, in_words, usual_start_s
from ownpod.rules.releases import NO_RELEASES, RolledOut, state
from ownpod.store.catalog import Audit

MOST_SEEN = 100_000
"""Number of workers whose first request a process remembers; afterwards it reports their next ones again."""

ANY_NUMBER = 2**31
"""A number of workers that no endpoint has."""


STOP_CHECK_S = 1.5
"""Seconds after which a held request of a managed worker checks whether the worker is stopped. That notice may have come
before the request was held, and by then this process has read the registry again."""

STOPPING_HOLD_S = 1.0
"""Seconds for which a request of a worker that is stopped is held. The SDK ends after the answer, once it has SIGTERM;
before that an answer at once would let it ask thousands of times a second."""


class ManagedWorkers(Protocol):
    """The records of managed workers. All calls may raise RedisUnavailable."""

    def ready(self, worker_id: str) -> bool:
        """Records the worker's first request for jobs. False: the record did not wait for it."""

    def discard(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:
        """The worker that no agent has taken is not wanted any more. False: an agent has taken it."""

    def drain(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:
        """The worker gets no more jobs, and is stopped when it has none. False: it drains already."""

    def list(self, endpoint: str | None = None) -> Sequence[ManagedWorker]:
        """The endpoint's workers that are not STOPPED; None: all endpoints'. The reason of a WANTED one is why it finds no place; "" if it has
        not waited for one.
        """

    def recent(self, endpoint: str) -> Sequence[ManagedWorker]:
        """The endpoint's workers that stopped within the last hour."""

    def crashed(self, endpoint: str) -> Sequence[ManagedWorker]:
        """The endpoint's last workers that ended badly, the last one first."""

    def get(self, worker_id: str) -> ManagedWorker | None:
        """A worker, also one that is STOPPED; None: there is none."""

    def failures(self, endpoint: str) -> StartFailures | None:
        """The endpoint's failed starts; None: there are none."""

    def now_ms(self) -> int:
        """The clock of the records, in ms since the epoch."""

    def rolled_out(self, endpoint: str) -> RolledOut:
        """Where the endpoint's releases are."""


class NoManagedWorkers:
    """No worker is managed."""

    def ready(self, worker_id: str) -> bool:  # noqa: ARG002 - the protocol has it
        return False

    def discard(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:  # noqa: ARG002
        return False

    def drain(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:  # noqa: ARG002
        return False

    def list(self, endpoint: str | None = None) -> Sequence[ManagedWorker]:  # noqa: ARG002
        return ()

    def recent(self, endpoint: str) -> Sequence[ManagedWorker]:  # noqa: ARG002
        return ()

    def crashed(self, endpoint: str) -> Sequence[ManagedWorker]:  # noqa: ARG002
        return ()

    def get(self, worker_id: str) -> ManagedWorker | None:  # noqa: ARG002
        return None

    def failures(self, endpoint: str) -> StartFailures | None:  # noqa: ARG002
        return None

    def now_ms(self) -> int:
        return 0

    def rolled_out(self, endpoint: str) -> RolledOut:  # noqa: ARG002
        return NO_RELEASES


class FirstRequests:
    """Reports each managed worker's first request for jobs to this process once, so that its further requests cost no
    command of Redis.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def report(self, managed: ManagedWorkers, worker_id: str) -> None:
        """Reports a request for jobs. Raises: RedisUnavailable; the next request is reported then."""
        if worker_id in self._seen:
            return
        managed.ready(worker_id)
        with self._lock:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(worker_id)


def view_of(managed: ManagedWorkers, endpoint: Endpoint) -> ManagedView:
    """An endpoint's managed workers. Costs no command of Redis for an endpoint that has none.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    if endpoint.managed is None and not any(worker.is_managed for worker in endpoint.workers):
        return ManagedView()
    failures, found = managed.failures(endpoint.id), managed.rolled_out(endpoint.id)
    current = found.rollout.current
    if (
        failures is not None
        and endpoint.managed is not None
        and failures.release != (current.id if current else endpoint.managed.release)
    ):
        # The next start is of another release, which has not failed.
        failures = None
    workers = tuple(managed.list(endpoint.id))
    usual_s = None
    if any(worker.phase is Phase.STARTING for worker in workers):
        usual_s = usual_start_s((*workers, *managed.recent(endpoint.id)))
    return ManagedView(workers, failures, managed.now_ms(), usual_s, found)


def is_stopped(registry: Registry, worker_id: str, *, notified: bool) -> bool:
    """Whether a managed worker is stopped now, or has left the registry, so that it gets no more jobs.

    Args:
        registry: the endpoints and workers.
        worker_id: the worker's id.
        notified: whether the worker's held request was woken, perhaps because of a stop that is newer than what this
            process has read.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    if notified:
        registry.refresh()
    worker = registry.worker(worker_id)
    return worker is None or worker.stopping


class StopCheck:
    """When a held request checks whether its worker is stopped: at each notice, and once after :data:`STOP_CHECK_S`.

    Args:
        registry: the endpoints and workers.
        worker_id: the worker's id.
        managed: whether OwnPod has started the worker. Others are not stopped.
    """

    def __init__(self, registry: Registry, worker_id: str, *, managed: bool) -> None:
        self._registry = registry
        self._worker_id = worker_id
        self._managed = managed
        # A moment, not a pause: a notice of something else may come before.
        self._due = time.monotonic() + STOP_CHECK_S if managed else math.inf

    @property
    def due_s(self) -> float:
        """Seconds until the check is due; infinite: it has been made."""
        return max(0.0, self._due - time.monotonic())

    def is_stopped(self, *, notified: bool) -> bool:
        """See :func:`is_stopped`. Raises: RedisUnavailable."""
        if time.monotonic() >= self._due:
            self._due = math.inf
        return self._managed and is_stopped(self._registry, self._worker_id, notified=notified)


def with_queue(registry: Registry, endpoint_id: str) -> Endpoint:
    """The endpoint, if workers may ask it for jobs.

    Raises:
        EndpointNotFound: there is none.
        WorkerConflict: it is load-balanced.
    """
    endpoint = registry.endpoint(endpoint_id)
    if endpoint.is_balanced:
        raise WorkerConflict(f"endpoint {endpoint_id!r} is load-balanced: its workers get no jobs")
    return endpoint


def most_workers(endpoint: Endpoint, managed: WorkerSpec | None) -> int:
    """Maximum number of pulling workers of an endpoint, for a request of one of them. ``maxWorkers`` limits those that
    OwnPod has not started, and the list of pulling workers has both.

    Args:
        endpoint: the worker's endpoint.
        managed: the worker, if OwnPod has started it.
    """
    if managed is not None:
        return ANY_NUMBER
    return endpoint.max_workers + sum(worker.is_managed for worker in endpoint.workers)


def describe_managed(view: ManagedView) -> dict[str, Any]:
    """The managed workers and the failed starts of an endpoint as the API shows them, the oldest worker first."""
    workers = sorted(view.workers, key=lambda worker: (worker.created_ms, worker.id))
    failures = view.failures if view.failures is not None and view.failures.count else None
    return {
        "workers": [
            {
                "id": worker.id,
                "phase": worker.phase,
                "reason": in_words(worker, view),
                "release": worker.release,
                "outdated": _is_outdated(worker, view),
                "host": worker.host,
                "devices": list(worker.devices),
                "createdAt": worker.created_ms,
                "startedAt": worker.started_ms,
                "readyAt": worker.ready_ms,
            }
            for worker in workers
        ],
        "failures": None if failures is None else _described(failures, view),
        "releases": _described_releases(view),
    }


def _is_outdated(worker: ManagedWorker, view: ManagedView) -> bool:
    current = view.releases.rollout.current
    # A session or task keeps what it was started from.
    return current is not None and worker.release != current.id and not worker.is_private


def _described_releases(view: ManagedView) -> dict[str, Any] | None:
    """Where the releases are, as the API shows it: numbers, names of changed fields and reasons, without values."""
    rollout = view.releases.rollout
    latest, given_up = rollout.latest, view.releases.given_up
    if latest is None:
        return None
    live = Counter(worker.release for worker in view.workers)
    failing = "" if view.failures is None or not view.failures.count else view.failures.reason
    return {
        "current": rollout.current and rollout.current.number,
        "next": rollout.next and rollout.next.number,
        "image": latest.spec.template.image,
        "digest": latest.digest,
        "state": state(latest, rollout, live, waits_for=view.releases.image_waits, failing=failing),
        "givenUp": given_up and {"number": given_up.number, "reason": given_up.ended},
    }


def describe_crashes(managed: ManagedWorkers, endpoint: Endpoint) -> list[dict[str, Any]]:
    """An endpoint's last managed workers that ended badly. Costs no command of Redis for an endpoint without a template.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    if endpoint.managed is None:
        return []
    return [post_mortem(worker) for worker in managed.crashed(endpoint.id)]


def _described(failures: StartFailures, view: ManagedView) -> dict[str, Any]:
    return {
        "unhealthy": view.failing is not None,
        "count": failures.count,
        "pauseSeconds": round(failures.pause_s),
        "worker": failures.worker,
        "reason": failures.reason,
        "exitCode": failures.exit_code,
        "log": failures.log.splitlines()[-LOG_LINES:],
    }
