"""The addresses of load-balanced endpoints: the host form where its name can be resolved, otherwise the path form."""

import pytest

from ownpod.rules.catalog import Container, EndpointRow
from ownpod.rules.lb_addresses import base_url, health_path


@pytest.mark.parametrize(
    ("endpoint", "root", "domain", "url"),
    [
        ("web", "http://localhost:8000", "localhost", "http://localhost:8000/lb/web"),
        ("web", "http://10.0.0.7:8000", "localhost", "http://10.0.0.7:8000/lb/web"),
        ("web", "http://api.localhost:8000", "localhost", "http://web.localhost:8000"),
        ("web", "https://gpu.example", "gpu.example", "https://web.gpu.example"),
        ("web", "http://10.0.0.7:8000", "gpu.example", "http://web.gpu.example:8000"),
        ("web", "http://[::1]:8000", "GPU.example.", "http://web.gpu.example:8000"),
        ("web", "http://[::1]", "gpu.example", "http://web.gpu.example"),
        ("web", "https://h/x", "localhost", "https://h/x/lb/web"),
        # No name of a host has these.
        ("Web_1", "https://gpu.example", "gpu.example", "https://gpu.example/lb/Web_1"),
        ("web", "http://10.0.0.7", "10.0.0.7", "http://10.0.0.7/lb/web"),
    ],
)
def test_the_address_of_an_endpoint(endpoint, root, domain, url):
    assert base_url(endpoint, root, domain) == url


@pytest.mark.parametrize(
    ("env", "own", "path"),
    [
        ({}, {}, "/ping"),
        ({"HEALTH_CHECK_PATH": ""}, {}, "/ping"),
        ({"HEALTH_CHECK_PATH": "/health"}, {}, "/health"),
        ({"HEALTH_CHECK_PATH": "/health"}, {"healthPath": '"/up"'}, "/up"),
    ],
)
def test_the_path_of_the_health_check(env, own, path):
    row = EndpointRow("web", "web", Container(env=env), own=own)
    assert health_path(row) == path
