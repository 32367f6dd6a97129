"""Load-balanced endpoints with all real processes: FastAPI workers under uvicorn, HAProxy, `ownpod up`."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import random
import signal
import socket
import sys
import threading
from pathlib import Path

import aiohttp
import psutil
import pytest
import requests
from helpers import HERE, OwnPod, Process, answers, wait_until
from websockets.sync.client import connect

from ownpod.processes import free_port

PROGRAM = HERE / "acceptance" / "http_worker.py"
BIG = 30 * 1024 * 1024


class Worker:
    """A FastAPI worker of a test's own."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = directory / f"worker-{self.port}.log"
        self.start()

    def start(self) -> None:
        self.process = Process(sys.executable, PROGRAM, self.port, log=self._log)
        wait_until(lambda: answers(f"{self.url}/ping"), 60, "the worker")

    @property
    def seen(self) -> dict:
        return requests.get(f"{self.url}/seen", timeout=60).json()

    def health(self, status: int) -> None:
        requests.post(f"{self.url}/health/{status}", timeout=60).raise_for_status()


class Pod:
    """An OwnPod with load-balanced endpoints, each with workers of its own."""

    def __init__(self, directory: Path, endpoints: dict[str, dict], **environ: object) -> None:
        file = directory / "workers.yaml"
        file.write_text(json.dumps({"endpoints": endpoints}))
        self.ownpod = OwnPod(directory, OWNPOD_WORKERS_FILE=file, OWNPOD_FRONT="on", **environ)
        self.port = self.ownpod.port
        self.api = self.ownpod.base

    def url(self, endpoint: str, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}/lb/{endpoint}{path}"

    def get(self, endpoint: str, path: str, **options: object) -> requests.Response:
        return requests.get(self.url(endpoint, path), timeout=120, **options)

    def health(self, endpoint: str) -> dict:
        return requests.get(f"{self.api}/{endpoint}/health", timeout=60).json()

    def ready(self, endpoint: str, count: int) -> None:
        wait_until(lambda: self.health(endpoint)["workers"]["ready"] == count, 30, "ready workers")

    def add(self, endpoint: str, worker: Worker, **values: object) -> None:
        added = requests.post(
            f"{self.api}/{endpoint}/workers", json={"url": worker.url, **values}, timeout=60
        )
        assert added.ok, added.text

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes whose command line has this name."""
        found = []
        for process in psutil.Process(self.ownpod.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
    """Endpoints: ``free`` with two workers, ``one`` with capacity 1, ``cold`` and ``never`` without workers, ``queue`` with jobs."""
    directory = tmp_path_factory.mktemp("balanced")
    a, b, c = (Worker(directory) for _ in range(3))
    found = Pod(
        directory,
        {
            "free": {
                "type": "LB",
                "workers": [{"url": a.url, "id": "a"}, {"url": b.url, "id": "b"}],
            },
            "one": {"type": "LB", "capacity": 1, "workers": [{"url": c.url, "id": "c"}]},
            "cold": {"type": "LB"},
            "never": {"type": "LB", "holdTimeout": 2},
            "dying": {"type": "LB"},
            "churn": {"type": "LB"},
            "queue": {},
        },
    )
    found.workers = {"a": a, "b": b, "c": c}
    found.ready("free", 2)
    found.ready("one", 1)
    yield found
    found.ownpod.stop()
    print(found.ownpod.output)
    for worker in found.workers.values():
        worker.process.kill()


@pytest.fixture
def start(tmp_path):
    """Starts workers of a test's own."""
    started = []

    def one():
        started.append(Worker(tmp_path))
        return started[-1]

    yield one
    for worker in started:
        worker.process.kill()


def test_any_method_and_path_reaches_a_worker_unchanged(pod):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = requests.request(
            method, pod.url("free", "/any/p%20ath//x?a=1&b=%2F"), data="text", timeout=30
        )
        said = answer.json()
        assert (said["method"], said["path"]) == (method, "/any/p%20ath//x")
        assert (said["query"], said["body"]) == ("a=1&b=%2F", "text")
        assert said["headers"]["x-forwarded-prefix"] == "/lb/free"
        assert answer.headers["X-Runpod-Worker-Id"] in {"a", "b"}


