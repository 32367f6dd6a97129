"""What the front reports of workers: their states, with the reason of one that is not ready, and that a managed one has become ready.

The agent of a managed worker that starts copies the reason into its record.
"""

import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ownpod.errors import RedisUnavailable
from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.fleet import WorkerStatus
from ownpod.rules.fronts import View, status_of, summed
from ownpod.rules.homes import Front, publisher_of
from ownpod.rules.probing import UNASKED, Verdict
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Beat
from ownpod.store.managed import Managed

log = logging.getLogger(__name__)

STATUS_TTL_S, AGAIN_S = 10.0, 3.0
"""Seconds after which a status expires, and after which an unchanged one is published again."""

USED_S = 1.5
"""Seconds for which a worker counts as busy after its last request began. The scaler looks once a second, so it would not
notice short requests otherwise."""


@dataclass
class _Known:
    """What was last published of a worker."""

    status: WorkerStatus | None = None
    at: float = 0.0
    total: int = 0
    used_until: float = 0.0


class Reports:
    """Reports the states of workers.

    Args:
        fleet: where states are published.
        managed: the records of workers that OwnPod starts.
        me: this front.
        clock: seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        managed: Managed,
        me: Front,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._managed = managed
        self._me = me
        self._node = f"front@{socket.gethostname()}"
        self._clock = clock
        self._known = dict[str, _Known]()
        self._ready = set[str]()
        self._broken = set[str]()

    def turn(
        self,
        view: View,
        verdicts: Mapping[str, Verdict],
        beat: Beat,
        readings: Mapping[str, RouteReading] | None,
    ) -> None:
        """Reports what has changed. Raises: RedisUnavailable; the next turn reports the rest.

        Args:
            view: endpoints and workers.
            verdicts: of the health checks that this front makes.
            beat: the last heartbeat, with the readings of all fronts.
            readings: this front's; None: it has none yet.
        """
        own = {} if readings is None else {self._me.id: readings}
        sums = summed({**beat.readings, **own}.values())
        # Their HAProxys may have any worker.
        unread = bool(beat.unread - own.keys())
        workers = dict[str, WorkerSpec]()
        for endpoint in view.endpoints.values():
            mine = publisher_of(endpoint, self._me, view.fronts) == self._me.id
            servers = sums.get(endpoint.id, RouteReading()).servers
            for worker in endpoint.workers:
                workers[worker.id] = worker
                verdict = verdicts.get(worker.id, UNASKED)
                reading = servers.get(worker.id, ServerReading())
                if unread:
                    reading = replace(reading, draining=False)
                try:
                    if worker.is_managed and verdict.ready:
                        self._began(worker.id)
                    if mine:
                        self._publish(worker, view, verdict, reading)
                    else:
                        self._known.pop(worker.id, None)
                except RedisUnavailable:
                    raise
                except Exception:
                    # One whose keys cannot be used must not keep the others from theirs.
                    if worker.id not in self._broken:
                        log.exception("the state of worker %s is not reported", worker.id)
                        self._broken.add(worker.id)
        for gone in self._known.keys() - workers.keys():
            del self._known[gone]
        self._ready &= workers.keys()
        self._broken &= workers.keys()

    def _began(self, worker_id: str) -> None:
        """Reports the first 200 of a managed worker."""
        if worker_id not in self._ready:
            self._managed.ready(worker_id)
            self._ready.add(worker_id)

    def _publish(
        self, worker: WorkerSpec, view: View, verdict: Verdict, reading: ServerReading
    ) -> None:
        now = self._clock()
        known = self._known.setdefault(worker.id, _Known(total=reading.total))
        if reading.total > known.total:
            known.used_until = now + USED_S
        known.total = reading.total
        status = status_of(
            worker,
            paused=view.paused,
            verdict=verdict,
            reading=reading,
            was_used=now < known.used_until,
        )
        if status == known.status and now - known.at < AGAIN_S:
            return
        self._fleet.publish_status(worker.id, status, node=self._node, ttl_s=STATUS_TTL_S)
        known.status, known.at = status, now
