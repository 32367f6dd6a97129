"""How loaded the endpoints with managed workers are, as the scaler needs it, and how their starts have failed."""

import itertools
import logging
import math
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import redis

from ownpod.errors import BadRequest
from ownpod.rules.balancing import RouteReading
from ownpod.rules.fleet import WorkerState
from ownpod.rules.loads import Failures, JobsView
from ownpod.rules.managed import WORKER_ID, ManagedWorker, Phase
from ownpod.rules.scaling import COMING
from ownpod.store import keys
from ownpod.store.client import broken_records, clock_ms, ms_of, redis_errors, redis_reads
from ownpod.store.scripts import Scripts, constants

log = logging.getLogger(__name__)

broken_managed = broken_records("the keys of managed workers")


def check_worker_id(worker_id: str) -> None:
    """Checks that an id may be a managed worker's. Raises: BadRequest."""
    if not WORKER_ID.fullmatch(worker_id):
        raise BadRequest(f"{worker_id[:100]!r} cannot be a managed worker's id")


class Instance(NamedTuple):
    """An installation of OwnPod: what shares one Redis.

    Attributes:
        id: 12 hexadecimal digits.
        restored_s: seconds since Redis was found without the id that an agent remembers, because it had lost its data;
            infinite: it never was.
    """

    id: str
    restored_s: float = math.inf


MOST_WISHES = 100
"""Number of wishes of an endpoint that count at a time, because clients choose the ids."""

NO_READINGS: Mapping[str, RouteReading | None] = MappingProxyType({})

WITH_JOBS = (Phase.READY, Phase.DRAINING)
"""Phases of a worker that may have jobs."""


