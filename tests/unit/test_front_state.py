"""What a front should have, and what it reports."""

from dataclasses import replace

import pytest
from helpers import worker_spec

from ownpod.rules import fronts
from ownpod.rules.balancing import Balancing, Route, RouteReading, Server, ServerReading
from ownpod.rules.credentials import Credential, digest_of
from ownpod.rules.endpoints import Endpoint, WorkerKind, WorkerSource
from ownpod.rules.fleet import WorkerState
from ownpod.rules.fronts import (
    FRONT,
    Totals,
    View,
    completed,
    keys_of,
    lost_of,
    pauses_of,
    reported,
    server_of,
    state_of,
    status_of,
    summed,
    targets,
)
from ownpod.rules.homes import Front
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.rules.probing import HEALTHY, UNASKED, Verdict
from ownpod.rules.templates import ManagedSpec, Scaling, Template
from ownpod.store.fronts import dumped, loaded

PLAIN, UNUSED = Balancing(), ServerReading()
ME, OTHER = Front("me", "h:1"), Front("other", "10.0.0.9:8000")


def worker(name="w", url="http://10.0.0.5:8000", *, capacity=0, **changes):
    changes = {"kind": WorkerKind.HTTP, **changes}
    return worker_spec(url, capacity=capacity, id=name, **changes)


def endpoint(*workers, name="ep", balancing=PLAIN, keys=()):
    return Endpoint(name, workers, 1, 1, 1, 0, api_keys=keys, balancing=balancing)


def view(*endpoints, **changes):
    return View(endpoints={e.id: e for e in endpoints}, **changes)


def servers(found, name="ep"):
    return {server.id: server for server in found.routes[name].servers}


def test_a_worker_is_a_server_once_it_was_healthy():
    seen = view(endpoint(worker("a"), worker("b", "http://10.0.0.6:8000")))
    found = state_of(seen, ME, {"a": HEALTHY, "b": Verdict(starting=True)})
    assert servers(found) == {"a": Server("a", "10.0.0.5", 8000)}


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("http://gpu", "gpu", 80, False),
        ("https://gpu", "gpu", 443, True),
        ("http://[fd00::1]:81", "fd00::1", 81, False),
    ],
)
def test_a_server_is_made_of_the_workers_url(url, host, port, tls):
    found = server_of(worker(url=url))
    assert (found.host, found.port, found.tls) == (host, port, tls)


def test_a_worker_whose_url_cannot_be_used_is_left_out_and_stops_no_other():
    seen = view(endpoint(worker("a", "http://h:99999"), worker("b")))
    assert set(servers(state_of(seen, ME, {"a": HEALTHY, "b": HEALTHY}))) == {"b"}
    assert set(targets(seen, ME)) == {"b"}


def test_the_health_check_has_the_workers_port_and_the_endpoints_path():
    balancing = Balancing(health_path="/healthz")
    found = targets(view(endpoint(worker(health_port=9000), balancing=balancing)), ME)["w"]
    assert (found.port, found.server.port, found.path) == (9000, 8000, "/healthz")
    assert targets(view(endpoint(worker(health_port=8000))), ME)["w"].server.health_port is None


def test_a_paused_endpoint_has_the_words_of_a_paused_queue():
    spec = ManagedSpec(Template(image="i:1"), Scaling(workers_max=0))
    endpoints = [replace(endpoint(), managed=spec), endpoint(name="other")]
    found = pauses_of(endpoints, 0)
    assert list(found) == ["ep"]
    assert found["ep"].startswith("Endpoint is paused (max_workers=0).")
    assert state_of(view(*endpoints, paused_endpoints=found), ME, {}).routes["ep"].paused


@pytest.mark.parametrize(("changes", "paused"), [({"draining": True}, {}), ({}, {"w": "why"})])
def test_a_worker_that_leaves_or_is_paused_drains(changes, paused):
    seen = view(endpoint(worker(**changes)), paused=paused)
    assert servers(state_of(seen, ME, {"w": HEALTHY}))["w"].draining


def test_a_worker_that_is_stopped_gets_no_request_at_all():
    seen = view(endpoint(worker(draining=True, stopping=True)))
    assert servers(state_of(seen, ME, {"w": HEALTHY})) == {}


def test_a_drain_does_not_begin_the_health_check_again():
    assert targets(view(endpoint(worker())), ME) == targets(
        view(endpoint(worker(draining=True))), ME
    )


def test_an_endpoint_with_a_limit_is_passed_on_to_its_home():
    # Which of the two is the home depends on the name only.
    names = [f"ep-{n}" for n in range(20)]
    limited = [
        endpoint(
            worker(f"w-{n}", f"http://h-{n}", capacity=1), name=n, balancing=Balancing(capacity=1)
        )
        for n in names
    ]
    seen = view(*limited, fronts=(ME, OTHER))
    found = state_of(seen, ME, {f"w-{n}": HEALTHY for n in names})
    mine = {n for n in names if f"w-{n}" in servers(found, n)}
    passed = {n for n in names if servers(found, n).get(f"{FRONT}other")}
    assert mine
    assert passed
    assert mine | passed == set(names)
    assert mine == {target.removeprefix("w-") for target in targets(seen, ME)}
    other = servers(found, next(iter(passed)))[f"{FRONT}other"]
    assert (other.host, other.port, other.is_front) == ("10.0.0.9", 8000, True)


