"""A load-balanced endpoint that is made, changed and deleted through REST v2, with workers that OwnPod starts."""

import shlex
import sys

import pytest
import requests
from balancing import WORKER
from helpers import wait_until
from managing import ADMIN, POOL, managing, root_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEY = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture
def ownpod(tmp_path):
    with managing(tmp_path) as found:
        yield found


def test_an_endpoint_of_rest_v2_starts_its_worker_for_the_first_request(ownpod):
    root = root_of(ownpod)

    def call(method, path, body=None):
        answer = requests.request(method, f"{root}{path}", json=body, headers=KEY, timeout=60)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    made = call(
        "POST",
        "/v2/serverless",
        {
            "name": "web",
            "type": "LOAD_BALANCER",
            "image": "org/web:1",
            "args": shlex.join([sys.executable, str(WORKER)]),
            "scaling": {"type": "REQUEST_COUNT", "requestCount": 4},
            "gpu": {"pools": [POOL]},
            "workers": {"max": 1, "idleTimeout": 60},
            "env": {"COLOR": "red"},
        },
    )
    url, base = f"/v2/serverless/{made['id']}", made["requestUrls"]["base"]
    assert base == f"{root}/lb/{made['id']}"

    def echo(number):
        return requests.post(f"{base}/echo/x", json={"n": number}, headers=KEY, timeout=90)

    # It waits in the front until the worker is there.
    first = echo(1)
    assert first.status_code == 200, first.text
    assert first.json()["json"] == {"n": 1}
    worker = first.headers["X-Runpod-Worker-Id"]
    (shown,) = call("GET", f"{url}/workers")["workers"]
    assert (shown["id"], shown["version"], shown["isStale"]) == (worker, 1, False)
    # The front reports what is open some times a second.
    nothing = {"queued": 0, "reasons": []}
    wait_until(lambda: call("GET", f"{url}/why") == nothing, 10, "no reason to wait")

    # Another release replaces the worker; requests meanwhile wait, or reach one of the two.
    call("PATCH", url, {"env": {"COLOR": "blue"}})
    seen = {worker}

    def is_replaced():
        answer = echo(2)
        assert answer.status_code == 200, answer.text
        seen.add(answer.headers["X-Runpod-Worker-Id"])
        return len(seen) == 2

    wait_until(is_replaced, 90, "a worker of the second release")
    assert call("GET", f"{url}/releases")["endpointVersion"] == 2

    call("DELETE", url)
    wait_until(lambda: echo(3).status_code == 404, 20, "the end of the endpoint")
