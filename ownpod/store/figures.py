"""Figures of endpoints: how many jobs wait and run, totals since the start, and the last hour."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ownpod.rules.estimates import MOST_RUNS, Pace, median_ms
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.client import clock_ms, ms_of, redis_reads
from ownpod.store.common import BUCKETS_MS, Part

SAMPLES, SAMPLE_MS = 240, 15_000
"""Number of entries of an endpoint's history, and ms between two: an hour."""

HISTORY_MS = 3_600_000
"""Ms for which a sample is shown."""


@dataclass(frozen=True)
class Histogram:
    """The number of observations in each bucket, and of those above the last; not cumulative."""

    buckets: list[int]
    sum_ms: int
    """The sum of all observations, in ms, as ``ends``, or in thousandths of another unit."""
    ends: tuple[int, ...] = BUCKETS_MS
    """Upper ends of the buckets."""


START_PARTS = ("device", "prepare", "create", "import")
"""Parts of a managed worker's start: until it has a place and its devices; until its image is there; until its process
or container runs; until it requests a job, or answers its health check, for the first time."""


def _histogram(fields: Mapping[str, int], prefix: str = "") -> Histogram:
    buckets = [fields.get(f"{prefix}{number}", 0) for number in range(1, len(BUCKETS_MS) + 2)]
    return Histogram(buckets, fields.get(f"{prefix}sum", 0))


@dataclass(frozen=True)
class EndpointStats:
    """Measurements of an endpoint: how many jobs wait and when the oldest was submitted, how many run
    by worker id, and totals since the start; see ``common.lua``. Of its managed workers, the durations of the starts
    that became ready, by part, and the number of starts that failed; see ``managed.lua``.
    """

    waiting: int
    oldest_ms: int | None
    running: Mapping[str, int]
    counts: Mapping[str, int]
    webhooks: Mapping[str, int]
    delay: Histogram
    execution: Histogram
    starts: Mapping[str, Histogram]
    failed_starts: int
    swaps: Mapping[str, int]
    """How often a worker has given its devices to one of another endpoint, by that endpoint's id."""
    tasks: Mapping[str, int]
    """How many tasks have ended, by kind, state and code; see ``common.lua``."""


class Figures(Part):
    """Reads and samples figures."""

    @redis_reads
    def counts(self, endpoint: str) -> tuple[int, dict[str, str], dict[str, int]]:
        """How many jobs wait, which run (id -> worker id), and how many ever ended in each state.

        The last has ``"retried"`` too: attempts after the first.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.queued(endpoint))
            pipe.zcard(keys.private(endpoint))
            pipe.hgetall(keys.running(endpoint))
            pipe.hgetall(keys.counts(endpoint))
            waiting, private, running, ended = pipe.execute()
        shown = {*JobStatus, "retried"}
        return (
            waiting + private,
            running,
            {name: int(ended[name]) for name in ended if name in shown},
        )

    @redis_reads
    def stats(self, endpoint: str) -> EndpointStats:
        """The endpoint's measurements, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.queued(endpoint))
            pipe.zcard(keys.private(endpoint))
            pipe.zrange(keys.queued(endpoint), 0, 0, withscores=True)
            pipe.hvals(keys.running(endpoint))
            for name in ("counts", "webhooks", "delay", "execution", "starts", "swaps", "tasks"):
                pipe.hgetall(keys.of_endpoint(endpoint, name))
            waiting, private, oldest, running, *hashes = pipe.execute()
        counts, webhooks, delay, execution, starts, swaps, tasks = (
            {name: int(value) for name, value in fields.items()} for fields in hashes
        )
        return EndpointStats(
            waiting=waiting + private,
            oldest_ms=int(oldest[0][1]) if oldest else None,
            running=Counter(running),
            counts=counts,
            webhooks=webhooks,
            delay=_histogram(delay),
            execution=_histogram(execution),
            starts={part: _histogram(starts, f"{part}:") for part in START_PARTS},
            failed_starts=starts.get("failed", 0),
            swaps=swaps,
            tasks=tasks,
        )

    @redis_reads
    def pace(self, endpoint: str) -> tuple[Pace, int]:
        """How fast the endpoint's jobs run and its workers load, in two round trips; and Redis's clock, in ms since the epoch."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(keys.of_endpoint(endpoint, "execution"))
            pipe.hget(keys.of_endpoint(endpoint, "starts"), "load_ms")
            pipe.hgetall(keys.running(endpoint))
            time, execution, load_ms, running = pipe.execute()
        now_ms, jobs = ms_of(time), list(running.items())[:MOST_RUNS]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in jobs:
                pipe.hget(keys.job(job_id), "started_ms")
            began = pipe.execute() if jobs else []
        elapsed: dict[str, list[float]] = {}
        for (_, worker_id), started_ms in zip(jobs, began, strict=True):
            if started_ms:
                elapsed.setdefault(worker_id, []).append(max(now_ms - int(started_ms), 0) / 1000)
        median = median_ms(
            _histogram({name: int(value) for name, value in execution.items()}).buckets, BUCKETS_MS
        )
        pace = Pace(
            run_s=None if median is None else median / 1000,
            load_s=int(load_ms) / 1000 if load_ms else None,
            running=elapsed,
        )
        return pace, now_ms

    @redis_reads
    def taken(self, endpoint: str, worker_id: str) -> int:
        """How many jobs of an endpoint run on a worker, linger there, or wait in its own queue."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hvals(keys.running(endpoint))
            pipe.hget(keys.worker(worker_id), "held")
            pipe.zcard(keys.waiting(self._messages.own_queue(endpoint, worker_id)))
            running, held, waiting = pipe.execute()
        return int(running.count(worker_id) + int(held or 0) + waiting)

    def sample(self, endpoint: str) -> None:
        """Adds to :meth:`history` how many jobs wait and run now, once in each :data:`SAMPLE_MS`."""
        self._call("sample", "", endpoint, SAMPLE_MS, SAMPLES)

    @redis_reads
    def history(self, endpoint: str) -> list[list[int]]:
        """The last hour: ms since the epoch, jobs that waited, jobs that ran; the oldest first."""
        samples: Any = self._redis.lrange(keys.of_endpoint(endpoint, "history"), 0, -1)
        hour_ago = clock_ms(self._redis) - HISTORY_MS
        return [sample for sample in map(json.loads, samples) if sample[0] >= hour_ago]
