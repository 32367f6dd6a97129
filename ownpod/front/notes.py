"""The front's log: one line for each event that operators care about."""

import logging
from collections.abc import Mapping

from ownpod.rules.fronts import View
from ownpod.rules.probing import Verdict

log = logging.getLogger(__name__)


class Notes:
    """Logs what has changed since the turn before."""

    def __init__(self) -> None:
        self._view: View | None = None
        self._verdicts: Mapping[str, Verdict] = {}
        self._silent: frozenset[str] = frozenset()

    def fronts(self, silent: Mapping[str, str]) -> None:
        """Logs fronts, by address, that HAProxy does not reach although they report to Redis."""
        for address in silent.keys() - self._silent:
            log.warning(
                "the front at %s is not reachable, so requests that it should get wait: %s; is its OWNPOD_FRONT_ADDRESS right?",
                address,
                silent[address],
            )
        self._silent = frozenset(silent)

    def turn(self, view: View, verdicts: Mapping[str, Verdict]) -> None:
        """Logs endpoints that came or went, and workers that became ready or are not ready for another reason."""
        if view is not self._view:
            self._endpoints(view)
            self._view = view
        if verdicts is not self._verdicts:
            names = {w.id: e.id for e in view.endpoints.values() for w in e.workers}
            for worker_id, verdict in verdicts.items():
                before = self._verdicts.get(worker_id)
                if worker_id in names and verdict != before:
                    self._worker(worker_id, names[worker_id], verdict, before)
            self._verdicts = verdicts

    def _endpoints(self, view: View) -> None:
        before = {} if self._view is None else self._view.endpoints
        for name in view.endpoints.keys() - before.keys():
            log.info("endpoint %s is load-balanced: /lb/%s/", name, name)
        for name in before.keys() - view.endpoints.keys():
            log.info("endpoint %s is not load-balanced any more", name)
        others = [front.id for front in view.fronts]
        if self._view is not None and others != [front.id for front in self._view.fronts]:
            log.info("fronts that live: %d", len(others))

    @staticmethod
    def _worker(worker: str, endpoint: str, verdict: Verdict, before: Verdict | None) -> None:
        if verdict.ready:
            log.info("worker %s of %s is ready", worker, endpoint)
        elif verdict.lost and not (before and before.lost):
            log.warning("worker %s of %s is unhealthy: %s", worker, endpoint, verdict.reason)
        elif before is not None and verdict.reason != before.reason:
            log.info("worker %s of %s is not ready: %s", worker, endpoint, verdict.reason)
