"""A model of OwnPod on larger hosts than this one, and a measurement against which the model is checked.

The costs of a job and of an idle worker are measured (rows `drain`, `submissions`, `clients`, `nodes`). The model adds
them up: Redis has one thread, an API process about one core, and nodes use all cores of their hosts.
"""

import time
from dataclasses import dataclass

from system import Stage, completed, create_jobs, processes, waiting_workers

WORKERS, JOB_S = 50, 0.25
BUSY = 0.8
"""Share of a core up to which requests and jobs do not wait for CPU."""


@dataclass(frozen=True)
class Costs:
    """Costs: CPU in ms for each job, in % of a core for each idle worker; memory in MB, or in KB for each queued job."""

    node_ms: float
    redis_ms: float
    redis_create_ms: float
    api_run_ms: float
    api_runsync_ms: float
    node_rest: float
    redis_rest: float
    node_mb: float
    queued_kb: float


def costs(measures: dict) -> Costs | None:
    """The costs in a result; None: some of their rows were not measured."""
    try:
        return Costs(
            node_ms=measures["drain"]["cpu_node_ms"],
            redis_ms=measures["drain"]["cpu_redis_ms"],
            redis_create_ms=measures["submissions"]["cpu_redis_ms"],
            api_run_ms=measures["submissions"]["cpu_api_ms"],
            api_runsync_ms=measures["clients"]["cpu_api_ms"],
            node_rest=measures["nodes"]["node_cpu_percent"],
            redis_rest=measures["nodes"]["redis_cpu_percent"] / 100,
            node_mb=measures["nodes"]["node_pss_mb"],
            queued_kb=measures["queued"]["redis_kb"],
        )
    except KeyError:
        return None


def use(c: Costs, jobs_per_s: float, workers: int, *, submitted: bool = True) -> dict[str, float]:
    """CPU in % of a core by kind of process, for a rate of jobs and a number of workers."""
    redis_ms = c.redis_ms if submitted else c.redis_ms - c.redis_create_ms
    return {
        "node": jobs_per_s * c.node_ms / 10 + workers * c.node_rest,
        "redis": jobs_per_s * redis_ms / 10 + workers * c.redis_rest,
        "api": jobs_per_s * c.api_runsync_ms / 10 if submitted else 0.0,
    }


def lines(measures: dict) -> list[str]:
    """The lines with the limits of each part by the model, and the model's error at the measured point."""
    c = costs(measures)
    if c is None:
        return []
    queued = 1e6 / c.queued_kb / 1000
    rows = [
        f"the model, each part with {BUSY:.0%} of its core in use:",
        _part("Redis", c.redis_ms, c.redis_rest, f"{queued:.0f},000 queued jobs in each GB"),
        _part("a core of nodes", c.node_ms, c.node_rest, f"{1000 / c.node_mb:.0f} in each GB"),
        f"  an API process  {_rate(c.api_run_ms)} /run or {_rate(c.api_runsync_ms)} /runsync a second",
        "  workers, jobs of            cores: Redis   nodes     API    memory of nodes",
    ]
    for workers, seconds in ((10, 0.5), (100, 10), (100, 1), (1000, 10), (1000, 1)):
        rate = workers / seconds
        cores = {kind: share / 100 for kind, share in use(c, rate, workers).items()}
        rows.append(
            f"  {workers:>7} {seconds:>8g} s {rate:>8.0f} /s {cores['redis']:>9.2f} "
            f"{cores['node']:>7.2f} {cores['api']:>7.2f} {workers * c.node_mb / 1000:>10.1f} GB"
        )
    return [*rows, *_checked(c, measures.get("growth", {}))]


def _rate(cost_ms: float) -> str:
    return f"{BUSY * 1000 / cost_ms:.0f}"


def _part(what: str, cost_ms: float, rest: float, memory: str) -> str:
    return f"  {what:<15} {_rate(cost_ms)} jobs/s, or {BUSY * 100 / rest:.0f} workers at rest; {memory}"


def _checked(c: Costs, point: dict) -> list[str]:
    if "jobs_per_s" not in point:
        return []
    expected = use(c, point["jobs_per_s"], WORKERS, submitted=False)
    head = f"  checked with {WORKERS} workers, jobs of {JOB_S} s, {point['jobs_per_s']:.0f} /s:"
    return [head] + [
        f"    {kind:<6} {point[f'{kind}_percent']:.1f} % of a core, by the model {expected[kind]:.1f} %"
        for kind in ("node", "redis")
    ]


def growth(_stage: Stage, *, quick: bool) -> dict[str, float]:
    """50 workers that only wait, with jobs of 0.25 s: the rate, which is 200 jobs/s at best, and its CPU."""
    seconds = 4 if quick else 10
    with processes() as group:
        system = waiting_workers(group, WORKERS)
        store = system.store()
        create_jobs(system.redis_url, int(WORKERS / JOB_S * (seconds + 4)))
        time.sleep(2)
        before, done, began = system.cpu_s(), completed(store), time.monotonic()
        time.sleep(seconds)
        after, ended, took = system.cpu_s(), completed(store), time.monotonic() - began
    rate = (ended - done) / took
    share = {kind: 100 * (after[kind] - before[kind]) / took for kind in after}
    return {
        "jobs_per_s": rate,
        "percent": 100 * rate * JOB_S / WORKERS,
        **{f"{kind}_percent": share[kind] for kind in ("node", "redis", "api")},
    }