def test_the_host_form_is_runpods(pod):
    host = {"Host": f"free.localhost:{pod.port}"}
    said = requests.get(f"http://127.0.0.1:{pod.port}/v2/free/run", headers=host, timeout=30).json()
    assert said["path"] == "/v2/free/run"
    assert "x-forwarded-prefix" not in said["headers"]


@pytest.mark.parametrize("status", [201, 204, 304, 404, 409, 422, 429, 500, 501, 503])
def test_each_status_of_a_worker_passes(pod, status):
    answer = pod.get("free", f"/status/{status}")
    assert answer.status_code == status
    assert answer.headers["X-Runpod-Worker-Id"] in {"a", "b"}


def test_fastapis_own_422_passes(pod):
    answer = requests.post(pod.url("free", "/count/x"), timeout=30)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["path", "number"]


def test_headers_of_the_platform_come_from_the_front_only(pod):
    given = {
        "X-Runpod-Worker-Id": "",
        "X-Runpod-Anything": "forged",
        "X-Ownpod-Front": "forged",
        "X-Forwarded-Prefix": "/forged",
        "X-Forwarded-For": "9.9.9.9",
    }
    headers = pod.get("free", "/x", headers=given).json()["headers"]
    assert headers["x-forwarded-prefix"] == "/lb/free"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert not {"x-runpod-anything", "x-runpod-worker-id", "x-ownpod-front"} & set(headers)


def test_requests_wait_for_the_first_worker_and_reach_it_only_once_it_is_ready(pod, start):
    worker = start()
    worker.health(204)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        held = [pool.submit(pod.get, "cold", "/sleep/0") for _ in range(20)]
        wait_until(lambda: pod.health("cold")["jobs"]["inQueue"] == 20, 20, "20 held requests")
        pod.add("cold", worker, id="late")
        wait_until(lambda: pod.health("cold")["workers"]["initializing"] == 1, 20, "a start")
        assert worker.seen["requests"] == 0
        assert not any(one.done() for one in held)
        worker.health(200)
        assert [one.result().status_code for one in held] == [200] * 20
    wait_until(lambda: pod.health("cold")["jobs"]["inQueue"] == 0)
    removed = requests.delete(f"{pod.api}/cold/workers/late", timeout=60)
    assert removed.ok, removed.text


def test_without_a_worker_in_time_the_answer_is_runpods(pod):
    answer = pod.get("never", "/x")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "timed out waiting for worker"
    assert "Retry-After" in answer.headers


def test_a_worker_gets_as_many_requests_at_a_time_as_its_capacity(pod):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: pod.get("one", "/sleep/0.1").status_code, range(8)))
    assert found == [200] * 8
    assert pod.workers["c"].seen["most"] == 1


