"""Endpoints at run time: added, changed, removed, in every process within a second."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, RedisServer, job_store, load_settings, new_job, run_command, wait_until
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.errors import BadRequest, EndpointConflict, EndpointNotFound
from ownpod.onehost.flower_guard import KeyWatch, judge
from ownpod.registry import CACHE_TTL_S, Registry
from ownpod.rules import credentials
from ownpod.store import keys
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet

URL = "http://10.0.0.12:8000"
SEEN_S = CACHE_TTL_S + 0.5
KEY = {"Authorization": "Bearer k"}


@pytest.fixture
def settings(tmp_path, redis_server):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {workers: [{url: 'http://a:1', id: w}]}}")
    return load_settings(
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_RATE_LIMITS='{"run": "2/minute"}',
    )


@pytest.fixture
def registry(client, settings):
    return Registry(load_endpoints(settings), Fleet(client), settings)


@pytest.fixture
def api(settings, client):
    app = create_app(settings)
    # What follows is seen by refreshing, not because it is the first read.
    assert sorted(services_of(app).registry.endpoints) == ["ep"]
    yield app.test_client()
    services_of(app).notices.stop()


def status(api, path, **headers):
    return api.get(f"/v2/{path}", headers=headers).status_code


# --- the registry


def test_an_endpoint_is_added_changed_and_removed(registry, client):
    made = registry.put_endpoint("new", {"executionTimeout": 9000, "maxAttempts": 1})
    assert (made.execution_timeout_ms, made.max_attempts, made.workers) == (9000, 1, ())
    assert registry.endpoint("new") == made
    registry.put_endpoint("new", {"ttl": 20_000})
    changed = registry.endpoint("new")
    assert (changed.execution_timeout_ms, changed.ttl_ms) == (600_000, 20_000)
    registry.remove_endpoint("new")
    with pytest.raises(EndpointNotFound, match="known endpoints: ep"):
        registry.endpoint("new")
    assert client.hgetall(keys.ENDPOINTS) == {}


def test_a_change_keeps_the_workers_and_a_removal_takes_them_along(registry, client):
    registry.put_endpoint("new", {})
    registry.add("new", {"url": URL, "id": "x"})
    registry.add("ep", {"url": f"{URL}/2", "id": "stays"})
    registry.fleet.pause("x", "drained")
    client.hset(keys.ADDED, "broken", '{"endpoint": "new"}')
    registry.put_endpoint("new", {"maxAttempts": 2})
    assert [worker.id for worker in registry.endpoint("new").workers] == ["x"]
    registry.remove_endpoint("new")
    assert list(client.hgetall(keys.ADDED)) == ["stays"]
    assert registry.fleet.paused("x") is None
    registry.put_endpoint("new", {})
    assert registry.endpoint("new").workers == ()
    assert registry.left_out() == []


def test_redis_gets_the_digests_of_an_endpoints_keys(registry, client):
    registry.put_endpoint("new", {"apiKeys": ["plain-key"]})
    entry = json.loads(client.hget(keys.ENDPOINTS, "new"))
    assert entry == {"apiKeys": [f"sha256:{credentials.digest_of('plain-key')}"]}
    assert credentials.matches("plain-key", registry.endpoint("new").api_keys)


@pytest.mark.parametrize(
    ("endpoint", "values", "error", "says"),
    [
        ("a b", {}, BadRequest, "letters, digits"),
        ("", {}, BadRequest, "letters, digits"),
        ("new", {"executionTimeout": 1}, BadRequest, "executionTimeout: must be a whole number"),
        ("new", {"workers": []}, BadRequest, "workers: Unknown field"),
        ("new", {"apiKeys": ["a b"]}, BadRequest, "a key is visible ASCII"),
        ("ep", {}, EndpointConflict, "is defined in the configuration file: change it there"),
    ],
)
def test_what_cannot_be_put(registry, client, endpoint, values, error, says):
    with pytest.raises(error, match=says):
        registry.put_endpoint(endpoint, values)
    assert client.hgetall(keys.ENDPOINTS) == {}


def test_an_endpoint_above_the_quota_is_not_put_in_runpods_words(client, settings):
    registry = Registry(load_endpoints(settings), Fleet(client), replace(settings, worker_quota=5))
    template = {"template": {"command": "x"}}
    registry.put_endpoint("a", {**template, "workersMax": 4})
    with pytest.raises(BadRequest) as caught:
        registry.put_endpoint("b", {**template, "workersMax": 2})
    assert str(caught.value) == (
        "Max workers across all endpoints must not exceed your workers quota (5). Reduce the max workers for other "
        "endpoints or lower the max worker count for this endpoint to at most 1."
    )
    assert "b" not in registry.endpoints
    registry.put_endpoint("a", {**template, "workersMax": 5})


def test_what_cannot_be_removed(registry):
    with pytest.raises(EndpointConflict, match="remove it there, then send SIGHUP"):
        registry.remove_endpoint("ep")
    with pytest.raises(EndpointNotFound):
        registry.remove_endpoint("none")
    assert EndpointConflict.http_status == 409


BROKEN = [
    ("x", "{", "its entry in Redis is not JSON: ", True),
    ("x", "[]", "its entry in Redis is no JSON object", True),
    ("a b", "{}", "its id cannot be used", False),
    ("x", '{"ttl": "long"}', "ttl: Not a valid integer.", False),
    ("x", '{"later": 1, "apiKeys": ["k"]}', "later: Unknown field.", True),
    ("x", '{"apiKeys": 5}', "apiKeys: Not a valid list.", True),
    ("ep", '{"apiKeys": ["k"]}', "its id is defined in the configuration file", False),
]


@pytest.mark.parametrize(("endpoint", "entry", "reason", "closed"), BROKEN)
def test_an_entry_that_cannot_be_used_is_left_out_and_opens_nothing(
    registry, client, caplog, endpoint, entry, reason, closed
):
    registry.put_endpoint("good", {})
    client.hset(keys.ENDPOINTS, endpoint, entry)
    registry.refresh()
    assert sorted(registry.endpoints) == ["ep", "good"]
    assert [worker.id for worker in registry.workers()] == ["w"]
    (left_out,) = registry.endpoints_left_out
    assert left_out.id == endpoint
    assert left_out.reason.startswith(reason)
    assert f"endpoint {endpoint!r} of run time is left out: {reason}" in caplog.text
    assert registry.has_keys is closed


def test_a_key_that_is_no_hash_leaves_its_endpoints_out(registry, client, caplog):
    client.set(keys.ENDPOINTS, "text")
    registry.refresh()
    assert sorted(registry.endpoints) == ["ep"]
    assert registry.has_keys
    assert "is no hash" in caplog.text


def test_an_endpoint_of_the_file_wins_and_keeps_its_workers(registry, settings):
    registry.put_endpoint("new", {"maxAttempts": 9})
    registry.add("new", {"url": URL, "id": "x"})
    settings.workers_file.write_text("endpoints: {new: {maxAttempts: 2}}")
    registry.reload(load_endpoints(settings))
    assert registry.endpoint("new").max_attempts == 2
    assert [worker.id for worker in registry.endpoint("new").workers] == ["x"]
    assert [entry.id for entry in registry.endpoints_left_out] == ["new"]


# --- the API


@pytest.mark.slow
def test_the_api_serves_an_endpoint_within_a_second_and_404s_a_removed_one(api, registry, client):
    assert status(api, "new/health") == 404
    registry.put_endpoint("new", {})
    wait_until(lambda: status(api, "new/health") == 200, SEEN_S)
    job = api.post("/v2/new/run", json={"input": {}}).json["id"]
    assert api.get("/v2/").json["endpoints"] == ["ep", "new"]
    assert 'endpoint="new"' in api.get("/metrics").get_data(as_text=True)
    registry.remove_endpoint("new")
    wait_until(lambda: status(api, "new/health") == 404, SEEN_S)
    assert status(api, f"new/status/{job}") == 404
    assert api.get("/v2/").json == {"endpoints": ["ep"], "types": {"ep": "QB"}}
    # The job waits for its ttl, or for an endpoint of this id.
    registry.put_endpoint("new", {})
    wait_until(lambda: status(api, f"new/status/{job}") == 200, SEEN_S)


def test_a_change_applies_to_the_next_job(api, registry, client):
    registry.put_endpoint("new", {"executionTimeout": 5000})

    def next_job_has(timeout_ms):
        job = api.post("/v2/new/run", json={"input": {}})
        return job.status_code == 200 and (
            client.hget(f"ownpod:job:{job.json['id']}", "execution_timeout_ms") == timeout_ms
        )

    services_of(api.application).registry.refresh()
    assert next_job_has("5000")
    registry.put_endpoint("new", {"executionTimeout": 7000})
    wait_until(lambda: status(api, "new/health") == 200)
    services_of(api.application).registry.refresh()
    assert next_job_has("7000")


def test_a_request_after_a_change_by_another_process_sees_the_change(api, registry):
    # Each request comes within the second in which a process does not read the endpoints again.
    assert status(api, "added/health") == 404
    registry.put_endpoint("added", {"template": {"command": ["true"]}, "workersMax": 0})
    assert api.post("/v2/added/run", json={"input": {}}).json["code"] == "ENDPOINT_PAUSED"
    registry.put_endpoint("added", {"template": {"command": ["true"]}, "workersMax": 1})
    assert api.post("/v2/added/run", json={"input": {}}).status_code == 200


@pytest.mark.slow
def test_the_first_key_of_an_endpoint_closes_an_api_that_had_none(api, registry):
    assert status(api, "ep/health") == 200
    registry.put_endpoint("new", {"apiKeys": ["k"]})
    wait_until(lambda: status(api, "new/health") == 401, SEEN_S)
    assert status(api, "new/health", **KEY) == 200
    assert status(api, "ep/health") == 401
    assert status(api, "ep/health", **KEY) == 403
    registry.put_endpoint("new", {"apiKeys": ["other"]})
    wait_until(lambda: status(api, "new/health", **KEY) == 401, SEEN_S)
    registry.remove_endpoint("new")
    wait_until(lambda: status(api, "ep/health") == 200, SEEN_S)


def test_a_new_api_process_knows_the_keys_at_its_first_request(registry, settings):
    registry.put_endpoint("new", {"apiKeys": ["k"]})
    app = create_app(settings)
    assert app.test_client().get("/v2/ep/health").status_code == 401
    services_of(app).notices.stop()


@pytest.mark.slow
def test_the_openapi_document_names_the_endpoints_and_whether_keys_are_needed(api, registry):
    def endpoints_and_keys():
        spec = api.get("/openapi.json").json
        parameters = spec["paths"]["/v2/{endpoint_id}/health"]["get"]["parameters"]
        (found,) = [p["schema"]["enum"] for p in parameters if p["name"] == "endpoint_id"]
        return found, "securitySchemes" in spec["components"]

    assert endpoints_and_keys() == (["ep"], False)
    registry.put_endpoint("new", {"apiKeys": ["k"]})
    wait_until(lambda: endpoints_and_keys() == (["ep", "new"], True), SEEN_S)


def test_rates_are_limited_for_each_endpoint_of_run_time(api, registry):
    registry.put_endpoint("new", {})
    registry.put_endpoint("more", {})
    services_of(api.application).registry.refresh()

    def run(endpoint):
        return api.post(f"/v2/{endpoint}/run", json={"input": {}}).status_code

    assert [run("new") for _ in range(3)] == [200, 200, 429]
    assert run("more") == 200


@pytest.mark.slow
def test_a_process_that_starts_without_redis_opens_nothing_when_redis_is_back(settings, tmp_path):
    server = RedisServer(tmp_path)
    config = replace(settings, redis_url=server.url)
    with connect(server.url) as client:
        put = Registry(load_endpoints(config), Fleet(client), config).put_endpoint
        put("new", {"apiKeys": ["k"]})
    app = create_app(config)
    api = app.test_client()
    server.stop()
    with api.get("/") as page:
        assert (status(api, "ep/health"), page.status_code) == (503, 200)
    watch = KeyWatch(config)
    assert watch.single_keys
    server.start()
    answers = {status(api, "ep/health")}
    wait_until(lambda: answers.add(status(api, "ep/health")) or 401 in answers, SEEN_S)
    assert answers <= {503, 401}
    assert status(api, "ep/health", Authorization="Bearer k") == 403
    server.stop()


def test_flower_is_closed_by_the_first_key_of_an_endpoint(settings, registry):
    watch = KeyWatch(settings)
    watch.start()
    assert not watch.single_keys
    registry.put_endpoint("new", {"apiKeys": ["k"]})
    wait_until(lambda: watch.single_keys, SEEN_S)


@pytest.mark.parametrize(
    ("keys", "single_keys", "refused"),
    [((), False, None), ((), True, 403), ((credentials.parse("a"),), True, 401)],
)
def test_flower_without_keys_refuses_where_endpoints_have_keys(keys, single_keys, refused):
    start = RequestStartLine("GET", "/workers", "HTTP/1.1")
    request = HTTPServerRequest(start_line=start, headers=HTTPHeaders({"Host": "localhost"}))
    found = judge(request, keys, (), single_keys=single_keys)
    assert (found and found[0]) == refused


# --- Celery's tools


def celery(*command, cwd, **environ):
    return run_command(
        *(Path(sys.executable).parent / "celery", "-A", "ownpod", *command),
        cwd=cwd,
        PYTHONPATH=ROOT,
        **environ,
    )


@pytest.mark.slow
def test_celerys_purge_knows_the_endpoints_of_run_time(registry, client, redis_server, tmp_path):
    registry.put_endpoint("new", {})
    job_store(client).jobs.create(new_job("job-1", endpoint="new"))
    done = celery("purge", "-f", cwd=tmp_path, REDIS_URL=redis_server.url)
    assert done.returncode == 0, done.stderr
    assert "Purged 1 message from 3 known task queues" in done.stdout
    assert job_store(client).jobs.get("job-1", "new").status == "CANCELLED"


@pytest.mark.slow
def test_celerys_settings_read_no_configuration_before_the_queues_are_used(redis_server, tmp_path):
    (tmp_path / "workers.yaml").write_text("a: [")
    program = (
        "import ownpod.celeryconfig\n"
        "from ownpod.celery import app, open_store\n"
        "from ownpod import settings\n"
        "open_store(settings.current(), client_name='test')\n"
        "app.amqp.queues.select(['ownpod.ep'])\n"
        "print(list(app.amqp.queues.consume_from))\n"
    )
    environ = {"REDIS_URL": redis_server.url, "PYTHONPATH": ROOT}
    done = run_command(sys.executable, "-c", program, cwd=tmp_path, **environ)
    assert (done.stdout, done.stderr) == ("['ownpod.ep']\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("celery", "-A", "ownpod", "purge", "-f"),
        ("celery", "-A", "ownpod", "worker", "-n", "x@h"),
        ("ownpod", "dispatch"),
        ("ownpod", "api"),
        ("ownpod", "flower"),
        ("gunicorn", "wsgi:app", "-c", ROOT / "gunicorn.conf.py", "--chdir", ROOT),
    ],
)
def test_a_process_that_needs_the_endpoints_stops_with_one_line(redis_server, tmp_path, command):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {a: {worker: []}}")
    program, *arguments = command
    done = run_command(
        *(Path(sys.executable).parent / program, *arguments),
        cwd=tmp_path,
        REDIS_URL=redis_server.url,
        PYTHONPATH=ROOT,
        OWNPOD_WORKERS_FILE=file,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ownpod: ")]
    assert lines == [f"ownpod: {file}: endpoints.a.worker: Unknown field."]
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.mark.slow
def test_a_node_without_a_driver_for_its_worker_stops_with_one_line(redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {workers: [{url: 'http://a:1', id: w}]}}")
    program = (
        "from ownpod.celery import app\n"
        "from ownpod.workers import DRIVERS\n"
        "DRIVERS.pop('push')\n"
        "app.worker_main(['worker', '-n', 'w@h'])\n"
    )
    environ = {"REDIS_URL": redis_server.url, "OWNPOD_WORKERS_FILE": file, "PYTHONPATH": ROOT}
    done = run_command(sys.executable, "-c", program, cwd=tmp_path, **environ)
    assert done.returncode == 2
    assert (
        done.stderr == "ownpod: worker w: no driver of kind 'push', only pull, container, cloud\n"
    )
