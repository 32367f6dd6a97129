"""The breaker of a cloud worker: jobs are put into the worker's own queue while it sends them to the other side."""

import logging
import time
from collections.abc import Callable

from ownpod.errors import EndpointNotFound, RedisUnavailable, WorkerStandsBy, WorkerUnavailable
from ownpod.node.breaker import Breaker
from ownpod.node.purse import Purse
from ownpod.node.slots import Slots
from ownpod.registry import Registry
from ownpod.rules.endpoints import Overflow, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.overflow import CloudSpec, Decision, decide
from ownpod.store.store import Store
from ownpod.workers.cloud import CloudWorker

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether jobs have waited long enough: one request to Redis each."""


class Chooser:
    """Decides whether jobs go to a cloud worker, and chooses them.

    Args:
        store: the jobs.
        registry: the endpoints.
        spec: the worker.
        cloud: its rules.
        purse: its money.
    """

    def __init__(
        self, store: Store, registry: Registry, spec: WorkerSpec, cloud: CloudSpec, purse: Purse
    ) -> None:
        self._store = store
        self._registry = registry
        self._spec = spec
        self._cloud = cloud
        self._purse = purse

    def decision(self, blocked: str) -> Decision:
        """Whether jobs go there now. ``blocked``: why the other side takes none; "": it may take some. Raises: RedisUnavailable."""
        spec, cloud = self._spec, self._cloud
        seen = self._store.overflow.seen(
            spec.endpoint, spec.id, after_s=cloud.after_s, secrets=cloud.allow_secrets
        )
        return decide(
            cloud,
            oldest_wait_s=seen.oldest_wait_s,
            now_ms=seen.now_ms,
            spent=seen.spent,
            next_reserve=self._purse.estimate(seen.execution_timeout_ms),
            breaker=blocked,
            allowed=self._allowed(),
        )

    def take(self) -> int:
        """Puts jobs into the worker's own queue. Returns: how many. Raises: RedisUnavailable."""
        spec, cloud = self._spec, self._cloud
        return len(
            self._store.overflow.take(
                spec.endpoint,
                spec.id,
                after_s=cloud.after_s,
                secrets=cloud.allow_secrets,
                capacity=spec.capacity,
            )
        )

    def _allowed(self) -> bool:
        try:
            return self._registry.endpoint(self._spec.endpoint).overflow is not Overflow.NEVER
        except EndpointNotFound:
            return False


class OverflowBreaker(Breaker):
    """The breaker of a cloud worker. It is closed while jobs go there, and checks that each second, because a job becomes
    old enough without any notice.

    Args:
        probe: as of :class:`Breaker`.
        publish: as of :class:`Breaker`.
        publish_every_s: as of :class:`Breaker`.
        slots: as of :class:`Breaker`.
        is_paused: as of :class:`Breaker`; also whether the node is to stop.
        on_change: as of :class:`Breaker`.
        worker: the driver.
        chooser: decides, and chooses the jobs.
        capacity: number of jobs there at a time.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        publish: Callable[[WorkerStatus], None],
        *,
        publish_every_s: float,
        slots: Slots,
        is_paused: Callable[[], bool],
        on_change: Callable[[], None],
        worker: CloudWorker,
        chooser: Chooser,
        capacity: int,
    ) -> None:
        super().__init__(
            probe,
            self._publish_seldom,
            publish_every_s=publish_every_s,
            slots=slots,
            is_paused=is_paused,
            on_change=on_change,
        )
        self._publish_now = publish
        self._worker = worker
        self._chooser = chooser
        self._capacity = capacity
        self._published: WorkerStatus | None = None
        self._publish_at = 0.0

    def refuse(self, error: WorkerUnavailable) -> None:
        """The job was not sent. A rule that did not allow it is no failure of the worker."""
        if isinstance(error, WorkerStandsBy):
            self.await_worker(WorkerState.STANDBY, str(error))
        else:
            self.open(str(error))

    def probe_once(self) -> None:
        self._probe_at = time.monotonic() + CHECK_INTERVAL_S
        if self._is_paused():
            self.await_worker(WorkerState.STANDBY, "it gets no jobs")
            return
        try:
            self._check()
        except RedisUnavailable as error:
            log.debug("not checked whether jobs go to the other side: %s", error)
        except WorkerUnavailable as error:
            self.refuse(error)

    def _check(self) -> None:
        """Sends jobs, if they go there now. Raises: RedisUnavailable; WorkerUnavailable, if the other side takes none."""
        blocked = self._worker.blocked()
        decision = self._chooser.decision("" if blocked is None else str(blocked))
        if blocked is not None:
            raise blocked
        if not decision.sends:
            raise WorkerStandsBy(decision.reason)
        self._probe()
        self.ready()
        if self._slots.taken < self._capacity and (count := self._chooser.take()):
            log.info("%d waiting jobs go to the other side", count)

    def _publish_seldom(self, status: WorkerStatus) -> None:
        """Publishes a status when it has changed, or is due: each check is no reason for a heartbeat."""
        now = time.monotonic()
        if status == self._published and now < self._publish_at:
            return
        self._publish_now(status)
        self._published, self._publish_at = status, now + self._publish_every_s
