"""Measures of managed workers: cold starts, warm workers, the agent at rest, placement, and the scaler's decision."""

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import redis
from client import Answer, connected, percentile, spread
from measures import EndpointStats, ended_well, job, wait_until
from system import ENDPOINT as PULLED
from system import (
    HERE,
    QUIET,
    OwnPod,
    Processes,
    Stage,
    cpu_s,
    create_jobs,
    open_job_store,
    processes,
    pss_mb,
)

from ownpod import settings
from ownpod.agent.taking import take
from ownpod.housekeeping.scaler import Scaler, new_worker_id
from ownpod.onehost.embedded import EmbeddedRedis
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import AgentInfo, Device, ManagedWorker, Phase
from ownpod.rules.placement import Placement
from ownpod.rules.pulling import worker_environment
from ownpod.rules.templates import GpuNeed, ManagedSpec, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.managed import MOST_STOPPED, Managed

STARTED = "managed"
"""The endpoint whose workers OwnPod starts."""

HOSTS, DEVICES, WANTED = 100, 10, 1000
AGENTS_AT_ONCE = 8
FINISHED = 10_000


def _endpoint(**values: object) -> dict[str, dict]:
    """An endpoint with a template of the measured worker, as in ``workers.yaml``."""
    template = {"command": [sys.executable, str(HERE / "handler.py")], "env": QUIET}
    return {STARTED: {"template": template, **values}}


def cold(_stage: Stage, *, quick: bool) -> EndpointStats:
    """Cold starts: a job for an endpoint without workers, until its handler has it."""
    with processes() as group:
        system = OwnPod(group, [], [], managed=_endpoint(idleTimeout=1, workersMax=1))
        with connect(system.redis_url) as client:
            managed = Managed(client)
            times = [_cold_ms(system, managed, client) for _ in range(5 if quick else 20)]
    starts, takes, handlers, wholes = zip(*times, strict=True)
    return {
        **spread("start_ms", list(starts)),
        **spread("take_ms", list(takes)),
        **spread("handler_ms", list(handlers)),
        **spread("whole_ms", list(wholes)),
    }


def _cold_ms(
    system: OwnPod, managed: Managed, client: redis.Redis
) -> tuple[float, float, float, float]:
    """Times in ms: from the job to the end of the engine's start; from the first job-take to the job's delivery; from there
    to the end of the handler, which does nothing; and all, with what the worker's own start takes.

    The third one is the SDK's: it checks for jobs that it has received every 100 ms.
    """
    wait_until(lambda: not managed.list())
    with connected(system.port) as caller:
        began_ms = time.time() * 1000
        answer = caller.ask(job("/runsync?wait=120000", endpoint=STARTED))
    ended_well([answer])
    done = answer.json()
    worker = managed.get(done["workerId"])
    # A run's id is the job's, with the attempt's number if it is not the first one.
    runs = list(client.scan_iter(f"{keys.pull(done['workerId'])}:run:{done['id']}*"))
    delivered = client.hget(runs[0], "taken_ms") if len(runs) == 1 else None
    if worker is None or worker.started_ms is None or worker.ready_ms is None or delivered is None:
        raise ValueError("the records of the worker and of its run lack their times")
    delivered_ms, handled_ms = int(delivered), done["output"]["at"] * 1000
    return (
        worker.started_ms - began_ms,
        delivered_ms - worker.ready_ms,
        handled_ms - delivered_ms,
        handled_ms - began_ms,
    )


def warm(_stage: Stage, *, quick: bool) -> EndpointStats:
    """No-ops on a warm managed worker, and on a worker that pulls and that OwnPod has not started."""
    count = 8 if quick else 30
    with processes() as group:
        system = OwnPod(group, [], [], managed=_endpoint(workersMin=1, workersMax=1))
        url = f"http://127.0.0.1:{system.port}/v2/{PULLED}"
        group.start(HERE / "handler.py", **QUIET, **worker_environment(url, "plain", key="any"))
        system.ready(1)
        wait_until(lambda: system.health(STARTED)["workers"]["ready"] == 1)
        found: dict[str, list[Answer]] = {PULLED: [], STARTED: []}
        with connected(system.port) as client:
            # In blocks, because the SDK pauses after a job: in turn, one worker would pause while the other works.
            for name in (PULLED, STARTED, STARTED, PULLED):
                asked = [client.ask(job("/runsync", endpoint=name)) for _ in range(count)]
                found[name] += asked[1:]
    plain, own = found[PULLED], found[STARTED]
    ended_well(plain + own)
    times = {"pull_ms": [a.ms for a in plain], "managed_ms": [a.ms for a in own]}
    middle = {name: percentile(found, 50) for name, found in times.items()}
    return {
        **spread("pull_ms", times["pull_ms"]),
        **spread("managed_ms", times["managed_ms"]),
        "slower_percent": 100 * middle["managed_ms"] / middle["pull_ms"] - 100,
    }


