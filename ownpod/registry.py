"""Endpoints and their workers: what is configured or was added, and how each worker is now."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import redis
import yaml
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from ownpod import keys
from ownpod.broker import NAME
from ownpod.errors import (
    BadRequest,
    ConfigurationError,
    EndpointNotFound,
    RedisUnavailable,
    WorkerConflict,
    WorkerNotFound,
)
from ownpod.jobs import DEFAULT_EXECUTION_TIMEOUT_MS, DEFAULT_MAX_ATTEMPTS, DEFAULT_TTL_MS
from ownpod.processes import is_dead_here
from ownpod.settings import DEFAULT_ENDPOINT, Settings, Whole, check_file, check_http_url
from ownpod.store import now_ms, redis_errors

log = logging.getLogger(__name__)

DEFAULT_WORKERS = ("http://localhost:18000",)

EXECUTION_TIMEOUT_MS = (5_000, 7 * 86_400_000)
"""RunPod's documented limits of ``executionTimeout``."""

TTL_MS = (10_000, 7 * 86_400_000)
"""RunPod's documented limits of ``ttl``."""


@dataclass(frozen=True)
class WorkerSpec:
    """A worker as it is configured. ``capacity``: jobs it runs at a time."""

    id: str
    endpoint: str
    url: str
    capacity: int
    headers: Mapping[str, str] = field(repr=False)
    verify_tls: bool
    ca_bundle: str | None


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, its workers, and the defaults of its jobs."""

    id: str
    workers: tuple[WorkerSpec, ...]
    execution_timeout_ms: int
    ttl_ms: int
    max_attempts: int
    max_queue_depth: int
    """Jobs that may wait; 0 is any number."""
    api_keys: tuple[str, ...] = field(repr=False, default=())
    """Keys for this endpoint only."""


class WorkerState(StrEnum):
    """How a worker is, as its node last said."""

    INITIALIZING = "initializing"
    """Its node has not reached it yet."""
    READY = "ready"
    BUSY = "busy"
    """It is still at something that began before its node did, and takes nothing else."""
    PAUSED = "paused"
    """Somebody wants it to take no jobs; what it has, it finishes."""
    UNHEALTHY = "unhealthy"
    """It does not answer, refuses jobs, or no node runs for it."""


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker's node last said. ``held``: slots that jobs which have ended still take."""

    state: WorkerState
    reason: str = ""
    held: int = 0
    unattended: bool = False
    """No node speaks for it."""


HEADER_NAME = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
WORKER_URL = r"^https?://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:[1-9][0-9]{0,3})?$"
"""For the API's documentation; more are taken."""

_HEADER_NAME = fields.String(
    validate=validate.Regexp(
        rf"{HEADER_NAME[:-1]}\Z", error="a header's name has letters, digits and -"
    )
)
_HEADER_VALUE = fields.String(
    validate=validate.Regexp(
        r"^[\t\x20-\x7e]*\Z", error="a header's value must be one line of ASCII"
    ),
    metadata={"pattern": "^[ -~]*$"},
)


class WorkerSchema(Schema):
    """A worker, in ``workers.yaml`` and where one is added."""

    class Meta:
        unknown = RAISE

    url = fields.String(required=True, validate=check_http_url, metadata={"pattern": WORKER_URL})
    id = fields.String(
        validate=validate.Regexp(rf"^{NAME.pattern}\Z", error="must be letters, digits, - and _"),
        metadata={"pattern": f"^{NAME.pattern}$"},
    )
    capacity = Whole(
        strict=True,
        load_default=1,
        validate=validate.Range(1, 1000, error="must be a whole number from 1 to 1000"),
        error_messages={"invalid": "must be a whole number from 1 to 1000"},
    )
    headers = fields.Dict(keys=_HEADER_NAME, values=_HEADER_VALUE, load_default=dict)
    verify_tls = fields.Boolean(data_key="verifyTls", truthy={True}, falsy={False})
    ca_bundle = fields.String(data_key="caBundle", validate=check_file)


