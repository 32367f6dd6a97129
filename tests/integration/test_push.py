"""The worker interface over HTTP, against a small worker with answers that each test sets."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import Answer, FakeWorker, attempt, load_settings, wait_until, worker_spec

from ownpod.errors import AttemptLost, JobRejected, WorkerUnavailable
from ownpod.processes import free_port
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import RunCheck
from ownpod.workers.push import PushWorker

ATTEMPT = attempt()


@pytest.fixture
def fake():
    with FakeWorker().serving() as worker:
        yield worker


def push(url, *, status_s=0.5, **changes):
    quick = {
        "OWNPOD_WORKER_RUN_READ_TIMEOUT_S": 1,
        "OWNPOD_WORKER_STATUS_TIMEOUT_S": status_s,
        "OWNPOD_WORKER_CONNECT_TIMEOUT_S": 5,
    }
    return PushWorker(worker_spec(url, **changes), load_settings(**quick))


class Listener:
    """Receives the notices of a run."""

    def __init__(self, chunks=None):
        self.yielded = [] if chunks is None else chunks
        self.checks = []

    def chunks(self, texts):
        self.yielded += texts

    def set_check(self, check):
        self.checks.append(check)


def outcome_of(fake, answer, method="POST", **changes):
    fake.routes[f"{method} /status"] = answer
    return push(fake.url, **changes).wait("r", Listener())


def test_each_header_is_sent_once_however_it_is_written(fake):
    fake.routes["POST /run"] = Answer(body={"id": "r1"})
    given = {"HOST": "gpu", "User-agent": "me", "x-request-id": "fixed", "CONTENT-TYPE": "no"}
    push(fake.url, headers=given).start(attempt(request_id="trace-1"))
    ((headers, _),) = fake.raw
    names = {name.lower() for name in given}
    assert {name: value for name, value in headers.items() if name.lower() in names} == {
        "HOST": "gpu",
        "User-agent": "me",
        "X-Request-ID": "trace-1",
        "Content-Type": "application/json",
    }


def test_start_sends_the_clients_request_id(fake):
    fake.routes["POST /run"] = Answer(body={"id": "r1"})
    push(fake.url).start(attempt(request_id="trace-1"))
    push(fake.url).start(ATTEMPT)
    assert [headers.get("X-Request-ID") for headers, _ in fake.raw] == ["trace-1", None]


def test_start_sends_input_s3_config_and_headers(fake):
    fake.routes["POST /run"] = Answer(body={"id": "r1", "status": "IN_PROGRESS"})
    with_s3 = attempt(s3_config='{"bucket": "b"}')
    assert push(fake.url, headers={"X-Token": "t"}).start(with_s3) == "r1"
    assert fake.seen == [("POST", "/run", {"input": {"x": 1}, "s3Config": {"bucket": "b"}})]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_job_the_worker_refuses_is_rejected(fake, status):
    fake.routes["POST /run"] = Answer(status, {"detail": "input must be an object"})
    with pytest.raises(JobRejected, match=f"HTTP {status}.*must be an object"):
        push(fake.url).start(ATTEMPT)


@pytest.mark.parametrize("status", [302, 401, 404, 429, 502, 503])
def test_a_worker_that_takes_no_jobs_is_unavailable(fake, status):
    fake.routes["POST /run"] = Answer(status, {})
    with pytest.raises(WorkerUnavailable, match=str(status)):
        push(fake.url).start(ATTEMPT)


def test_a_refused_connection_is_unavailable():
    with pytest.raises(WorkerUnavailable, match="refused"):
        push(f"http://127.0.0.1:{free_port()}").start(ATTEMPT)


@pytest.mark.parametrize("answer", [Answer(hang_up=True), Answer(body=b"<html>"), Answer(500, {})])
def test_a_run_that_may_have_begun_is_lost(fake, answer):
    fake.routes["POST /run"] = answer
    with pytest.raises(AttemptLost):
        push(fake.url).start(ATTEMPT)


@pytest.mark.slow
def test_a_run_that_is_not_answered_in_time_is_lost(fake):
    fake.routes["POST /run"] = Answer(hold=threading.Event())
    with pytest.raises(AttemptLost, match="did not answer /run"):
        push(fake.url).start(ATTEMPT)


@pytest.mark.slow
def test_a_held_status_is_asked_once_however_long_it_takes(fake):
    answer = Answer(body={"status": "COMPLETED", "output": [1]}, hold=threading.Event())
    fake.routes["POST /status"] = answer
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(push(fake.url).wait, "r", Listener())
        wait_until(lambda: fake.seen)
        # Three times the time-out of a poll.
        with pytest.raises(TimeoutError):
            waiting.result(1.5)
        answer.hold.set()
        outcome = waiting.result(60)
    assert outcome.status is JobStatus.COMPLETED
    assert outcome.output == "[1]"
    assert fake.paths("POST /status") == ["POST /status/r"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_worker_that_answers_at_once_is_polled_with_growing_pauses(fake, method):
    times = []

    def answer(_path, _body):
        times.append(time.monotonic())
        running = {"id": "r", "status": "IN_PROGRESS"}
        return Answer(body=running if len(times) < 30 else {"status": "COMPLETED", "output": 5})

    if method == "GET":
        fake.routes["POST /status"] = Answer(405, {})
    worker = push(fake.url)
    fake.routes[f"{method} /status"] = answer
    assert worker.wait("r", Listener()).output == "5"
    pauses = [b - a for a, b in itertools.pairwise(times)]
    # A loaded machine adds to each.
    assert pauses[0] < 5
    assert max(pauses) < 5
    assert sum(pauses[-3:]) > sum(pauses[:3])
    # What it takes is remembered.
    before = len(fake.paths("POST /status"))
    assert worker.wait("r2", Listener()).output == "5"
    assert len(fake.paths("POST /status")) - before == (method == "POST")


@pytest.mark.slow
def test_a_poll_that_times_out_is_repeated(fake):
    never, calls = threading.Event(), []

    def answer(_path, _body):
        calls.append(1)
        if len(calls) == 2:
            return Answer(body={"status": "IN_PROGRESS"}, hold=never)
        status = "RUNNING" if len(calls) == 1 else "COMPLETED"
        return Answer(body={"status": status, "output": 1})

    assert outcome_of(fake, answer, status_s=2).status is JobStatus.COMPLETED
    assert len(calls) == 3
    never.set()


def test_a_held_connection_that_breaks_is_a_lost_attempt(fake):
    with pytest.raises(AttemptLost, match="died or was cut off"):
        outcome_of(fake, Answer(hang_up=True))
    assert len(fake.paths("POST /status")) == 1


@pytest.mark.slow
def test_a_polled_worker_that_dies_is_a_lost_attempt(fake):
    calls = []

    def answer(_path, _body):
        calls.append(1)
        return Answer(body={"status": "IN_PROGRESS"}, hang_up=len(calls) > 1)

    with pytest.raises(AttemptLost):
        outcome_of(fake, answer)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, {"detail": "no"}),
        Answer(body={"id": "r", "status": "FAILED", "error": "Job ID not found"}),
    ],
)
def test_a_worker_that_forgot_the_run_is_a_lost_attempt(fake, answer):
    with pytest.raises(AttemptLost, match="does not know the run"):
        outcome_of(fake, answer)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"status": "FAILED", "error": "boom"}, JobStatus.FAILED, "boom"),
        ({"status": "FAILED", "error": {"a": 1}}, JobStatus.FAILED, '{"a": 1}'),
        ({"status": "FAILED"}, JobStatus.FAILED, "the worker ended the job as FAILED"),
        ({"status": "CANCELLED"}, JobStatus.CANCELLED, "the worker ended the job as CANCELLED"),
        ({"status": "DREAMING"}, JobStatus.FAILED, "unknown state"),
        ({}, JobStatus.FAILED, "unknown state"),
        ([], JobStatus.FAILED, "unknown state"),
        (b"<html>", JobStatus.FAILED, "unknown state"),
    ],
)
def test_any_other_end_has_a_reason(fake, body, status, error):
    outcome = outcome_of(fake, Answer(body=body))
    assert outcome.status is status
    assert outcome.error.startswith(error) or error in outcome.error


def test_a_server_error_on_a_held_status_is_failed_and_not_asked_again(fake):
    outcome = outcome_of(fake, Answer(500, b"Internal Server Error"))
    assert outcome.status is JobStatus.FAILED
    assert outcome.error == "the worker's /status answered HTTP 500: Internal Server Error"
    assert len(fake.paths("POST /status")) == 1


@pytest.mark.parametrize(
    ("said", "ms"), [({"executionTime": 12.7}, 12), ({"executionTime": "x"}, None), ({}, None)]
)
def test_the_workers_execution_time_is_taken_if_it_is_one(fake, said, ms):
    assert outcome_of(fake, Answer(body={"status": "COMPLETED"} | said)).execution_ms == ms


def test_a_large_output_comes_through(fake):
    output = {"data": "x" * 5_000_000}
    outcome = outcome_of(fake, Answer(body={"status": "COMPLETED", "output": output}))
    assert json.loads(outcome.output) == output


@pytest.mark.parametrize(("status", "taken"), [(200, True), (404, False)])
def test_cancel_returns_whether_the_worker_took_it(fake, status, taken):
    fake.routes["POST /cancel"] = Answer(status, {})
    assert push(fake.url).cancel("r") is taken


def test_cancel_of_a_dead_worker_is_no_error():
    assert push(f"http://127.0.0.1:{free_port()}").cancel("r") is False


@pytest.mark.parametrize("status", [200, 401, 404, 405])
def test_any_answer_but_a_server_error_shows_a_living_worker(fake, status):
    fake.routes["GET /health"] = Answer(status, {})
    push(fake.url).probe()


@pytest.mark.parametrize("answer", [Answer(503, {}), Answer(hang_up=True)])
def test_a_worker_that_cannot_say_it_is_well_is_unavailable(fake, answer):
    fake.routes["GET /health"] = answer
    with pytest.raises(WorkerUnavailable):
        push(fake.url).probe()


NO_STREAM = {
    "id": "r",
    "status": "FAILED",
    "error": "Stream not supported, handler must be a generator.",
}


def followed(fake, worker=None):
    """The run's outcome, and what it yielded on the way."""
    chunks = []
    outcome = (worker or push(fake.url)).wait("r", Listener(chunks))
    return outcome, [json.loads(chunk) for chunk in chunks]


