"""Measures of an OwnPod of usual size: one function for each, which returns its figures by name."""

import os
import statistics
import time
from collections.abc import Callable

from client import Answer, Client, connected, request, spread, together
from system import ENDPOINT, PARKED, OwnPod, Processes, Stage, Used, completed, processes, pulling

WORKERS = 4
EQUAL = [0.25] * 32
MIXED = [0.02, 0.02, 1.0, 0.02, 0.02] * 16
EndpointStats = dict[str, float]


def job(operation: str, seconds: float = 0, endpoint: str = ENDPOINT) -> bytes:
    """The request for a job that takes ``seconds``."""
    return request("POST", f"/v2/{endpoint}{operation}", {"input": {"seconds": seconds}})


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def ended_well(answers: list[Answer]) -> None:
    """Raises: ConnectionError, if a job is not COMPLETED."""
    for answer in answers:
        if answer.json()["status"] != "COMPLETED":
            raise ConnectionError(f"not COMPLETED: {answer.body[:200]!r}")


def no_op(stage: Stage, *, quick: bool) -> EndpointStats:
    """A no-op, in turn on the worker without OwnPod and through OwnPod."""
    system, count = stage.system(), 100 if quick else 500
    itself = request("POST", "/runsync", {"input": {"seconds": 0}})
    with connected(port_of(system.urls[0])) as worker, connected(system.port) as ownpod:
        pairs = [(worker.ask(itself), ownpod.ask(job("/runsync"))) for _ in range(count)][10:]
    ended_well([through for _, through in pairs])
    figures = spread("worker_ms", [direct.ms for direct, _ in pairs])
    figures |= spread("ownpod_ms", [through.ms for _, through in pairs])
    return figures | {"part_ms": figures["ownpod_ms_p50"] - figures["worker_ms_p50"]}


def drain(stage: Stage, *, quick: bool) -> EndpointStats:
    """No-ops submitted and drained."""
    system, count = stage.system(), 500 if quick else 2000
    store = system.store()
    before, used, began = completed(store), Used(system), time.monotonic()
    answers = together(system.port, [job("/run")] * count, WORKERS)
    submitted = time.monotonic()
    [answer.json() for answer in answers]
    wait_until(lambda: completed(store) >= before + count)
    ended = time.monotonic()
    return {
        "jobs_per_s": count / (ended - began),
        "submits_per_s": count / (submitted - began),
        **used.per_job(count),
    }


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for a condition, which is checked every 10 ms. Raises: TimeoutError."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.01)


def clients(stage: Stage, *, quick: bool) -> EndpointStats:
    """16 clients that wait for no-ops."""
    system, count = stage.system(), 500 if quick else 3000
    used = Used(system)
    answers = together(system.port, [job("/runsync")] * count, 16)
    cpu = used.per_job(count)
    ended_well(answers)
    took = max(a.ended for a in answers) - min(a.began for a in answers)
    return {"jobs_per_s": count / took, **spread("ms", [a.ms for a in answers]), **cpu}


def _against_ideal(system: OwnPod, seconds: list[float]) -> EndpointStats:
    """The time for jobs that are submitted at once, against the sum of their durations divided by the workers."""
    requests = [job("/runsync?wait=60000", s) for s in seconds]
    answers = together(system.port, requests, len(seconds))
    ended_well(answers)
    took = max(a.ended for a in answers) - min(a.began for a in answers)
    ideal = sum(seconds) / WORKERS
    return {"took_s": took, "ideal_s": ideal, "percent": 100 * ideal / took}


def _several(measure: Callable[[], EndpointStats], count: int) -> EndpointStats:
    """The median of each figure over several measurements."""
    found = [measure() for _ in range(count)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def equal(stage: Stage, *, quick: bool) -> EndpointStats:
    """Jobs of equal duration, against the ideal time."""
    system = stage.system()
    return _several(lambda: _against_ideal(system, EQUAL), 1 if quick else 3)


def mixed(stage: Stage, *, quick: bool) -> EndpointStats:
    """Jobs of different durations, against the ideal time."""
    system = stage.system()
    return _several(lambda: _against_ideal(system, MIXED), 1 if quick else 3)


def way(stage: Stage, *, quick: bool) -> EndpointStats:
    """The time from the end of the handler to the answer of the waiting client."""
    system, count = stage.system(), 60 if quick else 300
    with connected(system.port) as client:
        times = [_way_ms(client) for _ in range(count)]
    return spread("ms", times)


def _way_ms(client: Client) -> float:
    answer = client.ask(job("/runsync", 0.02))
    now = time.time()
    return (now - answer.json()["output"]["at"]) * 1000


def submissions(_stage: Stage, *, quick: bool) -> EndpointStats:
    """`/run` with one API process, for an endpoint without workers."""
    count = 1000 if quick else 5000
    with processes() as group:
        system = OwnPod(group, [], [], api=1)
        requests = [job("/run", endpoint=PARKED)] * count
        together(system.port, requests[:100], WORKERS)
        used = Used(system)
        answers = together(system.port, requests, WORKERS)
        cpu = used.per_job(count)
    [answer.json() for answer in answers]
    took = max(a.ended for a in answers) - min(a.began for a in answers)
    return {"per_s": count / took, **spread("ms", [a.ms for a in answers]), **cpu}


def pull(_stage: Stage, *, quick: bool) -> EndpointStats:
    """Pull workers. There are few jobs, because the SDK pauses for up to a second between them."""
    with processes() as group:
        system = pulling(group, WORKERS)
        with connected(system.port) as client:
            answers = [client.ask(job("/runsync")) for _ in range(8 if quick else 20)]
        ended_well(answers)
        figures = spread("ms", [answer.ms for answer in answers])
        figures |= _pull_drain(system, 12 if quick else 40)
        figures["equal_percent"] = _against_ideal(system, EQUAL)["percent"]
        if not quick:
            figures["mixed_percent"] = _against_ideal(system, MIXED)["percent"]
    return figures


def _pull_drain(system: OwnPod, count: int) -> EndpointStats:
    answers = together(system.port, [job("/runsync?wait=60000")] * count, count)
    ended_well(answers)
    took = max(a.ended for a in answers) - min(a.began for a in answers)
    return {"jobs_per_s": count / took}


def calibrate(group: Processes) -> EndpointStats:
    """The speed of this machine at this moment: a loop in Python, and an HTTP call to a trivial server.

    Both run on one core, because a call between two cores varies by a factor of three.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        port = group.server("missing")
        loops = [_loop_ms() for _ in range(9)]
        with connected(port) as client:
            calls = [client.ask(request("GET", "/")).ms for _ in range(2000)]
    finally:
        os.sched_setaffinity(0, cores)
    return {"loop_ms": statistics.median(loops), "http_ms": statistics.median(calls)}


def _loop_ms() -> float:
    began = time.perf_counter()
    sum(number * number for number in range(500_000))
    return (time.perf_counter() - began) * 1000