class Loads:
    """The reads of :class:`ownpod.store.managed.Managed` that are not about one worker, and the commands of ``loads.lua``.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._loads = Scripts(
            client,
            "loads.lua",
            constants=constants(IDLE=keys.MANAGED_IDLE, INSTANCE=keys.INSTANCE),
            repeatable=("saw", "instance"),
        )

    @broken_managed
    @redis_errors
    def instance(self, remembered: str | None = None) -> Instance:
        """This installation, whose id marks what its agents start.

        Args:
            remembered: the id that a Redis without one gets; None: a new one.
        """
        made = remembered or secrets.token_hex(6)
        found, restored_ms = self._loads("instance", made, int(remembered is not None))
        return Instance(str(found), restored_ms / 1000 if restored_ms >= 0 else math.inf)

    @broken_managed
    @redis_reads
    def failures(self, endpoint: str) -> Failures:
        """The failed starts of an endpoint's workers."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(f"{keys.MANAGED_FAILURES}{endpoint}")
            time, found = pipe.execute()
        return _failures(found, ms_of(time))

    @redis_reads
    def now_ms(self) -> int:
        """Redis's clock, in ms since the epoch."""
        return clock_ms(self._redis)

    def views(
        self,
        endpoints: Mapping[str, str],
        workers: Collection[ManagedWorker],
        readings: Mapping[str, RouteReading | None] = NO_READINGS,
        used: Collection[str] = (),
    ) -> dict[str, JobsView]:
        """The jobs of each endpoint, of all endpoints in two round trips. One whose keys cannot be read is left out.

        It also remembers in Redis since when a worker is idle, so that a restarted scaler knows it.

        Args:
            endpoints: the release that is to run, by the endpoint's id.
            workers: from :meth:`ownpod.store.managed.Managed.list`.
            readings: of the load-balanced endpoints; None: not known.
            used: ids of workers that have had a request since the last call.
        """
        found, mine = self._found(endpoints, workers)
        for endpoint in found.keys() & readings.keys():
            failures, view = found[endpoint]
            of_endpoint = [worker for worker in workers if worker.endpoint == endpoint]
            found[endpoint] = failures, with_requests(view, readings[endpoint], of_endpoint)
        busy, idle = set[str](), list[str]()
        for endpoint, (_, view) in found.items():
            for worker in mine[endpoint]:
                if view.jobs(worker.id) or not view.known or worker.id in used:
                    busy.add(worker.id)
                elif worker.phase is Phase.READY:
                    idle.append(worker.id)
        idle_s = dict.fromkeys(busy, 0.0) | self.saw(busy, idle)
        return {
            endpoint: replace(
                view,
                idle_s={w.id: idle_s[w.id] for w in mine[endpoint] if w.phase is Phase.READY},
                failures=failures.of(endpoints[endpoint]),
            )
            for endpoint, (failures, view) in found.items()
        }

    def peek(
        self, endpoints: Mapping[str, str], workers: Collection[ManagedWorker]
    ) -> dict[str, JobsView]:
        """As :meth:`views`, by one round trip, for a reader that does not scale: nothing is remembered of idle workers, and
        ``idle_s`` is empty. Of load-balanced endpoints the requests are not known.
        """
        found, _ = self._found(endpoints, workers)
        return {
            endpoint: replace(view, failures=failures.of(endpoints[endpoint]))
            for endpoint, (failures, view) in found.items()
        }

    def _found(
        self, endpoints: Collection[str], workers: Collection[ManagedWorker]
    ) -> tuple[dict[str, tuple[Failures, JobsView]], Mapping[str, list[ManagedWorker]]]:
        """Failures and jobs of endpoints, and those of their workers that may have jobs."""
        mine: defaultdict[str, list[ManagedWorker]] = defaultdict(list)
        for worker in workers:
            if worker.phase in WITH_JOBS:
                mine[worker.endpoint].append(worker)
        return self._jobs({name: [w.id for w in mine[name]] for name in endpoints}), mine

    @broken_managed
    @redis_errors
    def saw(self, busy: Collection[str], idle: Sequence[str]) -> dict[str, float]:
        """Remembers which workers have jobs and which have none. Returns seconds since an idle one was first seen idle."""
        idle_ms = self._loads("saw", len(busy), *sorted(busy), *idle)
        return {name: ms / 1000 for name, ms in zip(idle, idle_ms, strict=True)}

    @redis_reads
    def _jobs(self, endpoints: Mapping[str, Sequence[str]]) -> dict[str, tuple[Failures, JobsView]]:
        """Failures and jobs of endpoints, whose workers are given by the endpoint's id."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for name, ids in endpoints.items():
                pipe.zcard(keys.queued(name))
                pipe.zcard(keys.of_endpoint(name, "pinned"))
                pipe.zrange(keys.queued(name), 0, 0, withscores=True)
                pipe.hvals(keys.running(name))
                pipe.hgetall(f"{keys.MANAGED_FAILURES}{name}")
                pipe.hget(keys.of_endpoint(name, "starts"), "load_ms")
                pipe.smembers(keys.resumes(name))
                for worker_id in ids:
                    pipe.hmget(keys.worker(worker_id), "held", "state")
            time, *rest = pipe.execute(raise_on_error=False)
        now_ms, found = ms_of(time), {}
        replies: Iterator[Any] = iter(rest)
        for name, ids in endpoints.items():
            mine = list(itertools.islice(replies, 7 + len(ids)))
            if errors := [reply for reply in mine if isinstance(reply, Exception)]:
                if not isinstance(errors[0], redis.ResponseError):
                    raise errors[0]
                log.error("endpoint %s is not scaled: %s", name, errors[0])
                continue
            waiting, pinned, oldest, running, failures, load_ms, resumes, *statuses = mine
            queued, oldest_ms = max(0, waiting - pinned), oldest[0][1] if oldest else now_ms
            view = JobsView(
                now_ms=now_ms,
                queued=queued,
                oldest_wait_s=max(0.0, now_ms - oldest_ms) / 1000 if queued else 0.0,
                running=Counter(running),
                lingering={
                    worker_id: whole(held)
                    for worker_id, (held, _) in zip(ids, statuses, strict=True)
                    if whole(held)
                },
                unhealthy=frozenset(
                    worker_id
                    for worker_id, (_, state) in zip(ids, statuses, strict=True)
                    if state == WorkerState.UNHEALTHY
                ),
                load_s=whole(load_ms) / 1000,
                wishes=tuple(sorted(resumes))[:MOST_WISHES],
            )
            found[name] = (_failures(failures, now_ms), view)
        return found


def with_requests(
    view: JobsView, reading: RouteReading | None, workers: Collection[ManagedWorker]
) -> JobsView:
    """The jobs of a load-balanced endpoint, which are its requests. Pure.

    Args:
        view: what Redis has of it.
        reading: what the fronts have read; None: not known.
        workers: its workers.
    """
    if reading is None:
        return replace(
            view, queued=0, oldest_wait_s=0.0, running={}, known=False, are_requests=True
        )
    # A request that waits for one worker keeps that one, and no other worker could take it.
    at = {name: s.open + s.waiting for name, s in reading.servers.items() if s.open + s.waiting}
    queued = max(0, reading.requests - sum(at.values()) - len(reading.wishes))
    # The front has no times. The first worker that is started for what waits is wanted at once.
    wanted_ms = [worker.created_ms for worker in workers if worker.phase in COMING]
    waited_ms = view.now_ms - min(wanted_ms) if queued and wanted_ms else 0
    held = {name: slots for name, slots in view.lingering.items() if name not in at}
    return replace(
        view,
        queued=queued,
        oldest_wait_s=max(0, waited_ms) / 1000,
        running=at,
        lingering=held,
        are_requests=True,
        wishes=reading.wishes[:MOST_WISHES],
    )


def whole(text: str | None) -> int:
    """A number in Redis; 0 where it cannot be read."""
    return int(text) if text and re.fullmatch("[0-9]{1,15}", text) else 0


def _failures(found: Mapping[str, str], now_ms: int) -> Failures:
    if not found:
        return Failures()
    code = found.get("exit_code", "")
    return Failures(
        release=found.get("release", ""),
        count=whole(found.get("count")),
        pause_s=max(0, whole(found.get("until_ms")) - now_ms) / 1000,
        reason=found.get("reason", ""),
        exit_code=int(code) if re.fullmatch("-?[0-9]{1,10}", code) else None,
        log=found.get("log", ""),
        worker=found.get("worker", ""),
    )
