"""A Redis that executes a command and does not answer in time: nothing is done twice, and no client is
answered that a change failed which was made.
"""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from helpers import RedisServer, job_messages, job_store, load_settings, new_job, wait_until
from slow_redis import SlowRedis

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.errors import AnswerLost, NotRetryable, RedisUnavailable
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.client import clock_ms, connect

QUEUE = "ownpod.ep"


@pytest.fixture
def slow(redis_server, client):
    with SlowRedis(redis_server.port).serving() as proxy:
        yield proxy


@pytest.fixture
def store(slow):
    with connect(slow.url) as client:
        store = job_store(client)
        store.ping()
        yield store


@pytest.fixture
def lossy(store, slow):
    """A call whose first answer is lost after Redis has executed the command."""

    def call(method, *arguments, **options):
        # The script is known, so that the command itself is what is lost.
        slow.lose = 1
        answer = method(*arguments, **options)
        assert slow.lose == 0
        return answer

    return call


@pytest.fixture(autouse=True)
def scripts_known(client):
    """Redis has all scripts: one that it does not know is sent a second time as text."""
    store = job_store(client)
    for source in store.scripts.sources.values():
        client.script_load(source)


def begin(store, job_id="job-1", token="t"):
    return store.jobs.claim(job_id, worker_id="w", claim=token, lease_s=15)


def failed(store):
    store.jobs.create(new_job())
    store.jobs.finish(begin(store), Outcome(JobStatus.FAILED, error="boom"))


def test_a_job_is_created_once(store, lossy, client):
    assert lossy(store.jobs.create, new_job()) == "job-1"
    assert client.llen(QUEUE) == 1
    assert client.hget(keys.counts("ep"), "submitted") == "1"


def test_chunks_are_added_once(store, lossy):
    store.jobs.create(new_job())
    attempt = begin(store)
    assert lossy(store.chunks.add, "job-1", attempt.number, ["1"])
    assert store.chunks.add("job-1", attempt.number, ["2"], token="twice")
    # As a caller repeats it that waits for Redis.
    assert store.chunks.add("job-1", attempt.number, ["2"], token="twice")
    assert store.chunks.stream("job-1", "ep", (0, 0)).chunks == ["1", "2"]


@pytest.mark.parametrize("new_id", ["job-1", "job-2"])
def test_a_retry_is_done_once_and_answered_as_done(store, lossy, client, new_id):
    failed(store)
    client.delete(QUEUE)
    lossy(store.jobs.retry, "job-1", "ep", new_id)
    assert store.jobs.get(new_id, "ep").status is JobStatus.IN_QUEUE
    assert client.llen(QUEUE) == 1
    assert client.hget(keys.counts("ep"), "retried") == "1"


def test_a_retry_with_the_same_new_id_again_is_the_same_retry(store, client):
    failed(store)
    store.jobs.retry("job-1", "ep", "job-2")
    store.jobs.retry("job-1", "ep", "job-2")
    assert client.hget(keys.counts("ep"), "retried") == "1"
    # Another request finds the job as it is.
    store.jobs.finish(begin(store, "job-2"), Outcome(JobStatus.FAILED, error="boom"))
    store.jobs.retry("job-2", "ep", "job-2")
    with pytest.raises(NotRetryable, match="IN_QUEUE"):
        store.jobs.retry("job-2", "ep", "job-2")


def test_a_claim_and_a_result_are_counted_once(store, lossy, client):
    store.jobs.create(new_job())
    attempt = lossy(begin, store)
    assert attempt.number == 1
    lossy(store.jobs.finish, attempt, Outcome(JobStatus.COMPLETED, output="1", execution_ms=7))
    counts = client.hgetall(keys.counts("ep"))
    assert counts == {"submitted": "1", "begun": "1", "COMPLETED": "1"}
    assert client.hget(keys.of_endpoint("ep", "execution"), "sum") == "7"


def test_a_lost_attempt_counts_once(store, lossy, client):
    store.jobs.create(new_job())
    begin(store)
    client.delete(QUEUE)
    lossy(store.jobs.requeue, "job-1", 1, lost=True, reason="it died")
    assert store.jobs.get("job-1", "ep").retries == 1
    assert client.llen(QUEUE) == 1


