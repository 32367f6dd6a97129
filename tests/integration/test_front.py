"""The front as a process with a real HAProxy, a real Redis and real workers."""

import contextlib
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from helpers import Answer, FakeWorker, Process, RedisServer, load_settings, wait_until

from ownpod.processes import free_port
from ownpod.registry import Registry
from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.fleet import WorkerState
from ownpod.rules.homes import Front as Home
from ownpod.rules.homes import home
from ownpod.store import keys
from ownpod.store.agents import Wakeups
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import TTL_S, Fronts

pytestmark = pytest.mark.slow

RUN = (
    "import sys; import ownpod.store.fronts; ownpod.store.fronts.TTL_S = float(sys.argv[3]); "
    "from ownpod import settings; from ownpod.front.run import run; "
    "sys.exit(run(settings.current(), '127.0.0.1', int(sys.argv[1]), sys.argv[2]))"
)


class Worker(FakeWorker):
    """A worker that counts the requests that it has at a time, and answers each when ``free`` is set."""

    def __init__(self):
        super().__init__({"GET /ping": Answer(200), "GET /work": self._work})
        self.free = threading.Event()
        self.free.set()
        self._lock = threading.Lock()
        self.now = self.most = 0

    def _work(self, path, _body):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.free.wait(100)
        if path.endswith("slow"):
            threading.Event().wait(0.05)
        with self._lock:
            self.now -= 1
        return Answer(200, {"port": self.port})


def probes(worker):
    """The health checks that the edge has made; HAProxy's own have another name."""
    return [h for h, _ in worker.raw if h.get("User-Agent") == "ownpod-front"]


class Front:
    """A front in a data directory of its own."""

    def __init__(self, directory, redis_url, *, api=1, ttl_s=TTL_S, **environ):
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self._environ = {
            "REDIS_URL": redis_url,
            "OWNPOD_DATA_DIR": directory,
            "OWNPOD_WORKERS_FILE": directory / "workers.yaml",
            "OWNPOD_FRONT_ADDRESS": f"127.0.0.1:{self.port}",
            "OWNPOD_SHUTDOWN_GRACE_S": 2,
            **environ,
        }
        (directory / "workers.yaml").touch()
        (directory / "workers.yaml").write_text("endpoints: {}\n")
        self._api, self._ttl_s = api, ttl_s
        self.starts = 0
        self.start()

    def start(self):
        self.process = Process(
            *(sys.executable, "-c", RUN, self.port, f"127.0.0.1:{self._api}", self._ttl_s),
            log=self.directory / "front.log",
            **self._environ,
        )
        ready = f"front ready on 127.0.0.1 port {self.port}"
        before = self.starts
        wait_until(lambda: self.process.output.count(ready) > before, 60)
        self.starts += 1

    def url(self, path="/work", endpoint="lb"):
        return f"http://127.0.0.1:{self.port}/lb/{endpoint}{path}"

    def get(self, path="/work", endpoint="lb", *, key=None, timeout=100, **headers):
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return requests.get(self.url(path, endpoint), headers=headers, timeout=timeout)

    def status(self, *args, **kwargs):
        with contextlib.suppress(requests.RequestException):
            return self.get(*args, **{"timeout": 10, **kwargs}).status_code
        return None

    @property
    def files(self):
        return self.directory / "front" / str(self.port)

    @property
    def haproxy(self):
        return int((self.files / "haproxy.pid").read_text())

    def close(self):
        if self.process.running:
            assert self.process.stop() == 0, self.process.output
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process(self.haproxy).kill()


class Rig:
    def __init__(self, client, directory, url):
        self.client, self.url, self._directory = client, url, directory
        self.fleet, self.fronts = Fleet(client), Fronts(client)
        self.registry = Registry(
            {}, self.fleet, load_settings(OWNPOD_WORKERS_FILE=directory / "nowhere.yaml")
        )
        self.stack = contextlib.ExitStack()

    def load(self):
        """What the fronts have of the endpoint; nothing while their heartbeats are late."""
        return self.fronts.loads().get("lb", RouteReading())

    def front(self, name="a", **environ):
        front = Front(self._directory / name, self.url, **environ)
        self.stack.callback(front.close)
        return front

    def worker(self, worker=None, *, name="w", endpoint="lb", ping=200):
        worker = worker or Worker()
        worker.routes["GET /ping"] = Answer(ping)
        self.stack.enter_context(worker.serving())
        self.registry.add(endpoint, {"url": worker.url, "id": name})
        return worker

    def endpoint(self, name="lb", **values):
        self.registry.put_endpoint(name, {"type": "LB", **values})

    def state(self, name="w"):
        return self.fleet.statuses((self.registry.worker(name),))[name].state


