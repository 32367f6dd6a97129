"""The real HAProxy between clients and small workers: addresses, keys, limits, affinity, drains."""

import contextlib
import hashlib
import json
import time

import pytest
import requests
from helpers import wait_until
from web_worker import KEY, WebWorker, front
from websockets.sync.client import connect

from ownpod.rules.balancing import Balancing, FrontState, Route, Server
from ownpod.rules.credentials import digest_of

pytestmark = pytest.mark.slow


def header(shown, name):
    return [value for key, value in shown["headers"] if key == name]


def test_both_addresses_reach_the_worker_with_path_and_query_unchanged(lb, worker):
    lb.apply(worker.server())
    by_path = lb.shown("/lb/ep/a%2Fb//c/./d/../e?x=1&y=%20z")
    assert (by_path["path"], by_path["query"]) == ("/a%2Fb//c/./d/../e", "x=1&y=%20z")
    assert header(by_path, "x-forwarded-prefix") == ["/lb/ep"]
    for host in ("ep.localhost", "EP.LocalHost:1234", "ep.localhost."):
        headers = {"Host": host, "Authorization": f"bearer {KEY}"}
        by_host = requests.get(
            f"http://127.0.0.1:{lb.port}/lb/ep/x?q", headers=headers, timeout=60
        ).json()
        assert (by_host["path"], by_host["query"]) == ("/lb/ep/x", "q")
        assert header(by_host, "x-forwarded-prefix") == []
        assert header(by_host, "x-forwarded-host") == [host]
        assert header(by_host, "x-forwarded-proto") == ["http"]
        assert header(by_host, "x-forwarded-for") == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("path", "got"), [("", "/"), ("/", "/"), ("?a=b", "/"), ("//", "//"), ("/..", "/..")]
)
def test_the_prefix_alone_is_the_workers_root(lb, worker, path, got):
    lb.apply(worker.server())
    assert lb.shown(f"/lb/ep{path}")["path"] == got


def test_a_name_is_case_sensitive_in_the_path_and_not_in_the_host(lb, worker):
    route = Route("Ep-X", Balancing(), (worker.server(),))
    lb.balancer.apply(FrontState(routes={"Ep-X": route}, keys={"*": {digest_of(KEY)}}))
    head = {"Authorization": KEY}
    assert requests.get(lb.url("/echo", "ep-x"), headers=head, timeout=60).status_code == 404
    assert requests.get(lb.url("/echo", "Ep-X"), headers=head, timeout=60).ok
    head["Host"] = "ep-x.localhost"
    assert requests.get(f"http://127.0.0.1:{lb.port}/echo", headers=head, timeout=60).ok


@pytest.mark.parametrize(
    ("given", "status", "detail"),
    [
        (None, 401, "no token provided"),
        ("", 401, "no token provided"),
        ("Bearer wrong", 401, "invalid api key"),
        ("Bearer key-of-other", 401, "invalid api key"),
        (hashlib.sha256(KEY.encode()).hexdigest().upper(), 401, "invalid api key"),
        (f"Bearer {KEY}", 200, None),
        (f"bEARER  {KEY} ", 200, None),
        (KEY, 200, None),
    ],
)
def test_the_key_opens_and_is_consumed(lb, worker, given, status, detail):
    lb.apply(worker.server())
    headers = {} if given is None else {"Authorization": given}
    answer = requests.get(lb.url("/echo"), headers=headers, timeout=60)
    assert answer.status_code == status
    if detail is not None:
        title = "Unauthorized"
        assert answer.json() == {"status": 401, "title": title, "detail": detail}
        assert not worker.seen
    else:
        assert not header(answer.json(), "authorization")


def test_keys_of_one_endpoint_and_a_revoked_one(lb, worker):
    routes = {name: Route(name, Balancing(), (worker.server(),)) for name in ("a", "b")}
    one, two = digest_of("one"), digest_of("two")
    lb.balancer.apply(FrontState(routes=routes, keys={"a": {one}, "b": {two}}))

    def status(endpoint, key):
        headers = {"Authorization": key}
        return requests.get(lb.url("/echo", endpoint), headers=headers, timeout=60).status_code

    assert [status("a", "one"), status("a", "two"), status("b", "two"), status("none", "one")] == [
        200,
        401,
        200,
        401,
    ]
    lb.balancer.apply(FrontState(routes=routes, keys={"b": {two}}))
    assert status("a", "one") == 401
    lb.balancer.apply(FrontState(routes=routes, keys={}))
    assert status("b", "two") == 401


def test_a_worker_gets_authorization_where_the_endpoint_passes_it(lb, worker):
    lb.apply(worker.server(), passes_authorization=True)
    assert header(lb.get().json(), "authorization") == [f"Bearer {KEY}"]


