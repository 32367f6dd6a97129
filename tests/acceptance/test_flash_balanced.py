"""runpod-flash's client of load-balanced endpoints, unmodified, against the names of the front, over HTTPS."""

import json
import sys

import pytest
import requests
from balancing import DOMAIN, balancing
from helpers import run_command, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ADMIN, KEY = "the-admin-key", "a-clients-key"

RESOLVER = """
import socket
resolve = socket.getaddrinfo

def local(host, *more, **options):
    # Stands in for the wildcard in DNS.
    name = host.decode() if isinstance(host, bytes) else host
    return resolve("127.0.0.1" if name.endswith("lb.test") else host, *more, **options)

socket.getaddrinfo = local
"""

CLIENT = (
    RESOLVER
    + """
import asyncio, json, sys
import httpx
from runpod_flash import Endpoint

async def main(endpoint):
    found = {}
    found["post"] = await endpoint.post("/echo/a/b?x=1", {"text": "from flash"})
    # It sends a body with GET, too.
    found["get"] = await endpoint.get("/echo/", {"n": 1})
    for method in ("put", "patch", "delete"):
        found[method] = await getattr(endpoint, method)("/echo/", {"m": method})
    for path in ("/status/422", "/status/500", "/nothing"):
        try:
            await endpoint.get(path)
        except httpx.HTTPStatusError as error:
            found[path] = [error.response.status_code, error.response.json()]
    print(json.dumps(found))

asyncio.run(main(Endpoint(id=sys.argv[1])))
"""
)

STUB = (
    RESOLVER
    + """
import asyncio, json, sys
from runpod_flash.core.resources.load_balancer_sls_resource import LoadBalancerSlsResource
from runpod_flash.stubs.load_balancer_sls import LoadBalancerSlsStub

def add(a, b):
    raise AssertionError("it runs at the worker")

async def main(endpoint):
    resource = LoadBalancerSlsResource(name="web", imageName="org/web:1")
    resource.id = endpoint
    stub = LoadBalancerSlsStub(resource)
    add.__remote_config__ = {"method": "POST", "path": "/add"}
    found = [await stub(add, None, None, False, 2, b=3)]
    add.__remote_config__ = {"method": "POST", "path": "/status/503"}
    try:
        await stub(add, None, None, False, 2, 3)
    except RuntimeError as error:
        found.append(str(error))
    print(json.dumps(found))

asyncio.run(main(sys.argv[1]))
"""
)


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    directory = tmp_path_factory.mktemp("flash-balanced")
    with balancing(directory, OWNPOD_ADMIN_KEYS=ADMIN, OWNPOD_API_KEYS=KEY) as found:
        yield found


def flash(ownpod, tmp_path, script, endpoint="web", key=KEY):
    root = f"https://{DOMAIN}:{ownpod.tls_port}"
    return run_command(
        *(sys.executable, "-W", "ignore", "-c", script, endpoint),
        cwd=tmp_path,
        timeout=150,
        HOME=tmp_path,
        SSL_CERT_FILE=ownpod.authority,
        RUNPOD_API_KEY=key,
        RUNPOD_API_BASE_URL=root,
        RUNPOD_ENDPOINT_BASE_URL=f"{root}/v2",
        RUNPOD_REST_API_URL=f"{root}/v1",
        RUNPOD_HAPI_URL=f"{root}/hapi",
        RUNPOD_CONSOLE_URL=root,
    )


def test_flashs_client_calls_any_path_with_any_method(ownpod, tmp_path):
    done = flash(ownpod, tmp_path, CLIENT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    post = found["post"]
    assert (post["method"], post["path"], post["query"]) == ("POST", "a/b", "x=1")
    assert post["json"] == {"text": "from flash"}
    assert (found["get"]["method"], found["get"]["json"]) == ("GET", {"n": 1})
    assert [found[m]["json"] for m in ("put", "patch", "delete")] == [
        {"m": "put"},
        {"m": "patch"},
        {"m": "delete"},
    ]
    # What a worker answers passes unchanged.
    assert found["/status/422"] == [422, {"detail": "status 422"}]
    assert found["/status/500"] == [500, {"detail": "status 500"}]
    assert found["/nothing"] == [404, {"detail": "Not Found"}]
    headers = post["headers"]
    assert headers["host"] == f"web.{DOMAIN}:{ownpod.tls_port}"
    # The client's key ends at the front.
    assert "authorization" not in headers
    assert KEY not in json.dumps(found)


def test_flashs_stub_of_a_deployed_function_calls_its_route(ownpod, tmp_path):
    done = flash(ownpod, tmp_path, STUB)
    assert done.returncode == 0, done.stderr
    total, failed = json.loads(done.stdout.splitlines()[-1])
    assert total == 5
    assert "503" in failed
    assert "status 503" in failed


@pytest.mark.parametrize(("endpoint", "key", "status"), [("web", "wrong", 401), ("none", KEY, 404)])
def test_flash_sees_the_status_of_a_call_that_is_refused(ownpod, tmp_path, endpoint, key, status):
    done = flash(ownpod, tmp_path, CLIENT, endpoint, key)
    assert done.returncode == 1
    assert f"{status} " in done.stderr
    assert "HTTPStatusError" in done.stderr


def test_the_management_api_shows_the_name_that_flash_calls(ownpod):
    found = requests.get(
        f"{ownpod.root}/v2/serverless/web",
        headers={"Authorization": f"Bearer {ADMIN}"},
        timeout=60,
    ).json()
    assert found["requestUrls"]["base"] == f"http://web.{DOMAIN}:{ownpod.port}"
    base = found["requestUrls"]["health"].replace(f"web.{DOMAIN}", "127.0.0.1")
    answer = requests.get(
        base, headers={"Authorization": f"Bearer {KEY}", "Host": f"web.{DOMAIN}"}, timeout=30
    )
    assert answer.json() == {"status": "healthy"}
    assert answer.headers["X-Runpod-Worker-Id"] == "w1"


def test_names_below_localhost_lead_to_workers(tmp_path):
    with balancing(tmp_path, domain="localhost") as ownpod:
        for host in (f"web.localhost:{ownpod.port}", "WEB.localhost", "web.localhost."):
            answer = requests.post(
                f"{ownpod.root}/echo/x", json={"a": 1}, headers={"Host": host}, timeout=30
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["path"] == "x"
        # The API stays under its own name.
        health = f"{ownpod.base}/web/health"
        wait_until(lambda: requests.get(health, timeout=60).json()["workers"]["ready"] == 1)
