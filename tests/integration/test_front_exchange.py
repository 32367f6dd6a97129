"""Exchanges of a front with a real Redis, one by one and with a clock of the test."""

from dataclasses import replace

import pytest
from helpers import load_settings

from ownpod.front.exchange import CLAIM_S, LATE_S, Exchange
from ownpod.registry import Registry
from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front, home
from ownpod.rules.managed import AgentInfo
from ownpod.rules.probing import HEALTHY
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import TTL_S, Fronts
from ownpod.store.managed import Managed

ME, OTHER = Front("me", "h:1"), Front("other", "h:2")
MINE = next(f"ep-{n}" for n in range(99) if home(f"ep-{n}", ["me", "other"]) == "me")
"""An endpoint whose home is ME while both live."""


class Rig:
    def __init__(self, client):
        self.now_s = 100.0
        self.fronts = Fronts(client)
        self.config = load_settings(OWNPOD_WORKERS_FILE="/nowhere")
        self.registry = Registry({}, Fleet(client), self.config)
        self.exchange = self.make(client)

    def make(self, client, **settings):
        config = load_settings(OWNPOD_WORKERS_FILE="/nowhere", **settings)
        return Exchange(
            Registry({}, Fleet(client), config),
            Fronts(client),
            Managed(client),
            me=ME,
            config=config,
            changed=lambda: None,
            clock=lambda: self.now_s,
        )

    def turn(self, after_s=0.5):
        self.now_s += after_s
        self.exchange.turn()
        return self.exchange.view

    def limited(self):
        self.registry.put_endpoint(MINE, {"type": "LB", "capacity": 1})
        self.registry.add(MINE, {"url": "http://10.0.0.5:8000", "id": "w"})


@pytest.fixture
def rig(client):
    return Rig(client)


def dies(client, front):
    """The front's heartbeats ended a while ago."""
    ms, _, address = client.hget(keys.FRONTS, front.id).partition(" ")
    client.hset(keys.FRONTS, front.id, f"{int(ms) - int(TTL_S * 1000) - 100} {address}")


def test_a_front_is_reached_by_others_once_its_haproxy_has_the_endpoints(rig):
    rig.turn()
    assert rig.fronts.living()[0] == (Front("me"),)
    rig.exchange.report({}, {}, frozenset())
    rig.turn()
    assert rig.fronts.living()[0] == (ME,)


def test_a_front_that_died_is_gone_with_the_next_heartbeat(rig, client):
    rig.fronts.beat(OTHER)
    assert OTHER in rig.turn().fronts
    dies(client, OTHER)
    assert OTHER not in rig.turn().fronts


def test_while_redis_was_slow_no_front_counts_as_dead(rig, client):
    rig.fronts.beat(OTHER)
    rig.turn()
    dies(client, OTHER)
    assert OTHER in rig.turn(after_s=LATE_S + 1).fronts
    rig.turn()
    assert OTHER in rig.exchange.view.fronts
    for _ in range(5):
        rig.turn()
    assert OTHER not in rig.exchange.view.fronts


def test_a_new_home_waits_for_the_one_before_but_not_without_an_end(rig):
    rig.limited()
    sends = {MINE: RouteReading(1, {"w": ServerReading(1)})}
    passes = {MINE: RouteReading(1, {"w": ServerReading(1, draining=True)}, passes=True)}
    rig.fronts.beat(OTHER, sends)
    assert rig.turn().claimed == {MINE}
    rig.fronts.beat(OTHER, passes)
    found = rig.turn()
    assert not found.claimed
    assert found.elsewhere == {"w": 1}
    rig.fronts.beat(OTHER, sends)
    rig.turn()
    for _ in range(int(CLAIM_S / 0.5) + 1):
        rig.fronts.beat(OTHER)
        rig.turn()
    assert not rig.exchange.view.claimed


def test_the_scaler_is_notified_at_once_and_then_each_second(rig, client, redis_server):
    with connect(redis_server.url) as other:
        wakeups = Wakeups(other)
        assert wakeups.wait(60)
        notices = []
        for waiting in ({"a"}, {"a"}, {"a"}, {"a", "b"}, {"a", "b"}, {"a", "b"}, set()):
            rig.exchange.report({}, {}, frozenset(waiting))
            rig.turn(after_s=0.5)
            notices.append(wakeups.wait(0.5))
        wakeups.close()
    assert notices == [True, False, True, True, False, True, False]


def test_keys_of_the_settings_open_all_endpoints(rig, client):
    rig.limited()
    rig.exchange = rig.make(client, OWNPOD_API_KEYS="k", OWNPOD_ADMIN_KEYS="a")
    assert {name: len(digests) for name, digests in rig.turn().keys.items()} == {"*": 2}


def test_an_endpoint_of_run_time_that_cannot_be_read_opens_nothing(rig, client):
    rig.limited()
    client.hset(keys.ENDPOINTS, "broken", "{")
    assert rig.turn().keys == {"*": set()}


