"""The metrics of sessions, tasks and models."""

from collections import Counter
from collections.abc import Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.event_data import FINISHES
from ownpod.rules.jobs import JobStatus
from ownpod.rules.model_news import News, State
from ownpod.rules.sessions import Session, Status
from ownpod.store.figures import EndpointStats


class SessionMetrics:
    """The metrics of presets: their sessions and tasks.

    Args:
        sessions: those of all endpoints that have not ended.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._found = Counter((s.worker.endpoint, s.status) for s in sessions)
        self._presets = GaugeMetricFamily(
            "ownpod_preset_info",
            "The model and the preset of an endpoint; always 1",
            labels=["endpoint", "model", "preset"],
        )
        self._sessions = GaugeMetricFamily(
            "ownpod_sessions", "Sessions that have not ended", labels=["endpoint", "status"]
        )
        self._tasks = CounterMetricFamily(
            "ownpod_tasks_ended",
            "Tasks that have ended; `code` is the word for programs that their last event has, empty if it has none",
            labels=["endpoint", "type", "status", "code"],
        )

    def add(self, endpoint: Endpoint, stats: EndpointStats) -> None:
        """Adds an endpoint, if it is a preset."""
        if endpoint.preset is None:
            return
        name = endpoint.id
        self._presets.add_metric([name, endpoint.preset.model_id, endpoint.preset.name], 1)
        for status in Status:
            if status is not Status.KILLED:
                self._sessions.add_metric([name, status], self._found[name, status])
        for words, count in sorted(stats.tasks.items()):
            kind, state, code = words.split(":", 2)
            self._tasks.add_metric([name, kind, FINISHES[JobStatus(state)], code], count)

    @property
    def families(self) -> tuple[Metric, ...]:
        """The metrics of all endpoints that were added."""
        return self._presets, self._sessions, self._tasks


def model_metrics(
    news: Mapping[str, Sequence[News]], fetches: Mapping[str, Mapping[str, int]]
) -> tuple[Metric, ...]:
    """The metrics of models.

    Args:
        news: what each host knows of its models.
        fetches: how many fetches of each host have ended, by state.
    """
    models = GaugeMetricFamily(
        "ownpod_models",
        "Models that a host has, fetches or could not fetch",
        labels=["host", "state"],
    )
    size = GaugeMetricFamily(
        "ownpod_model_bytes", "Size of the models that a host has", labels=["host"]
    )
    ended = CounterMetricFamily(
        "ownpod_model_fetches", "Fetches of models that have ended", labels=["host", "result"]
    )
    for host, found in sorted(news.items()):
        states = Counter(one.state for one in found)
        for state in State:
            models.add_metric([host, state], states[state])
        size.add_metric([host], sum(one.total for one in found if one.state is State.READY))
    for host, results in sorted(fetches.items()):
        for state in (State.READY, State.FAILED):
            ended.add_metric([host, state], results.get(state, 0))
    return models, size, ended
