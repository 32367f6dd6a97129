"""The metrics of workers, of endpoints of both types."""

from collections import Counter
from collections.abc import Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed_states import ManagedView, shown
from ownpod.store.figures import EndpointStats


class WorkerMetrics:
    """Workers by state, and each worker's jobs and limit."""

    def __init__(self) -> None:
        self._workers = GaugeMetricFamily("ownpod_workers", "Workers", labels=["endpoint", "state"])
        labels = ["endpoint", "worker"]
        self._running = GaugeMetricFamily(
            "ownpod_worker_jobs", "Running jobs of a worker", labels=labels
        )
        self._held = GaugeMetricFamily(
            "ownpod_worker_held", "Lingering slots: taken by jobs that have ended", labels=labels
        )
        self._capacity = GaugeMetricFamily(
            "ownpod_worker_capacity",
            "Slots of a worker; of a load-balanced endpoint, requests that it gets at a time, if that is limited",
            labels=labels,
        )

    def add(
        self,
        endpoint: Endpoint,
        stats: EndpointStats,
        statuses: Mapping[str, WorkerStatus],
        view: ManagedView,
    ) -> None:
        """Adds the workers of an endpoint with a queue. ``statuses``: as their nodes have published them, by worker id."""
        records = view.by_id()
        # The node of a worker that is not ready, or that drains, knows less of it than its record.
        found = {name: shown(s, records.get(name), view) for name, s in statuses.items()}
        self.add_states(endpoint, found)
        for worker in endpoint.workers:
            labelled = [endpoint.id, worker.id]
            self._running.add_metric(labelled, stats.running.get(worker.id, 0))
            self._held.add_metric(labelled, statuses[worker.id].lingering)

    def add_states(self, endpoint: Endpoint, statuses: Mapping[str, WorkerStatus]) -> None:
        """Adds an endpoint's workers by state. ``statuses``: as clients see them, by worker id."""
        states = Counter(status.state for status in statuses.values())
        for state in WorkerState:
            self._workers.add_metric([endpoint.id, state], states[state])
        for worker in endpoint.workers:
            if worker.capacity:
                self._capacity.add_metric([endpoint.id, worker.id], worker.capacity)

    @property
    def families(self) -> tuple[Metric, ...]:
        """The metrics of all endpoints that were added."""
        return self._workers, self._running, self._held, self._capacity
