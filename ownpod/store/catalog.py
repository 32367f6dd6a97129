"""The catalog in Redis. Each change is one transaction: all of it happens, or nothing.

CATALOG:<kind>            hash    id -> JSON of the row (rules/catalog.py), for each kind of row
CATALOG:version           string  rises with each change; a change that was computed from an older one is computed again
CATALOG:deleted           zset    ids of deleted endpoints whose jobs housekeeping still has to cancel, by ms of the deletion
CATALOG:audit             stream  the changes and their callers, the last MOST_AUDITS
ENDPOINTS                 hash    see fleet.lua: the catalog's endpoints as entries of run time
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import redis

from ownpod.errors import OwnPodError, RedisUnavailable, WorkerRecordBroken
from ownpod.rules.catalog import (
    KINDS,
    EndpointRow,
    Kind,
    RegistryRow,
    Row,
    SecretRow,
    TemplateRow,
    VolumeRow,
    kind_of,
)
from ownpod.rules.records import from_text, to_text
from ownpod.rules.volumes import NETWORK
from ownpod.store import keys, schema
from ownpod.store.client import clock_ms, ms_of, redis_errors, redis_reads
from ownpod.store.scripts import constants

log = logging.getLogger(__name__)

MOST_AUDITS = 10_000
"""Entries of the audit log that are kept, about."""

TRIES = 100
"""Times that a change is computed again because another one was faster."""


@dataclass(frozen=True)
class Snapshot:
    """The whole catalog at one instant.

    Attributes:
        now_ms: Redis's clock, in ms since the epoch.
        unreadable: ids of rows that this version of OwnPod cannot read, by kind; they are left out.
    """

    now_ms: int
    endpoints: Mapping[str, EndpointRow] = field(default_factory=dict)
    templates: Mapping[str, TemplateRow] = field(default_factory=dict)
    volumes: Mapping[str, VolumeRow] = field(default_factory=dict)
    registries: Mapping[str, RegistryRow] = field(default_factory=dict)
    secrets: Mapping[str, SecretRow] = field(default_factory=dict)
    unreadable: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """A change and its caller. ``by``: the digest of the caller's key, or the name of a command; ``difference``: without secrets."""

    by: str
    door: str
    action: str
    target: str
    difference: str = ""


AUDIT_CONSTANTS = constants(AUDIT=keys.CATALOG_AUDIT, MOST_AUDITS=MOST_AUDITS)
"""For commands that write an entry in the same step as what they do."""


def audit_arguments(audit: Audit | None) -> list[str]:
    """Fields and values of an entry, as the last arguments of such a command; none without an entry."""
    return [] if audit is None else [part for pair in asdict(audit).items() for part in pair]


@dataclass(frozen=True)
class Change:
    """What one managing call writes.

    Attributes:
        put: rows to add or replace.
        delete: kinds and ids of rows to delete.
        entries: what the endpoint's processes read, by id of the endpoint; None: it is removed.
        audit: one entry, or None for a change that writes nothing.
        more_audits: entries of a change of many rows.
    """

    put: tuple[Row, ...] = ()
    delete: tuple[tuple[Kind, str], ...] = ()
    entries: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    audit: Audit | None = None
    more_audits: tuple[Audit, ...] = ()


@dataclass(frozen=True)
class AuditEntry:
    """An entry of the audit log. ``at_ms``: ms since the epoch, by Redis's clock."""

    at_ms: int
    audit: Audit


class Beside(Protocol):
    """What else a change writes in its transaction, outside the catalog."""

    def read(self, pipe: Any) -> None:
        """Watches and reads its keys, before the change is computed. May be called again, and may raise OwnPodError."""

    def write(self, pipe: Any) -> None:
        """Adds its writes to the transaction."""


