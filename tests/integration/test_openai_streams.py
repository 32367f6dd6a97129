"""Streams of OpenAI's clients: what is written and when, and what becomes of the job."""

import json
import socket
import threading

import pytest
from answering import Answering, error_of
from helpers import job_store, wait_until

from ownpod.api.openai import exchange as openai_exchange
from ownpod.api.services import services_of
from ownpod.errors import RedisUnavailable
from ownpod.rules.jobs import JobStatus
from ownpod.rules.openai import DONE
from ownpod.store import keys, notices
from ownpod.store.attended import Attended

FILE = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: w1}]}
  kept: {workers: [{url: "http://127.0.0.1:2", id: w2}], onDisconnect: keep}
"""
URL = "/v2/ep/openai/v1/chat/completions"
EVENT = 'data: {"a": 1}\n\n'
FLAT = {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
WAITING = b": waiting\n\n"


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def app(new_app):
    return new_app(FILE)


@pytest.fixture
def api(app):
    return app.test_client()


@pytest.fixture
def connection():
    """The client's end of a connection, and the options of its request."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs, {"environ_overrides": {"gunicorn.socket": ours}}


@pytest.fixture
def prompt(monkeypatch):
    """Headers wait for the first chunk for an instant only."""
    monkeypatch.setattr(openai_exchange, "WAITING_S", 0.05)


def post(api, url=URL, **options):
    return api.post(url, data=json.dumps({"model": "m", "stream": True}), **options)


def begun(store, *chunks, **options):
    """A worker that yields these chunks, and does not end."""

    def steps(worker):
        worker.claim()
        if chunks:
            worker.chunk(*chunks)

    return Answering(store, steps, **options)


def rest(parts):
    return b"".join(parts).decode()


def gone(store, job_id):
    """The request has left nothing behind."""
    return store.client.zscore(keys.ATTENDED, job_id) is None


# --- what is written


def test_chunks_are_written_as_they_come(api, store):
    with begun(store, EVENT) as worker:
        response = post(api)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Runpod-Worker-Id"] == "w1"
    assert response.headers["X-Request-ID"] == worker.job_id
    parts = response.iter_encoded()
    assert next(parts) == EVENT.encode()
    worker.chunk("da", [{"b": 2}])
    assert next(parts) == b'da\n\ndata: {"b": 2}\n\n'
    worker.finish([])
    assert rest(parts) == DONE
    assert gone(store, worker.job_id)


def test_a_character_that_the_worker_has_cut_does_not_end_the_stream(api, store):
    with begun(store, 'data: "\ud800 é"\n\n') as worker:
        response = post(api)
        worker.finish([])
    assert rest(response.iter_encoded()) == f'data: "? é"\n\n{DONE}'


def test_a_worker_that_only_returns_gets_its_output_written(api, store):
    def steps(worker):
        worker.claim()
        worker.finish([EVENT, EVENT + DONE])

    with Answering(store, steps):
        response = post(api)
    assert response.text == EVENT + EVENT + DONE


@pytest.mark.parametrize("chunks", [[], [""]])
def test_the_headers_of_a_stream_do_not_wait_for_ever(api, store, prompt, chunks):
    with begun(store, *chunks) as worker:
        response = post(api)
        parts = response.iter_encoded()
        assert next(parts) == WAITING
        assert next(parts) == WAITING
    worker.chunk("data: {")
    assert b"data: {" in parts
    # No comment may come into a line that is not whole.
    later = threading.Timer(0.3, worker.chunk, ["}\n\n"])
    later.start()
    assert next(parts) == b"}\n\n"
    later.join()
    assert next(parts) == WAITING
    worker.finish([])
    assert rest(parts).endswith(DONE)


# --- errors


@pytest.mark.parametrize("chunk", [FLAT, json.dumps(FLAT), [FLAT]])
def test_an_error_before_anything_else_is_a_status(api, store, chunk):
    with begun(store, "", chunk) as worker:
        response = post(api)
    assert error_of(response) == (400, "too long", "false", None)
    # Its handler ends by itself. If it does not, the sweep cancels the job, which has no reader.
    assert worker.job().status is JobStatus.IN_PROGRESS
    assert Attended(store.client).overdue() == [worker.job_id]


@pytest.mark.parametrize("output", [None, [FLAT]])
def test_a_job_that_ends_without_a_chunk_may_be_a_status(api, store, output):
    def steps(worker):
        worker.claim()
        worker.finish(output, error=None if output else "the handler failed")

    with Answering(store, steps):
        refused = error_of(post(api))
    assert refused[0] == (400 if output else 500)
    assert refused[2] == "false"


