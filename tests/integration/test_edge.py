"""The edge with a real Redis and real workers; HAProxy is a double that keeps the state that it was given."""

import contextlib
import os
import socket
import threading
from dataclasses import replace

import pytest
from helpers import Answer, FakeWorker, load_settings, wait_until

from ownpod.front.edge import SOCKET, Edge
from ownpod.front.exchange import Exchange
from ownpod.registry import Registry
from ownpod.rules.balancing import FrontState, RouteReading, ServerReading
from ownpod.rules.credentials import digest_of
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front
from ownpod.rules.managed import Phase
from ownpod.rules.templates import ManagedSpec, Protocol, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts
from ownpod.store.managed import Managed

# Each of them has threads that wait for real time to pass.
pytestmark = pytest.mark.slow


ME = Front("me")


class Balancer:
    """A double of HAProxy: what it should have, and readings that a test sets."""

    def __init__(self):
        self.state = FrontState()
        self.applied = self.reads = 0
        self.readings = {}
        self.dead = False
        self.broken = False
        """It has ended, and does not start again."""
        self.silent = False
        """Its runtime socket gives no answer to a change."""
        self.gate = None
        """A semaphore, of which each reading needs one."""
        self.held = 0
        self.fails = False
        self.problems = {}
        self.fd, self._end = os.pipe()

    def apply(self, state):
        if self.fails:
            raise OSError("the runtime socket is gone")
        if self.silent:
            return False
        self.state, self.applied = state, self.applied + 1
        return True

    @property
    def alive(self):
        return not (self.dead or self.broken)

    def read(self):
        self.reads += 1
        if self.gate is not None:
            self.held += 1
            self.gate.acquire(timeout=60)
        if not self.alive:
            return {}
        found = {}
        for name, route in self.state.routes.items():
            given = self.readings.get(name, RouteReading())
            servers = {s.id: given.servers.get(s.id, ServerReading()) for s in route.servers}
            found[name] = replace(given, servers={**given.servers, **servers})
        return found

    def ensure(self):
        was, self.dead = self.dead, False
        if was:
            os.read(self.fd, 1)
        return was

    def die(self):
        self.dead = True
        os.write(self._end, b"x")

    def close(self):
        os.close(self.fd)
        os.close(self._end)

    def servers(self, name="lb"):
        route = self.state.routes.get(name)
        return {} if route is None else {server.id: server for server in route.servers}


class Rig:
    """An edge in a thread of the test."""

    def __init__(self, url, *, me=ME, directory=None, balancer=None, adopted=False, **environ):
        self.client = connect(url)
        self.balancer = balancer or Balancer()
        self.fleet, self.managed = Fleet(self.client), Managed(self.client)
        self.fronts = Fronts(self.client)
        config = load_settings(OWNPOD_WORKERS_FILE="/nowhere", **environ)
        self.registry = Registry({}, self.fleet, config)
        self.edge = Edge(
            self.balancer,
            lambda changed: Exchange(
                Registry({}, Fleet(self.client), config),
                self.fronts,
                self.managed,
                me=me,
                config=config,
                changed=changed,
            ),
            me=me,
            directory=directory,
            adopted=adopted,
        )
        self.thread = threading.Thread(target=self.edge.run)
        self.thread.start()

    def add(self, worker, name="w", endpoint="lb", **values):
        if endpoint not in self.registry.endpoints:
            self.registry.put_endpoint(endpoint, {"type": "LB", **values})
        self.registry.add(endpoint, {"url": worker.url, "id": name})

    def status(self, name="w"):
        found = self.registry.worker(name)
        return self.fleet.statuses((found,))[name]

    def close(self):
        self.edge.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.client.close()
        self.balancer.close()


@pytest.fixture
def worker():
    made = FakeWorker({"GET /ping": Answer(200)})
    with made.serving():
        yield made


@pytest.fixture
def rig(redis_server, client, tmp_path):
    made = Rig(redis_server.url, directory=tmp_path)
    yield made
    made.close()