class Catalog:
    """The reads and changes of the catalog. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_reads
    def read(self) -> Snapshot:
        """The catalog now."""
        with self._redis.pipeline(transaction=True) as pipe:
            _queue_reads(pipe)
            return _snapshot(pipe.execute())

    @redis_errors
    def change(self, compute: Callable[[Snapshot], Change], beside: Beside | None = None) -> Change:
        """Computes a change from the catalog and writes it, in one step.

        Args:
            compute: may be called more than once, and raises for a change that is not allowed.
            beside: what else is written in this step.

        Raises:
            SchemaMismatch: another version of OwnPod wrote the records.
        """
        for _ in range(TRIES):
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(keys.CATALOG_VERSION, keys.SCHEMA)
                schema.check(pipe.get(keys.SCHEMA))  # type: ignore[arg-type]
                snapshot = self.read()
                try:
                    if beside is not None:
                        beside.read(pipe)
                    change = compute(snapshot)
                except OwnPodError:
                    # The reason may be what another process has changed since the read.
                    if _has_changed(pipe):
                        continue
                    raise
                if change == Change():
                    return change
                pipe.multi()
                _queue_writes(pipe, change, snapshot.now_ms)
                if beside is not None:
                    beside.write(pipe)
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                return change
        raise RedisUnavailable("the catalog changes too often now; send the request again")

    @redis_reads
    def audits(self, most: int = 100) -> list[AuditEntry]:
        """The last entries of the audit log, the newest first."""
        found: Any = self._redis.xrevrange(keys.CATALOG_AUDIT, count=most)
        return [
            AuditEntry(
                int(entry_id.partition("-")[0]),
                Audit(**{name: values.get(name, "") for name in Audit.__dataclass_fields__}),
            )
            for entry_id, values in found
        ]

    @redis_reads
    def deleted(self) -> dict[str, float]:
        """Seconds since the deletion of the endpoints whose jobs are still to be cancelled, by id."""
        found: Any = self._redis.zrange(keys.CATALOG_DELETED, 0, -1, withscores=True)
        if not found:
            return {}
        now_ms = clock_ms(self._redis)
        return {name: max(0.0, now_ms - deleted_ms) / 1000 for name, deleted_ms in found}

    @redis_errors
    def forget_deleted(self, endpoint_id: str) -> None:
        """The jobs of a deleted endpoint are cancelled."""
        self._redis.zrem(keys.CATALOG_DELETED, endpoint_id)


def _has_changed(pipe: Any) -> bool:
    """Whether a watched key has changed."""
    pipe.multi()
    pipe.ping()
    try:
        pipe.execute()
    except redis.WatchError:
        return True
    return False


def _queue_reads(pipe: Any) -> None:
    pipe.time()
    for kind in Kind:
        pipe.hgetall(f"{keys.CATALOG}{kind}")


def _snapshot(found: Any) -> Snapshot:
    time, *hashes = found
    rows: dict[Kind, dict[str, Any]] = {}
    unreadable: dict[Kind, tuple[str, ...]] = {}
    for kind, texts in zip(Kind, hashes, strict=True):
        rows[kind] = {}
        for row_id, text in texts.items():
            try:
                # A newer version may have written more fields; a row must stay visible.
                rows[kind][row_id] = from_text(KINDS[kind], text, others=True)
            except WorkerRecordBroken as error:
                # Without the traceback: the error has all that is known.
                log.error("%s %s of the catalog is left out: %s", kind, row_id, error)  # noqa: TRY400
                unreadable[kind] = (*unreadable.get(kind, ()), row_id)
    return Snapshot(
        ms_of(time),
        rows[Kind.ENDPOINT],
        rows[Kind.TEMPLATE],
        rows[Kind.VOLUME],
        rows[Kind.REGISTRY],
        rows[Kind.SECRET],
        unreadable,
    )


def _queue_writes(pipe: Any, change: Change, now_ms: int) -> None:
    pipe.incr(keys.CATALOG_VERSION)
    for row in change.put:
        pipe.hset(f"{keys.CATALOG}{kind_of(row)}", row.id, to_text(row))
    for kind, row_id in change.delete:
        pipe.hdel(f"{keys.CATALOG}{kind}", row_id)
        if kind is Kind.ENDPOINT:
            pipe.zadd(keys.CATALOG_DELETED, {row_id: now_ms})
            # A later endpoint may get the same id, and other keys.
            pipe.delete(keys.model_list(row_id))
        if kind is Kind.VOLUME:
            # Its host keeps the data for a day.
            pipe.zadd(keys.VOLUMES_DELETED, {f"{NETWORK}{row_id}": now_ms})
    for endpoint_id, entry in change.entries.items():
        if entry is None:
            pipe.hdel(keys.ENDPOINTS, endpoint_id)
        else:
            pipe.hset(keys.ENDPOINTS, endpoint_id, json.dumps(entry))
    for audit in (change.audit, *change.more_audits):
        if audit is not None:
            _write_audit(pipe, audit)


def _write_audit(client: Any, audit: Audit) -> None:
    client.xadd(keys.CATALOG_AUDIT, asdict(audit), maxlen=MOST_AUDITS, approximate=True)
