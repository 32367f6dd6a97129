import json
import threading

import pytest
from helpers import load_settings

from ownpod.configuration import keep_endpoints, kept_endpoints, load_endpoints, worker_id_of
from ownpod.errors import ConfigurationError, EndpointNotFound, RedisUnavailable
from ownpod.registry import Registry
from ownpod.rules.fleet import Entries
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet


def endpoints(tmp_path, text, **environ):
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    return load_endpoints(load_settings(OWNPOD_WORKERS_FILE=path, **environ))


def test_without_file_and_variable_there_is_the_default_endpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_endpoints(load_settings())
    assert [w.url for w in found["local-ep"].workers] == ["http://localhost:18000"]


def test_endpoints_have_their_own_workers_and_defaults(tmp_path):
    found = endpoints(
        tmp_path,
        """
        endpoints:
          a:
            executionTimeout: 5000
            maxAttempts: 1
            workers:
              - {url: "http://h:1/", capacity: 4, id: gpu, headers: {X: y}, verifyTls: false}
          b: {}
        """,
        OWNPOD_WORKER_HEADERS='{"X": "global", "Z": "z"}',
    )
    (worker,) = found["a"].workers
    assert (worker.id, worker.url, worker.capacity) == ("gpu", "http://h:1", 4)
    assert worker.headers == {"X": "y", "Z": "z"}
    assert worker.verify_tls is False
    assert (found["a"].execution_timeout_ms, found["a"].max_attempts) == (5000, 1)
    assert found["b"].workers == ()
    assert (found["b"].execution_timeout_ms, found["b"].max_attempts) == (600_000, 3)


def test_the_variable_replaces_the_default_endpoints_workers(tmp_path):
    text = (
        "endpoints: {local-ep: {executionTimeout: 9000, workers: [{url: 'http://a'}]}, other: {}}"
    )
    found = endpoints(tmp_path, text, OWNPOD_WORKERS="http://b:1,http://c:2")
    assert [w.url for w in found["local-ep"].workers] == ["http://b:1", "http://c:2"]
    assert found["local-ep"].execution_timeout_ms == 9000
    assert "other" in found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file: "),
        ("a: [", "not YAML"),
        ("endpoint: {}", "endpoints"),
        ("endpoints: {'a b': {}}", "letters, digits"),
        ("endpoints: {a: {worker: []}}", "a.worker: Unknown field"),
        ("endpoints: [a]", "endpoints: must be an object with the endpoints by id"),
        ("endpoints: {a: 3}", "endpoints.a: must be an object"),
        ("endpoints: {a: {workers: 'http://h'}}", "a.workers: must be a list, like"),
        ("endpoints: {a: {workers: ['http://h']}}", "a.workers.0: must be an object with a url"),
        ("endpoints: {a: {workers: [{}]}}", "a.workers.0.url: Missing data"),
        ("endpoints: {a: {workers: [{url: 'h:1'}]}}", "a.workers.0.url: must be an http://"),
        (
            "endpoints: {a: {workers: [{url: 'http://h', capacity: 0}]}}",
            "capacity: must be a whole",
        ),
        (
            "endpoints: {a: {executionTimeout: 1}}",
            "a.executionTimeout: must be a whole number of ms",
        ),
        ("endpoints: {a: {maxAttempts: 0}}", "a.maxAttempts: must be"),
        ("endpoints: {a: {workers: [{url: 'http://h'}, {url: 'http://h'}]}}", "listed once only"),
        (
            "endpoints: {a: {workers: [{url: 'http://h'}]}, b: {workers: [{url: 'http://h', id: x}]}}",
            "listed once only",
        ),
        ("endpoints: {a: {workers: [{url: 'http://housekeeping'}]}}", "is taken"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_field(tmp_path, text, says):
    with pytest.raises(ConfigurationError) as caught:
        endpoints(tmp_path, text)
    assert says in str(caught.value)
    assert "workers.yaml" in str(caught.value) or "listed once" in says or "taken" in says
    assert "\n" not in str(caught.value)


def test_a_file_that_was_named_must_exist(tmp_path):
    with pytest.raises(ConfigurationError, match="OWNPOD_WORKERS_FILE=.*no such file"):
        load_endpoints(load_settings(OWNPOD_WORKERS_FILE=tmp_path / "none.yaml"))


def test_the_projects_own_file_is_valid():
    from helpers import ROOT

    found = load_endpoints(load_settings(OWNPOD_WORKERS_FILE=ROOT / "workers.yaml"))
    assert len(found["local-ep"].workers) == 2


@pytest.mark.parametrize(
    ("url", "worker_id"),
    [
        ("http://localhost:18000", "localhost-18000"),
        ("https://gpu.example.com/a/b/", "gpu-example-com-a-b"),
        ("http://[::1]:8000", "1-8000"),
    ],
)
def test_worker_ids_are_readable(url, worker_id):
    assert worker_id_of(url) == worker_id


def test_headers_are_not_in_the_repr(tmp_path):
    found = endpoints(tmp_path, "endpoints: {a: {workers: [{url: 'http://h', headers: {A: sec}}]}}")
    assert "sec" not in repr(found)


def test_an_unknown_endpoint_names_the_known_ones(tmp_path):
    client = connect("redis://127.0.0.1:1/0")
    registry = Registry(
        endpoints(tmp_path, "endpoints: {a: {}, b: {}}"), Fleet(client), load_settings()
    )
    with pytest.raises(EndpointNotFound, match="'c' not found; known endpoints: a, b"):
        registry.endpoint("c")


class SlowFirstRead:
    """A fleet whose first read begins before a worker is added, and ends after the second read."""

    def __init__(self):
        self.begun, self.second_done = threading.Event(), threading.Event()
        self.reads = 0

    def entries(self):
        self.reads += 1
        if self.reads == 1:
            self.begun.set()
            assert self.second_done.wait(10)
            return Entries()
        if self.reads > 2:
            raise RedisUnavailable("away")
        worker = {"endpoint": "local-ep", "id": "added", "url": "http://127.0.0.1:7"}
        return Entries(added={"added": json.dumps(worker)})


def test_a_slow_read_does_not_undo_a_later_one():
    config, fleet = load_settings(OWNPOD_WORKERS="http://127.0.0.1:9"), SlowFirstRead()
    registry = Registry(load_endpoints(config), fleet, config)
    slow = threading.Thread(target=registry.refresh)
    slow.start()
    assert fleet.begun.wait(10)
    registry.refresh()
    fleet.second_done.set()
    slow.join(10)
    assert "added" in {worker.id for worker in registry.workers()}


def test_endpoints_that_a_process_keeps_are_those_of_the_same_settings_only(tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {kept: {}}")
    config = load_settings(OWNPOD_WORKERS_FILE=file)
    assert set(keep_endpoints(config)) == {"kept"}
    file.write_text("[}")
    assert set(kept_endpoints(config)) == {"kept"}
    with pytest.raises(ConfigurationError):
        keep_endpoints(config)
    assert set(kept_endpoints(config)) == {"kept"}
    other = load_settings(OWNPOD_WORKERS="http://a:1")
    assert set(kept_endpoints(other)) == {"local-ep"}
