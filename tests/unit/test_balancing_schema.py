"""Load-balanced endpoints in ``workers.yaml``: what they are made of, and what is refused."""

import json

import pytest
from helpers import load_settings

from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError
from ownpod.rules.balancing import Balancing
from ownpod.rules.endpoints import WorkerKind
from ownpod.rules.templates import Protocol, ScalerType


def load(tmp_path, endpoint):
    file = tmp_path / "workers.yaml"
    # JSON is YAML, too.
    file.write_text(json.dumps({"endpoints": {"a": endpoint}}))
    return load_endpoints(load_settings(OWNPOD_WORKERS_FILE=str(file)))["a"]


def test_workers_given_by_url_get_requests_and_no_jobs(tmp_path):
    urls = [{"url": "http://h:1"}, {"url": "http://h:2", "capacity": 7}]
    endpoint = load(tmp_path, {"type": "LB", "capacity": 3, "workers": urls})
    assert endpoint.balancing == Balancing(capacity=3)
    assert [worker.capacity for worker in endpoint.workers] == [3, 7]
    assert {worker.kind for worker in endpoint.workers} == {WorkerKind.HTTP}
    assert not any(worker.has_node for worker in endpoint.workers)


def test_without_a_capacity_a_worker_gets_any_number_of_requests(tmp_path):
    endpoint = load(tmp_path, {"type": "LB", "workers": [{"url": "http://h:1"}]})
    assert endpoint.workers[0].capacity == 0
    queue = load(tmp_path, {"workers": [{"url": "http://h:1"}]})
    assert (queue.balancing, queue.workers[0].capacity) == (None, 1)


def test_a_template_serves_http_and_scales_by_requests(tmp_path):
    spec = load(tmp_path, {"type": "LB", "template": {"image": "x"}}).managed
    assert spec.template.protocol is Protocol.HTTP
    assert spec.template.init_timeout_s == 480
    assert (spec.scaling.scaler, spec.scaling.scaler_value) == (ScalerType.REQUEST_COUNT, 4)
    given = load(tmp_path, {"type": "LB", "template": {"image": "x", "initTimeout": 420}}).managed
    assert given.template.init_timeout_s == 420


@pytest.mark.parametrize(
    ("keys", "env", "ports"),
    [
        ({}, {}, (80, None, "/ping")),
        (
            {},
            {"PORT": "8000", "PORT_HEALTH": "8001", "HEALTH_CHECK_PATH": "/up"},
            (8000, 8001, "/up"),
        ),
        ({"port": 9000, "healthPath": "/ok"}, {"PORT": "8000"}, (9000, None, "/ok")),
    ],
)
def test_ports_and_path_are_keys_or_runpods_variables(tmp_path, keys, env, ports):
    made = load(tmp_path, {"type": "LB", "template": {"image": "x", "env": env}, **keys}).balancing
    assert (made.port, made.health_port, made.health_path) == ports


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ({"capacity": 2}, "capacity: has no effect without `type: LB`"),
        ({"type": "queue"}, "type: must be one of QB, LB"),
        ({"type": "LB", "capacity": 0}, "capacity: must be a whole number of requests from 1"),
        (
            {"type": "LB", "template": {"image": "x", "protocol": "pull"}},
            "template.protocol: workers",
        ),
        ({"template": {"image": "x", "protocol": "http"}}, "template.protocol: http is"),
        (
            {"type": "LB", "template": {"image": "x"}, "scalerType": "QUEUE_DELAY"},
            "scalerType: must",
        ),
        (
            {"type": "LB", "template": {"image": "x", "env": {"PORT": "x"}}},
            "template.env.PORT: must",
        ),
        ({"type": "LB", "healthPath": "ping"}, "healthPath: must be a path such as /ping"),
        ({"type": "LB", "healthPath": "/a b"}, "healthPath: must be a path such as /ping"),
        ({"type": "LB", "workers": [{"url": "http://h:1/x"}]}, "workers.0.url: the URL of"),
        (
            {"type": "LB", "workers": [{"url": "http://h:1", "headers": {"a": "b"}}]},
            "workers.0.headers",
        ),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, endpoint, says):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, endpoint)
    assert f"endpoints.a.{says}" in str(caught.value)
    assert "\n" not in str(caught.value)
