"""Measures with many clients, many workers, many jobs or large payloads: one function for each, as in measures.py."""

import multiprocessing
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait

import servers
from client import (
    HOST,
    Answer,
    allow_many_files,
    ask,
    connected,
    percentile,
    request,
    spread,
    together,
)
from measures import WORKERS, EndpointStats, job, port_of, wait_until
from system import (
    ENDPOINT,
    JOB_INPUT,
    PARKED,
    OwnPod,
    Stage,
    completed,
    create_jobs,
    peak_mb,
    processes,
    pss_mb,
    usual,
    waiting_workers,
)

from ownpod.errors import OwnPodError
from ownpod.processes import die_with_parent
from ownpod.store import keys
from ownpod.store.store import Store

CROWD = 2000
CROWD_S = 60
PROBE_S = 2.0
"""Timeout in seconds of a `/health` while clients wait. A request that times out counts with this duration."""

NODES = 100
PAYLOAD = 10_000_000
DISPATCHED = 500


def _start_process() -> None:
    die_with_parent()
    allow_many_files()


def _executor(count: int) -> ProcessPoolExecutor:
    """A pool of processes that inherit nothing of this process, and end with it."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_start_process)


def waiting(_stage: Stage, *, quick: bool) -> EndpointStats:
    """2,000 clients that wait for a job, with /health in the meantime; then all are answered at once."""
    with processes() as group, _executor(1) as executor:
        system = OwnPod(group, [], [])
        store = system.store()
        crowd = executor.submit(_crowd, system.port)
        reached = _until_they_wait(store)
        figures = {"waiting": reached}
        figures |= _probe(system, 60 if quick else 300)
        pids = system.pids()["api"]
        figures |= {"api_pss_mb": sum(map(pss_mb, pids)), "api_processes": len(pids) - 1}
        purged = time.monotonic()
        _purge(system, store, crowd)
        answers = crowd.result()
    statuses = Counter(a.status for a in answers)
    print(f"  answers by status, 0 is none: {dict(statuses)}")
    heard = [a for a in answers if a.status == 200 and a.json()["status"] == "CANCELLED"]
    last = max((a.ended for a in heard), default=purged)
    return figures | {
        "answered": len(heard),
        "errors": len(answers) - statuses[200],
        "purge_to_last_s": last - purged,
    }


def _crowd(port: int) -> list[Answer]:
    """The clients, in another process."""
    made = job("/runsync?wait=300000", endpoint=PARKED)
    return together(port, [made] * CROWD, CROWD, seconds=CROWD_S)


def _until_they_wait(store: Store) -> int:
    """The number of waiting jobs, once all wait or the number stops to grow."""
    seen, since = 0, time.monotonic()
    while seen < CROWD and time.monotonic() - since < 3:
        now = store.figures.counts(PARKED)[0]
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.05)
    return seen


def _probe(system: OwnPod, count: int) -> EndpointStats:
    """Polls both kinds of /health, each time on a new connection, as health checks do."""
    times: dict[str, list[float]] = {"health_ms": [], "alive_ms": []}
    paths = {"health_ms": f"/v2/{PARKED}/health", "alive_ms": "/health"}
    until = time.monotonic() + 20
    for _ in range(count):
        for name, path in paths.items():
            times[name].append(_probe_ms(system.port, request("GET", path)))
        if time.monotonic() > until:
            break
    return {**spread("health_ms", times["health_ms"]), **spread("alive_ms", times["alive_ms"])}


def _probe_ms(port: int, made: bytes) -> float:
    try:
        return ask(port, made, PROBE_S).ms
    except OSError:
        return PROBE_S * 1000


def _purge(system: OwnPod, store: Store, crowd: Future) -> None:
    """Purges the queue through the API, and then through the store until no client waits for a late job."""
    try:
        ask(system.port, request("POST", f"/v2/{PARKED}/purge-queue"), 5).json()
    except OSError as error:
        print(f"  /purge-queue: {error}")
    while not crowd.done():
        wait([crowd], 0.5)
        try:
            store.queue.purge(PARKED, reason="measured")
        except OwnPodError as error:
            print(f"  purge: {error}")


def nodes(_stage: Stage, *, quick: bool) -> EndpointStats:
    """100 idle workers on one host."""
    seconds = 5 if quick else 20
    with processes() as group:
        system = waiting_workers(group, NODES)
        ready = time.monotonic() - system.began
        time.sleep(2 if quick else 5)
        pids = system.pids()
        before, began = system.cpu_s(), time.monotonic()
        time.sleep(seconds)
        after, took = system.cpu_s(), time.monotonic() - began
        share = {kind: 100 * (after[kind] - before[kind]) / took for kind in after}
        return {
            "ready_s": ready,
            "node_pss_mb": sum(map(pss_mb, pids["node"])) / NODES,
            "dispatch_pss_mb": sum(map(pss_mb, pids["dispatch"])),
            "node_cpu_percent": share["node"] / NODES,
            "dispatch_cpu_percent": share["dispatch"],
            "redis_cpu_percent": share["redis"],
            "api_cpu_percent": share["api"],
        }


def queued(_stage: Stage, *, quick: bool) -> EndpointStats:
    """Two OwnPods in turn: one with few waiting jobs, and one with very many."""
    count = 10_000 if quick else 100_000
    with processes() as group, _executor(2) as executor:
        urls, pids = group.workers(WORKERS)
        # A node reads the pause when it renews its lease.
        few, many = (
            OwnPod(group, urls, pids, name=name, OWNPOD_LEASE_S=3) for name in ("few", "many")
        )
        for system in (few, many):
            system.ready(WORKERS)
            system.drain()
        _fill(executor, few, 10)
        figures = {"jobs": count, **_fill_measured(executor, many, count)}
        rounds = 5 if quick else 9
        figures |= _compared("submits_per_s", few, many, rounds, _submit_rate, after=_shrink)
        middles = {few: _job_at(few, 5), many: _job_at(many, count // 2)}
        status = {s: request("GET", f"/v2/{ENDPOINT}/status/{i}") for s, i in middles.items()}
        figures |= _compared("status_ms", few, many, rounds, lambda s: _p50(s, status[s]))
        health = request("GET", f"/v2/{ENDPOINT}/health")
        figures |= _compared("health_ms", few, many, rounds, lambda s: _p50(s, health))
        few.post("/purge-queue")
        refill = lambda s: s is few and _fill(executor, few, 1500)  # noqa: E731
        return figures | _compared(
            "dispatch_per_s", few, many, 2 if quick else 5, _dispatch_rate, before=refill
        )


def _job_at(system: OwnPod, place: int) -> str:
    """The id of the job at a place of the queue."""
    return system.store().client.zrange(keys.queued(ENDPOINT), place, place)[0]


def _fill_measured(executor: Executor, system: OwnPod, count: int) -> EndpointStats:
    """Fills the queue; returns Redis's memory for each job without its payload."""
    client = system.store().client
    before, began = client.info("memory")["used_memory"], time.monotonic()
    _fill(executor, system, count)
    took = time.monotonic() - began
    wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    memory = client.info("memory")["used_memory"] - before
    return {"fill_s": took, "redis_kb": (memory / count - len(JOB_INPUT)) / 1000}