def test_a_purge_answers_how_many_it_cancelled(store, lossy, client):
    for number in range(5):
        store.jobs.create(new_job(f"w{number}"))
    assert lossy(store.queue.purge, "ep", reason="purged") == 5
    assert store.jobs.get("w0", "ep").status is JobStatus.CANCELLED


def test_a_cancel_answers_the_jobs_state(store, lossy):
    store.jobs.create(new_job())
    assert lossy(store.jobs.cancel, "job-1", "ep", reason="x") is JobStatus.CANCELLED


def test_what_must_not_be_executed_twice_is_not_repeated(store, slow, client):
    store.jobs.create(new_job())
    client.delete(QUEUE)
    slow.lose = 1
    with pytest.raises(AnswerLost, match="did not answer"):
        store.queue.republish("job-1", "ep", QUEUE)
    wait_until(lambda: client.llen(QUEUE))
    assert client.llen(QUEUE) == 1


def test_a_read_is_repeated(store, lossy):
    store.jobs.create(new_job())
    assert lossy(store.jobs.get, "job-1", "ep").status is JobStatus.IN_QUEUE


def _close_others(client):
    """Closes all other connections but those that subscribe, and waits until they are closed."""
    mine = client.client_id()

    def others():
        found = client.client_list(_type="normal")
        return {each["id"] for each in found} - {str(mine)}

    before = others()
    client.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: not before & others())


def test_a_connection_that_redis_has_closed_costs_no_command(redis_server, client):
    # Without the proxy, which closes the store's connection some time after Redis has closed its own.
    with connect(redis_server.url) as direct:
        store = job_store(direct)
        store.jobs.create(new_job())
        _close_others(client)
        assert store.queue.republish("job-1", "ep", QUEUE)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_whose_answer_comes_after_6_s_is_one_job_with_its_id(tmp_path):
    server = RedisServer(tmp_path)
    process = psutil.Process(server.process.pid)
    app = create_app(load_settings(REDIS_URL=server.url, OWNPOD_WORKERS="http://w:1"))
    api = app.test_client()
    try:
        path = "/v2/local-ep/run"
        assert api.post(path, json={"input": {}}).status_code == 200
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(6, process.send_signal, (signal.SIGCONT,))
        timer.start()
        answer = api.post(path, json={"input": {"n": 2}})
        timer.join()
        assert (answer.status_code, answer.json["status"]) == (200, "IN_QUEUE")
        with connect(server.url) as client:
            assert client.hget(keys.counts("local-ep"), "submitted") == "2"
            assert client.llen("ownpod.local-ep") == 2
        assert api.get(f"/v2/local-ep/status/{answer.json['id']}").status_code == 200
    finally:
        process.send_signal(signal.SIGCONT)
        services_of(app).notices.stop()
        server.stop()


@pytest.mark.timeout(300)
def test_a_script_that_keeps_redis_busy_is_an_outage_not_the_end_of_a_process(tmp_path, request):
    server = RedisServer(tmp_path)
    request.addfinalizer(server.stop)
    with connect(server.url) as client, connect(server.url) as other:
        client.config_set("lua-time-limit", 50)
        store = job_store(client)
        store.jobs.create(new_job())
        with ThreadPoolExecutor(1) as pool:
            endless = pool.submit(other.eval, "while true do end", 0)
            try:
                wait_until(lambda: refuses(store))
                with pytest.raises(RedisUnavailable, match="BUSY"):
                    begin(store)
                with pytest.raises(RedisUnavailable, match="BUSY"):
                    store.figures.counts("ep")
            finally:
                client.script_kill()
            assert endless.exception(60) is not None
        assert begin(store).number == 1


def refuses(store):
    try:
        store.jobs.get("job-1", "ep")
    except RedisUnavailable as error:
        return "BUSY" in str(error)
    return False


def test_the_message_of_a_repeated_create_is_the_jobs(store, lossy, client):
    lossy(store.jobs.create, new_job())
    (message,) = client.lrange(job_messages().lists("ep")[0], 0, -1)
    assert json.loads(message)["properties"]["correlation_id"] == "job-1"


def test_the_clock_of_a_redis_that_is_away_is_an_error_of_ownpod():
    with pytest.raises(RedisUnavailable):
        clock_ms(connect("redis://127.0.0.1:1/0"))