class _EndpointSchema(Schema):
    class Meta:
        unknown = RAISE

    workers = fields.List(fields.Nested(WorkerSchema), load_default=list)
    execution_timeout_ms = fields.Integer(
        data_key="executionTimeout",
        strict=True,
        load_default=DEFAULT_EXECUTION_TIMEOUT_MS,
        validate=validate.Range(
            *EXECUTION_TIMEOUT_MS, error="must be a whole number of ms from {min} to {max}"
        ),
    )
    ttl_ms = fields.Integer(
        data_key="ttl",
        strict=True,
        load_default=DEFAULT_TTL_MS,
        validate=validate.Range(*TTL_MS, error="must be a whole number of ms from {min} to {max}"),
    )
    max_queue_depth = fields.Integer(
        data_key="maxQueueDepth",
        strict=True,
        load_default=0,
        validate=validate.Range(0, error="must be a whole number, 0 for any"),
    )
    api_keys = fields.List(fields.String(), data_key="apiKeys", load_default=list)
    max_attempts = fields.Integer(
        data_key="maxAttempts",
        strict=True,
        load_default=DEFAULT_MAX_ATTEMPTS,
        validate=validate.Range(1, 100, error="must be a whole number from 1 to 100"),
    )


class _FileSchema(Schema):
    class Meta:
        unknown = RAISE

    endpoints = fields.Dict(
        keys=fields.String(
            validate=validate.Regexp(
                rf"^{NAME.pattern}\Z", error="an endpoint's id must be letters, digits, - and _"
            )
        ),
        values=fields.Nested(_EndpointSchema),
        required=True,
    )


def load_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """The configured endpoints by id, from ``workers.yaml`` and ``OWNPOD_WORKERS``.

    Raises:
        ConfigurationError: one line that names the file, the field and what is allowed.
    """
    given = _read(settings)
    if settings.workers is not None:
        local = given.setdefault(DEFAULT_ENDPOINT, _EndpointSchema().load({}))
        local["workers"] = [{"url": u, "capacity": 1, "headers": {}} for u in settings.workers]
    if not given:
        default = [{"url": url} for url in DEFAULT_WORKERS]
        given[DEFAULT_ENDPOINT] = _EndpointSchema().load({"workers": default})
    endpoints = {
        endpoint_id: Endpoint(
            id=endpoint_id,
            workers=tuple(_worker(endpoint_id, w, settings) for w in values["workers"]),
            execution_timeout_ms=values["execution_timeout_ms"],
            ttl_ms=values["ttl_ms"],
            max_attempts=values["max_attempts"],
            max_queue_depth=values["max_queue_depth"],
            api_keys=tuple(values["api_keys"]),
        )
        for endpoint_id, values in given.items()
    }
    _check_unique([worker for endpoint in endpoints.values() for worker in endpoint.workers])
    return endpoints


def _read(settings: Settings) -> dict[str, dict[str, Any]]:
    path = settings.workers_file
    try:
        content = yaml.safe_load(path.read_text())
        return _FileSchema().load(content)["endpoints"]  # type: ignore[no-any-return]
    except FileNotFoundError:
        if not settings.workers_file_required:
            return {}
        raise ConfigurationError(f"OWNPOD_WORKERS_FILE={path}: there is no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        place, problem = _first(error.normalized_messages())
        raise ConfigurationError(f"{path}: {place}: {problem}") from None


def _first(messages: Any, place: str = "") -> tuple[str, str]:
    """The first problem in marshmallow's nested messages, with a dotted path to it."""
    while isinstance(messages, dict):
        key, messages = next(iter(messages.items()))
        if key not in {"_schema", "value", "key"}:
            place = f"{place}.{key}" if place else str(key)
    return place or "the file", str(messages[0])


def worker_id_of(url: str) -> str:
    """A worker's id from its URL: readable, stable, the same on every host."""
    parts = urlsplit(url)
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{parts.netloc}{parts.path}").strip("-")


def _worker(endpoint_id: str, values: dict[str, Any], settings: Settings) -> WorkerSpec:
    ca_bundle = values.get("ca_bundle", settings.worker_ca_bundle)
    return WorkerSpec(
        id=values.get("id") or worker_id_of(values["url"]),
        endpoint=endpoint_id,
        url=values["url"].rstrip("/"),
        capacity=values["capacity"],
        headers={**settings.worker_headers, **values["headers"]},
        verify_tls=values.get("verify_tls", settings.worker_verify_tls),
        ca_bundle=ca_bundle,
    )


def _check_unique(workers: Iterable[WorkerSpec]) -> None:
    seen: dict[str, WorkerSpec] = {}
    for worker in workers:
        if worker.id == "housekeeping":
            raise ConfigurationError(
                "worker id 'housekeeping' is taken; give this one another `id`"
            )
        for name in (worker.id, worker.url):
            other = seen.setdefault(name, worker)
            if other is not worker:
                raise ConfigurationError(
                    f"workers {other.url} of {other.endpoint!r} and {worker.url} of "
                    f"{worker.endpoint!r}: a worker can be listed once only, under an `id` of its own"
                )


_OWN = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] or owner == ARGV[2] then
  if ARGV[3] == '0' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
  end
  return ARGV[1]