def test_while_no_key_is_needed_pages_of_other_sites_are_refused(lb, worker):
    state = lb.apply(worker.server(), keys=False)
    lb.balancer.apply(
        FrontState(
            routes=state.routes,
            hosts={"ownpod.example.com"},
            origins={"https://Page.example", r"https://.*\.ours\.example"},
        )
    )
    here = f"127.0.0.1:{lb.port}"

    def status(**headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(lb.url("/echo"), headers=named, timeout=60).status_code

    for host in (
        here,
        "localhost",
        "desk",
        "ownpod.example.com:80",
        "ep.localhost",
        "host.docker.internal",
        "[::1]:80",
    ):
        assert status(Host=host) == 200, host
    for host in (
        "evil.example",
        "evil.example:8000",
        "1.2.3.4.evil.example",
        "a.localhost.evil.example",
    ):
        assert status(Host=host) == 403, host
    for origin in (f"http://{here}", "https://page.example", "https://a.ours.example"):
        assert status(Origin=origin) == 200, origin
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{lb.port + 1}",
        "https://ours.example.evil",
        "",
    ):
        assert status(Origin=origin) == 403, origin
    assert status(Host="desk", Origin="http://desk:80") == 200
    assert status(Sec_Fetch_Site="cross-site") == 403
    assert status(Sec_Fetch_Site="same-site") == 403
    assert status(Sec_Fetch_Site="none") == 200
    assert status(Sec_Fetch_Site="same-origin", Origin="http://proxy.example") == 200
    # A worker may have keys of its own then.
    shown = requests.get(
        lb.url("/echo"), headers={"Authorization": "Bearer own"}, timeout=60
    ).json()
    assert header(shown, "authorization") == ["Bearer own"]


def test_unknown_endpoints_and_queues_are_answered_as_runpod_does(lb, worker):
    lb.apply(worker.server())
    head = {"Authorization": KEY}
    unknown = requests.get(lb.url("/", "nope"), headers=head, timeout=60)
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "endpoint not found"
    for url, host in (
        (lb.url("/", "queue"), "x"),
        (f"http://127.0.0.1:{lb.port}/", "queue.localhost"),
    ):
        queue = requests.get(url, headers=head | {"Host": host}, timeout=60)
        assert (queue.status_code, queue.json()) == (400, {"error": "not allowed for QB API"})
    for path in (
        "/lb/",
        "/lb//x",
        "/lb/../v2/ep/health",
        "/lb/%65p/x",
        "/lb/ep%2f..",
        "/lb/e/p",
        "/lb/ep;x/y",
    ):
        raw = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\nConnection: close\r\n\r\n"
        assert lb.raw(raw.encode()).startswith(b"HTTP/1.1 404"), path
    assert not worker.seen


def test_a_paused_endpoint_answers_with_its_reason(lb, worker):
    route = Route("ep", Balancing(), (worker.server(),), paused='off until "08:00"; see %[x] \\ ü')
    lb.balancer.apply(FrontState(routes={"ep": route}, keys={"*": {digest_of(KEY)}}))
    answer = lb.get()
    assert (answer.status_code, answer.json()["detail"]) == (400, route.paused)


@pytest.mark.parametrize("code", [200, 204, 404, 422, 429, 500, 503, 504])
def test_status_and_body_of_the_worker_pass(lb, worker, code):
    lb.apply(worker.server())
    answer = lb.get(f"/status/{code}", method="POST", data=b"x")
    assert answer.status_code == code
    assert answer.headers["X-Runpod-Worker-Id"] == "w1"
    if code != 204:
        assert answer.text == "from the worker"


def test_headers_of_the_platform_come_from_the_front_only(lb, worker):
    lb.apply(worker.server())
    answer = lb.get(
        headers={
            "X-Runpod-Worker-Id": "w1",
            "X-Runpod-Job": "forged",
            "X_Runpod_Job": "forged",
            "X-Ownpod-Front": "forged",
            "X-Ownpod-Endpoint": "other",
            "X-Forwarded-For": "6.6.6.6",
            "X_Forwarded_For": "6.6.6.6",
            "X-Forwarded-Prefix": "/forged",
            "X-Forwarded-Anything": "forged",
            "Forwarded": "for=6.6.6.6",
            "X-Mine": "kept",
        }
    )
    shown = answer.json()
    text = json.dumps(shown)
    assert "forged" not in text
    assert "6.6.6.6" not in text
    assert header(shown, "x-mine") == ["kept"]
    assert header(shown, "x-runpod-worker-id") == []
    assert answer.headers["X-Runpod-Worker-Id"] == "w1"


