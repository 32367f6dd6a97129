"""Measures of load-balanced endpoints: the same requests to a worker itself, through OwnPod's front, and through other proxies."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from client import CHUNK, HOST, Answer, Client, connected, request, spread, together
from proxies import OTHERS
from system import HERE, OwnPod, Processes, Stage, listens, processes, wait_for

from ownpod.processes import free_port

WORKERS, CLIENTS = 4, 16
FREE, ONE = "free-lb", "one-lb"
"""Two endpoints with the same workers: any number of requests at a time, and one."""

EQUAL = [0.25] * 32
MIXED = [0.02, 0.02, 1.0, 0.02, 0.02] * 16
Figures = dict[str, float]


@dataclass(frozen=True)
class Balanced:
    """OwnPod with two load-balanced endpoints, and their workers' ports."""

    system: OwnPod
    workers: list[int]

    @property
    def targets(self) -> dict[str, tuple[int, str]]:
        """Port and beginning of the path, by name: a worker itself, and OwnPod."""
        return {"worker": (self.workers[0], ""), "ownpod": (self.system.port, f"/lb/{FREE}")}

    @property
    def front(self) -> psutil.Process:
        """The HAProxy of the front."""
        (found,) = (p for p in self.system.below("front") if "haproxy" in p.name())
        return found


@contextmanager
def balanced() -> Iterator[tuple[Balanced, Processes]]:
    """Four workers and OwnPod, which end with the block."""
    with processes() as group:
        free = [uvicorn(group) for _ in range(WORKERS)]
        one = [uvicorn(group) for _ in range(WORKERS)]
        endpoints = {
            FREE: {"type": "LB", "workers": _urls(free)},
            ONE: {"type": "LB", "capacity": 1, "workers": _urls(one)},
        }
        system = OwnPod(group, [], [], managed=endpoints, OWNPOD_FRONT="on")
        for endpoint in endpoints:
            wait_for("workers", lambda e=endpoint: system.health(e)["workers"]["ready"] == WORKERS)
        yield Balanced(system, free), group


def uvicorn(group: Processes) -> int:
    """Starts a worker; returns its port."""
    port = free_port()
    serve = ("-m", "uvicorn", "asgi:app", "--app-dir", HERE, "--log-level", "error")
    group.start(*serve, "--port", port, "--timeout-keep-alive", 600)
    wait_for("a worker", lambda: listens(port))
    return port


def _urls(ports: list[int]) -> list[dict[str, str]]:
    return [{"url": f"http://{HOST}:{port}"} for port in ports]


def lb(_stage: Stage, *, quick: bool) -> Figures:
    """Requests to a worker itself, and through OwnPod, HAProxy, nginx and Caddy, in turn."""
    with balanced() as (found, group):
        targets = dict(found.targets)
        for name, start in OTHERS.items():
            port = start(group, found.workers)
            if port is not None:
                targets[name] = port, ""
        figures = _in_turn(targets, 300 if quick else 2000)
        for name, (port, before) in targets.items():
            figures[f"{name}_per_s"] = _rate(port, f"{before}/noop", 1 if quick else 5)
    for name in targets.keys() - {"worker"}:
        figures[f"{name}_added_ms"] = figures[f"{name}_ms_p50"] - figures["worker_ms_p50"]
    if "haproxy" in targets:
        figures["ratio"] = figures["ownpod_per_s"] / figures["haproxy_per_s"]
    return figures


def _in_turn(targets: Mapping[str, tuple[int, str]], count: int) -> Figures:
    """The times of requests that go to each target in turn, so that all of them meet the same machine."""
    clients = {name: Client(port) for name, (port, _) in targets.items()}
    made = {name: request("GET", f"{path}/noop") for name, (_, path) in targets.items()}
    times: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(count):
        for name, client in clients.items():
            answer = client.ask(made[name])
            answer.json()
            times[name].append(answer.ms)
    for client in clients.values():
        client.close()
    figures: Figures = {}
    for name, found in times.items():
        figures |= spread(f"{name}_ms", found[20:])
    return figures


