"""The real HAProxy between OpenAI's clients and workers of load-balanced endpoints: ``/v2/<endpoint>/openai/<rest>``."""

import contextlib
import json
import socket
import threading

import pytest
import requests
from helpers import wait_until
from web_worker import KEY, WebWorker, front
from websockets.sync.client import connect

from ownpod.rules.balancing import Balancing, FrontState, Route, Server
from ownpod.rules.credentials import digest_of
from ownpod.rules.openai_replies import error_body

pytestmark = pytest.mark.slow

BEARER = {"Authorization": f"Bearer {KEY}"}


def url(lb, path="/v1/models", endpoint="ep"):
    return f"http://127.0.0.1:{lb.port}/v2/{endpoint}/openai{path}"


def ask(lb, path="/v1/models", method="GET", endpoint="ep", **more):
    headers = BEARER | more.pop("headers", {})
    return requests.request(method, url(lb, path, endpoint), headers=headers, timeout=60, **more)


def test_the_worker_gets_its_own_path_and_query_unchanged(lb, worker):
    lb.apply(worker.server())
    for path, query, got in (
        ("/v1/chat/completions", "x=1&y=%20z", "/v1/chat/completions"),
        ("/v1/a%2Fb//c/./d/../e", "", "/v1/a%2Fb//c/./d/../e"),
        ("//v1", "", "//v1"),
        ("/../../other/run", "", "/../../other/run"),
        ("/..%2f..%2fother", "", "/..%2f..%2fother"),
        ("/v2/other/openai/v1", "", "/v2/other/openai/v1"),
        ("/lb/other/", "", "/lb/other/"),
        ("/", "", "/"),
        ("", "a=b", "/"),
    ):
        shown = lb.shown(f"/v2/ep/openai{path}{'?' if query else ''}{query}")
        assert (shown["path"], shown["query"]) == (got, query)
    headers = dict(shown["headers"])
    assert headers["x-forwarded-prefix"] == "/v2/ep/openai"
    assert "authorization" not in headers
    assert "ownpod" not in str(headers)


def test_other_endpoints_and_other_spellings_are_for_the_api(lb, worker):
    with WebWorker("api", port=lb.api_port).serving() as api:
        lb.apply(worker.server())
        paths = (
            "/v2/queue/openai/v1/models",
            "/v2/none/openai/v1/models",
            "/v2/queue/../ep/openai/v1/models",
            "/v2//openai/v1/models",
            "/v2/ep//openai/v1/models",
            "/v2//ep/openai/v1/models",
            "//v2/ep/openai/v1/models",
            "/V2/ep/openai/v1/models",
            "/v2/EP/openai/v1/models",
            "/v2/e%70/openai/v1/models",
            "/v2/ep/%6fpenai/v1/models",
            "/v2/ep%2Fopenai/v1/models",
            "/v2%2Fep/openai/v1/models",
            "/v2/ep/openaix/v1/models",
            "/v2/./ep/openai/v1/models",
            "/v2/ep/health",
            "/v2/ep?/openai/v1",
        )
        for path in paths:
            assert lb.shown(path)["worker"] == "api", path
        assert [seen.split()[1] for seen in api.seen] == [path.partition("?")[0] for path in paths]
    assert not worker.seen


def test_an_endpoint_that_comes_leaves_and_changes_its_type(lb, worker):
    def answered():
        return lb.shown("/v2/ep/openai/v1/models")["worker"]

    with WebWorker("api", port=lb.api_port).serving():
        keys = {"*": {digest_of(KEY)}}
        lb.balancer.apply(FrontState(queues={"ep"}, keys=keys))
        assert answered() == "api"
        for _ in range(2):
            lb.apply(worker.server())
            assert answered() == "w1"
            lb.balancer.apply(FrontState(queues={"ep"}, keys=keys))
            assert answered() == "api"
        lb.balancer.apply(FrontState(keys=keys))
        assert answered() == "api"


def test_a_host_name_of_an_endpoint_counts_before_the_path(lb, worker):
    with WebWorker("w2").serving() as other:
        routes = {
            name: Route(name, Balancing(), (each.server(),))
            for name, each in (("ep", worker), ("other", other))
        }
        lb.balancer.apply(FrontState(routes, keys={"*": {digest_of(KEY)}}))
        answer = ask(lb, headers={"Host": "other.localhost"}).json()
        assert (answer["worker"], answer["path"]) == ("w2", "/v2/ep/openai/v1/models")


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ("", 401, "no token provided"),
        ("Bearer wrong", 401, "invalid api key"),
        ("Bearer key-of-other", 401, "invalid api key"),
        (f"Bearer {KEY}", 200, None),
    ],
)
def test_the_key_opens_as_below_lb(lb, worker, given, status, message):
    lb.apply(worker.server())
    answer = ask(lb, headers={"Authorization": given})
    assert answer.status_code == status
    if message is not None:
        assert not worker.seen
        assert answer.json() == {
            "error": {
                "message": message,
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }
        }
        assert answer.headers["Content-Type"] == "application/json"