def test_a_client_that_leaves_frees_its_place_in_the_queue(pod, tmp_path):
    end = tmp_path / "end"
    before = pod.workers["c"].seen["requests"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        busy = pool.submit(pod.get, "one", f"/sleep/100?until={end}")
        # The worker itself, because the front's report may be older.
        wait_until(lambda: pod.workers["c"].seen["now"] == 1)
        queued = [posted(pod, "one", "/sleep/0") for _ in range(5)]
        wait_until(lambda: pod.health("one")["jobs"]["inQueue"] == 5, what="5 that wait")
        for one in queued:
            one.close()
        wait_until(lambda: pod.health("one")["jobs"]["inQueue"] == 0, what="none that waits")
        end.touch()
        assert busy.result().status_code == 200
    assert pod.workers["c"].seen["requests"] == before + 1


def posted(pod, endpoint, path):
    """A connection on which a request was sent."""
    one = socket.create_connection(("127.0.0.1", pod.port), 60)
    text = f"POST /lb/{endpoint}{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"
    one.sendall(text.encode())
    return one


def test_a_worker_is_told_when_its_client_leaves(pod):
    worker = pod.workers["c"]
    before = worker.seen
    one = posted(pod, "one", "/sleep/30")
    wait_until(lambda: worker.seen["requests"] == before["requests"] + 1)
    one.close()
    wait_until(lambda: worker.seen["left"] == before["left"] + 1, what="the worker's notice")
    wait_until(lambda: pod.health("one")["jobs"]["inProgress"] == 0)


def test_the_header_names_the_worker(pod):
    for worker in "aabbab":
        for header in (worker, f"strict {worker}"):
            answer = pod.get("free", "/x", headers={"X-Runpod-Worker-Id": header})
            assert answer.headers["X-Runpod-Worker-Id"] == worker
    gone = pod.get("free", "/x", headers={"X-Runpod-Worker-Id": "strict other"})
    assert (gone.status_code, gone.json()["reason"]) == (404, "affinity_worker_gone")
    assert pod.get("free", "/x", headers={"X-Runpod-Worker-Id": "other"}).status_code == 200


def test_a_strict_request_waits_for_its_busy_worker(pod, tmp_path):
    end, strict = tmp_path / "end", {"X-Runpod-Worker-Id": "strict c"}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        busy = pool.submit(pod.get, "one", f"/sleep/100?until={end}")
        wait_until(lambda: pod.health("one")["jobs"]["inProgress"] == 1)
        waits = pool.submit(pod.get, "one", "/x", headers=strict)
        wait_until(lambda: pod.health("one")["jobs"]["inQueue"] == 1)
        assert not waits.done()
        end.touch()
        assert busy.result().status_code == 200
        answer = waits.result()
    assert (answer.status_code, answer.headers["X-Runpod-Worker-Id"]) == (200, "c")


def test_a_websocket_goes_to_the_named_worker(pod):
    url = pod.url("free", "/ws").replace("http", "ws")
    for worker in ("a", "strict b"):
        with connect(url, additional_headers={"X-Runpod-Worker-Id": worker}) as found:
            found.send("hello")
            assert found.recv(60) == "hello"
            named = found.response.headers["X-Runpod-Worker-Id"]
            assert named == worker.split()[-1]


def test_events_arrive_one_by_one(pod):
    arrived = []
    with pod.get("free", "/events/5?pause=0.3", stream=True) as answer:
        for line in answer.iter_lines():
            if line:
                arrived.append(line)
                wait_until(lambda: pod.health("free")["jobs"]["inProgress"] in {0, 1})
    assert arrived == [f"data: {number}".encode() for number in range(5)]


def test_a_body_of_30_mb_passes_both_ways_and_a_larger_one_is_refused(pod):
    body = random.Random(7).randbytes(BIG)
    answer = requests.post(pod.url("free", "/big"), data=body, timeout=60)
    assert answer.content == body
    one = socket.create_connection(("127.0.0.1", pod.port), 60)
    one.sendall(
        f"POST /lb/free/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BIG + 1}\r\n\r\n".encode()
    )
    assert b" 413 " in one.recv(4096).split(b"\r\n")[0]
    one.close()


def test_each_type_of_endpoint_refuses_the_other_ones_addresses(pod):
    answer = pod.get("queue", "/x")
    assert (answer.status_code, answer.json()) == (400, {"error": "not allowed for QB API"})
    answer = requests.post(f"{pod.api}/free/run", json={"input": {}}, timeout=60)
    assert (answer.status_code, answer.json()) == (400, {"error": "not allowed for LB API"})
    assert pod.get("unknown", "/x").status_code == 404


def test_a_worker_that_dies_in_a_request_is_502_and_no_other_worker_gets_it(pod, start):
    workers = [start(), start()]
    for number, worker in enumerate(workers):
        pod.add("dying", worker, id=f"d{number}")
    pod.ready("dying", 2)
    answer = pod.get("dying", "/die")
    assert answer.status_code == 502
    wait_until(lambda: sum(worker.process.running for worker in workers) == 1)
    (left,) = (worker for worker in workers if worker.process.running)
    assert left.seen["requests"] == 0
    # The next ones go to the other, at once.
    assert [pod.get("dying", "/sleep/0").status_code for _ in range(5)] == [200] * 5


# Changes and ends under load.


async def load(pod: Pod, changes: threading.Event) -> dict[str, list[object]]:
    """500 requests, 50 streams and 20 WebSockets at once; returns what came back of each kind."""
    timeout = aiohttp.ClientTimeout(total=200)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one(number: int) -> int:
            async with session.post(pod.url("churn", f"/sleep/2?n={number}"), data="x") as answer:
                await answer.read()
                return answer.status

        async def events() -> str:
            async with session.get(pod.url("churn", "/events/40?pause=0.1")) as answer:
                return (await answer.text()).rsplit("data: ", 1)[-1].strip()

        async def echo() -> bool:
            async with session.ws_connect(pod.url("churn", "/ws")) as found:
                for number in range(40):
                    await found.send_str(str(number))
                    if (await found.receive_str(timeout=100)) != str(number):
                        return False
                    await asyncio.sleep(0.1)
            return True

        made = {
            "requests": [one(number) for number in range(500)],
            "events": [events() for _ in range(50)],
            "sockets": [echo() for _ in range(20)],
        }
        tasks = {name: [asyncio.create_task(t) for t in tasks] for name, tasks in made.items()}
        await asyncio.sleep(0.5)
        changes.set()
        return {
            name: await asyncio.gather(*found, return_exceptions=True)
            for name, found in tasks.items()
        }


def test_ten_changes_of_the_workers_break_nothing_that_is_open(pod, start):
    workers = [start() for _ in range(4)]
    for number in (0, 1):
        pod.add("churn", workers[number], id=f"w{number}")
    pod.ready("churn", 2)
    begun = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(lambda: asyncio.run(load(pod, begun)))
        begun.wait(60)
        for step in range(10):
            change(pod, workers, step)
        found = loaded.result()
    assert found["requests"] == [200] * 500
    assert found["events"] == ["39"] * 50
    assert found["sockets"] == [True] * 20


def change(pod, workers, step):
    """One change: two workers come, two are drained, resumed, removed, and come again."""
    url = f"{pod.api}/churn/workers"
    match step:
        case 0 | 1:
            pod.add("churn", workers[2 + step], id=f"w{2 + step}")
        case 2 | 3:
            assert requests.post(f"{url}/w{step - 2}/drain", timeout=60).ok
        case 4:
            assert requests.post(f"{url}/w0/resume", timeout=60).ok
        case 5 | 6:
            assert requests.delete(f"{url}/w{step - 4}", timeout=60).ok
        case 7 | 8:
            pod.add("churn", workers[step - 6], id=f"w{step - 6}")
        case _:
            assert requests.delete(f"{url}/w0", timeout=60).ok
    wait_until(lambda: pod.health("churn")["ownpod"]["workers"], what="the endpoint's workers")


def test_haproxy_is_killed_and_serves_again_with_all_it_knew(pod):
    # One that has lost its place to another lives until its last connection ends.
    (old,) = wait_until(lambda: len(found := pod.processes("haproxy")) == 1 and found)
    os.kill(old.pid, signal.SIGKILL)
    wait_until(
        lambda: any(p.pid != old.pid for p in pod.processes("haproxy")), 20, "another HAProxy"
    )
    answer = wait_until(lambda: tried(pod, "free"), 20, "an answer")
    assert answer.headers["X-Runpod-Worker-Id"] in {"a", "b"}
    assert pod.get("one", "/sleep/0").status_code == 200
    assert requests.get(f"{pod.api}/queue/health", timeout=60).ok


def tried(pod, endpoint):
    with contextlib.suppress(requests.RequestException):
        answer = pod.get(endpoint, "/sleep/0")
        return answer if answer.ok else None
    return None


def test_a_killed_edge_breaks_nothing(pod):
    (haproxy,) = wait_until(lambda: len(found := pod.processes("haproxy")) == 1 and found)
    (edge,) = wait_until(lambda: len(found := pod.processes("ownpod front")) == 1 and found)
    with connect(pod.url("free", "/ws").replace("http", "ws")) as found:
        os.kill(edge.pid, signal.SIGKILL)
        for _ in range(20):
            assert pod.get("free", "/sleep/0").status_code == 200
        wait_until(
            lambda: any(p.pid != edge.pid for p in pod.processes("ownpod front")), 30, "an edge"
        )
        found.send("still")
        assert found.recv(60) == "still"
    # It belongs to no edge for a moment, and to no `ownpod up`.
    assert haproxy.is_running()
    wait_until(lambda: pod.health("free")["workers"]["ready"] == 2, 20, "statuses")


def test_requests_to_the_api_wait_while_it_restarts(pod):
    killed = pod.processes("ownpod-api")
    assert killed
    for api in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(api.pid, signal.SIGKILL)
    # A request that has reached one of them is not sent again, because its job may be made.
    assert psutil.wait_procs(killed, 60)[1] == []
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        sent = [
            pool.submit(requests.post, f"{pod.api}/queue/run", json={"input": {}}, timeout=100)
            for _ in range(5)
        ]
        assert [one.result().status_code for one in sent] == [200] * 5