def test_a_trusted_proxys_headers_are_kept(tmp_path, worker):
    with front(tmp_path / "front", trusted_proxies=1) as lb:
        lb.apply(worker.server())
        shown = lb.get(headers={"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https"}).json()
        assert header(shown, "x-forwarded-for") == ["1.2.3.4", "127.0.0.1"]
        assert header(shown, "x-forwarded-proto") == ["https"]


def test_the_body_limit(lb, worker):
    lb.apply(worker.server(), body_mb=1)
    mib = b"x" * 1024 * 1024
    assert lb.get("/upload", method="POST", data=mib).text == str(len(mib))
    above = lb.get("/upload", method="POST", data=mib + b"x")
    assert above.status_code == 413
    assert above.json()["title"] == "Payload Too Large"
    assert worker.seen == ["POST /upload"]


def test_a_chunked_body_above_the_limit_is_cut(lb, worker):
    lb.apply(worker.server(), body_mb=1)

    def parts(count):
        for _ in range(count):
            yield b"x" * 65536

    assert lb.get("/upload", method="POST", data=parts(16)).text == str(1024 * 1024)
    # The client may not read the answer, because it still sends.
    with contextlib.suppress(requests.ConnectionError):
        assert lb.get("/upload", method="POST", data=parts(64)).status_code == 413
    wait_until(lambda: worker.running == 0, what="the worker's request has ended")
    assert lb.get().ok


def test_a_chunked_request_is_like_any_other_beside_its_limit(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(), two.server())
        for name in ("w1", "w2", "w1"):
            given = {
                "X-Runpod-Worker-Id": f"strict {name}",
                "X-Ownpod-Counted-Be": "p001",
                "X-Ownpod-Counted-Pin": "w9",
            }
            answer = lb.get("/x?a=1", method="POST", data=iter([b"hel", b"lo"]), headers=given)
            assert answer.headers["X-Runpod-Worker-Id"] == name
            shown = answer.json()
            assert "ownpod" not in json.dumps(shown).lower()
            assert header(shown, "x-forwarded-prefix") == ["/lb/ep"]
        gone = {"X-Runpod-Worker-Id": "strict w9"}
        assert lb.get(method="POST", data=iter([b"x"]), headers=gone).status_code == 404


def test_thirty_megabytes_pass_in_both_directions(lb, worker):
    lb.apply(worker.server())
    size = 30 * 1024 * 1024
    assert lb.get("/upload", method="POST", data=b"x" * size).text == str(size)


def test_soft_and_strict_affinity(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(capacity=1), two.server(capacity=1))

        def served(want):
            return lb.get(headers={"X-Runpod-Worker-Id": want} if want else {})

        for name in ("w1", "w2", "w1"):
            assert served(name).json()["worker"] == name
            assert served(f"strict {name}").json()["worker"] == name
            assert served(f"STRICT-RESUME  {name}").json()["worker"] == name
        assert served("gone").ok
        assert served("strict with more words").ok
        gone = served("strict gone")
        assert (gone.status_code, gone.json()["reason"]) == (404, "affinity_worker_gone")

        busy = lb.background("/hold", headers={"X-Runpod-Worker-Id": "strict w1"})
        wait_until(lambda: one.running == 1)
        assert served("w1").json()["worker"] == "w2"
        waiting = lb.background("/echo", headers={"X-Runpod-Worker-Id": "strict w1"})
        wait_until(lambda: lb.reading().waiting == 1)
        assert not waiting.done
        one.let_go()
        assert waiting.answer().json()["worker"] == "w1"
        assert busy.answer().text == "w1"
        assert one.most == two.most == 1


def test_soft_affinity_without_a_limit(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(), two.server())
        held = [lb.background("/hold", headers={"X-Runpod-Worker-Id": "w2"}) for _ in range(3)]
        wait_until(lambda: two.running == 3)
        assert one.running == 0
        two.let_go()
        assert {each.answer().text for each in held} == {"w2"}


def test_a_worker_that_drains_gets_strict_requests_only(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(), two.server())
        headers = {"Authorization": f"Bearer {KEY}", "X-Runpod-Worker-Id": "strict w1"}
        with connect(f"ws://127.0.0.1:{lb.port}/lb/ep/ws", additional_headers=headers) as ws:
            assert ws.response.headers["X-Runpod-Worker-Id"] == "w1"
            ws.send("a")
            assert ws.recv() == "w1: a"
            lb.apply(one.server(draining=True), two.server())
            for want in ("", "w1", "w2"):
                assert lb.get(headers={"X-Runpod-Worker-Id": want}).json()["worker"] == "w2"
            assert lb.get(headers={"X-Runpod-Worker-Id": "strict w1"}).json()["worker"] == "w1"
            wait_until(lambda: lb.reading().servers["w1"].open == 1)
            lb.apply(two.server())
            ws.send("b")
            assert ws.recv() == "w1: b"
            gone = lb.get(headers={"X-Runpod-Worker-Id": "strict w1"})
            assert gone.status_code == 404
            wait_until(lambda: lb.reading().servers["w1"].open == 1)
        state = lb.apply(two.server())

        def removed():
            lb.balancer.apply(state)
            return set(lb.reading().servers) == {"w2"}

        wait_until(removed, what="the server is removed once its WebSocket has closed")
        lb.apply(one.server(), two.server())
        assert lb.get(headers={"X-Runpod-Worker-Id": "strict w1"}).json()["worker"] == "w1"