def test_a_page_of_another_site_is_refused_while_no_key_is_needed(lb, worker):
    lb.apply(worker.server(), keys=False)
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        answer = ask(lb, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
    assert not worker.seen
    assert ask(lb, headers={"Origin": f"http://127.0.0.1:{lb.port}"}).ok


@pytest.mark.parametrize("code", [200, 404, 422, 429, 500, 503])
def test_status_and_body_of_the_worker_pass(lb, worker, code):
    lb.apply(worker.server())
    answer = ask(lb, f"/status/{code}", "POST")
    assert (answer.status_code, answer.text) == (code, "from the worker")
    assert answer.headers["X-Runpod-Worker-Id"] == "w1"
    assert "X-Should-Retry" not in answer.headers


def test_affinity_works_here_too(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(), two.server())
        for name in ("w1", "w2", "w1", "w1"):
            for want in (name, f"strict {name}"):
                answer = ask(lb, headers={"X-Runpod-Worker-Id": want})
                assert answer.json()["worker"] == answer.headers["X-Runpod-Worker-Id"] == name
        gone = ask(lb, headers={"X-Runpod-Worker-Id": "strict w9"})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "affinity_worker_gone")
        assert gone.json()["error"]["type"] == "not_found_error"


def test_requests_are_held_and_counted_until_a_worker_is_ready(lb, worker):
    lb.apply()
    answers = []
    held = [
        threading.Thread(target=lambda: answers.append(ask(lb, "/echo", "POST", data=b"x" * 9999)))
        for _ in range(5)
    ]
    for each in held:
        each.start()
    wait_until(lambda: lb.reading().waiting == 5)
    lb.apply(worker.server())
    for each in held:
        each.join(100)
    assert [answer.json()["path"] for answer in answers] == ["/echo"] * 5
    wait_until(lambda: lb.reading().requests == 0)
    assert lb.reading().total == 5


def test_events_pass_at_once_and_a_client_that_leaves_is_seen_by_the_worker(lb, worker):
    lb.apply(worker.server())
    with ask(lb, "/events", stream=True) as events:
        assert next(events.iter_lines()) == b"data: first"
    worker.let_go()
    wait_until(lambda: worker.running == 0)
    worker.release.clear()
    with socket.create_connection(("127.0.0.1", lb.port), 10) as client:
        client.sendall(
            f"GET /v2/ep/openai/hold HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\n\r\n".encode()
        )
        wait_until(lambda: worker.running == 1)
    wait_until(lambda: worker.aborted == 1)


def test_a_websocket_passes(lb, worker):
    lb.apply(worker.server())
    at = url(lb, "/v1/realtime").replace("http:", "ws:")
    with connect(at, additional_headers={"Authorization": KEY}) as ws:
        ws.send("x")
        assert ws.recv() == "w1: x"


def error(status, message, code=None):
    return status, json.loads(error_body(status, message, code=code))


@pytest.mark.parametrize("capacity", [0, 1])
def test_no_worker_in_time_has_openais_clients_try_again(tmp_path, worker, capacity):
    with front(tmp_path / "front", holds=(1,)) as lb:
        servers = [worker.server(capacity=1)] if capacity else []
        lb.apply(*servers, hold_s=1, **({"capacity": 1} if capacity else {}))
        busy = lb.background("/hold") if capacity else None
        wait_until(lambda: worker.running == capacity)
        answer = ask(lb)
        assert (answer.status_code, answer.json()) == error(503, "timed out waiting for worker")
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Retry-After"] == "5"
        assert "X-Should-Retry" not in answer.headers
        # The same endpoint under its other address answers as RunPod does.
        assert capacity or lb.get().status_code == 400
        worker.let_go()
        assert busy is None or busy.answer().ok


