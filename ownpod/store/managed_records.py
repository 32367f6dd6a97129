"""Reads of the records of managed workers."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis

from ownpod.errors import WorkerRecordBroken
from ownpod.rules.managed import (
    FIELDS,
    MOST_STOPPED,
    STOPPED_KEPT_S,
    WANTED_FIELDS,
    WORKER_ID,
    ManagedWorker,
    Phase,
    from_record,
    is_resumable,
)
from ownpod.rules.templates import ManagedSpec, spec_in
from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.loads import Loads, broken_managed

log = logging.getLogger(__name__)

RECENT_S = 3600
"""Age of the ends, in seconds, that :meth:`Records.recent` lists."""

MOST_SHOWN = 10
"""Number of workers that ended badly that are listed of an endpoint."""

MOST_WANTED = 200
"""Number of wanted workers that an agent reads at a time; further ones are read when these have a host."""

Workers = list[ManagedWorker]
Startable = list[tuple[ManagedWorker, ManagedSpec]]
"""Workers with what they are started from."""
Read = list[tuple[ManagedWorker, str | None]]
"""Workers with the text of what they are started from, if that was read."""


class Records(Loads):
    """The reads of :class:`ownpod.store.managed.Managed`.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self._logged: set[tuple[str, str]] = set()

    @broken_managed
    @redis_reads
    def get(self, worker_id: str) -> ManagedWorker | None:
        """A worker, also one that is stopped; None: there is none. Raises: WorkerRecordBroken."""
        if not WORKER_ID.fullmatch(worker_id):
            return None
        values: Any = self._redis.hmget(keys.managed(worker_id), FIELDS)
        if not any(value is not None for value in values):
            return None
        return from_record(worker_id, values)

    def list(self, endpoint: str | None = None) -> Workers:
        """Workers that are not stopped, the oldest first: all, or an endpoint's."""
        workers = [worker for worker, _ in self._read(self._ids(keys.MANAGED))]
        return [worker for worker in workers if endpoint in {None, worker.endpoint}]

    @broken_managed
    @redis_reads
    def recent(self, endpoint: str | None = None) -> Workers:
        """Workers that stopped within the last hour, the last one first: all, or an endpoint's."""
        workers = [worker for worker, _ in self._read(self._stopped_ids(RECENT_S))]
        return [worker for worker in workers if endpoint in {None, worker.endpoint}]

    def _stopped_ids(self, within_s: int) -> Sequence[str]:
        seconds, _ = self._redis.time()
        since = (int(seconds) - within_s) * 1000
        ids: Any = self._redis.zrevrangebyscore(keys.MANAGED_STOPPED, "+inf", since)
        return list(ids)

    @broken_managed
    @redis_reads
    def crashed(self, endpoint: str | None = None, *, limit: int = MOST_SHOWN) -> Workers:
        """The last workers that ended badly, the last one first, of those whose records are kept: all, or an endpoint's."""
        names = tuple(name for name in FIELDS if name != "log")
        ids = [
            worker.id
            for worker, _ in self._read(self._stopped_ids(STOPPED_KEPT_S), names)
            if worker.ended_badly and endpoint in {None, worker.endpoint}
        ]
        return [worker for worker, _ in self._read(ids[:limit])]

    @broken_managed
    @redis_reads
    def resumable(self, endpoint: str, release: str, ids: Iterable[str]) -> Sequence[str]:
        """Those of these workers that :meth:`ownpod.store.managed.Managed.want_again` starts once more."""
        known = [worker_id for worker_id in ids if WORKER_ID.fullmatch(worker_id)]
        if not known:
            return []
        return [
            worker.id for worker, _ in self._read(known) if is_resumable(worker, endpoint, release)
        ]

    @broken_managed
    @redis_reads
    def records(self, ids: Iterable[str]) -> dict[str, ManagedWorker]:
        """The workers of these ids, also those that are stopped, by id; without those that there are not."""
        known = [worker_id for worker_id in ids if WORKER_ID.fullmatch(worker_id)]
        return {worker.id: worker for worker, _ in self._read(known)} if known else {}

    @broken_managed
    @redis_reads
    def of_host(self, host: str) -> dict[str, tuple[ManagedWorker, ManagedSpec]]:
        """Workers of a host that are not stopped, with what they are started from."""
        ids: Any = self._redis.smembers(f"{keys.MANAGED_HOST}{host}")
        return {worker.id: (worker, spec) for worker, spec in self._with_specs(sorted(ids))}

    def wanted(self, limit: int = MOST_WANTED) -> Startable:
        """Workers that no agent has taken, the oldest first."""
        ids = self._ids(keys.MANAGED_WANTED, limit)
        found = self._with_specs(ids, names=WANTED_FIELDS)
        # An agent may have taken one since its id was read.
        return [(worker, spec) for worker, spec in found if worker.phase is Phase.WANTED]

    def any_wanted(self) -> bool:
        """Whether there is a worker that no agent has taken."""
        return bool(self._ids(keys.MANAGED_WANTED, 1))

    @broken_managed
    @redis_reads
    def _ids(self, key: str, limit: int = 0) -> Sequence[str]:
        ids: Any = self._redis.zrange(key, 0, limit - 1)
        return list(ids)

    def _with_specs(
        self, ids: Sequence[str], *, names: Sequence[str] = FIELDS
    ) -> Iterator[tuple[ManagedWorker, ManagedSpec]]:
        for worker, text in self._read(ids, names, with_spec=True):
            if worker.phase is Phase.STOPPED:
                # It stopped after its id was read, and has no spec any more.
                continue
            try:
                yield worker, spec_in(text)
            except WorkerRecordBroken as error:
                self._skip(worker.id, str(error))

    @redis_reads
    def _read(
        self, ids: Iterable[str], names: Sequence[str] = FIELDS, *, with_spec: bool = False
    ) -> Read:
        """The workers' records. One that cannot be read is left out, because it must not end the processes that read it."""
        asked = (*names, "spec") if with_spec else names
        known = [worker_id for worker_id in ids if WORKER_ID.fullmatch(worker_id)]
        with self._redis.pipeline(transaction=False) as pipe:
            for worker_id in known:
                pipe.hmget(keys.managed(worker_id), asked)
            found = pipe.execute(raise_on_error=False)
        workers = []
        for worker_id, values in zip(known, found, strict=True):
            if isinstance(values, redis.ResponseError):
                self._skip(worker_id, "its record is no hash")
                continue
            if isinstance(values, Exception):
                raise values
            try:
                worker = from_record(worker_id, values[: len(names)], names)
            except WorkerRecordBroken as error:
                self._skip(worker_id, str(error))
            else:
                workers.append((worker, values[-1] if with_spec else None))
        return workers

    def _skip(self, worker_id: str, problem: str) -> None:
        """Logs a record that is left out, once for each problem, because records are read every second."""
        if (worker_id, problem) not in self._logged and len(self._logged) < MOST_STOPPED:
            self._logged.add((worker_id, problem))
            log.error("managed worker %s is left out: %s", worker_id, problem)
