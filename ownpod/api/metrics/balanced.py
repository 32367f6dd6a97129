"""The metrics of load-balanced endpoints and of fronts."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ownpod.api.metrics.workers import WorkerMetrics
from ownpod.api.services import Services
from ownpod.rules.balanced_states import BalancedView
from ownpod.rules.balancing import RouteReading
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fronts import summed
from ownpod.rules.managed_states import ManagedView


class BalancedMetrics:
    """The metrics of load-balanced endpoints, which have no jobs.

    Args:
        svc: what the API uses.
        workers: gets the states of their workers.

    Raises:
        RedisUnavailable: Redis does not answer.
    """

    def __init__(self, svc: Services, workers: WorkerMetrics) -> None:
        fronts, readings = svc.fronts.living()
        self._fleet, self._workers = svc.registry.fleet, workers
        self._count, self._readings = len(fronts), summed(readings.values())
        self._fronts = GaugeMetricFamily("ownpod_fronts", "Fronts that run")
        self._fronts.add_metric([], self._count)
        self._requests = GaugeMetricFamily(
            "ownpod_requests",
            "Requests, streams and WebSockets that wait for a worker, or are open at one",
            labels=["endpoint", "state"],
        )
        self._received = CounterMetricFamily(
            "ownpod_requests_received",
            "Requests that the fronts have received since their start",
            labels=["endpoint"],
        )
        labels = ["endpoint", "worker"]
        self._open = GaugeMetricFamily(
            "ownpod_worker_requests",
            "Requests, streams and WebSockets that are open at a worker",
            labels=labels,
        )

    def add(self, endpoint: Endpoint, managed: ManagedView) -> None:
        """Adds an endpoint, with its managed workers. Raises: RedisUnavailable."""
        reading = self._readings.get(endpoint.id, RouteReading())
        statuses = self._fleet.statuses(endpoint.workers)
        view = BalancedView(self._count, reading, statuses, managed)
        self._workers.add_states(endpoint, {w.id: view.status(w) for w in endpoint.workers})
        self._requests.add_metric([endpoint.id, "waiting"], view.reading.waiting)
        self._requests.add_metric([endpoint.id, "open"], view.reading.running)
        self._received.add_metric([endpoint.id], view.reading.total)
        for worker in endpoint.workers:
            self._open.add_metric([endpoint.id, worker.id], view.server(worker.id).open)

    @property
    def families(self) -> tuple[Metric, ...]:
        """The metrics of all endpoints that were added."""
        return self._fronts, self._requests, self._received, self._open