def test_an_endpoint_and_a_worker_that_are_added_are_served(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    wait_until(lambda: rig.status().state is WorkerState.READY)
    rig.registry.put_endpoint("queue", {})
    wait_until(lambda: "queue" in rig.balancer.state.queues)
    rig.registry.remove_endpoint("lb")
    wait_until(lambda: "lb" not in rig.balancer.state.routes)


def test_a_worker_that_answers_204_gets_nothing_until_its_200(rig, worker):
    worker.routes["GET /ping"] = Answer(204)
    rig.add(worker)
    wait_until(lambda: "204" in rig.status().reason)
    assert rig.status().state is WorkerState.INITIALIZING
    assert not rig.balancer.servers()
    worker.routes["GET /ping"] = Answer(200)
    wait_until(lambda: "w" in rig.balancer.servers())


def test_a_worker_that_does_not_answer_has_a_reason_and_stops_no_other(rig, worker):
    silent = FakeWorker(port=1)
    rig.add(worker)
    rig.add(silent, "silent")
    wait_until(lambda: "connection refused on 127.0.0.1:1" in rig.status("silent").reason)
    assert rig.status("silent").state is WorkerState.UNHEALTHY
    wait_until(lambda: set(rig.balancer.servers()) == {"w"})


def test_keys_follow_the_registry_and_a_revoked_one_is_out(rig, worker):
    rig.add(worker)
    wait_until(rig.balancer.servers)
    assert rig.balancer.state.keys is None
    rig.registry.put_endpoint("lb", {"type": "LB", "apiKeys": ["one"]})
    wait_until(lambda: rig.balancer.state.keys)
    assert rig.balancer.state.keys == {"*": set(), "lb": {digest_of("one")}}
    rig.registry.put_endpoint("lb", {"type": "LB", "apiKeys": ["two"]})
    wait_until(lambda: rig.balancer.state.keys["lb"] == {digest_of("two")})


def test_a_worker_that_haproxy_finds_down_is_unhealthy_and_comes_back_by_the_prober(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    worker.routes["GET /ping"] = Answer(500)
    down = ServerReading(up=False, problem="Layer4 connection problem")
    rig.balancer.readings["lb"] = RouteReading(servers={"w": down})
    wait_until(lambda: rig.status().state is WorkerState.UNHEALTHY)
    wait_until(lambda: not rig.balancer.servers())
    rig.balancer.readings.clear()
    worker.routes["GET /ping"] = Answer(200)
    wait_until(lambda: "w" in rig.balancer.servers())
    wait_until(lambda: rig.status().state is WorkerState.READY)


def test_one_that_is_down_with_open_requests_stays_until_these_end(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    down = ServerReading(open=1, up=False, problem="Layer7 timeout")
    rig.balancer.readings["lb"] = RouteReading(requests=1, servers={"w": down})
    wait_until(lambda: rig.status().reason == "Layer7 timeout")
    assert rig.status().lingering == 1
    assert "w" in rig.balancer.servers()


def test_why_an_endpoint_is_not_served_is_reported(rig, worker):
    rig.add(worker)
    rig.balancer.problems = {"lb": "no room", "other/w": "its id"}
    wait_until(lambda: rig.fronts.loads().get("lb", RouteReading()).problem == "no room")
    rig.balancer.problems = {}
    wait_until(lambda: rig.fronts.loads().get("lb", RouteReading(problem="gone")).problem == "")


def test_open_requests_are_reported_and_count_as_work(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    one = ServerReading(open=2, total=5)
    rig.balancer.readings["lb"] = RouteReading(requests=3, servers={"w": one}, total=9)
    wait_until(lambda: rig.fronts.loads().get("lb", RouteReading()).requests == 3)
    found = wait_until(lambda: rig.fronts.loads().get("lb"))
    assert (found.running, found.waiting, found.total) == (2, 1, 9)
    wait_until(lambda: rig.status().lingering == 2)
    # One that has come and gone between two readings was work, too.
    rig.balancer.readings["lb"] = RouteReading(servers={"w": replace(one, open=0, total=6)})
    wait_until(lambda: rig.status().lingering == 1)
    wait_until(lambda: rig.status().lingering == 0)


def test_a_held_request_wakes_the_scaler_with_the_loads_written(rig, redis_server, tmp_path):
    rig.registry.put_endpoint("lb", {"type": "LB"})
    wait_until(lambda: "lb" in rig.balancer.state.routes)
    with connect(redis_server.url) as other:
        wakeups = Wakeups(other)
        assert wakeups.wait(60)
        rig.balancer.readings["lb"] = RouteReading(requests=1)
        with socket.socket(socket.AF_UNIX) as notifier:
            notifier.connect(str(tmp_path / SOCKET))
        wait_until(lambda: wakeups.wait(1))
        assert wait_until(lambda: rig.fronts.loads().get("lb")).waiting == 1
        # It goes on while the request waits.
        wait_until(lambda: wakeups.wait(2))
        wakeups.close()


def test_a_wish_for_a_worker_is_reported(rig):
    rig.registry.put_endpoint("lb", {"type": "LB"})
    wait_until(lambda: "lb" in rig.balancer.state.routes)
    rig.balancer.readings["lb"] = RouteReading(requests=1, wishes=("abc",))
    wait_until(lambda: rig.fronts.wishes() == {"lb": ("abc",)})


def test_a_wish_for_a_worker_that_cannot_come_back_is_known(rig):
    rig.registry.put_endpoint("lb", {"type": "LB"})
    wait_until(lambda: "lb" in rig.balancer.state.routes)
    spec = ManagedSpec(Template(image="i:1", command=("x",), protocol=Protocol.HTTP), Scaling())
    there, gone = "abcdefghijklmn", "abcdefghijklmo"
    rig.managed.want(there, "lb", spec=spec)
    rig.balancer.readings["lb"] = RouteReading(requests=3, wishes=(there, gone, "never"))
    wait_until(lambda: rig.balancer.state.lost == {"lb": {gone, "never"}})
    rig.balancer.readings["lb"] = RouteReading(requests=1, wishes=(there,))
    wait_until(lambda: rig.balancer.state.lost == {})


def test_a_paused_worker_drains_and_its_requests_are_seen_to_the_end(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    rig.balancer.readings["lb"] = RouteReading(requests=1, servers={"w": ServerReading(open=1)})
    rig.fleet.pause("w", "an operator drains it")
    wait_until(lambda: rig.balancer.servers()["w"].draining)
    wait_until(lambda: rig.status().state is WorkerState.PAUSED)
    assert rig.status() == WorkerStatus(WorkerState.PAUSED, "an operator drains it", 1)
    rig.balancer.readings["lb"] = RouteReading(servers={"w": ServerReading(total=1)})
    wait_until(lambda: rig.status().lingering == 0)
    rig.fleet.resume("w")
    wait_until(lambda: not rig.balancer.servers()["w"].draining)


def test_one_that_was_added_just_before_its_pause_is_busy_until_haproxy_was_read(
    rig, worker, client
):
    worker.routes["GET /ping"] = Answer(204)
    rig.add(worker)
    wait_until(lambda: rig.status().state is WorkerState.INITIALIZING)
    gate = rig.balancer.gate = threading.Semaphore(0)
    wait_until(lambda: rig.balancer.held == 1)
    rig.fleet.pause("w", "why")
    paused = WorkerStatus(WorkerState.PAUSED, "why", 1)
    wait_until(lambda: rig.status() == paused)
    # This reading ends, and was of a state without the pause. The next one is not made.
    gate.release()
    wait_until(lambda: rig.balancer.held == 2)
    for _ in range(3):
        beat = client.hget(keys.FRONTS, ME.id)
        wait_until(lambda b=beat: client.hget(keys.FRONTS, ME.id) != b)
    assert rig.status() == paused
    rig.balancer.gate = None
    gate.release()
    wait_until(lambda: rig.status() == replace(paused, lingering=0))


def test_a_drain_that_haproxy_did_not_take_leaves_the_worker_busy(rig, worker):
    rig.add(worker)
    wait_until(lambda: rig.status().state is WorkerState.READY)
    rig.balancer.silent = True
    rig.fleet.pause("w", "why")
    paused = WorkerStatus(WorkerState.PAUSED, "why", 1)
    wait_until(lambda: rig.status() == paused)
    before = rig.balancer.reads
    wait_until(lambda: rig.balancer.reads > before + 3)
    assert rig.status() == paused
    rig.balancer.silent = False
    wait_until(lambda: rig.status() == replace(paused, lingering=0))


def test_a_worker_that_drains_is_free_where_haproxy_has_ended_for_good(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    rig.balancer.readings["lb"] = RouteReading(requests=1, servers={"w": ServerReading(open=1)})
    wait_until(lambda: rig.status().lingering == 1)
    rig.fleet.pause("w", "why")
    rig.balancer.broken = True
    wait_until(lambda: rig.status() == WorkerStatus(WorkerState.PAUSED, "why"))


def test_a_managed_worker_reports_its_start_and_becomes_ready(rig, worker):
    spec = ManagedSpec(Template(image="i:1", command=("x",), protocol=Protocol.HTTP), Scaling())
    rig.registry.put_endpoint("lb", {"type": "LB"})
    agents, name = Agents(rig.client), "abcdefghijklmn"
    assert rig.managed.want(name, "lb", spec=spec)
    from ownpod.rules.managed import AgentInfo

    agents.heartbeat(AgentInfo("h", "process", ()), "h:1")
    assert rig.managed.place(name, "h", "h:1")
    worker.routes["GET /ping"] = Answer(404)
    assert rig.managed.started(name, "h", url=worker.url)
    rig.registry.refresh()
    wait_until(lambda: rig.status(name).reason == "404 on /ping: is HEALTH_CHECK_PATH right?")
    worker.routes["GET /ping"] = Answer(200)
    wait_until(lambda: rig.managed.get(name).phase is Phase.READY)
    wait_until(lambda: name in rig.balancer.servers())
    assert rig.managed.drain(name, "idle")
    wait_until(lambda: rig.balancer.servers()[name].draining)
    [record] = rig.managed.list()
    wait_until(lambda: agents.in_hand([record])[:2] == (set(), {name}))


def test_a_worker_whose_key_is_broken_keeps_no_other_from_its_state(rig, worker):
    rig.client.rpush(keys.worker("a"), "x")
    rig.add(FakeWorker(port=1), "a")
    rig.add(worker)
    wait_until(lambda: rig.client.hget(keys.worker("w"), "state") == "ready")


def test_haproxy_is_restarted_when_it_ends_also_while_redis_does_not_answer(rig, worker):
    rig.add(worker)
    wait_until(lambda: "w" in rig.balancer.servers())
    rig.client.close()
    rig.balancer.die()
    wait_until(lambda: not rig.balancer.dead)


def test_an_error_of_haproxy_is_tried_again(rig, worker):
    rig.balancer.fails = True
    rig.add(worker)
    wait_until(lambda: rig.fronts.living()[0])
    rig.balancer.fails = False
    wait_until(lambda: "w" in rig.balancer.servers())


def test_workers_that_an_adopted_haproxy_has_are_not_asked_again(redis_server, client):
    balancer = Balancer()
    with FakeWorker({"GET /ping": Answer(200)}).serving() as worker:
        rig = Rig(redis_server.url, balancer=balancer)
        rig.add(worker)
        wait_until(lambda: "w" in balancer.servers())
        rig.edge.stop()
        rig.thread.join(60)
    # The worker does not answer now, as a busy one may not.
    applied = balancer.applied
    again = Rig(redis_server.url, balancer=balancer, adopted=True)
    wait_until(lambda: balancer.applied > applied)
    assert "w" in balancer.servers()
    again.close()


def test_without_redis_an_adopted_haproxy_stays_as_it_is_and_a_new_one_opens_nothing():
    adopted, new = Balancer(), Balancer()
    away = "redis://127.0.0.1:1/0"
    with (
        contextlib.closing(Rig(away, balancer=new)),
        contextlib.closing(Rig(away, balancer=adopted, adopted=True)) as rig,
    ):
        wait_until(lambda: new.applied)
        assert new.state.keys == {"*": set()}
        wait_until(lambda: rig.edge.exchange.view is not None)
        rig.edge.turn()
        assert not adopted.applied


def test_fronts_pass_limited_endpoints_on_to_one_home_and_take_the_place_of_a_dead_one(
    redis_server, client, worker
):
    one = Rig(redis_server.url, me=Front("one", "127.0.0.1:1001"))
    two = Rig(redis_server.url, me=Front("two", "127.0.0.1:1002"))
    try:
        one.add(worker, capacity=1)
        rigs = {"one": one, "two": two}

        def homes():
            return [name for name, rig in rigs.items() if "w" in rig.balancer.servers()]

        def passed():
            return [
                name
                for name, rig in rigs.items()
                if any(s.is_front for s in rig.balancer.servers().values())
            ]

        wait_until(lambda: len(homes()) == len(passed()) == 1)
        [home], [other] = homes(), passed()
        assert home != other
        assert one.balancer.state.secret == two.balancer.state.secret != ""
        wait_until(lambda: one.status().state is WorkerState.READY)
        rigs[home].close()
        wait_until(lambda: "w" in rigs[other].balancer.servers())
        del rigs[home]
    finally:
        for rig in rigs.values():
            rig.close()