def _rate(port: int, path: str, seconds: int) -> float:
    """Requests a second of 16 clients: by `wrk` where it is installed, because a client in Python is slower than HAProxy."""
    wrk = shutil.which("wrk")
    if wrk is None:
        answers = together(port, [request("GET", path)] * 4000 * seconds, CLIENTS)
        took = max(a.ended for a in answers) - min(a.began for a in answers)
        return len(answers) / took
    command = [wrk, "-t1", f"-c{CLIENTS}", f"-d{seconds}s", f"http://{HOST}:{port}{path}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or (found := re.search(r"Requests/sec: +([0-9.]+)", said)) is None:
        raise RuntimeError(said)
    return float(found[1])


def lb_queue(_stage: Stage, *, quick: bool) -> Figures:
    """Requests of some duration on four workers of capacity 1, against the ideal time."""
    with balanced() as (found, _):
        runs = 1 if quick else 3
        return {
            "equal_percent": _best(lambda: _of_ideal(found.system.port, EQUAL), runs),
            "mixed_percent": _best(lambda: _of_ideal(found.system.port, MIXED), runs),
        }


def _best(measure: Callable[[], float], count: int) -> float:
    """The median of several measurements."""
    return sorted(measure() for _ in range(count))[count // 2]


def _of_ideal(port: int, seconds: list[float]) -> float:
    made = [request("GET", f"/lb/{ONE}/sleep/{s}") for s in seconds]
    answers: list[Answer] = together(port, made, len(seconds))
    [answer.json() for answer in answers]
    took = max(a.ended for a in answers) - min(a.began for a in answers)
    return 100 * sum(seconds) / WORKERS / took


def lb_stream(_stage: Stage, *, quick: bool) -> Figures:
    """How late events of a stream arrive."""
    count, figures = 50 if quick else 500, {}
    with balanced() as (found, _):
        for name, (port, before) in found.targets.items():
            figures |= spread(f"{name}_ms", _late_ms(port, f"{before}/events/{count}"))
    return figures | {"added_ms": figures["ownpod_ms_p50"] - figures["worker_ms_p50"]}


def _late_ms(port: int, path: str) -> list[float]:
    """Milliseconds from the sending of each event to its arrival, by the clock that all processes of a host share."""
    late: list[float] = []
    with connected(port) as client:
        client.socket.sendall(request("GET", path))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            got, now = client.socket.recv(CHUNK), time.monotonic()
            data = (data + got)[-200:]
            sent = [json.loads(event)["at"] for event in re.findall(rb"data: (\{.*?\})", got)]
            late += [(now - at) * 1000 for at in sent]
    return late


def lb_sockets(_stage: Stage, *, quick: bool) -> Figures:
    """Idle WebSockets: how many at once, and their memory in HAProxy."""
    count = 500 if quick else 5000
    with balanced() as (found, _):
        before = found.front.memory_info().rss
        sockets = [_upgraded(found.system.port) for _ in range(count)]
        kb = (found.front.memory_info().rss - before) / count / 1000
        alive = sum(_echoes(one) for one in sockets)
        for one in sockets:
            one.close()
    return {"open": alive, "broken": count - alive, "kb": kb}


def _upgraded(port: int) -> socket.socket:
    """An open WebSocket."""
    made = (
        f"GET /lb/{FREE}/ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    one = socket.create_connection((HOST, port), 20)
    one.sendall(made.encode())
    if b" 101 " not in one.recv(CHUNK).split(b"\r\n", 1)[0]:
        raise ConnectionError("no WebSocket")
    return one


def _echoes(one: socket.socket) -> bool:
    """Whether a word comes back: one masked frame with the text "hi"."""
    one.sendall(bytes((0x81, 0x82, 0, 0, 0, 0)) + b"hi")
    return one.recv(CHUNK).endswith(b"hi")


def lb_api(_stage: Stage, *, quick: bool) -> Figures:
    """The API's own no-op, `/health`, in turn without and through the front."""
    with balanced() as (found, _):
        # gunicorn changes the command line of its processes.
        api = psutil.Process(found.system.pids()["api"][0])
        (itself,) = (one.laddr.port for one in api.net_connections("tcp") if one.status == "LISTEN")
        asked = request("GET", "/health")
        count = 200 if quick else 2000
        with connected(itself) as direct, connected(found.system.port) as front:
            pairs = [(direct.ask(asked), front.ask(asked)) for _ in range(count)][20:]
    figures = spread("direct_ms", [one.ms for one, _ in pairs])
    figures |= spread("front_ms", [one.ms for _, one in pairs])
    return figures | {"added_ms": figures["front_ms_p50"] - figures["direct_ms_p50"]}
