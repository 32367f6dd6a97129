"""The short way of workers' chunks: a gunicorn worker in this process, and a real Redis."""

import asyncio
import contextlib
import json
import re
import selectors
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from flask import request
from gunicorn.config import Config
from helpers import job_store, new_job, wait_until
from redis._parsers import _HiredisParser as HiredisParser
from redis.exceptions import BusyLoadingError, ResponseError
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http
from slow_redis import SlowRedis

from ownpod.api.services import services_of
from ownpod.api.serving.lane import Lane, may_answer
from ownpod.api.serving.worker import PromptWorker
from ownpod.api.workers import reports
from ownpod.errors import AnswerLost, RedisUnavailable
from ownpod.rules import credentials
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.client import execute, execute_all
from ownpod.store.offers import Offers

RUNS = 8
WORKERS = "endpoints: {ep: {maxWorkers: 2}}"


class Server:
    """A gunicorn worker that runs in a thread.

    Attributes:
        flask: the numbers of requests that Flask has answered, by their ``X-Number``.
    """

    def __init__(self, app):
        self.app, self.flask = app, []
        app.before_request(lambda: self.flask.append(request.headers.get("X-Number")))
        names = ("debug", "info", "access", "error", "warning", "exception")
        log = SimpleNamespace(**{name: lambda *_, **__: None for name in names})
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Of its connections: a client that reads nothing is noticed soon.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.port = self._listener.getsockname()[1]
        cfg = Config()
        cfg.set("threads", 8)
        cfg.set("worker_connections", 100)
        cfg.set("keepalive", 75)
        self.worker = worker = PromptWorker(0, 0, [self._listener], None, 30, cfg, log)
        worker.wsgi, worker.is_parent_alive = app, lambda: True
        worker.tpool, worker.poller = worker.get_thread_pool(), selectors.DefaultSelector()
        worker.method_queue.init()
        services = services_of(app)
        worker.lane = Lane(services.reports, services.store.chunks, worker.leave_lane)
        self._thread = threading.Thread(target=worker.run)
        self._thread.start()

    def close(self):
        self.worker.alive = False
        self.worker.method_queue.defer(lambda: None)
        self._thread.join(60)
        self.worker.tmp.close()
        assert not self._thread.is_alive()


@pytest.fixture
def slow(redis_server, client):
    """A way to Redis, which knows all scripts."""
    for source in job_store(client).scripts.sources.values():
        client.script_load(source)
    with SlowRedis(redis_server.port).serving() as proxy:
        yield proxy


@pytest.fixture
def server(new_app, slow):
    found = Server(new_app(WORKERS, OWNPOD_WORKER_KEYS="k,other", REDIS_URL=slow.url))
    yield found
    found.close()


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def runs(client, store):
    """Attempts that the worker ``w`` has taken under the key ``k``, by their runs, which have the ids of their jobs."""
    attempts, offers = {}, Offers(client, gone_s=60)
    for name in (f"job-{number}" for number in range(RUNS)):
        store.jobs.create(new_job(name))
        attempts[name] = store.jobs.claim(name, worker_id="w", claim="x", lease_s=60)
        body = json.dumps({"id": name, "input": {}})
        offers.offer("w", name, job_id=name, attempt=1, body=body, time_s=60)
    key = credentials.digest_of("k")
    taken = offers.take("w", "ep", "t", limit=RUNS, in_progress=False, key=key)
    assert len(taken.jobs) == RUNS
    return attempts


