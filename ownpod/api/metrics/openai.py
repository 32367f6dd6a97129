"""How fast replies of OpenAI routes are: what is noted when a reply has ended, and its metrics."""

import logging

from prometheus_client.core import HistogramMetricFamily, Metric

from ownpod.api.metrics.managed import add_histogram
from ownpod.errors import RedisUnavailable
from ownpod.rules.openai_usage import tokens_per_second, usage_of
from ownpod.store.replies import Replies

log = logging.getLogger(__name__)


def note_reply(
    replies: Replies, endpoint: str, *, first_s: float | None, ran_ms: float | None, tail: str
) -> None:
    """Adds a COMPLETED reply to the metrics. Does not raise: a reply that was sent must not fail because of its figures.

    Args:
        replies: the histograms.
        endpoint: its endpoint.
        first_s: of a stream: seconds from the request to the first chunk.
        ran_ms: the job's execution time in ms; None: not known.
        tail: the end of the reply's text, see :func:`ownpod.rules.openai_usage.usage_of`.
    """
    rate = tokens_per_second(usage_of(tail), ran_ms or 0)
    if first_s is None and rate is None:
        return
    try:
        replies.add(endpoint, first_s=first_s, rate=rate)
    except RedisUnavailable as error:
        log.debug("a reply of endpoint %s is not in the metrics: %s", endpoint, error)


class OpenAiMetrics:
    """The metrics of replies by endpoint.

    Args:
        replies: the histograms.
    """

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._first = HistogramMetricFamily(
            "ownpod_openai_time_to_first_token_seconds",
            "Time from a request of an OpenAI route to the first chunk of its stream",
            labels=["endpoint"],
        )
        self._rate = HistogramMetricFamily(
            "ownpod_openai_output_tokens_per_second",
            "Output tokens that a reply reports, divided by its job's execution time",
            labels=["endpoint"],
        )

    def add(self, endpoint: str) -> None:
        """Adds an endpoint, if it has had such replies. Raises: RedisUnavailable."""
        families = (self._first, self._rate)
        for family, histogram in zip(families, self._replies.stats(endpoint), strict=True):
            if any(histogram.buckets):
                add_histogram(family, [endpoint], histogram)

    @property
    def families(self) -> tuple[Metric, ...]:
        """The metrics of all endpoints that were added."""
        return self._first, self._rate
