"""What thousands of requests that wait cost HAProxy and the edge."""

import contextlib
import re
import resource
import socket
import time

import pytest
import requests
from helpers import wait_until
from web_worker import KEY, WebWorker, front

from ownpod.front import balancer
from ownpod.front.runtime import parse_table
from ownpod.rules.balancing import FrontState, Route

pytestmark = pytest.mark.slow

COUNT = 3000
CHECKS_PER_S = 4000
"""Checks of held requests for each thread, see ``MOST_CHECKS`` of ``place.lua``."""


@pytest.fixture(autouse=True)
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < COUNT + 500:
        pytest.skip("too few file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, COUNT + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sent(lb, stack, count, **headers):
    """Sends requests that wait, each on a connection of its own."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    for number in range(count):
        one = stack.enter_context(socket.create_connection(("127.0.0.1", lb.port), 60))
        text = f"GET /lb/ep/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: {KEY}\r\n{lines}\r\n"
        one.sendall(text.replace("NUMBER", str(number)).encode())


def test_the_cost_of_requests_that_are_held_is_bounded(lb):
    lb.apply()
    runtime = lb.balancer._runtime

    def rate():
        """Runs of held requests in a second."""
        counts, began = [], time.monotonic()
        for _ in range(2):
            (text,) = runtime.ask("show sess")
            counts.append(sum(int(n) for n in re.findall(r"fe=public.* calls=(\d+)", text)))
            time.sleep(1)
        return (counts[1] - counts[0]) / (time.monotonic() - began - 1)

    with contextlib.ExitStack() as stack:
        sent(lb, stack, COUNT)
        wait_until(lambda: lb.balancer.read()["ep"].requests == COUNT, 30, "all that are held")
        (info,) = runtime.ask("show info")
        threads = int(re.search(r"Nbthread: (\d+)", info)[1])
        if threads * 400 >= COUNT:
            pytest.skip("a thread has too few of them")
        wait_until(lambda: rate() < threads * CHECKS_PER_S * 1.5, 20, "a bounded cost")


def test_wishes_of_the_past_are_not_read(lb):
    with WebWorker("w1").serving() as worker:
        lb.apply(worker.server())
        runtime = lb.balancer._runtime
        with contextlib.ExitStack() as stack:
            sent(lb, stack, 3, X_Runpod_Worker_Id="strict-resume gone-NUMBER")
            found = wait_until(lambda: lb.balancer.read()["ep"].wishes, what="wishes")
            wait_until(lambda: len(lb.balancer.read()["ep"].wishes) == 3, what="wishes")
            assert set(found) <= {"gone-0", "gone-1", "gone-2"}
        for _ in range(3):
            assert lb.get(headers={"X-Runpod-Worker-Id": "strict-resume w1"}).ok
        (everything,) = runtime.ask("show table wishes")
        assert "ep|w1" in parse_table(everything)
        # The client may have its answer before HAProxy has counted its end.
        wait_until(lambda: "ep|w1" not in parse_table(runtime.ask(balancer.WISHES)[0]))


def test_requests_of_an_endpoint_for_which_no_backend_is_left_are_told_so(tmp_path):
    with front(tmp_path / "front", pool=1) as lb:
        lb.balancer.apply(FrontState({name: Route(name) for name in ("a", "B")}, keys={}))
        assert requests.get(lb.url("/x", "a"), timeout=60).status_code == 401
        lb.balancer.apply(FrontState({name: Route(name) for name in ("a", "B")}, keys=None))
        left = [name for name in ("a", "B") if name in lb.balancer.problems]
        host = {"Host": f"{left[0].lower()}.localhost"}
        for answer in (
            requests.get(lb.url("/x", left[0]), timeout=60),
            requests.get(f"http://127.0.0.1:{lb.port}/x", headers=host, timeout=60),
        ):
            assert answer.status_code == 503
            assert answer.json()["detail"] == "the front has room for 1 load-balanced endpoints"
        assert requests.get(lb.url("/x", "other"), timeout=60).status_code == 404


def test_an_endpoint_for_which_no_backend_is_left_is_logged_once(tmp_path, caplog):
    with front(tmp_path / "front", pool=2) as lb:
        state = FrontState({name: Route(name) for name in ("a", "b", "c")})
        for _ in range(2):
            lb.balancer.apply(state)
        lb.balancer.apply(FrontState({**state.routes, "d": Route("d")}))
    logged = [record.getMessage() for record in caplog.records if "not served" in record.message]
    room = "the front has room for 2 load-balanced endpoints"
    assert logged == [f"endpoint {name} is not served: {room}" for name in ("c", "d")]