def test_affinity_on_a_websocket_upgrade(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(capacity=1), two.server(capacity=1))
        for want, name in (("w2", "w2"), ("strict w1", "w1"), ("strict w2", "w2")):
            headers = {"Authorization": KEY, "X-Runpod-Worker-Id": want}
            with connect(f"ws://127.0.0.1:{lb.port}/lb/ep/ws", additional_headers=headers) as ws:
                ws.send("x")
                assert ws.recv() == f"{name}: x"


def test_the_processing_limit_ends_a_request_but_no_stream(lb, worker):
    lb.apply(worker.server(), limit_s=1)
    cut = lb.get("/hold")
    assert cut.status_code == 524
    assert cut.json()["status"] == 524
    wait_until(lambda: worker.aborted == 1, what="the worker is notified")
    headers = {"Accept": "text/event-stream"}
    with lb.get("/events", headers=headers, stream=True) as events:
        lines = events.iter_lines()
        assert next(lines) == b"data: first"
        head = {"Authorization": KEY}
        with connect(f"ws://127.0.0.1:{lb.port}/lb/ep/ws", additional_headers=head) as ws:
            time.sleep(2)  # Longer than the limit: that nothing happens cannot be waited for.
            ws.send("x")
            assert ws.recv() == "w1: x"
        worker.let_go()
        assert b"data: last" in list(lines)


def test_the_first_event_of_a_stream_passes_at_once(lb, worker):
    lb.apply(worker.server())
    with lb.get("/events", stream=True) as events:
        lines = events.iter_lines()
        assert next(lines) == b"data: first"
        assert worker.running == 1
        assert lb.reading().requests == lb.reading().running == 1


def test_502_only_when_nothing_answered_and_no_second_worker_gets_the_request(lb):
    with WebWorker("w1").serving() as one:
        dead = WebWorker("dead")
        with dead.serving():
            pass
        lb.apply(dead.server())
        answer = lb.get(method="POST", data=b"x")
        assert answer.status_code in {400, 502, 503}
        assert answer.headers["Retry-After"]
        lb.apply(dead.server(), one.server())
        assert [lb.get().json()["worker"] for _ in range(4)] == ["w1"] * 4


def test_a_server_changes_address_and_capacity_in_place(lb):
    with WebWorker("a").serving() as one, WebWorker("b").serving() as two:
        lb.apply(Server("w", "127.0.0.1", one.port, capacity=1))
        assert lb.get().json()["worker"] == "a"
        lb.apply(Server("w", "localhost", two.port, capacity=3))
        assert lb.get().json()["worker"] == "b"
        held = [lb.background("/hold") for _ in range(4)]
        wait_until(lambda: two.running == 3)
        wait_until(lambda: lb.reading().waiting == 1)
        lb.apply(Server("w", "localhost", two.port))
        wait_until(lambda: two.running == 4, what="without a limit the fourth request runs, too")
        two.let_go()
        assert all(each.answer().ok for each in held)


def test_a_host_without_an_address_and_a_full_pool_are_reported(tmp_path, worker):
    with front(tmp_path / "front", pool=2) as lb:
        routes = {name: Route(name, Balancing(), (worker.server(),)) for name in ("a", "b", "c")}
        routes["a"] = Route("a", Balancing(), (Server("w", "no-such-host.invalid", 80),))
        state = FrontState(routes=routes, keys={"*": {digest_of(KEY)}})
        lb.balancer.apply(state)
        assert set(lb.balancer.problems) == {"a/w", "c"}
        head = {"Authorization": KEY}
        assert requests.get(lb.url("/echo", "b"), headers=head, timeout=60).ok
        assert requests.get(lb.url("/echo", "c"), headers=head, timeout=60).status_code == 503
        left = FrontState({name: routes[name] for name in ("a", "c")}, keys=state.keys)

        def moved():
            lb.balancer.apply(left)
            return "c" not in lb.balancer.problems

        wait_until(moved, what="the backend is given to the next endpoint")
        assert requests.get(lb.url("/echo", "c"), headers=head, timeout=60).ok