end
return owner
"""
"""KEYS owner; ARGV who wants it, whose ownership does not count, ms (0: give it up) -> who has it."""


FRESH_S = 1.0
"""So old may be what a process knows of workers that were added at run time."""


class Registry:
    """Looks up endpoints and their workers, and keeps what each worker's node says about it in Redis.

    Workers stand in the configuration, or were added at run time: those stand in Redis, and stay
    until they are removed. Each process looks for them again after :data:`FRESH_S`.

    Args:
        endpoints: the configured ones, see :func:`load_endpoints`.
        client: from :func:`ownpod.store.connect`.
        settings: what a worker's own values default to.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], client: redis.Redis, settings: Settings
    ) -> None:
        self._configured = endpoints
        self._settings = settings
        self._redis = client
        self._script = client.register_script(_OWN)
        self._lock = threading.Lock()
        self._added: dict[str, str] = {}
        self._fresh_until = 0.0
        self._known = dict(endpoints)

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """All endpoints with all their workers; as they were, while Redis is away."""
        if self._fresh_until < time.monotonic():
            self._fresh_until = time.monotonic() + FRESH_S
            try:
                self.refresh()
            except RedisUnavailable as error:
                log.debug("workers not looked up: %s", error)
        return self._known

    @redis_errors
    def refresh(self) -> None:
        """Looks now."""
        added: Any = self._redis.hgetall(keys.ADDED)
        with self._lock:
            if added != self._added:
                self._known = self._with(added)
                self._added = added

    def reload(self, endpoints: Mapping[str, Endpoint]) -> None:
        """The configuration has changed."""
        with self._lock:
            self._configured = endpoints
            self._known = self._with(self._added)

    def _with(self, added: Mapping[str, str]) -> dict[str, Endpoint]:
        known = dict(self._configured)
        taken = {name for e in known.values() for w in e.workers for name in (w.id, w.url)}
        for text in added.values():
            spec = self._spec(json.loads(text))
            if spec.endpoint not in known or taken & {spec.id, spec.url}:
                # The configuration has changed since, and comes first.
                log.warning(
                    "worker %s of %r, added at run time, is left out", spec.id, spec.endpoint
                )
                continue
            endpoint = known[spec.endpoint]
            known[spec.endpoint] = replace(endpoint, workers=(*endpoint.workers, spec))
        return known

    def _spec(self, said: dict[str, Any]) -> WorkerSpec:
        endpoint_id = said.pop("endpoint")
        return _worker(endpoint_id, WorkerSchema().load(said), self._settings)

    def add(self, endpoint_id: str, values: dict[str, Any]) -> WorkerSpec:
        """Adds a worker, or changes one that was added.

        Args:
            endpoint_id: an endpoint that there is.
            values: as a worker's in ``workers.yaml``.

        Raises:
            EndpointNotFound: there is no such endpoint.
            BadRequest: a value cannot be used.
            WorkerConflict: its id or URL is another worker's, or stands in the configuration.
        """
        self.refresh()
        self.endpoint(endpoint_id)
        try:
            spec = self._spec({**values, "endpoint": endpoint_id})
        except ValidationError as error:
            place, problem = _first(error.normalized_messages())
            raise BadRequest(f"{place}: {problem}") from None
        if any(w.id == spec.id for e in self._configured.values() for w in e.workers):
            raise WorkerConflict(
                f"worker {spec.id!r} stands in the configuration: change it there, then send SIGHUP"
            )
        others = [worker for worker in self.workers() if worker.id != spec.id]
        try:
            _check_unique([*others, spec])
        except ConfigurationError as error:
            raise WorkerConflict(error.message) from None
        self._write(spec.id, json.dumps({**values, "endpoint": endpoint_id, "id": spec.id}))
        return spec

    def remove(self, worker_id: str, endpoint_id: str | None = None) -> None:
        """Removes a worker that was added; what it runs, it finishes.

        Raises:
            WorkerNotFound: there is no such worker.
            WorkerConflict: it stands in the configuration.
        """
        self.find(worker_id, endpoint_id)
        if worker_id not in self._added:
            raise WorkerConflict(
                f"worker {worker_id!r} stands in the configuration: remove it there, then send SIGHUP; "
                "or drain it"
            )
        self._write(worker_id, None)

    def find(self, worker_id: str, endpoint_id: str | None = None) -> WorkerSpec:
        """A worker, looked up now. Raises: WorkerNotFound, EndpointNotFound."""
        self.refresh()
        known = self.workers() if endpoint_id is None else self.endpoint(endpoint_id).workers
        for worker in known:
            if worker.id == worker_id:
                return worker
        raise WorkerNotFound(worker_id, sorted(worker.id for worker in known))

    @redis_errors
    def _write(self, worker_id: str, text: str | None) -> None:
        if text is None:
            self._redis.hdel(keys.ADDED, worker_id)
            self._redis.hdel(keys.PAUSED, worker_id)
        else:
            self._redis.hset(keys.ADDED, worker_id, text)
        self.refresh()

    @redis_errors
    def pause(self, worker_id: str, reason: str) -> None:
        """The worker is to take no jobs, also after restarts; what it has, it finishes."""
        self._redis.hset(keys.PAUSED, worker_id, reason)

    @redis_errors
    def resume(self, worker_id: str) -> None:
        """The worker is to take jobs again."""
        self._redis.hdel(keys.PAUSED, worker_id)

    @redis_errors
    def paused(self, worker_id: str) -> str | None:
        """Why the worker is to take no jobs; None: it may."""
        reason: Any = self._redis.hget(keys.PAUSED, worker_id)
        return None if reason is None else str(reason)

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """Raises: EndpointNotFound."""
        try:
            return self.endpoints[endpoint_id]
        except KeyError:
            raise EndpointNotFound(endpoint_id, sorted(self.endpoints)) from None

    def workers(self) -> list[WorkerSpec]:
        """All workers of all endpoints."""
        return [worker for endpoint in self.endpoints.values() for worker in endpoint.workers]

    def worker(self, worker_id: str) -> WorkerSpec | None:
        return next((worker for worker in self.workers() if worker.id == worker_id), None)

    @redis_errors
    def announce(self, worker_id: str, status: WorkerStatus, *, node: str, ttl_s: float) -> None:
        """What a node says about its worker; forgotten if it is not said again within ``ttl_s``."""
        key = keys.worker(worker_id)
        values: dict[Any, Any] = {
            "state": status.state.value,
            "reason": status.reason,
            "held": status.held,
            "node": node,
            "seen_ms": now_ms(),
        }
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping=values)
            pipe.pexpire(key, int(ttl_s * 1000))
            pipe.execute()

    @redis_errors
    def owner(self, worker_id: str) -> str | None:
        """The node that runs a worker now, as ``<host>:<pid>``; None: none, or one that is dead."""
        found: Any = self._redis.get(keys.owner(worker_id))
        return None if found is None or is_dead_here(found) else str(found)

    def own(self, worker_id: str, node: str, *, ttl_s: float) -> bool:
        """Takes or keeps a worker for a node's process; False: another one has it."""
        return self._own(worker_id, node, int(ttl_s * 1000))

    def disown(self, worker_id: str, node: str) -> None:
        """Gives a worker up, if the node has it."""
        self._own(worker_id, node, 0)

    @redis_errors
    def _own(self, worker_id: str, node: str, ttl_ms: int) -> bool:
        key, dead = keys.owner(worker_id), ""
        while True:
            owner = str(self._script(keys=[key], args=[node, dead, ttl_ms]))
            if owner in {node, dead} or not is_dead_here(owner):
                return owner == node
            dead = owner

    @redis_errors
    def withdraw(self, worker_id: str) -> None:
        """The worker's node has ended."""
        self._redis.delete(keys.worker(worker_id))

    @redis_errors
    def node_of(self, worker_id: str) -> str | None:
        """The Celery node that speaks for a worker now."""
        node: Any = self._redis.hget(keys.worker(worker_id), "node")
        return str(node) if node else None

    @redis_errors
    def statuses(self, workers: tuple[WorkerSpec, ...]) -> dict[str, WorkerStatus]:
        """How each worker is, by id. One that no node speaks for is unhealthy."""
        with self._redis.pipeline(transaction=False) as pipe:
            for worker in workers:
                pipe.hmget(keys.worker(worker.id), "state", "reason", "held")
            found = pipe.execute()
        none = WorkerStatus(
            WorkerState.UNHEALTHY, "no node runs for it: is the dispatcher up?", unattended=True
        )
        return {
            worker.id: WorkerStatus(WorkerState(state), reason, int(held)) if state else none
            for worker, (state, reason, held) in zip(workers, found, strict=True)
        }