def test_a_generators_chunks_come_from_stream_and_status_is_not_asked(fake):
    fake.routes["POST /stream"] = Answer(
        body={"id": "r", "status": "COMPLETED", "stream": [{"output": 1}, {"output": {"a": 2}}]}
    )
    outcome, chunks = followed(fake)
    assert chunks == [1, {"a": 2}]
    assert (outcome.status, json.loads(outcome.output)) == (JobStatus.COMPLETED, [1, {"a": 2}])
    assert fake.paths("POST /status") == []
    assert len(fake.paths("POST /stream")) == 1


def test_a_generator_that_yields_nothing_has_an_empty_output(fake):
    fake.routes["POST /stream"] = Answer(body={"id": "r", "status": "COMPLETED", "stream": []})
    fake.routes["POST /status"] = Answer(body={"status": "FAILED", "error": "Job ID not found"})
    outcome, chunks = followed(fake)
    assert (outcome.status, outcome.output, chunks) == (JobStatus.COMPLETED, "[]", [])


def test_whether_a_handler_yields_is_asked_once(fake):
    fake.routes["POST /stream"] = Answer(body=NO_STREAM)
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": 1})
    worker = push(fake.url)
    for _ in range(3):
        assert followed(fake, worker)[0].output == "1"
    assert len(fake.paths("POST /stream")) == 1