@pytest.fixture
def rig(client, redis_server, tmp_path):
    made = Rig(client, tmp_path, redis_server.url)
    with made.stack:
        yield made


def test_endpoints_and_workers_are_served_as_they_come_and_go(rig):
    front = rig.front()
    rig.endpoint()
    worker = rig.worker()
    wait_until(lambda: front.status() == 200)
    assert front.get().headers["X-Runpod-Worker-Id"] == "w"
    other = rig.worker(name="v")
    wait_until(lambda: front.get().json()["port"] == other.port)
    rig.registry.remove("v")
    wait_until(lambda: front.get().json()["port"] == worker.port)
    rig.registry.remove_endpoint("lb")
    wait_until(lambda: front.status() == 404)
    wait_until(lambda: rig.fronts.living()[0])


def test_a_revoked_key_opens_nothing_more(rig):
    front = rig.front()
    rig.endpoint(apiKeys=["one", "two"])
    rig.worker()
    wait_until(lambda: front.status(key="one") == 200)
    assert front.status() == 401
    assert front.status(key="other") == 401
    rig.endpoint(apiKeys=["two"])
    wait_until(lambda: front.status(key="one") == 401)
    assert front.status(key="two") == 200


def test_a_request_is_held_until_the_first_200_and_wakes_the_scaler(rig):
    front = rig.front()
    rig.endpoint()
    wait_until(lambda: "lb" in rig.fronts.loads())
    with connect(rig.url) as other, ThreadPoolExecutor() as pool:
        wakeups = Wakeups(other)
        assert wakeups.wait(60)
        held = pool.submit(front.get)
        wait_until(lambda: wakeups.wait(1))
        wait_until(lambda: rig.load().waiting == 1)
        worker = rig.worker(ping=204)
        wait_until(lambda: worker.paths("GET /ping"))
        wait_until(lambda: rig.state() is WorkerState.INITIALIZING)
        assert not held.done()
        assert not worker.paths("GET /work")
        worker.routes["GET /ping"] = Answer(200)
        assert held.result(100).status_code == 200
        wakeups.close()
    wait_until(lambda: rig.state() is WorkerState.READY)


def test_a_worker_that_ends_is_unhealthy_and_another_one_serves(rig):
    front = rig.front()
    rig.endpoint(capacity=1)
    rig.worker(name="v")
    worker = Worker()
    with worker.serving():
        rig.registry.add("lb", {"url": worker.url, "id": "w"})
        wait_until(lambda: rig.state() is WorkerState.READY)
    wait_until(lambda: rig.state() is WorkerState.UNHEALTHY, 20)
    assert {front.status() for _ in range(10)} == {200}
    with worker.serving():
        wait_until(lambda: rig.state() is WorkerState.READY)
        wait_until(lambda: front.get().json()["port"] == worker.port)


def test_a_paused_worker_finishes_its_requests_and_gets_no_more(rig):
    front = rig.front()
    rig.endpoint()
    worker = rig.worker()
    wait_until(lambda: front.status() == 200)
    worker.free.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(front.get)
        wait_until(lambda: worker.now)
        rig.fleet.pause("w", "why")
        wait_until(lambda: rig.state() is WorkerState.PAUSED)
        # The state is Redis's; this is HAProxy's, which follows within half a second.
        wait_until(lambda: rig.load().servers.get("w", ServerReading()).draining)
        second = pool.submit(front.get)
        wait_until(lambda: rig.load().requests == 2)
        worker.free.set()
        assert first.result(100).status_code == 200
        wait_until(lambda: rig.load().requests == 1)
        assert len(worker.paths("GET /work")) == 2
        rig.fleet.resume("w")
        assert second.result(100).status_code == 200


def test_haproxy_that_is_killed_serves_again_also_without_redis(rig, tmp_path):
    own = RedisServer(tmp_path)
    with connect(own.url) as client:
        there = Rig(client, tmp_path, own.url)
        with there.stack:
            front = there.front()
            there.endpoint()
            there.worker()
            wait_until(lambda: front.status() == 200)
            before = front.haproxy
            own.process.kill()
            os.kill(before, signal.SIGKILL)

            def is_another():
                # HAProxy may be about to write the file.
                with contextlib.suppress(OSError, ValueError):
                    return front.haproxy != before
                return False

            wait_until(is_another)
            wait_until(lambda: front.status() == 200)
            wait_until(lambda: "serves what it last read" in front.process.output)
            # Redis comes back, and so does everything that needs it.
            own.start()
            wait_until(lambda: there.fronts.loads().get("lb"))
            there.registry.refresh()
            there.worker(name="v")
            wait_until(lambda: there.state("v") is WorkerState.READY)
            assert "Redis answers again" in front.process.output
    own.stop()