def _fill(executor: Executor, system: OwnPod, count: int) -> None:
    parts = [executor.submit(create_jobs, system.redis_url, count // 2) for _ in range(2)]
    for part in parts:
        part.result()


def _compared(
    name: str,
    few: OwnPod,
    many: OwnPod,
    rounds: int,
    measure: Callable[[OwnPod], float],
    *,
    before: Callable[[OwnPod], object] = bool,
    after: Callable[[OwnPod], object] = bool,
) -> EndpointStats:
    """Measures both in turn, several times: the medians, and by how many percent it is slower with many jobs."""
    found: dict[OwnPod, list[float]] = {few: [], many: []}
    for number in range(rounds):
        for system in (few, many) if number % 2 else (many, few):
            before(system)
            found[system].append(measure(system))
            after(system)
    small, large = statistics.median(found[few]), statistics.median(found[many])
    slower = small / large if name.endswith("_per_s") else large / small
    return {
        f"{name}_few": small,
        f"{name}_many": large,
        f"{name}_slower_percent": 100 * slower - 100,
    }


def _submit_rate(system: OwnPod) -> float:
    answers = together(system.port, [job("/run")] * 400, 4)
    [answer.json() for answer in answers]
    return len(answers) / (max(a.ended for a in answers) - min(a.began for a in answers))


def _shrink(system: OwnPod) -> None:
    """Refills the small queue, so that it does not run empty."""
    if system.health()["jobs"]["inQueue"] < 5000:
        system.post("/purge-queue")
        together(system.port, [job("/run")] * 10, 1)


def _p50(system: OwnPod, made: bytes) -> float:
    with connected(system.port) as client:
        answers = [client.ask(made) for _ in range(100)]
    answers[0].json()
    return percentile([answer.ms for answer in answers], 50)


def _dispatch_rate(system: OwnPod) -> float:
    """Jobs that are COMPLETED each second while others wait, counted once all nodes take jobs."""
    store = system.store()
    system.resume()
    before, began = completed(store), time.monotonic()
    wait_until(
        lambda: completed(store) >= before + DISPATCHED or not store.figures.counts(ENDPOINT)[0]
    )
    rate = (completed(store) - before) / (time.monotonic() - began)
    system.drain()
    return rate


def payload(_stage: Stage, *, quick: bool) -> EndpointStats:
    """10 MB there and back, in turn: a plain copy, the worker without OwnPod, and OwnPod."""
    times: dict[str, list[float]] = {"copy_ms": [], "worker_ms": [], "ownpod_ms": []}
    body = {"input": {"text": "x" * PAYLOAD}}
    itself = request("POST", "/runsync", body)
    through = request("POST", f"/v2/{ENDPOINT}/runsync", body)
    with processes() as group:
        system, copy = usual(group, workers=1), group.server("copy")
        before = _peaks(system)
        with (
            socket.create_connection((HOST, copy)) as plain,
            connected(port_of(system.urls[0])) as worker,
            connected(system.port) as ownpod,
        ):
            for _ in range(4 if quick else 11):
                times["copy_ms"].append(_copy_ms(plain, itself))
                times["worker_ms"].append(_whole(worker.ask(itself)))
                times["ownpod_ms"].append(_whole(ownpod.ask(through)))
        after = _peaks(system)
    found = {name: percentile(values[1:], 50) for name, values in times.items()}
    copied = found["copy_ms"]
    return {
        **found,
        "total_x": found["ownpod_ms"] / copied,
        "part_x": (found["ownpod_ms"] - found["worker_ms"]) / copied,
        **{f"{kind}_peak_before_mb": before[kind] for kind in before},
        **{f"{kind}_peak_mb": after[kind] for kind in after},
    }


def _peaks(system: OwnPod) -> EndpointStats:
    """The memory of the largest process of each kind."""
    pids = system.pids()
    return {kind: max(map(peak_mb, pids[kind])) for kind in ("api", "node", "redis", "worker")}


def _whole(answer: Answer) -> float:
    if len(answer.json()["output"]) != PAYLOAD:
        raise ConnectionError("not all of the payload came back")
    return answer.ms


def _copy_ms(plain: socket.socket, data: bytes) -> float:
    began = time.monotonic()
    plain.sendall(len(data).to_bytes(8))
    plain.sendall(data)
    servers.receive(plain, len(data))
    return (time.monotonic() - began) * 1000
