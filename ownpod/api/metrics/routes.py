"""``/metrics`` for Prometheus. All values are from Redis, so that each API process returns the same."""

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

from ownpod.api.metrics.balanced import BalancedMetrics
from ownpod.api.metrics.managed import ManagedMetrics, add_histogram, device_metrics
from ownpod.api.metrics.openai import OpenAiMetrics
from ownpod.api.metrics.overflow import overflow_metrics
from ownpod.api.metrics.sessions import SessionMetrics, model_metrics
from ownpod.api.metrics.workers import WorkerMetrics
from ownpod.api.services import Services, services
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed_states import ManagedView
from ownpod.store.budgets import Budgets

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """All endpoints and workers, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(services()))
    return Response(
        exposition.generate_latest(registry), mimetype=exposition.CONTENT_TYPE_PLAIN_0_0_4
    )


class _Collector(Collector):
    """The metrics of one scrape."""

    def __init__(self, svc: Services) -> None:
        self._svc = svc
        self._budgets = Budgets(svc.store.client)

    def describe(self) -> list[Metric]:
        # Without this method the registry would call collect() to find the metrics' names.
        return []

    def collect(self) -> Iterator[Metric]:
        one, by = ["endpoint"], CounterMetricFamily
        submitted = by("ownpod_jobs_submitted", "Jobs that were accepted", labels=one)
        ended = by("ownpod_jobs_ended", "Jobs that have ended", labels=["endpoint", "status"])
        retried = by("ownpod_jobs_retried", "Retries, by clients and by OwnPod", labels=one)
        begun = by("ownpod_attempts", "Attempts that were claimed", labels=one)
        lost = by("ownpod_attempts_lost", "Attempts without an answer of the worker", labels=one)
        webhooks = by("ownpod_webhooks", "Tries of webhooks", labels=["endpoint", "result"])
        jobs = GaugeMetricFamily(
            "ownpod_jobs", "Waiting and running jobs", labels=["endpoint", "status"]
        )
        oldest = GaugeMetricFamily(
            "ownpod_queue_oldest_seconds", "Age of the oldest waiting job", labels=one
        )
        delay = HistogramMetricFamily(
            "ownpod_delay_seconds", "Time from submission to the first attempt", labels=one
        )
        execution = HistogramMetricFamily(
            "ownpod_execution_seconds", "Duration of attempts that ended with a result", labels=one
        )
        now_ms, records = self._svc.store.now_ms(), self._svc.managed.list()
        managed = ManagedMetrics()
        workers = WorkerMetrics()
        balanced = BalancedMetrics(self._svc, workers)
        replies = OpenAiMetrics(self._svc.replies)
        sessions = SessionMetrics(self._svc.sessions.list())
        for endpoint in self._svc.registry.endpoints.values():
            stats, name = self._svc.store.figures.stats(endpoint.id), [endpoint.id]
            managed.add(endpoint, stats, records)
            sessions.add(endpoint, stats)
            view = ManagedView([record for record in records if record.endpoint == endpoint.id])
            if endpoint.is_balanced:
                balanced.add(endpoint, view)
                continue
            workers.add(endpoint, stats, self._svc.registry.fleet.statuses(endpoint.workers), view)
            replies.add(endpoint.id)
            submitted.add_metric(name, stats.counts.get("submitted", 0))
            for status in JobStatus:
                if status.terminal:
                    ended.add_metric([*name, status], stats.counts.get(status, 0))
            retried.add_metric(name, stats.counts.get("retried", 0))
            begun.add_metric(name, stats.counts.get("begun", 0))
            lost.add_metric(name, stats.counts.get("lost", 0))
            for result in ("delivered", "failed", "given_up"):
                webhooks.add_metric([*name, result], stats.webhooks.get(result, 0))
            jobs.add_metric([*name, JobStatus.IN_QUEUE], stats.waiting)
            jobs.add_metric([*name, JobStatus.IN_PROGRESS], sum(stats.running.values()))
            waited_ms = 0 if stats.oldest_ms is None else now_ms - stats.oldest_ms
            # The job may have been created after the clock was read.
            oldest.add_metric(name, max(0, waited_ms) / 1000)
            add_histogram(delay, name, stats.delay)
            add_histogram(execution, name, stats.execution)
        yield from (submitted, ended, retried, begun, lost, webhooks, jobs, oldest)
        yield from (delay, execution)
        yield from replies.families
        yield from workers.families
        yield from managed.families
        yield from balanced.families
        yield from sessions.families
        yield from overflow_metrics(self._svc.registry.workers(), self._budgets)
        yield from model_metrics(self._svc.models.news(), self._svc.models.fetches())
        yield from device_metrics(self._svc.agents.agents(), self._svc.agents.all_holds())