def test_an_error_after_the_headers_is_an_event_and_there_is_no_done(api, store, prompt):
    for at_once in ([], [EVENT]):
        with begun(store, *at_once) as worker:
            parts = post(api).iter_encoded()
            assert next(parts)
        worker.finish(error=str({"message": "no", "type": "x", "code": 422}))
        text = rest(parts)
        event = text[text.rindex("data: ") :]
        assert json.loads(event[6:])["error"]["message"] == "no"
        assert "[DONE]" not in text
        assert gone(store, worker.job_id)


def test_an_error_that_is_yielded_in_the_middle_ends_the_stream(api, store):
    with begun(store, EVENT, FLAT) as worker:
        text = post(api).text
    assert text.startswith(EVENT + 'data: {"error": {"message": "too long"')
    assert "[DONE]" not in text
    assert worker.job().status is JobStatus.IN_PROGRESS
    assert Attended(store.client).overdue() == [worker.job_id]


@pytest.mark.slow
def test_a_stream_that_does_not_begin_in_time_is_504(new_app, store):
    # In which a worker takes the job, also on a loaded machine.
    api = new_app(FILE, OWNPOD_OPENAI_TIMEOUT_S=3).test_client()
    with begun(store) as worker:
        assert error_of(post(api)) == (
            504,
            "no worker answered within 3 s (OWNPOD_OPENAI_TIMEOUT_S)",
            "false",
            None,
        )
    assert worker.job().status is JobStatus.CANCELLED


@pytest.mark.slow
def test_a_stream_whose_headers_are_sent_ends_with_the_error_of_its_time(new_app, store, prompt):
    api = new_app(FILE, OWNPOD_OPENAI_TIMEOUT_S=3).test_client()
    with begun(store) as worker:
        text = post(api).text
    assert text.startswith(": waiting\n\n")
    assert '"type": "timeout_error"' in text
    assert worker.job().status is JobStatus.CANCELLED


@pytest.mark.slow
def test_a_stream_that_has_begun_may_last_longer(new_app, store, prompt):
    api = new_app(FILE, OWNPOD_OPENAI_TIMEOUT_S=3).test_client()
    with begun(store, EVENT) as worker:
        parts = post(api).iter_encoded()
        # Comments may come before it.
        assert EVENT.encode() in parts
    for _ in range(65):
        assert next(parts) == WAITING
    worker.finish([])
    assert rest(parts) == DONE


# --- attempts


def test_an_attempt_that_is_lost_before_anything_was_written_is_followed_by_the_next(
    api, store, prompt
):
    def steps(worker):
        worker.claim()
        worker.lose()
        worker.claim()
        worker.chunk(EVENT)

    with Answering(store, steps) as worker:
        parts = post(api).iter_encoded()
    worker.finish([])
    assert rest(parts).replace(WAITING.decode(), "") == EVENT + DONE


@pytest.mark.parametrize("again", [False, True])
def test_an_attempt_that_is_lost_afterwards_is_an_error(api, store, again):
    with begun(store, EVENT) as worker:
        parts = post(api).iter_encoded()
        assert next(parts) == EVENT.encode()
    worker.lose()
    if again:
        worker.claim()
        worker.chunk(EVENT)
    text = rest(parts)
    assert json.loads(text.removeprefix("data: "))["error"]["type"] == "worker_lost"
    assert worker.job().status is JobStatus.CANCELLED
    assert gone(store, worker.job_id)


def test_a_job_whose_attempts_are_all_lost_is_an_error(app, store, new_app):
    one = FILE.replace("}], onDis", "}], maxAttempts: 1, onDis")
    api = new_app(one).test_client()
    with begun(store, EVENT, endpoint="kept", worker="w2") as worker:
        parts = post(api, "/v2/kept/openai/v1/x").iter_encoded()
        assert next(parts) == EVENT.encode()
    worker.lose()
    error = json.loads(rest(parts).removeprefix("data: "))["error"]
    assert (error["type"], error["message"]) == ("worker_lost", "gone")
    assert worker.job().status is JobStatus.FAILED


# --- the client's connection


def test_a_client_that_goes_cancels_its_job(api, store, connection):
    theirs, options = connection
    with begun(store, EVENT) as worker:
        parts = post(api, **options).iter_encoded()
        assert next(parts) == EVENT.encode()
    theirs.close()
    assert rest(parts) == ""
    assert worker.job().status is JobStatus.CANCELLED
    assert gone(store, worker.job_id)


