"""A pushed worker behind a proxy that answers for it, and streams that report how they ended."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import Answer, FakeWorker, load_settings, wait_until, worker_spec

from ownpod.errors import AttemptLost, WorkerUnavailable
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Run, RunCheck
from ownpod.workers.push import PushWorker

PROXY = [429, 502, 503, 504]


@pytest.fixture
def fake():
    with FakeWorker().serving() as worker:
        yield worker


def push(url, **changes):
    return PushWorker(
        worker_spec(url, **changes), load_settings(OWNPOD_WORKER_STATUS_TIMEOUT_S=0.3)
    )


class Listener:
    def __init__(self):
        self.yielded = []
        self.checks = []

    def chunks(self, texts):
        self.yielded += [json.loads(text) for text in texts]

    def set_check(self, check):
        self.checks.append(check)


RUNNING = Answer(body={"id": "r", "status": "IN_PROGRESS"})


def in_turn(*answers):
    """The last answer goes on."""
    left = list(answers)
    return lambda *_: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.slow
@pytest.mark.parametrize("status", PROXY)
def test_a_poll_that_a_proxy_answers_is_repeated(fake, status):
    done = Answer(body={"status": "COMPLETED", "output": 1})
    refused = [Answer(status, b"<html>try again</html>")] * 4
    fake.routes["POST /status"] = in_turn(RUNNING, *refused, done)
    outcome = push(fake.url).wait("r", Listener())
    assert (outcome.status, outcome.output) == (JobStatus.COMPLETED, "1")


@pytest.mark.parametrize("status", PROXY)
@pytest.mark.parametrize("route", ["POST /status", "POST /stream"])
def test_a_held_request_that_a_proxy_ends_is_a_lost_attempt_and_not_repeated(fake, route, status):
    fake.routes[route] = Answer(status, b"<html>bad gateway</html>")
    with pytest.raises(AttemptLost, match=f"HTTP {status}.*by a proxy before the worker"):
        push(fake.url).wait("r", Listener())
    assert len(fake.paths(route)) == 1


def test_a_server_error_of_a_poll_is_failed(fake):
    fake.routes["POST /status"] = in_turn(RUNNING, Answer(500, b"Internal Server Error"))
    outcome = push(fake.url).wait("r", Listener())
    assert (outcome.status, outcome.error) == (
        JobStatus.FAILED,
        "the worker's /status answered HTTP 500: Internal Server Error",
    )


@pytest.mark.slow
def test_a_polled_worker_that_is_gone_is_lost_within_seconds(fake):
    fake.routes["POST /status"] = in_turn(RUNNING, Answer(hang_up=True))
    began = time.monotonic()
    with pytest.raises(AttemptLost, match="died or was cut off"):
        push(fake.url).wait("r", Listener())
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_polled_stream_goes_on_after_a_proxy_refused_it(fake):
    part = Answer(body={"status": "IN_PROGRESS", "stream": [{"output": 1}]})
    last = Answer(body={"status": "COMPLETED", "stream": [{"output": 2}]})
    fake.routes["POST /stream"] = in_turn(part, Answer(503, {}), Answer(hang_up=True), last)
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": [1, 2]})
    watched = Listener()
    assert push(fake.url).wait("r", watched).output == "[1, 2]"
    assert watched.yielded == [1, 2]


@pytest.mark.parametrize("status", PROXY)
@pytest.mark.parametrize("look", list(RunCheck))
def test_a_run_may_go_on_while_a_proxy_answers_for_its_worker(fake, look, status):
    refused = Answer(status, b"")
    fake.routes |= {"POST /status": refused, "POST /stream": refused, "GET /health": refused}
    run = Run(job_id="job-1", attempt=1, id="r", check=look, execution_timeout_ms=1000)
    assert push(fake.url).is_running(run, 5)


@pytest.mark.parametrize(
    ("status", "looks"), [(404, [RunCheck.UNKNOWN, RunCheck.TIMEOUT]), (503, [RunCheck.UNKNOWN])]
)
def test_a_proxys_answer_beside_a_generator_does_not_show_that_its_worker_answers(
    fake, monkeypatch, status, looks
):
    monkeypatch.setattr("ownpod.workers.stream.ANSWER_S", 60)
    ended, asked = threading.Event(), threading.Event()

    def health(*_):
        asked.set()
        return Answer(status, {})

    fake.routes["GET /health"] = health
    done = {"status": "COMPLETED", "stream": [{"output": 1}]}
    fake.routes["POST /stream"] = Answer(body=done, hold=ended)
    watched = Listener()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(push(fake.url).wait, "r", watched)
        assert asked.wait(60)
        if status == 404:
            wait_until(lambda: watched.checks == looks)
        ended.set()
        running.result(60)
    assert watched.checks == looks


# How a stream ends.


@pytest.mark.parametrize(
    "body",
    [
        {"status": "FAILED", "error": "boom", "stream": [{"output": 1}]},
        {"status": "COMPLETED", "stream": [{"output": 1}, {"error": "boom"}]},
        {"status": "FAILED", "stream": [{"output": 1}, {"error": "boom"}]},
    ],
)
def test_a_generator_that_raised_fails_with_its_reason_and_keeps_its_chunks(fake, body):
    fake.routes["POST /stream"] = Answer(body={"id": "r"} | body)
    watched = Listener()
    outcome = push(fake.url).wait("r", watched)
    assert (outcome.status, outcome.error) == (JobStatus.FAILED, "boom")
    assert watched.yielded == [1]
    # The SDK would run the generator again.
    assert fake.paths("POST /status") == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Answer(body={"status": "FAILED"}), "boom"),
        (Answer(body={"status": "FAILED", "error": "more"}), "more"),
        (Answer(body={"status": "FAILED", "error": "Job ID not found"}), "boom"),
        (Answer(404, {}), "boom"),
        (Answer(hang_up=True), "boom"),
    ],
)
def test_a_stream_of_events_that_ends_with_an_error_fails_with_it(fake, status, error):
    parts = [b'data: {"output": 1}\n\n', b'event: error\ndata: {"error": "boom"}\n\n']
    fake.routes["POST /stream"] = Answer(kind="text/event-stream", parts=parts)
    fake.routes["POST /status"] = status
    watched = Listener()
    outcome = push(fake.url).wait("r", watched)
    assert (outcome.status, outcome.error) == (JobStatus.FAILED, error)
    assert watched.yielded == [1]


def test_an_error_in_the_middle_of_a_stream_does_not_fail_a_run_that_completes(fake):
    parts = [b'data: {"error": "once"}\n\n', b'data: {"output": 1}\n\n']
    fake.routes["POST /stream"] = Answer(kind="text/event-stream", parts=parts)
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": [1]})
    assert push(fake.url).wait("r", Listener()).status is JobStatus.COMPLETED


def test_a_generator_that_raised_without_a_reason_fails_and_names_stream(fake):
    fake.routes["POST /stream"] = Answer(500, b"Internal Server Error")
    outcome = push(fake.url).wait("r", Listener())
    assert outcome.error == "the worker's /stream answered HTTP 500: Internal Server Error"


# The certificate of an https worker.


def test_a_missing_ca_bundle_makes_its_worker_unavailable_with_the_reason(tmp_path):
    worker = push("https://127.0.0.1:9", ca_bundle=str(tmp_path / "none.pem"))
    with pytest.raises(
        WorkerUnavailable, match=r"its CA bundle .*none\.pem cannot be read on this host"
    ):
        worker.probe()


def test_a_ca_bundle_that_is_none_makes_its_worker_unavailable(tmp_path, fake):
    (tmp_path / "ca.pem").write_text("hello")
    worker = push(fake.url.replace("http", "https"), ca_bundle=str(tmp_path / "ca.pem"))
    with pytest.raises(WorkerUnavailable):
        worker.probe()