def test_a_request_that_a_worker_has_begun_is_not_repeated_by_the_client(lb, worker):
    lb.apply(worker.server(), limit_s=1)
    late = ask(lb, "/hold", "POST", data=b"x")
    assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
    assert late.headers["X-Should-Retry"] == "false"
    other = lb.get("/hold")
    assert (other.status_code, other.headers["Content-Type"]) == (524, "application/problem+json")
    assert "X-Should-Retry" not in other.headers
    with broken() as port:
        lb.apply(Server("w2", "127.0.0.1", port))
        cut = ask(lb, "/v1/chat/completions", "POST", data=b"x")
        assert (cut.status_code, cut.json()) == error(
            502, "the connection ended before the response"
        )
        assert cut.headers["X-Should-Retry"] == "false"
        cut = lb.get("/x", method="POST", data=b"x")
        assert cut.status_code == 502
        assert cut.json() == {
            "status": 502,
            "title": "Bad Gateway",
            "detail": "the connection ended before the response",
            "error": "the connection ended before the response",
        }


@contextlib.contextmanager
def broken():
    """A server that is healthy, and closes the connection of each other request after it has read it."""

    def serve(connection):
        # A check that HAProxy has given up ends its connection only.
        with connection, contextlib.suppress(OSError):
            data = connection.recv(65536)
            if data.startswith(b"GET /ping"):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def accept():
        with contextlib.suppress(OSError):
            while True:
                serve(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_bodies_above_the_limit_are_refused(lb, worker):
    lb.apply(worker.server(), body_mb=1)
    mib = b"x" * 1024 * 1024
    assert ask(lb, "/upload", "POST", data=mib).text == str(len(mib))
    large = (413, "the body is larger than this endpoint accepts")
    above = ask(lb, "/upload", "POST", data=mib + b"x")
    assert (above.status_code, above.json()) == error(*large)
    assert ask(lb, "/upload", "POST", data=iter([mib])).text == str(len(mib))
    with contextlib.suppress(requests.ConnectionError):
        # The client may not read the answer, because it still sends.
        cut = ask(lb, "/upload", "POST", data=iter([mib] * 4))
        assert (cut.status_code, cut.json()) == error(*large)
        assert cut.headers["Content-Type"] == "application/json"


def test_errors_of_a_body_without_a_length_have_the_shape_too(tmp_path, worker):
    with front(tmp_path / "front", holds=(1,)) as lb:
        lb.apply(worker.server(), hold_s=1)
        assert ask(lb, "/x", "POST", data=iter([b"a"])).json()["path"] == "/x"
        lb.apply(worker.server(), hold_s=1, limit_s=1)
        late = ask(lb, "/hold", "POST", data=iter([b"a"]))
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
        lb.apply(hold_s=1)
        none = ask(lb, "/x", "POST", data=iter([b"a"]))
        assert (none.status_code, none.json()) == error(503, "timed out waiting for worker")


def test_an_endpoint_that_is_paused_or_has_no_backend_says_why(tmp_path, worker):
    with front(tmp_path / "front", pool=1) as lb:
        route = Route("a", Balancing(), (worker.server(),), paused='it is "off"')
        lb.balancer.apply(FrontState({"a": route, "b": Route("b")}, keys=None))
        paused = ask(lb, endpoint="a")
        assert (paused.status_code, paused.json()) == error(400, 'it is "off"')
        left = ask(lb, endpoint="b")
        assert (left.status_code, left.json()) == error(
            503, "the front has room for 1 load-balanced endpoints"
        )


def test_a_front_passes_to_the_home_front(lb, tmp_path, worker):
    with front(tmp_path / "home") as home:

        def state(*servers, **changes):
            limits = Balancing(capacity=1, **changes)
            return FrontState(
                {"ep": Route("ep", limits, servers)},
                keys={"*": {digest_of(KEY)}},
                secret="between-fronts",
            )

        passed = Server("front-home", "127.0.0.1", home.port, is_front=True)
        home.balancer.apply(state(worker.server(capacity=1)))
        lb.balancer.apply(state(passed))
        shown = ask(lb, "/v1/models?a=b").json()
        headers = dict(shown["headers"])
        assert (shown["path"], shown["query"]) == ("/v1/models", "a=b")
        assert headers["x-forwarded-prefix"] == "/v2/ep/openai"
        assert not {name for name in headers if "ownpod" in name}
        home.balancer.apply(state(worker.server(capacity=1), limit_s=1))
        lb.balancer.apply(state(passed, limit_s=1))
        late = ask(lb, "/hold")
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
        assert late.headers["X-Should-Retry"] == "false"
        gone = ask(lb, headers={"X-Runpod-Worker-Id": "strict w9"})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "affinity_worker_gone")
        assert lb.get("/hold").status_code == 524