def test_a_client_that_goes_before_the_first_chunk_cancels_its_job(api, store, connection):
    theirs, options = connection

    def steps(worker):
        worker.claim()
        wait_until(lambda: store.client.hget(keys.job(worker.job_id), "followed"))
        theirs.close()

    with Answering(store, steps) as worker:
        post(api, **options)
    assert worker.job().status is JobStatus.CANCELLED


def test_a_client_that_goes_while_its_chunks_are_read_cancels_its_job_at_once(
    app, api, store, connection, monkeypatch
):
    theirs, options = connection
    svc = services_of(app)
    seen, wake = threading.Event(), svc.notices.wake
    monkeypatch.setattr(svc.notices, "wake", lambda job_id: (wake(job_id), seen.set()))
    chunks = notices.Notices._chunks

    def leaving(waiter_notices, waiter):
        theirs.close()
        assert seen.wait(60)
        return chunks(waiter_notices, waiter)

    monkeypatch.setattr(notices.Notices, "_chunks", leaving)
    # The wait is longer than the test may last.
    monkeypatch.setattr(openai_exchange, "WAITING_S", 600.0)
    # The job is cancelled before a worker could take it.
    with Answering(store, lambda _: None) as worker:
        assert post(api, **options).status_code == 503
    assert worker.job().status is JobStatus.CANCELLED


def test_a_write_that_fails_cancels_the_job(api, store):
    for reads in (0, 1):
        with begun(store, EVENT) as worker:
            response = post(api)
            parts = response.iter_encoded()
            for _ in range(reads):
                next(parts)
            # As gunicorn does after an error of the socket.
            response.close()
        assert worker.job().status is JobStatus.CANCELLED
        assert gone(store, worker.job_id)


def test_an_endpoint_may_keep_the_jobs_of_clients_that_go(api, store, connection):
    theirs, options = connection
    with begun(store, EVENT, endpoint="kept", worker="w2") as worker:
        parts = post(api, "/v2/kept/openai/v1/x", **options).iter_encoded()
        assert next(parts) == EVENT.encode()
    worker.chunk(EVENT)
    assert next(parts) == EVENT.encode()
    theirs.close()
    assert rest(parts) == ""
    assert worker.job().status is JobStatus.IN_PROGRESS


# --- the end of the process, and of Redis


def test_a_process_that_ends_ends_its_streams(app, api, store):
    with begun(store, EVENT) as worker:
        parts = post(api).iter_encoded()
        assert next(parts) == EVENT.encode()
    services_of(app).notices.stop()
    assert '"server_stopping"' in rest(parts)
    assert worker.job().status is JobStatus.CANCELLED


def test_a_stream_outlives_a_restart_of_redis(app, api, store, monkeypatch):
    monkeypatch.setattr(openai_exchange, "AGAIN_S", 0.01)
    with begun(store, EVENT) as worker:
        parts = post(api).iter_encoded()
        assert next(parts) == EVENT.encode()
    chunks = services_of(app).store.chunks
    read, away = chunks.stream, iter(range(3))

    def restarting(*args):
        if next(away, None) is not None:
            raise RedisUnavailable
        return read(*args)

    monkeypatch.setattr(chunks, "stream", restarting)
    worker.chunk("data: 1\n\n", "data: 2\n\n")
    worker.finish([])
    assert rest(parts) == f"data: 1\n\ndata: 2\n\n{DONE}"
    assert next(away, None) is None


@pytest.mark.slow
def test_without_redis_a_stream_ends_with_an_error(app, api, store, monkeypatch):
    with begun(store, EVENT) as worker:
        parts = post(api).iter_encoded()
        assert next(parts) == EVENT.encode()

    monkeypatch.setattr(openai_exchange, "AWAY_S", 0.0)

    def away(*_args):
        raise RedisUnavailable("Redis cannot be reached: 10.0.0.9")

    monkeypatch.setattr(services_of(app).store.chunks, "stream", away)
    worker.chunk(EVENT)
    text = rest(parts)
    assert json.loads(text.rpartition("data: ")[2])["error"]["type"] == "server_error"
    assert "10.0.0.9" not in text


def test_a_process_without_room_makes_no_job(app, api, store):
    services_of(app).notices.max_waiting = 0
    assert error_of(post(api))[::2] == (503, "true")
    assert store.listing.recent("ep", status=None, before=None, limit=1)[0] == []


def test_a_job_that_cannot_be_followed_is_cancelled(app, api, store, monkeypatch):
    notices = services_of(app).notices

    def full(*_args, **_options):
        raise RedisUnavailable

    monkeypatch.setattr(notices, "subscribe", full)
    assert error_of(post(api))[0] == 503
    (entry,), _ = store.listing.recent("ep", status=None, before=None, limit=5)
    assert entry.job.status is JobStatus.CANCELLED
