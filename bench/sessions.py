"""Measures of sessions and typed events: a session's tasks, the first byte of a stream, and 500 open streams."""

import selectors
import socket
import sys
import time

import psutil
from client import Answer, Client, connected, percentile, request, spread
from measures import EndpointStats, ended_well, job, wait_until
from system import ENDPOINT as PULLED
from system import HERE, QUIET, OwnPod, cpu_s, processes, pss_mb

from ownpod.rules.pulling import worker_environment

MODEL, PRESET = "m", "chat"
EP = f"{MODEL}-{PRESET}"
"""The preset's endpoint."""

STREAMS = 500
REST_S = 10
WARM = 10
"""Number of jobs of each worker that are not measured."""
TASK = {"task_type": "session", "model_id": MODEL, "task_preset": PRESET}


def _system(group, **values: object) -> OwnPod:
    preset = {
        "command": [sys.executable, str(HERE / "puller.py")],
        "env": QUIET,
        "session": {"idleTimeout": 0, "maxLifetime": 0, "queue": 0},
    }
    return OwnPod(group, [], [], models={MODEL: {"presets": {PRESET: preset}}}, **values)


def _with(made: bytes, header: str) -> bytes:
    """A request with one header more."""
    return made.replace(b"\r\n", f"\r\n{header}\r\n".encode(), 1)


def _opened(system: OwnPod) -> str:
    """A session that is ready."""
    body = {"model_id": MODEL, "task_preset": PRESET}
    with connected(system.port) as client:
        session = client.ask(request("POST", "/api/sessions", body)).json()["session_id"]
        shown = request("GET", f"/api/sessions/{session}")
        wait_until(lambda: client.ask(shown).json()["status"] == "waiting")
    return session


def session(_stage: object, *, quick: bool) -> EndpointStats:
    """No-ops of a warm session, beside those of a worker that pulls; and the first byte of a task's stream. Neither worker pauses as the SDK does."""
    count = 100 if quick else 300
    with processes() as group:
        system = _system(group)
        url = f"http://127.0.0.1:{system.port}/v2/{PULLED}"
        group.start(HERE / "puller.py", **worker_environment(url, "plain", key="any"))
        system.ready(1)
        task = {**TASK, "session_id": _opened(system), "metadata": {"seconds": 0}}
        named = f"X-Runpod-Worker-Id: strict {task['session_id']}"
        pinned = _with(job("/runsync", endpoint=EP), named)
        asked = {"pull_ms": job("/runsync"), "session_ms": pinned}
        found: dict[str, list[Answer]] = {name: [] for name in asked}
        firsts, wholes = [], []
        with connected(system.port) as client:
            for number in range(count):
                for name, made in asked.items():
                    answer = client.ask(made)
                    if number >= WARM:
                        found[name].append(answer)
            for _ in range(count):
                first, whole = _streamed(system.port, task)
                firsts.append(first)
                wholes.append(whole)
    times = {}
    for name, answers in found.items():
        ended_well(answers)
        times[name] = [answer.ms for answer in answers]
    middle = {name: percentile(values, 50) for name, values in times.items()}
    return {
        **spread("pull_ms", times["pull_ms"]),
        **spread("session_ms", times["session_ms"]),
        "more_ms": middle["session_ms"] - middle["pull_ms"],
        **spread("first_ms", firsts[1:]),
        **spread("task_ms", wholes[1:]),
    }


def _streamed(port: int, task: dict) -> tuple[float, float]:
    """Ms from a submission to the first byte of its events, and to the last one."""
    began, data, first = time.monotonic(), b"", 0.0
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request("POST", "/api/tasks/submit", task))
        while b"event: task_finish" not in data:
            part = sock.recv(1 << 16)
            if not part:
                raise ConnectionError(f"no end: {data[-200:]!r}")
            data += part
            # Not the header alone: the first byte of the body.
            if not first and b"retry: " in data:
                first = time.monotonic()
        ended = time.monotonic()
    if b'"status": "completed"' not in data:
        raise ConnectionError(f"not completed: {data[-300:]!r}")
    return (first - began) * 1000, (ended - began) * 1000


def streams(_stage: object, *, quick: bool) -> EndpointStats:
    """500 open event streams in one API process, of tasks that wait for one device."""
    del quick
    with processes() as group:
        system = _system(group, api=1, OWNPOD_DEVICES="cpu:1")
        path = "/api/tasks/submit"
        with connected(system.port) as client:
            body = {**TASK, "session_id": _opened(system), "metadata": {"seconds": 0}}
            held = {**body, "metadata": {"seconds": 60}}
            plain, blocked = (
                _with(request("POST", path, one), "Prefer: respond-async") for one in (body, held)
            )
            first = client.ask(blocked).json()["task_id"]
            last = client.ask(plain).json()["task_id"]
            (api,) = _workers(system)
            before_mb = pss_mb(api)
            opened = _open(system.port, f"/api/tasks/{last}/events", STREAMS)
            # A stream reads the position of its job more often at first.
            time.sleep(REST_S)
            used, began = cpu_s(api), time.monotonic()
            time.sleep(REST_S)
            share = (cpu_s(api) - used) / (time.monotonic() - began)
            kb = (pss_mb(api) - before_mb) * 1000 / STREAMS
            health = [client.ask(request("GET", f"/v2/{EP}/health")).ms for _ in range(100)]
            ended = time.monotonic()
            client.ask(request("POST", f"/api/tasks/{last}/cancel", {}))
            times = [(at - ended) * 1000 for at in _ends(opened)]
            client.ask(request("POST", f"/api/tasks/{first}/cancel", {}))
    return {
        "open": len(opened),
        "ended": len(times),
        "kb": kb,
        "share_percent": 100 * share,
        **spread("health_ms", health),
        "last_ms": max(times),
    }


def _workers(system: OwnPod) -> list[int]:
    """The API's processes that answer, without the one that has started them."""
    pids = system.pids()["api"]
    return [pid for pid in pids if psutil.Process(pid).ppid() in pids]


def _open(port: int, path: str, count: int) -> list[socket.socket]:
    """Streams that have had their first event."""
    found = []
    for _ in range(count):
        sock = Client(port).socket
        sock.sendall(request("GET", path))
        found.append(sock)
    for sock in found:
        data = b""
        while b"event: connection" not in data:
            part = sock.recv(1 << 16)
            if not part:
                raise ConnectionError(f"no stream: {data[-200:]!r}")
            data += part
    return found


def _ends(opened: list[socket.socket]) -> list[float]:
    """When each stream had its last event, on the monotonic clock."""
    times, until = [], time.monotonic() + 30
    with selectors.DefaultSelector() as selector:
        for sock in opened:
            selector.register(sock, selectors.EVENT_READ, bytearray())
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(1):
                sock = key.fileobj
                part = sock.recv(1 << 16)  # type: ignore[union-attr]
                key.data.extend(part)
                if b"event: task_finish" in key.data:
                    times.append(time.monotonic())
                if not part or b"event: task_finish" in key.data:
                    selector.unregister(sock)
                    sock.close()  # type: ignore[union-attr]
    return times