def test_a_worker_that_was_lost_is_asked_again_whether_it_yields(fake):
    fake.routes["POST /stream"] = Answer(body=NO_STREAM)
    fake.routes["POST /status"] = Answer(hang_up=True)
    worker = push(fake.url)
    for _ in range(2):
        with pytest.raises(AttemptLost):
            worker.wait("r", Listener())
    assert len(fake.paths("POST /stream")) == 2


def test_a_generator_that_raises_fails(fake):
    fake.routes["POST /stream"] = Answer(500, b"Internal Server Error")
    outcome, _ = followed(fake)
    assert outcome.status is JobStatus.FAILED
    assert "HTTP 500" in outcome.error


def test_a_stream_that_breaks_off_unanswered_is_a_lost_attempt(fake):
    fake.routes["POST /stream"] = Answer(hang_up=True)
    with pytest.raises(AttemptLost):
        followed(fake)


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "text/event-stream; charset=utf-8",
            [
                b": hello\n\n",
                b'id: 1\nevent: chunk\ndata: {"output": 1}\n\n',
                b'data: {"output": "t',
                b'wo"}\n\ndata: three\n\n',
                b'event: status\ndata: {"status": "COMPLETED"}\n\ndata: [DONE]\n\n',
            ],
        ),
        ("application/x-ndjson", [b'{"output": 1}\n"two"\n', b'{"stream": [{"output": "three"}]}']),
    ],
)
def test_a_stream_of_lines_is_relayed_as_it_comes(fake, kind, lines):
    gate = [threading.Event() for _ in lines]
    chunks = []

    def parts():
        for event, line in zip(gate, lines, strict=True):
            event.wait(60)
            yield line

    fake.routes["POST /stream"] = Answer(kind=kind, parts=parts())
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": [1, 2, 3]})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(push(fake.url).wait, "r", Listener(chunks))
        for event in gate[:-1]:
            event.set()
        wait_until(lambda: chunks)
        assert not waiting.done()
        for event in gate[-1:]:
            event.set()
        outcome = waiting.result(60)
    assert [json.loads(chunk) for chunk in chunks] == [1, "two", "three"]
    # What the worker says is the output.
    assert outcome.output == "[1, 2, 3]"