def chunk(run, value, *, key="k", headers=()):
    body = value if isinstance(value, bytes) else json.dumps({"output": value}).encode()
    lines = [
        f"POST /v2/ep/job-stream/w/{run}?gpu=0&isStream=false HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/x-www-form-urlencoded",
        f"Authorization: {key}",
        "User-Agent: RunPod-Python-SDK/1.12.0",
        "Accept-Encoding: gzip, deflate",
        f"X-Request-ID: {run}",
        "charset: utf-8",
        "Accept: */*",
        *headers,
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Caller:
    """A connection of a worker."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), 60)
        self._rest = b""

    def ask(self, *requests):
        """Sends requests at once, and returns the responses, without their dates."""
        self.socket.sendall(b"".join(requests))
        return [self.response() for _ in requests]

    def response(self):
        while b"\r\n\r\n" not in self._rest:
            self._rest += self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        if b" 100 Continue" in head:
            return self.response()
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        while len(self._rest) < length:
            self._rest += self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return re.sub(rb"Date: [^\r]+", b"Date: now", head), body

    def _more(self):
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        return data


@pytest.fixture
def connect(server):
    with contextlib.ExitStack() as stack:

        def connect():
            caller = Caller(server)
            stack.enter_context(contextlib.closing(caller.socket))
            return caller

        yield connect


@pytest.fixture
def caller(connect):
    return connect()


def chunks(store, run):
    return [json.loads(text) for text in store.chunks.stream(run, "ep", (0, 0)).chunks]


def test_later_chunks_of_a_run_go_past_flask_and_get_the_same_response(server, caller, runs, store):
    responses = {caller.ask(chunk("job-0", value))[0] for value in range(20)}
    assert len(responses) == 1
    head, body = responses.pop()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-Request-ID: job-0" in head
    assert body == b"{}"
    assert len(server.flask) == 1
    assert chunks(store, "job-0") == list(range(20))


def test_chunks_of_many_runs_at_once_are_each_added_once_and_in_order(server, connect, runs, store):

    def stream(run):
        caller = connect()
        return [caller.ask(chunk(run, [run, value]))[0][1] for value in range(50)]

    with ThreadPoolExecutor(RUNS) as pool:
        assert list(pool.map(stream, runs)) == [[b"{}"] * 50] * RUNS
    assert len(server.flask) == RUNS
    for run in runs:
        assert chunks(store, run) == [[run, value] for value in range(50)]


def test_requests_that_are_sent_at_once_or_in_pieces_keep_their_order(server, caller, runs, store):
    caller.ask(chunk("job-0", 0))
    health = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    found = caller.ask(chunk("job-0", 1), health, chunk("job-0", 2), chunk("job-0", "é" * 5_000))
    assert [body == b"{}" for _, body in found] == [True, False, True, True]
    sent = chunk("job-0", 4)
    for part in (sent[:10], sent[10:-5], sent[-5:]):
        caller.socket.sendall(part)
    assert caller.response()[1] == b"{}"
    assert chunks(store, "job-0") == [0, 1, 2, "é" * 5_000, 4]
    assert len(server.flask) == 2


def test_after_a_while_a_chunk_goes_the_long_way_again(server, caller, runs, store, monkeypatch):
    monkeypatch.setattr(reports, "KNOWN_S", -1.0)
    for value in range(5):
        caller.ask(chunk("job-0", value))
    assert len(server.flask) == 5
    assert chunks(store, "job-0") == list(range(5))


def test_redis_is_told_that_the_worker_has_sent_a_request(
    server, caller, runs, store, client, monkeypatch
):
    caller.ask(chunk("job-0", 0), chunk("job-0", 1))
    assert len(server.flask) == 1
    monkeypatch.setattr(reports, "FRESH_S", -1.0)
    client.zadd(keys.HEARD, {"w": 1})
    caller.ask(chunk("job-0", 2))
    assert client.zscore(keys.HEARD, "w") > 1
    assert len(server.flask) == 1
    assert chunks(store, "job-0") == [0, 1, 2]


def test_a_chunk_of_a_run_that_has_ended_goes_the_long_way(
    server, caller, runs, store, client, monkeypatch
):
    caller.ask(chunk("job-0", 0), chunk("job-1", 0), chunk("job-0", 1), chunk("job-1", 1))
    assert len(server.flask) == 2
    monkeypatch.setattr(reports, "FRESH_S", -1.0)
    Offers(client, gone_s=60).settle("w", "job-0")
    caller.ask(chunk("job-0", 2), chunk("job-1", 2))
    assert len(server.flask) == 3
    assert [chunks(store, run) for run in ("job-0", "job-1")] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("other", "status"),
    [
        (chunk("job-0", 1, key="other"), 503),
        (chunk("job-0", 1, key="k2"), 503),
        (chunk("job-0", 1, key=""), 503),
        (chunk("job-0", 1).replace(b"/w/", b"/x/"), 200),
        (chunk("job-0", 1).replace(b"/ep/", b"/nothing/"), 200),
        (chunk("job-0", 1).replace(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nHost: b"), 400),
    ],
    ids=["other-key", "unknown-key", "no-key", "other-worker", "other-endpoint", "two-hosts"],
)
def test_another_header_goes_the_long_way_and_adds_nothing(
    server, caller, runs, store, other, status
):
    caller.ask(chunk("job-0", 0), chunk("job-0", 0))
    ((head, _),) = caller.ask(other)
    assert int(head.split()[1]) == status
    assert chunks(store, "job-0") == [0, 0]


@pytest.mark.parametrize("header", ["Origin: http://127.0.0.1", "Expect: 100-continue"])
def test_a_request_with_a_response_of_its_own_goes_the_long_way(
    server, caller, runs, store, header
):
    for value in range(3):
        caller.socket.sendall(chunk("job-0", value, headers=[header]))
        head, body = caller.response()
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body == b"{}"
    assert len(server.flask) == 3


def test_a_connection_that_the_client_wants_closed_is_closed(server, connect, runs):
    for value in range(2):
        caller = connect()
        caller.ask(chunk("job-0", value, headers=["Connection: close"]))
        assert caller.socket.recv(1) == b""
    assert len(server.flask) == 2


def test_a_chunk_that_is_no_json_is_null_as_on_the_long_way(server, caller, runs, store):
    for body in (b"{", b"\xff", b"[" * 50_000, b'{"output": NaN}'):
        for _ in range(2):
            assert caller.ask(chunk("job-0", body))[0][1] == b"{}"
    assert chunks(store, "job-0") == [None] * 8
    assert len(server.flask) == 1


def test_the_chunks_of_a_job_that_has_ended_are_dropped_and_go_the_long_way_again(
    server, caller, runs, store
):
    caller.ask(chunk("job-0", 0), chunk("job-0", 1))
    assert len(server.flask) == 1
    store.jobs.finish(runs["job-0"], Outcome(JobStatus.COMPLETED, output='"done"'))
    for value in (2, 3):
        assert caller.ask(chunk("job-0", value))[0][1] == b"{}"
    assert len(server.flask) == 2
    assert store.jobs.get("job-0", "ep").output == '"done"'


def test_a_lost_answer_of_redis_adds_no_chunk_twice(server, caller, runs, store, slow, monkeypatch):
    monkeypatch.setattr(reports, "FRESH_S", 1e9)
    caller.ask(chunk("job-0", 0), chunk("job-0", 1))
    assert len(server.flask) == 1
    # Redis has added the chunk, and no one has been told.
    slow.lose = 1
    assert caller.ask(chunk("job-0", 2))[0][1] == b"{}"
    assert slow.lose == 0
    assert len(server.flask) == 2
    caller.ask(chunk("job-0", 3))
    assert chunks(store, "job-0") == [0, 1, 2, 3]


def test_a_redis_that_has_lost_its_scripts_gets_the_chunk_once(server, caller, runs, store, client):
    caller.ask(chunk("job-0", 0), chunk("job-0", 1))
    client.script_flush()
    assert caller.ask(chunk("job-0", 2))[0][1] == b"{}"
    assert chunks(store, "job-0") == [0, 1, 2]
    assert len(server.flask) == 2


def test_an_error_in_the_short_way_ends_no_stream(server, caller, runs, store, monkeypatch, caplog):
    caller.ask(chunk("job-0", 0))
    with monkeypatch.context() as patch:
        patch.setattr(services_of(server.app).store.chunks, "add_all", lambda _: 1 / 0)
        caller.ask(chunk("job-0", 1))
    caller.ask(chunk("job-0", 2))
    assert chunks(store, "job-0") == [0, 1, 2]
    assert "go the long way" in caplog.text
    assert len(server.flask) == 2


def test_a_redis_that_is_loading_loses_no_chunk(server, caller, runs, store, client, monkeypatch):
    monkeypatch.setattr(reports, "FRESH_S", 1e9)
    caller.ask(chunk("job-0", 0))
    with monkeypatch.context() as patch:
        patch.setattr(HiredisParser, "read_response", refused_once(HiredisParser.read_response))
        assert caller.ask(chunk("job-0", 1))[0][1] == b"{}"
    assert chunks(store, "job-0") == [0, 1]
    assert len(server.flask) == 2


def refused_once(read):
    """As ``read``, but the first answer that the lane reads is that Redis is loading."""
    refused = []

    def answer(self, *args, **options):
        found = read(self, *args, **options)
        if not refused and threading.current_thread().name == "lane":
            refused.append(found)
            raise BusyLoadingError("Redis is loading the dataset in memory")
        return found

    return answer


def test_while_redis_does_not_answer_the_waiting_chunks_do_not_wait_for_one_another(
    server, connect, runs, store, monkeypatch
):
    callers = {run: connect() for run in runs}
    for run, caller in callers.items():
        caller.ask(chunk(run, 0))
    tries, all_wait = [], threading.Event()

    def fails(new):
        tries.append(len(new))
        all_wait.wait(60)
        raise RedisUnavailable("away")

    monkeypatch.setattr(services_of(server.app).store.chunks, "add_all", fails)
    first, *others = callers
    callers[first].socket.sendall(chunk(first, 1))
    wait_until(lambda: tries)
    for run in others:
        callers[run].socket.sendall(chunk(run, 1))
    wait_until(lambda: server.worker.lane._queue.qsize() == len(others))
    all_wait.set()
    assert [caller.response()[1] for caller in callers.values()] == [b"{}"] * RUNS
    assert tries == [1]
    for run in runs:
        assert chunks(store, run) == [0, 1]


def test_without_a_thread_chunks_go_the_long_way(server, caller, runs, store, monkeypatch, caplog):
    caller.ask(chunk("job-0", 0))
    start = threading.Thread.start

    def full(self):
        if self.name == "lane":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        caller.ask(chunk("job-0", 1))
    assert "chunks go the long way: can't start new thread" in caplog.text
    caller.ask(chunk("job-0", 2))
    assert chunks(store, "job-0") == [0, 1, 2]
    assert len(server.flask) == 2


def test_the_sdks_own_requests_go_the_short_way(server, runs, store, monkeypatch):
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "k")
    url = f"http://127.0.0.1:{server.port}/v2/ep/job-stream/w/$ID?gpu=unknown"
    monkeypatch.setattr(rp_http, "JOB_STREAM_URL", url)

    async def stream():
        async with AsyncClientSession() as session:
            for value in range(10):
                for run in ("job-0", "job-1"):
                    await rp_http.stream_result(session, {"output": value}, {"id": run})

    asyncio.run(stream())
    for run in ("job-0", "job-1"):
        assert chunks(store, run) == list(range(10))
    assert len(server.flask) == 2


def test_a_process_that_ends_answers_and_closes(server, caller, runs, store):
    caller.ask(chunk("job-0", 0), chunk("job-0", 1))
    request = chunk("job-0", 2)
    # With a part of a request, the process waits for the rest of it before it ends.
    caller.socket.sendall(request[:20])
    wait_until(lambda: server.worker._slow)
    server.worker.alive = False
    ((head, body),) = caller.ask(request[20:])
    assert body == b"{}"
    assert b"Connection: close" in head
    assert chunks(store, "job-0") == [0, 1, 2]


def test_a_worker_that_reads_no_response_is_given_up(server, connect, runs):
    connect().ask(chunk("job-0", 0))
    deaf = socket.socket()
    with contextlib.closing(deaf):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.settimeout(300)
        deaf.connect(("127.0.0.1", server.port))

        def send():
            with contextlib.suppress(ConnectionError):
                while True:
                    deaf.sendall(chunk("job-0", 1) * 100)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: not sender.is_alive(), 60, what="its connection is closed")
    assert len(server.flask) == 1
    assert connect().ask(chunk("job-0", 2))[0][1] == b"{}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accesslog", "-"),
        ("logconfig_dict", {"version": 1}),
        ("syslog", True),
        ("statsd_host", "localhost:8125"),
        ("max_requests", 100),
        ("keepalive", 0),
        ("pre_request", lambda worker, request: None),
        ("post_request", lambda worker, request: None),
    ],
)
def test_where_gunicorn_counts_watches_or_closes_requests_all_of_them_go_the_long_way(name, value):
    cfg = Config()
    assert may_answer(cfg)
    cfg.set(name, value)
    assert not may_answer(cfg)


def test_commands_that_are_sent_at_once_have_their_own_answers(client):
    found = execute_all(client, [("SET", "a", "1"), ("INCR", "a", "more"), ("GET", "a")])
    assert [found[0], found[2]] == ["OK", "1"]
    assert isinstance(found[1], ResponseError)


def test_a_connection_whose_answers_were_not_all_read_is_not_used_again(client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(HiredisParser, "read_response", loading)
        with pytest.raises(AnswerLost):
            execute_all(client, [("SET", "a", "1"), ("GET", "a")])
    assert execute(client, "GET", "b") is None


def loading(self, *args, **options):
    raise BusyLoadingError("Redis is loading the dataset in memory")
