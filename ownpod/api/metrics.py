"""``/metrics`` for Prometheus. Everything is counted in Redis, so each API process says the same."""

from collections import Counter
from collections.abc import Iterator

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ownpod.api.services import Services, services
from ownpod.rules.fleet import WorkerState
from ownpod.rules.jobs import JobStatus
from ownpod.store.common import BUCKETS_MS
from ownpod.store.figures import Histogram

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """All endpoints and workers, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Figures(services()))
    return Response(
        exposition.generate_latest(registry), mimetype=exposition.CONTENT_TYPE_PLAIN_0_0_4
    )


class _Figures(Collector):
    def __init__(self, here: Services) -> None:
        self._here = here

    def describe(self) -> list[Metric]:
        # Else registering would collect.
        return []

    def collect(self) -> Iterator[Metric]:
        one, by = ["endpoint"], CounterMetricFamily
        submitted = by("ownpod_jobs_submitted", "Jobs that were accepted", labels=one)
        ended = by("ownpod_jobs_ended", "Jobs that have ended", labels=["endpoint", "status"])
        retried = by("ownpod_jobs_retried", "Retries, by hand and by OwnPod", labels=one)
        begun = by("ownpod_attempts", "Attempts that were begun", labels=one)
        lost = by("ownpod_attempts_lost", "Attempts that got no answer", labels=one)
        webhooks = by("ownpod_webhooks", "Tries of webhooks", labels=["endpoint", "result"])
        jobs = GaugeMetricFamily("ownpod_jobs", "Jobs now", labels=["endpoint", "status"])
        oldest = GaugeMetricFamily(
            "ownpod_queue_oldest_seconds", "How long the oldest waiting job has waited", labels=one
        )
        delay = HistogramMetricFamily(
            "ownpod_delay_seconds", "From submission to the first attempt", labels=one
        )
        execution = HistogramMetricFamily(
            "ownpod_execution_seconds", "Of attempts that brought a result", labels=one
        )
        workers = GaugeMetricFamily("ownpod_workers", "Workers", labels=["endpoint", "state"])
        labels = ["endpoint", "worker"]
        running = GaugeMetricFamily("ownpod_worker_jobs", "Jobs of a worker", labels=labels)
        held = GaugeMetricFamily(
            "ownpod_worker_held", "Slots that jobs which have ended still take", labels=labels
        )
        capacity = GaugeMetricFamily("ownpod_worker_capacity", "Slots of a worker", labels=labels)
        now_ms = self._here.store.now_ms()
        for endpoint in self._here.registry.endpoints.values():
            found, name = self._here.store.figures.stats(endpoint.id), [endpoint.id]
            submitted.add_metric(name, found.counts.get("submitted", 0))
            for status in JobStatus:
                if status.terminal:
                    ended.add_metric([*name, status], found.counts.get(status, 0))
            retried.add_metric(name, found.counts.get("retried", 0))
            begun.add_metric(name, found.counts.get("begun", 0))
            lost.add_metric(name, found.counts.get("lost", 0))
            for result in ("delivered", "failed", "given_up"):
                webhooks.add_metric([*name, result], found.webhooks.get(result, 0))
            jobs.add_metric([*name, JobStatus.IN_QUEUE], found.waiting)
            jobs.add_metric([*name, JobStatus.IN_PROGRESS], sum(found.running.values()))
            waited_ms = 0 if found.oldest_ms is None else now_ms - found.oldest_ms
            oldest.add_metric(name, max(0, waited_ms) / 1000)
            _add(delay, name, found.delay)
            _add(execution, name, found.execution)
            statuses = self._here.registry.statuses(endpoint.workers)
            states = Counter(status.state for status in statuses.values())
            for state in WorkerState:
                workers.add_metric([*name, state], states[state])
            for worker in endpoint.workers:
                labelled = [*name, worker.id]
                running.add_metric(labelled, found.running.get(worker.id, 0))
                held.add_metric(labelled, statuses[worker.id].held)
                capacity.add_metric(labelled, worker.capacity)
        yield from (submitted, ended, retried, begun, lost, webhooks, jobs, oldest)
        yield from (delay, execution, workers, running, held, capacity)


def _add(family: HistogramMetricFamily, labels: list[str], found: Histogram) -> None:
    ends = [*(str(ms / 1000) for ms in BUCKETS_MS), "+Inf"]
    total, buckets = 0, []
    for end, count in zip(ends, found.buckets, strict=True):
        total += count
        buckets.append((end, total))
    family.add_metric(labels, buckets=buckets, sum_value=found.sum_ms / 1000)
