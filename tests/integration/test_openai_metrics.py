"""The histograms of OpenAI routes' replies: the same for all API processes, and never an error of a reply."""

import logging

import pytest
import redis
from helpers import load_settings
from prometheus_client.parser import text_string_to_metric_families

from ownpod.api import create_app
from ownpod.api.metrics.openai import note_reply
from ownpod.api.services import services_of
from ownpod.store.replies import Replies

FIRST = "ownpod_openai_time_to_first_token_seconds"
RATE = "ownpod_openai_output_tokens_per_second"
REPORT = '{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 12}}'


@pytest.fixture
def apps(client, redis_server, tmp_path):
    """Two API processes' applications."""
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}, other: {}}")
    settings = load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file)
    found = [create_app(settings) for _ in range(2)]
    yield found
    for app in found:
        services_of(app).notices.stop()


def samples(app):
    """Values of the two histograms by name, endpoint and bucket."""
    text = app.test_client().get("/metrics").get_data(as_text=True)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        if family.name in {FIRST, RATE}
        for sample in family.samples
    }


def test_replies_of_all_processes_are_in_the_metrics_of_each(apps):
    first, second = (services_of(app).replies for app in apps)
    note_reply(first, "ep", first_s=0.3, ran_ms=600, tail=REPORT)
    note_reply(second, "ep", first_s=None, ran_ms=12_000, tail=REPORT)
    note_reply(second, "ep", first_s=5000.0, ran_ms=None, tail=REPORT)
    found = samples(apps[0])
    assert samples(apps[1]) == found
    assert found[f"{FIRST}_bucket", "ep", "0.25"] == 0
    assert found[f"{FIRST}_bucket", "ep", "0.5"] == found[f"{FIRST}_bucket", "ep", "3600.0"] == 1
    assert found[f"{FIRST}_bucket", "ep", "+Inf"] == found[f"{FIRST}_count", "ep"] == 2
    assert found[f"{FIRST}_sum", "ep"] == 5000.3
    assert found[f"{RATE}_bucket", "ep", "1.0"] == 1
    assert found[f"{RATE}_bucket", "ep", "15.0"] == 1
    assert found[f"{RATE}_bucket", "ep", "20.0"] == found[f"{RATE}_count", "ep"] == 2
    assert found[f"{RATE}_sum", "ep"] == 21
    assert not [labels for labels in found if "other" in labels]


def test_a_reply_without_figures_changes_nothing(apps):
    replies = services_of(apps[0]).replies
    note_reply(replies, "ep", first_s=None, ran_ms=10, tail='{"data": []}')
    assert samples(apps[0]) == {}


@pytest.mark.slow
def test_a_redis_that_is_away_is_no_error_of_a_reply(caplog):
    away = Replies(redis.Redis(host="127.0.0.1", port=1))
    with caplog.at_level(logging.DEBUG, "ownpod.api.metrics.openai"):
        note_reply(away, "ep", first_s=0.1, ran_ms=10, tail=REPORT)
    assert "a reply of endpoint ep is not in the metrics" in caplog.text
