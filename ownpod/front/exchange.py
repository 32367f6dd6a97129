"""What the front exchanges with Redis, in a thread of its own, because Redis may not answer for seconds.

The thread reads endpoints, workers, keys, pauses and the other fronts; it reports what HAProxy has open, the states of
workers, and that requests wait. While Redis is away, the front keeps what was last read.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from ownpod import settings as all_settings
from ownpod.configuration import keep_endpoints
from ownpod.errors import ConfigurationError, OwnPodError, RedisUnavailable, WorkerRecordBroken
from ownpod.front.reports import Reports
from ownpod.registry import Registry
from ownpod.rules.balancing import RouteReading
from ownpod.rules.fronts import View, completed, keys_of, lost_of, pauses_of
from ownpod.rules.homes import Front, home_of, is_limited
from ownpod.rules.probing import Verdict
from ownpod.settings import Settings
from ownpod.store.fronts import TTL_S, Beat, Fronts
from ownpod.store.managed import Managed

log = logging.getLogger(__name__)

BEAT_S = 0.5
"""Seconds from one exchange to the next at least: a new worker or a revoked key is noticed within this time."""

BUSY_S = 0.2
"""Seconds between two exchanges while requests wait, and at most one exchange in this time without a new reason."""

LATE_S = 1.0
"""Seconds between two heartbeats after which this front does not judge others, because Redis was slow for all of them."""

CLAIM_S = 5.0
"""Longest time in seconds that a new home waits for the one before, which may have another configuration."""

MOST_WISHES = 200
"""Wished workers of an endpoint that are looked up in one exchange."""

NOTICE_S = 1.0
"""Seconds between two notices that requests wait."""


class Exchange:
    """The exchange with Redis.

    Args:
        registry: endpoints and workers.
        fronts: the heartbeats and readings of all fronts.
        managed: the records of workers that OwnPod starts.
        me: this front.
        config: the settings.
        hosts: names of this machine, beside those of the settings.
        changed: called in the exchange's thread when :attr:`view` has changed; it must not block.
        clock: seconds.
    """

    def __init__(
        self,
        registry: Registry,
        fronts: Fronts,
        managed: Managed,
        *,
        me: Front,
        config: Settings,
        hosts: Collection[str] = (),
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._fronts = fronts
        self._managed = managed
        self._me = me
        self._config = config
        self._hosts = frozenset(hosts)
        self._changed = changed
        self._clock = clock
        self._reports = Reports(registry.fleet, managed, me, clock=clock)
        self.view: View | None = None
        """What was last read; None: nothing yet."""
        self._beat: Beat | None = None
        self._beat_at = self._refreshed_at = -TTL_S
        self._trust_at = 0.0
        self._claims = dict[str, float]()
        self._readings: Mapping[str, RouteReading] | None = None
        """What the edge last reported; None: nothing yet."""
        self._sent: Mapping[str, RouteReading] | None = None
        self._waiting: frozenset[str] = frozenset()
        self._noticed: frozenset[str] = frozenset()
        self._noticed_at = -NOTICE_S
        self._verdicts: Mapping[str, Verdict] = {}
        self._away = False
        self._reloading = False
        self._urgent = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends the thread; other fronts take the place of this one at once."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(TTL_S)

    def reload(self) -> None:
        """Reads the settings' files and ``workers.yaml`` again, in the thread."""
        self._reloading = True
        self._hurry()

    def report(
        self,
        readings: Mapping[str, RouteReading],
        verdicts: Mapping[str, Verdict],
        waiting: frozenset[str],
    ) -> None:
        """Has what was read from HAProxy reported, at most each :data:`BUSY_S` unless it is urgent.

        Args:
            readings: by the endpoint's id, see :func:`ownpod.rules.fronts.reported`.
            verdicts: of the workers' health checks, by worker id.
            waiting: endpoints at which requests wait.
        """
        urgent = bool(waiting - self._waiting) or _newly_ready(self._verdicts, verdicts)
        urgent |= self._readings is None
        same = readings == self._readings and verdicts == self._verdicts
        self._readings, self._verdicts, self._waiting = readings, verdicts, waiting
        if urgent:
            self._hurry()
        elif not same:
            self._wake.set()

    def _hurry(self) -> None:
        self._urgent = True
        self._wake.set()

    # The thread.

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._urgent = False
            began = self._clock()
            try:
                self.turn()
            except Exception:
                log.exception("the exchange with Redis failed")
            self._wake.wait(BUSY_S if self._waiting else BEAT_S)
            early_s = began + BUSY_S - self._clock()
            while early_s > 0 and not (self._urgent or self._stopping):
                # One that is not urgent waits, and an urgent one ends its wait.
                self._wake.clear()
                if self._urgent:
                    break
                self._wake.wait(early_s)
                early_s = began + BUSY_S - self._clock()
        self._leave()

    def turn(self) -> None:
        """One exchange. While Redis is away it logs that once."""
        if self._reloading:
            self._reloading = False
            self._reload()
        try:
            if self._waiting or self._clock() - self._refreshed_at > BEAT_S - BUSY_S:
                # Now, because the registry's own reads are up to a second apart.
                self._registry.newer()
                self._refreshed_at = self._clock()
            readings = self._known_readings()
            try:
                beat = self._send(readings)
            except WorkerRecordBroken:
                # Endpoints and keys are known without the other fronts.
                self._update(self._read(self._beat))
                raise
            self._see(beat)
            if self._waiting and self._notices():
                self._managed.notice("request")
            # With fronts that count as living although their heartbeats are late.
            known = self._beat or beat
            self._reports.turn(self.view or View(), self._verdicts, known, readings)
        except OwnPodError as error:
            if not self._away:
                self._away = True
                log.warning("the front serves what it last read: %s", error)
            if self.view is None:
                self._update(replace(self._read(), is_complete=False))
        else:
            if self._away:
                self._away = False
                log.info("Redis answers again")

    def _known_readings(self) -> Mapping[str, RouteReading] | None:
        """What the edge last reported, with each worker of the view that it has since; None: nothing yet."""
        readings = self._readings
        return None if readings is None else completed(readings, self.view or View())

    def _send(self, readings: Mapping[str, RouteReading] | None) -> Beat:
        if readings is None:
            # Without its address until HAProxy has the endpoints: other fronts pass no requests on to this one before.
            # What an earlier process of this front has reported would keep workers of a home that was killed from others.
            return self._fronts.beat(Front(self._me.id), {})
        beat = self._fronts.beat(self._me, None if readings == self._sent else readings)
        if not beat.reported:
            # Redis has lost its data.
            beat = self._fronts.beat(self._me, readings)
        self._sent = readings
        return beat

    def _notices(self) -> bool:
        """Whether it is time to notify the scaler of requests that wait."""
        now, new = self._clock(), self._waiting - self._noticed
        self._noticed = self._waiting
        if not new and now - self._noticed_at < NOTICE_S:
            return False
        self._noticed_at = now
        return True

    def _see(self, beat: Beat) -> None:
        """Takes what a heartbeat has returned."""
        now = self._clock()
        if self._beat is not None and now - self._beat_at > LATE_S:
            self._trust_at = now + TTL_S
        if self._beat is not None and now < self._trust_at:
            known = {front.id: front for front in (*self._beat.fronts, *beat.fronts)}
            beat = replace(
                beat,
                fronts=tuple(known[i] for i in sorted(known)),
                readings={**self._beat.readings, **beat.readings},
                unread=beat.unread | (self._beat.unread - beat.readings.keys()),
            )
        if self._beat is not None and beat.paused.keys() != self._beat.paused.keys():
            # A worker that has been stopped is paused no more, and its entry may have been read before it began to drain.
            self._registry.newer()
        self._beat, self._beat_at = beat, now
        self._update(self._read(beat))

    def _update(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self._changed()

    def _read(self, beat: Beat | None = None) -> View:
        """The view of now."""
        endpoints = self._registry.endpoints
        balanced = {name: e for name, e in endpoints.items() if e.is_balanced}
        config = self._config
        try:
            needed = bool(config.api_keys) or self._registry.has_keys
        except RedisUnavailable:
            # An endpoint of run time may have keys.
            needed = True
        workers = {worker.id for e in balanced.values() for worker in e.workers}
        view = View(
            endpoints=balanced,
            queues=frozenset(endpoints.keys() - balanced.keys()),
            keys=keys_of(balanced.values(), (*config.api_keys, *config.admin_keys), needed=needed),
            hosts=self._hosts | frozenset(config.hosts),
            origins=config.cors_origins,
        )
        if beat is None:
            return view
        others = {name: found for name, found in beat.readings.items() if name != self._me.id}
        return replace(
            view,
            secret=beat.secret,
            paused={name: why for name, why in beat.paused.items() if name in workers},
            paused_endpoints=pauses_of(balanced.values(), beat.now_ms),
            fronts=beat.fronts,
            lost=self._lost(view),
            **self._elsewhere(view, beat.fronts, others),
        )

    def _lost(self, view: View) -> dict[str, frozenset[str]]:
        """The wished workers that cannot come back, by the endpoint's id."""
        wishes = {
            name: reading.wishes[:MOST_WISHES]
            for name, reading in (self._readings or {}).items()
            if reading.wishes and name in view.endpoints
        }
        if not wishes:
            return {}
        try:
            records = self._managed.records(id_ for ids in wishes.values() for id_ in ids)
            rollouts = self._managed.releases.rollouts(wishes.keys())
        except OwnPodError as error:
            # Their requests are held.
            log.debug("it is not known which workers cannot come back: %s", error)
            return {}
        found = {}
        for name, ids in wishes.items():
            rollout = rollouts[name]
            current = None if isinstance(rollout, WorkerRecordBroken) else rollout.current
            release = None if current is None else current.id
            found[name] = lost_of(view.endpoints[name], ids, records, release)
        return {name: ids for name, ids in found.items() if ids}

    def _elsewhere(
        self,
        view: View,
        fronts: tuple[Front, ...],
        others: Mapping[str, Mapping[str, RouteReading]],
    ) -> dict[str, Any]:
        """What other fronts have at the workers of limited endpoints whose home this front is."""
        opened, claims, now = dict[str, int](), dict[str, float](), self._clock()
        for name, endpoint in view.endpoints.items():
            if not is_limited(endpoint) or home_of(endpoint, self._me, fronts).id != self._me.id:
                continue
            if self._me.place is None:
                # No front can be reached, so that each sends requests to the workers itself.
                continue
            for readings in others.values():
                reading = readings.get(name)
                if reading is None:
                    continue
                for worker, found in reading.servers.items():
                    if reading.passes and not found.draining:
                        # What waits there is sent to it, too.
                        opened[worker] = sys.maxsize
                    elif found.open:
                        opened[worker] = opened.get(worker, 0) + found.open
                sends = any(not server.draining for server in reading.servers.values())
                if not reading.passes and sends:
                    claims[name] = self._claims.get(name, now)
        self._claims = claims
        claimed = frozenset(name for name, since in claims.items() if now - since < CLAIM_S)
        return {"elsewhere": opened, "claimed": claimed}

    def _reload(self) -> None:
        try:
            all_settings.reload()
            self._config = all_settings.current()
        except ConfigurationError as error:
            log.warning("settings stay as they were: %s", error)
        try:
            self._registry.reload(keep_endpoints(self._config))
        except ConfigurationError as error:
            log.error("the old configuration stays: %s", error)  # noqa: TRY400 - one line
        else:
            log.info("configuration read again")

    def _leave(self) -> None:
        try:
            self._fronts.leave(self._me.id)
        except OwnPodError as error:
            log.debug("the front's heartbeat is not removed: %s", error)


def _newly_ready(before: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> bool:
    """Whether a worker became ready."""
    return any(v.ready and not (n in before and before[n].ready) for n, v in now.items())