def test_a_stream_that_is_polled_is_read_to_its_end(fake):
    answers = [
        {"status": "IN_PROGRESS", "stream": [{"output": 1}]},
        {"status": "IN_PROGRESS", "stream": []},
        {"status": "COMPLETED", "stream": [{"output": 2}]},
    ]
    fake.routes["POST /stream"] = lambda *_: Answer(body=answers.pop(0))
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": "all"})
    outcome, chunks = followed(fake)
    assert (chunks, outcome.output) == ([1, 2], '"all"')


def test_numbers_that_json_has_not_are_null(fake):
    body = b'{"status": "COMPLETED", "output": [NaN, -Infinity, 1e999, 1.5]}'
    assert outcome_of(fake, Answer(body=body)).output == "[null, null, null, 1.5]"


def endless(seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield b" " * 65536


@pytest.mark.parametrize("route", ["POST /status", "POST /stream", "POST /run"])
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_an_endless_answer_is_cut_and_fails_the_job(fake, route, kind):
    fake.routes["POST /run"] = Answer(body={"id": "r"})
    fake.routes[route] = lambda *_: Answer(kind=kind, parts=endless())
    worker = PushWorker(worker_spec(fake.url), load_settings(OWNPOD_MAX_OUTPUT_MB=1))

    def use():
        worker.start(ATTEMPT)
        worker.wait("r", Listener())

    with pytest.raises(JobRejected, match="larger than 1 MiB, see OWNPOD_MAX_OUTPUT_MB"):
        use()


def test_an_endless_stream_is_cut_and_status_is_asked(fake):
    def parts():
        for line in endless():
            yield b'data: {"output": "' + line + b'"}\n\n'

    fake.routes["POST /stream"] = lambda *_: Answer(kind="text/event-stream", parts=parts())
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": 1})
    worker = PushWorker(worker_spec(fake.url), load_settings(OWNPOD_MAX_OUTPUT_MB=1))
    chunks = []
    assert worker.wait("r", Listener(chunks)).output == "1"
    assert 0 < sum(map(len, chunks)) < 2_000_000


@pytest.mark.parametrize(
    ("route", "end"), [("POST /run", JobRejected), ("POST /status", JobRejected)]
)
def test_an_answer_that_comes_byte_by_byte_is_given_up(fake, monkeypatch, route, end):
    monkeypatch.setattr("ownpod.workers.local_api.BODY_S", 0.3)

    def drip():
        for _ in range(2000):
            yield b" "
            time.sleep(0.05)

    fake.routes["POST /run"] = Answer(body={"id": "r"})
    fake.routes[route] = lambda *_: Answer(parts=drip())
    worker = push(fake.url)
    began = time.monotonic()

    def use():
        worker.start(ATTEMPT)
        worker.wait("r", Listener())

    with pytest.raises(end, match=r"did not end within (0\.3|1) s"):
        use()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("run_id", ["", 5, None, "x" * 256, ["r"]])
def test_an_id_that_cannot_be_used_is_a_lost_attempt(fake, run_id):
    fake.routes["POST /run"] = Answer(body={"id": run_id})
    with pytest.raises(AttemptLost, match="no usable job id"):
        push(fake.url).start(ATTEMPT)


def test_an_id_is_quoted_in_paths(fake):
    fake.routes["POST /run"] = Answer(body={"id": "../a b?c#d"})
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": 1})
    worker = push(fake.url)
    run_id = worker.start(ATTEMPT)
    assert worker.wait(run_id, Listener()).output == "1"
    assert fake.paths("POST /status") == ["POST /status/..%2Fa%20b%3Fc%23d"]


def test_an_answer_about_another_run_is_a_lost_attempt(fake):
    with pytest.raises(AttemptLost, match="about another run, 'other'"):
        outcome_of(fake, Answer(body={"id": "other", "status": "COMPLETED", "output": 1}))


@pytest.mark.parametrize(
    ("stream", "looks"),
    [
        (NO_STREAM, [RunCheck.UNKNOWN, RunCheck.STREAM]),
        ({"status": "COMPLETED", "stream": [{"output": 1}]}, [RunCheck.UNKNOWN]),
        (None, [RunCheck.UNKNOWN, RunCheck.UNKNOWN]),
    ],
)
def test_the_check_of_a_run_is_set_before_it_begins(fake, stream, looks):
    listener = Listener()
    fake.routes["POST /stream"] = Answer(404 if stream is None else 200, stream)
    fake.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": 1})
    push(fake.url).wait("r", listener)
    assert listener.checks == looks


def test_a_run_that_was_polled_has_the_check_poll(fake):
    listener, states = Listener(), iter(["IN_PROGRESS", "COMPLETED"])
    fake.routes["POST /status"] = lambda *_: Answer(body={"status": next(states)})
    push(fake.url).wait("r", listener)
    assert listener.checks == [RunCheck.UNKNOWN, RunCheck.UNKNOWN, RunCheck.POLL]


@pytest.mark.parametrize("answers", [True, False])
def test_whether_a_worker_answers_beside_its_generator_is_found_out(fake, monkeypatch, answers):
    monkeypatch.setattr("ownpod.workers.stream.LEARN_AFTER_S", 0.05)
    monkeypatch.setattr("ownpod.workers.stream.ANSWER_S", 60 if answers else 0.05)
    listener, asked, ended = Listener(), threading.Event(), threading.Event()

    def health(*_):
        asked.set()
        return Answer(404, {}, hold=None if answers else ended)

    fake.routes["GET /health"] = health
    fake.routes["POST /stream"] = Answer(
        body={"status": "COMPLETED", "stream": [{"output": 1}]}, hold=ended
    )
    worker = push(fake.url)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.wait, "r", listener)
        assert asked.wait(60)
        wait_until(lambda: len(listener.checks) == 2)
        ended.set()
        running.result(60)
    assert listener.checks == [RunCheck.UNKNOWN, RunCheck.TIMEOUT if answers else RunCheck.HEALTH]
    # Known from now on.
    worker.wait("r", listener)
    assert listener.checks[-1] == (RunCheck.TIMEOUT if answers else RunCheck.HEALTH)
    assert len(fake.paths("GET /health")) == 1