def test_a_new_home_leaves_the_places_that_another_front_still_uses():
    limited = endpoint(worker(capacity=2), balancing=Balancing(capacity=2))
    ready = {"w": HEALTHY}
    one = servers(state_of(view(limited, elsewhere={"w": 1}), ME, ready))["w"]
    assert (one.capacity, one.draining) == (1, False)
    assert servers(state_of(view(limited, elsewhere={"w": 2}), ME, ready))["w"].draining


def test_a_new_home_waits_while_the_one_before_still_sends():
    limited = endpoint(worker(capacity=1), balancing=Balancing(capacity=1))
    seen = view(limited, claimed=frozenset({"ep"}))
    assert not servers(state_of(seen, ME, {"w": HEALTHY}))


def test_keys_open_what_they_are_for():
    mine, queue = Credential(digest_of("a")), Credential(digest_of("b"))
    endpoints = [endpoint(keys=(mine,)), replace(endpoint(name="q", keys=(queue,)), balancing=None)]
    every = Credential(digest_of("c"))
    found = keys_of(endpoints, [every], needed=True)
    assert found == {"*": {every.digest}, "ep": {mine.digest}}
    assert keys_of(endpoints, [every], needed=False) is None
    assert digest_of("a") not in repr(state_of(view(keys=found), ME, {}))


def test_requests_that_are_passed_on_are_counted_by_the_home_only():
    of_worker = view(endpoint(worker()))
    state = state_of(of_worker, ME, {"w": HEALTHY})
    passing = replace(
        state, routes={"ep": Route("ep", servers=(Server("front-other", "h", 1, is_front=True),))}
    )
    reading = RouteReading(requests=2, servers={"front-other": ServerReading(open=3)})
    found = reported({"ep": reading}, passing, of_worker)["ep"]
    assert (found.requests, found.waiting, found.passes) == (2, 2, True)
    assert found.servers == {"w": ABSENT}
    # What waited before the home has moved is still sent to the worker from here.
    for waiting in (0, 1):
        left = {"front-other": ServerReading(open=3), "w": ServerReading(open=1)}
        reading = RouteReading(requests=1 + waiting, servers=left)
        found = reported({"ep": reading}, passing, of_worker)["ep"]
        assert found.servers["w"].draining is (not waiting)


def test_a_server_that_was_removed_and_still_has_requests_is_reported_as_draining():
    of_worker = view(endpoint(worker("b")))
    state = state_of(of_worker, ME, {"b": HEALTHY})
    reading = RouteReading(requests=1, servers={"a": ServerReading(open=1)})
    found = reported({"ep": reading, "gone": reading}, state, of_worker)
    assert list(found) == ["ep"]
    assert found["ep"].servers["a"].draining
    assert not found["ep"].servers["b"].draining


ABSENT = ServerReading(up=False, draining=True)
"""A worker that HAProxy does not have, and that drains."""


def test_a_worker_that_haproxy_does_not_have_is_reported_with_whether_it_drains():
    workers = (worker("a"), replace(worker("b"), draining=True), worker("c"))
    paused = view(endpoint(*workers), paused={"a": "why"})
    state = state_of(paused, ME, {})
    for readings in ({}, {"ep": RouteReading()}):
        found = reported(readings, state, paused)["ep"].servers
        assert found == {"a": ABSENT, "b": ABSENT, "c": replace(ABSENT, draining=False)}
    # One that is there is as it was read.
    opened = {"ep": RouteReading(servers={"a": ServerReading(open=1)})}
    assert reported(opened, state, paused)["ep"].servers["a"] == ServerReading(1, draining=True)


def test_readings_are_completed_with_workers_that_haproxy_may_have_got_since():
    newer = view(endpoint(worker("a"), worker("b")))
    read = ServerReading(1, draining=True)
    for passes in (True, False):
        reading = RouteReading(servers={"a": read}, passes=passes)
        found = completed({"ep": reading, "gone": reading}, newer)
        assert found["ep"].servers == {"a": read, "b": replace(ABSENT, draining=passes)}
        assert found["gone"] == reading


def test_a_worker_that_haproxy_drains_for_other_reasons_may_get_requests_again():
    workers = (worker("full", capacity=1), worker("down"))
    limited = view(endpoint(*workers), elsewhere={"full": 1})
    state = state_of(limited, ME, {"full": HEALTHY})
    assert servers(state)["full"].draining
    read = {"ep": RouteReading(servers=dict.fromkeys(("full", "down"), ServerReading()))}
    found = reported(read, state, limited)["ep"].servers
    assert not any(server.draining for server in found.values())


def test_readings_of_fronts_are_summed():
    a = {"ep": RouteReading(3, {"w": ServerReading(1, total=5, up=False, problem="x")}, ("u",), 7)}
    b = {"ep": RouteReading(1, {"w": ServerReading(1, total=2), "v": ServerReading()}, ("t",), 1)}
    found = summed([a, b])["ep"]
    assert (found.requests, found.total, found.wishes, found.waiting) == (4, 8, ("t", "u"), 2)
    assert found.servers["w"] == ServerReading(2, total=7, up=True, problem="x")
    assert found.servers["v"] == ServerReading()