def test_an_edge_that_is_killed_leaves_haproxy_to_the_next_one(rig):
    front = rig.front()
    rig.endpoint(capacity=1)
    worker = rig.worker()
    wait_until(lambda: front.status() == 200)
    before = front.haproxy
    worker.free.clear()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(front.get)
        wait_until(lambda: worker.now)
        front.process.kill()
        # The next edge does not ask the worker, because one that is busy may not answer.
        asked = len(probes(worker))
        rig.client.delete(keys.worker("w"))
        front.start()
        wait_until(lambda: "runs already" in front.process.output)
        wait_until(lambda: rig.state() is WorkerState.READY)
        assert len(probes(worker)) == asked
        worker.free.set()
        assert running.result(100).status_code == 200
    assert front.haproxy == before
    rig.worker(name="v")
    wait_until(lambda: rig.state("v") is WorkerState.READY)
    assert front.status() == 200


def test_the_end_of_the_front_ends_haproxy_after_open_requests(rig):
    front = rig.front(OWNPOD_SHUTDOWN_GRACE_S=60)
    rig.endpoint()
    worker = rig.worker()
    wait_until(lambda: front.status() == 200)
    worker.free.clear()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(front.get)
        wait_until(lambda: worker.now)
        front.process.send(signal.SIGTERM)
        wait_until(lambda: front.status(timeout=1) is None)
        assert front.process.running
        worker.free.set()
        assert running.result(100).status_code == 200
    assert front.process.wait() == 0
    assert not psutil.pid_exists(front.haproxy)
    assert rig.fronts.living()[0] == ()


def test_sighup_reads_the_configuration_again(rig, tmp_path):
    front = rig.front()
    rig.endpoint("other")
    wait_until(lambda: front.status("/", "nowhere") == 404)
    with Worker().serving() as worker:
        entry = {"type": "LB", "workers": [{"url": worker.url, "id": "w"}]}
        text = json.dumps({"endpoints": {"lb": entry}})
        (front.directory / "workers.yaml").write_text(text)
        front.process.send(signal.SIGHUP)
        wait_until(lambda: front.status() == 200)
        # A file that cannot be used changes nothing.
        (front.directory / "workers.yaml").write_text("endpoints: 1")
        front.process.send(signal.SIGHUP)
        wait_until(lambda: "the old configuration stays" in front.process.output)
        assert front.status() == 200


def test_a_front_that_cannot_be_reached_is_named_in_the_log(rig):
    front = rig.front()
    me = wait_until(lambda: next((f.id for f in rig.fronts.living()[0]), None))
    name = next(f"lb-{n}" for n in range(99) if home(f"lb-{n}", [me, "another"]) == "another")
    rig.endpoint(name, capacity=1)
    port = free_port()

    def named():
        rig.fronts.beat(Home("another", f"127.0.0.1:{port}"))
        return f"the front at 127.0.0.1:{port} is not reachable" in front.process.output

    wait_until(named, 20)


def load(fronts, number, seconds=100):
    """Statuses of so many requests at once, spread over fronts."""

    def one(n):
        return fronts[n % len(fronts)].status("/work/slow", timeout=seconds)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def test_two_fronts_keep_a_capacity_of_1_and_one_takes_the_place_of_a_dead_home(rig):
    # On a loaded machine heartbeats are late, and a home that is late for longer is a dead one.
    fronts = {name: rig.front(name, ttl_s=6.0) for name in ("a", "b")}
    rig.endpoint(capacity=1)
    worker = rig.worker()
    for front in fronts.values():
        wait_until(lambda front=front: front.status() == 200)
    assert load(list(fronts.values()), 20) == [200] * 20
    assert worker.most == 1

    def home_of():
        readings = rig.fronts.living()[1]
        homes = [n for n, r in readings.items() if "lb" in r and not r["lb"].passes]
        ids = {(front.files / "id").read_text().strip(): front for front in fronts.values()}
        return ids[homes[0]] if len(homes) == 1 and len(readings) == len(fronts) else None

    dead = wait_until(home_of)
    [other] = [front for front in fronts.values() if front is not dead]
    assert other.get().headers["X-Runpod-Worker-Id"] == "w"
    pid = dead.haproxy
    dead.process.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: other.status(timeout=2) == 200)
    assert load([other], 10) == [200] * 10
    # It comes back, while requests run and wait.
    statuses, is_back = [], threading.Event()

    def requests_go_on():
        while not is_back.is_set():
            statuses.extend(load([other], 20))

    with ThreadPoolExecutor() as pool:
        running = pool.submit(requests_go_on)
        dead.start()
        wait_until(lambda: home_of() is dead, 30)
        is_back.set()
        running.result(100)
    assert set(statuses) == {200}
    wait_until(lambda: dead.status() == 200)
    assert load(list(fronts.values()), 20) == [200] * 20
    assert worker.most == 1