def test_a_broken_key_of_the_fronts_keeps_no_endpoint_from_being_served(rig, client):
    rig.turn()
    client.delete(keys.FRONTS)
    client.set(keys.FRONTS, "x")
    rig.limited()
    assert MINE in rig.turn().endpoints


def test_readings_are_written_again_when_redis_has_lost_them(rig, client):
    rig.limited()
    readings = {MINE: RouteReading(2, {"w": ServerReading(1)})}
    rig.exchange.report(readings, {"w": HEALTHY}, frozenset())
    rig.turn()
    client.delete(f"{keys.FRONTS}:readings")
    rig.turn()
    assert rig.fronts.loads() == readings


def test_one_that_may_have_been_added_before_its_pause_is_busy_until_haproxy_was_read_again(
    rig, client
):
    rig.limited()
    fleet, verdicts = Fleet(client), {"w": HEALTHY}
    (worker,) = rig.turn().endpoints[MINE].workers
    unknown = ServerReading(up=False)
    rig.exchange.report({MINE: RouteReading()}, verdicts, frozenset())
    rig.turn()
    # Also to other fronts, before it was read.
    assert rig.fronts.loads()[MINE].servers == {"w": unknown}
    # HAProxy gets the worker, and at once a request for it; the pause is read before HAProxy is.
    fleet.pause("w", "why")
    rig.turn()
    assert fleet.statuses((worker,)) == {"w": WorkerStatus(WorkerState.PAUSED, "why", 1)}
    one = {MINE: RouteReading(1, {"w": ServerReading(1, draining=True)})}
    rig.exchange.report(one, verdicts, frozenset())
    rig.turn()
    assert fleet.statuses((worker,))["w"].lingering == 1
    free = {MINE: RouteReading(servers={"w": ServerReading(draining=True)})}
    rig.exchange.report(free, verdicts, frozenset())
    rig.turn()
    assert fleet.statuses((worker,))["w"].lingering == 0
    # Another front may add it, until it has read its HAProxy, and reports that it drains it or does not know it.
    for there, lingering in (
        (None, 1),
        ({MINE: RouteReading(servers={"w": unknown})}, 1),
        (free, 0),
        ({MINE: RouteReading()}, 0),
    ):
        rig.fronts.beat(OTHER, there)
        rig.turn()
        assert fleet.statuses((worker,))["w"].lingering == lingering


def test_a_front_without_endpoints_reports_that_again_when_redis_has_lost_it(rig, client):
    rig.exchange.report({}, {}, frozenset())
    rig.turn()
    client.delete(f"{keys.FRONTS}:readings")
    rig.turn()
    assert client.hkeys(f"{keys.FRONTS}:readings") == ["me"]


def test_what_is_open_through_a_front_whose_heartbeat_is_late_counts(rig, client):
    rig.limited()
    verdicts, reading = {"w": HEALTHY}, ServerReading(draining=True)
    (worker,) = rig.turn().endpoints[MINE].workers
    rig.fronts.beat(OTHER, {MINE: RouteReading(1, {"w": replace(reading, open=1)}, passes=True)})
    Fleet(client).pause("w", "why")
    rig.exchange.report({MINE: RouteReading(servers={"w": reading})}, verdicts, frozenset())
    rig.turn()
    dies(client, OTHER)
    rig.turn(after_s=LATE_S + 1)
    assert Fleet(client).statuses((worker,))["w"].lingering == 1


def test_a_front_that_has_not_read_its_haproxy_yet_leaves_workers_busy(rig, client):
    rig.limited()
    rig.fronts.beat(ME, {MINE: RouteReading(1, {"w": ServerReading(draining=True)})})
    Fleet(client).pause("w", "why")
    (worker,) = rig.turn().endpoints[MINE].workers
    assert Fleet(client).statuses((worker,))["w"].lingering == 1
    free = {MINE: RouteReading(servers={"w": ServerReading(draining=True)})}
    rig.exchange.report(free, {}, frozenset())
    rig.turn()
    assert Fleet(client).statuses((worker,))["w"].lingering == 0


def test_a_worker_that_was_stopped_is_not_brought_back_by_what_was_read_before(rig, client):
    values = {"type": "LB", "template": {"command": ["w"]}}
    rig.registry.put_endpoint("ep", values)
    managed, worker_id = Managed(client), "a" * 14
    Agents(client).heartbeat(AgentInfo("h", "process"), "t")
    managed.want(worker_id, "ep", spec=rig.registry.endpoint("ep").managed)
    managed.place(worker_id, "h", "t")
    managed.started(worker_id, "h", url="http://127.0.0.1:1")
    managed.ready(worker_id)
    (worker,) = rig.turn().endpoints["ep"].workers
    assert worker.id == worker_id
    managed.drain(worker_id, "it was idle")
    assert worker_id in rig.turn(0.05).paused
    managed.stopped(worker_id, "h", exit_code=0, reason="it was idle", failed=False)
    seen = rig.turn(0.05)
    assert (seen.endpoints["ep"].workers, seen.paused) == ((), {})