def test_a_worker_drains_if_each_front_that_knows_it_drains_it():
    for one, other, both in ((True, True, True), (True, False, False), (True, None, True)):
        a, b = (
            {
                "ep": RouteReading(
                    servers={} if drains is None else {"w": ServerReading(draining=drains)}
                )
            }
            for drains in (one, other)
        )
        for readings in ([a, b], [b, a], [a, b, {}]):
            assert summed(readings)["ep"].servers["w"].draining is both


def test_readings_come_back_from_their_text():
    given = {
        "ep": RouteReading(
            3, {"w": ServerReading(1, 2, 3, up=False, problem="p")}, ("a",), 7, passes=True
        )
    }
    assert loaded(dumped(given)) == given


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "1", '{"ep":1}', '{"ep":[]}', "[" * 5000),
        *('{"ep":[-1,0,0,[],{}]}', '{"ep":["1",0,0,[],{}]}', '{"ep":[1,0,0,[],{"w":[1]}]}'),
    ],
)
def test_a_text_that_is_no_reading_counts_as_none(text):
    assert loaded(text) == {}


def status(verdict=HEALTHY, reading=UNUSED, *, used=False, paused=(), **changes):
    return status_of(
        worker(**changes), paused=dict(paused), verdict=verdict, reading=reading, was_used=used
    )


def test_a_ready_worker_has_its_open_requests_as_lingering():
    assert (status().state, status().lingering) == (WorkerState.READY, 0)
    assert status(reading=ServerReading(open=3)).lingering == 3
    assert status(used=True).lingering == 1


def test_a_worker_of_a_url_is_unhealthy_until_it_answers_and_initializing_while_it_starts():
    assert status(UNASKED).state is WorkerState.INITIALIZING
    found = status(Verdict(reason="connection refused"))
    assert (found.state, found.reason) == (WorkerState.UNHEALTHY, "connection refused")
    assert status(Verdict(starting=True, reason="204")).state is WorkerState.INITIALIZING


def test_a_managed_worker_initializes_until_its_first_200_and_is_unhealthy_later():
    refused, lost = Verdict(reason="refused"), Verdict(reason="refused", lost=True)
    assert status(refused, source=WorkerSource.MANAGED).state is WorkerState.INITIALIZING
    assert status(lost, source=WorkerSource.MANAGED).state is WorkerState.UNHEALTHY


def test_a_drained_worker_is_free_only_when_all_fronts_drain_it():
    free = status(reading=ServerReading(draining=True), draining=True)
    assert (free.state, free.lingering) == (WorkerState.PAUSED, 0)
    assert status(reading=ServerReading(), draining=True).lingering == 1
    assert status(reading=ServerReading(2, draining=True), paused={"w": "x"}).lingering == 2


def test_totals_go_on_when_haproxy_restarts():
    totals = Totals()

    def total(whole, part):
        found = totals.grow({"ep": RouteReading(0, {"w": ServerReading(total=part)}, (), whole)})
        return found["ep"].total, found["ep"].servers["w"].total

    assert total(5, 3) == (5, 3)
    assert total(1, 0) == (6, 3)
    assert total(2, 1) == (7, 4)
    assert total(0, 0) == (7, 4)


def test_the_total_of_a_worker_that_was_away_goes_on_and_those_of_many_are_not_kept(monkeypatch):
    monkeypatch.setattr(fronts, "KEPT_TOTALS", 2)
    totals = Totals()

    def total(name, part):
        found = totals.grow({"ep": RouteReading(0, {name: ServerReading(total=part)})})
        return found["ep"].servers[name].total

    assert total("w", 3) == 3
    assert total("x", 1) == 1
    assert total("w", 1) == 4
    assert [total(name, 1) for name in ("a", "b", "c")] == [1, 1, 1]
    assert total("w", 1) == 1


STOPPED = ManagedWorker("m", "ep", "r1", Phase.STOPPED, 1, ready_ms=5, stopped_ms=9)


@pytest.mark.parametrize(
    ("changes", "release", "lost"),
    [
        ({}, "r1", False),
        ({}, None, False),
        ({}, "r2", True),
        ({"endpoint": "other"}, "r1", True),
        ({"ready_ms": None}, "r1", True),
        ({"failed": True}, "r1", True),
        ({"ended_in": "ready"}, None, True),
        # One that runs, or will, is waited for, whatever its release is.
        ({"phase": Phase.WANTED, "ready_ms": None}, "r2", False),
        ({"phase": Phase.DRAINING}, "r2", False),
        ({"phase": Phase.READY, "endpoint": "other"}, "r1", True),
    ],
)
def test_which_wished_workers_cannot_come_back(changes, release, lost):
    records = {"m": replace(STOPPED, **changes)}
    found = lost_of(endpoint(worker("listed")), ("m", "listed", "never"), records, release)
    assert found == {"never", *(["m"] if lost else [])}