def rest(_stage: Stage, *, quick: bool) -> EndpointStats:
    """The agent of a host with two idle workers."""
    seconds = 10 if quick else 60
    with processes() as group:
        system = OwnPod(group, [], [], managed=_endpoint(workersMin=2, workersMax=2))
        wait_until(lambda: system.health(STARTED)["workers"]["ready"] == 2)
        (pid,) = system.pids()["agent"]
        time.sleep(5)
        before, began = cpu_s(pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        return {"share_percent": 100 * share, "pss_mb": pss_mb(pid)}


@contextlib.contextmanager
def _redis(group: Processes) -> Iterator[str]:
    """A Redis without anything else; its URL."""
    redis = EmbeddedRedis(group.directory / "redis", appendfsync="everysec")
    redis.prepare()
    server = redis.start()
    try:
        redis.wait(server)
        yield redis.url
    finally:
        server.terminate()
        server.wait()
        redis.ended()


def placed(_stage: Stage, *, quick: bool) -> EndpointStats:
    """1,000 wanted workers are placed on 100 simulated hosts, by the agents' reads, decisions and steps."""
    del quick
    spec = ManagedSpec(Template(command=("handler",)), gpu=GpuNeed())
    devices = tuple(Device(f"cpu-{n}", n, "a stand-in", simulated=True) for n in range(DEVICES))
    with processes() as group, _redis(group) as url, connect(url) as client:
        managed, agents = Managed(client), Agents(client)
        for _ in range(WANTED):
            managed.want(new_worker_id(), STARTED, spec=spec)
        hosts = [AgentInfo(f"host-{n}", "process", devices) for n in range(HOSTS)]
        turns = list[float]()

        def turn(info: AgentInfo) -> None:
            began = time.monotonic()
            _take(info, managed, agents)
            turns.append((time.monotonic() - began) * 1000)

        began = time.monotonic()
        with ThreadPoolExecutor(AGENTS_AT_ONCE) as pool:
            while managed.wanted(1):
                list(pool.map(turn, hosts))
        took = time.monotonic() - began
        held = sum(map(len, agents.all_holds().values()))
    if held != WANTED:
        raise ValueError(f"{held} devices are held by {WANTED} workers")
    return {"s": took, "turns": len(turns), **spread("steps_ms", turns)}


def _take(info: AgentInfo, managed: Managed, agents: Agents) -> None:
    """One turn of an agent, without its engine."""
    token = f"agent-of-{info.host}"
    agents.heartbeat(info, token)
    wanted = [worker for worker, _ in managed.wanted()]

    def claim(placement: Placement) -> bool:
        return managed.place(placement.worker.id, info.host, token, placement.devices)

    list(take(wanted, info, agents.holds(info.host), claim))


def decision(_stage: Stage, *, quick: bool) -> EndpointStats:
    """A scaler's decision, before and after there are 10,000 finished jobs and 200 stopped workers."""
    rounds = 100 if quick else 500
    spec = ManagedSpec(Template(command=("handler",)), Scaling(workers_min=4, workers_max=4))
    with processes() as group, _redis(group) as url, connect(url) as client:
        managed = Managed(client)
        endpoint = Endpoint(STARTED, (), 600_000, 86_400_000, 3, 0, managed=spec)
        config = settings.load({"REDIS_URL": url})
        registry = Registry({STARTED: endpoint}, Fleet(client), config)
        scaler = Scaler(registry, managed, Agents(client), Wakeups(client))
        scaler.once()
        _decisions_ms(scaler, rounds)  # to warm up
        few = _decisions_ms(scaler, rounds)
        _finish_jobs(url)
        for _ in range(MOST_STOPPED):
            worker_id = new_worker_id()
            managed.want(worker_id, STARTED, spec=spec)
            managed.discard(worker_id, "measured")
        many = _decisions_ms(scaler, rounds)
        workers = managed.list()
        _check(managed.recent(), workers)
    return {"ms_few": few, "ms_many": many, "slower_percent": 100 * many / few - 100}


def _decisions_ms(scaler: Scaler, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        scaler.once()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _finish_jobs(url: str) -> None:
    """Creates jobs, and cancels them."""
    create_jobs(url, FINISHED, STARTED)
    store = open_job_store(url)
    store.queue.purge(STARTED, reason="measured")


def _check(stopped: list[ManagedWorker], live: list[ManagedWorker]) -> None:
    if len(stopped) != MOST_STOPPED or {worker.phase for worker in live} != {Phase.WANTED}:
        raise ValueError(f"{len(stopped)} workers are stopped, {len(live)} are not")
