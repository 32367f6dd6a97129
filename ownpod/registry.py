"""Endpoints and workers as one live list: those of the configuration file and those of run time."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError

from ownpod.configuration import (
    AddedWorkerSchema,
    check_balanced_worker,
    check_unique,
    endpoint_entry,
    make_endpoint,
    make_worker,
)
from ownpod.errors import (
    BadRequest,
    ConfigurationError,
    EndpointConflict,
    EndpointNotFound,
    RedisUnavailable,
    WorkerConflict,
    WorkerNotFound,
)
from ownpod.preset_errors import UnknownModel, UnknownPreset
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.fleet import Entries, LeftOut, LeftOutEndpoint, Merged, endpoint_in, merge
from ownpod.rules.hours import most_workers
from ownpod.rules.presets import endpoint_id
from ownpod.rules.quota import quota_problem
from ownpod.settings import Settings
from ownpod.store.fleet import Fleet
from ownpod.validation import NAME, first_problem

log = logging.getLogger(__name__)

CACHE_TTL_S = 1.0
"""Age in seconds up to which a process uses the entries of run time without reading them again."""


class Registry:
    """Looks up endpoints and their workers.

    The configuration file's endpoints and workers change there. Those of run time are entries in Redis, which
    every process reads again after :data:`CACHE_TTL_S`: an added endpoint or worker stays until it is removed, a
    pulling worker until its polls stop.

    Args:
        configured: the endpoints of the configuration, see :func:`ownpod.configuration.load_endpoints`.
        fleet: the entries of run time.
        settings: what a worker's own values default to.
    """

    def __init__(
        self, configured: Mapping[str, Endpoint], fleet: Fleet, settings: Settings
    ) -> None:
        self.fleet = fleet
        self._configured = configured
        self._settings = settings
        self._lock = threading.Lock()
        self._entries = Entries()
        self._reads = self._applied = 0
        """Number of reads begun, and of the latest one whose entries are in use."""
        self._fresh_until = 0.0
        self._was_read = False
        self._never_read: RedisUnavailable | None = None
        """Why the entries were not read, while they never were."""
        self._merged = Merged(configured)

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """All endpoints with all their workers; while Redis is away, as they were last read."""
        return self._current.endpoints

    @property
    def has_keys(self) -> bool:
        """Whether any endpoint has API keys, so that calls need a key. An entry that cannot be read counts.

        Raises:
            RedisUnavailable: the entries of run time were never read, and one of them may have keys.
        """
        current = self._current
        if any(endpoint.api_keys for endpoint in current.endpoints.values()):
            return True
        if self._never_read is not None:
            raise RedisUnavailable(str(self._never_read))
        return self._entries.endpoints_unreadable or any(
            entry.may_have_keys for entry in current.endpoints_left_out
        )

    @property
    def _current(self) -> Merged:
        if self._fresh_until < time.monotonic():
            # Set first, so that one thread reads and the others do not wait for it. But at the start they all read:
            # without the entries a request would pass that needs a key.
            if self._was_read or self._never_read is not None:
                self._fresh_until = time.monotonic() + CACHE_TTL_S
            try:
                self.refresh()
            except RedisUnavailable as error:
                log.debug("endpoints and workers not read: %s", error)
                if not self._was_read:
                    self._never_read = error
            self._fresh_until = time.monotonic() + CACHE_TTL_S
        return self._merged

    def refresh(self) -> None:
        """Reads the entries of run time now. Raises: RedisUnavailable."""
        with self._lock:
            self._reads += 1
            number = self._reads
        entries = self.fleet.entries()
        with self._lock:
            # A read of another thread that began before a change could bring the entries of before it back.
            if number > self._applied:
                self._applied = number
                if entries != self._entries:
                    self._entries = entries
                    self._merge()
            self._was_read, self._never_read = True, None

    def reload(self, configured: Mapping[str, Endpoint]) -> None:
        """Replaces the endpoints of the configuration."""
        with self._lock:
            self._configured = configured
            self._merge()

    def _merge(self) -> None:
        before = self._merged
        self._merged = merge(self._configured, self._entries, make_endpoint, self._spec)
        for worker in self._merged.workers_left_out:
            if worker not in before.workers_left_out:
                log.warning("worker %r of run time is left out: %s", worker.id, worker.reason)
        for endpoint in self._merged.endpoints_left_out:
            if endpoint not in before.endpoints_left_out:
                log.warning("endpoint %r of run time is left out: %s", endpoint.id, endpoint.reason)

    def left_out(self, endpoint_id: str | None = None) -> list[LeftOut]:
        """Workers of run time that cannot be used: all, or an endpoint's and those without an endpoint."""
        return [
            entry
            for entry in self._merged.workers_left_out
            if endpoint_id is None or entry.endpoint in {None, endpoint_id}
        ]

    @property
    def endpoints_left_out(self) -> tuple[LeftOutEndpoint, ...]:
        """Endpoints of run time that cannot be used."""
        return self._merged.endpoints_left_out

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """Raises: EndpointNotFound."""
        endpoints = self.endpoints
        if endpoint_id not in endpoints:
            # Another process may have added it just now, and its caller's next request must find it.
            endpoints = self.newer()
        try:
            return endpoints[endpoint_id]
        except KeyError:
            raise EndpointNotFound(endpoint_id, sorted(endpoints)) from None

    def presets(self) -> list[Endpoint]:
        """The endpoints that are presets of a model, in the order of the configuration."""
        return [endpoint for endpoint in self.endpoints.values() if endpoint.preset is not None]

    def preset(self, model_id: str, name: str) -> Endpoint:
        """The endpoint of a model's preset.

        Raises:
            UnknownModel: no preset has this model; the message lists those that there are.
            UnknownPreset: the model has no such preset; the message lists those that it has.
        """
        endpoint = self.endpoints.get(endpoint_id(model_id, name))
        preset = None if endpoint is None else endpoint.preset
        # Several names may have one id, of which the configuration has one.
        if endpoint and preset and (preset.model_id, preset.name) == (model_id, name):
            return endpoint
        presets = [e.preset for e in self.presets() if e.preset is not None]
        if known := sorted(preset.name for preset in presets if preset.model_id == model_id):
            raise UnknownPreset(model_id, name, known)
        raise UnknownModel(model_id, sorted({preset.model_id for preset in presets}))

    def newer(self) -> Mapping[str, Endpoint]:
        """All endpoints, read now; while Redis is away, as they were last read."""
        with contextlib.suppress(RedisUnavailable):
            self.refresh()
        return self._merged.endpoints

    def workers(self) -> list[WorkerSpec]:
        """All workers of all endpoints."""
        return list(self._current.workers.values())

    def worker(self, worker_id: str) -> WorkerSpec | None:
        """A worker, at most :data:`CACHE_TTL_S` old; None: there is none with this id."""
        return self._current.workers.get(worker_id)

    def find(self, worker_id: str, endpoint_id: str | None = None) -> WorkerSpec:
        """A worker, read now. Raises: WorkerNotFound, EndpointNotFound."""
        self.refresh()
        known = self.workers() if endpoint_id is None else self.endpoint(endpoint_id).workers
        for worker in known:
            if worker.id == worker_id:
                return worker
        raise WorkerNotFound(worker_id, sorted(worker.id for worker in known))

    def put_endpoint(self, endpoint_id: str, values: dict[str, Any]) -> Endpoint:
        """Adds an endpoint, or replaces the values of one that was added; its workers stay.

        New values apply to the next job. Redis gets the keys' digests only.

        Args:
            endpoint_id: letters, digits, - and _.
            values: as an endpoint's in ``workers.yaml``, without ``workers``: these are added by :meth:`add`.

        Raises:
            BadRequest: the id or a value cannot be used, or OWNPOD_WORKER_QUOTA would be exceeded.
            EndpointConflict: the configuration file defines an endpoint with this id.
        """
        if not NAME.fullmatch(endpoint_id):
            raise BadRequest("an endpoint's id must be letters, digits, - and _")
        if endpoint_id in self._configured:
            raise EndpointConflict(_defined(f"endpoint {endpoint_id!r}", "change"))
        try:
            endpoint = make_endpoint(endpoint_id, values)
        except ValidationError as error:
            raise _bad_request(error) from None
        if endpoint.managed is not None:
            self.refresh()
            others = [other for other in self.endpoints.values() if other.id != endpoint_id]
            quota = self._settings.worker_quota
            if problem := quota_problem(most_workers(endpoint.managed), others, quota):
                raise BadRequest(problem)
        self.fleet.put_endpoint(endpoint_id, json.dumps(endpoint_entry(values, endpoint)))
        self.refresh()
        return endpoint

    def remove_endpoint(self, endpoint_id: str) -> None:
        """Removes an endpoint that was added, with the workers that were added to it.

        The endpoint's routes answer 404 from then on. Its workers' nodes finish the jobs that run and end; a
        pulling worker cannot ping any more, so its job may count as lost. Waiting jobs stay in Redis until their
        ttl, and run if an endpoint with this id is added before that.

        Raises:
            EndpointNotFound: there is no such endpoint.
            EndpointConflict: it is defined in the configuration file.
        """
        if endpoint_id in self._configured:
            raise EndpointConflict(_defined(f"endpoint {endpoint_id!r}", "remove"))
        self.refresh()
        if endpoint_id not in self._entries.endpoints:
            raise EndpointNotFound(endpoint_id, sorted(self.endpoints))
        added = self._entries.added.items()
        workers = [name for name, text in added if endpoint_in(text) == endpoint_id]
        self.fleet.remove_endpoint(endpoint_id, workers)
        self.refresh()

    def add(self, endpoint_id: str, values: dict[str, Any]) -> WorkerSpec:
        """Adds a worker, or changes one that was added.

        Args:
            endpoint_id: an endpoint that exists.
            values: as a worker's in ``workers.yaml``.

        Raises:
            EndpointNotFound: there is no such endpoint.
            BadRequest: a value cannot be used.
            WorkerConflict: its id or URL is another worker's, or is defined in the configuration file.
        """
        self.refresh()
        endpoint = self.endpoint(endpoint_id)
        try:
            spec = self._spec({**values, "endpoint": endpoint_id}, endpoint)
        except ValidationError as error:
            raise _bad_request(error) from None
        if any(w.id == spec.id for e in self._configured.values() for w in e.workers):
            raise WorkerConflict(_defined(f"worker {spec.id!r}", "change"))
        others = [worker for worker in self.workers() if worker.id != spec.id]
        try:
            check_unique([*others, spec])
        except ConfigurationError as error:
            raise WorkerConflict(error.message) from None
        entry = {**values, "endpoint": endpoint_id, "id": spec.id}
        self.fleet.put_worker(spec.id, json.dumps(entry))
        self.refresh()
        return spec

    def remove(self, worker_id: str, endpoint_id: str | None = None) -> None:
        """Removes a worker that was added; its node finishes the jobs that run.

        Raises:
            WorkerNotFound: there is no such worker.
            WorkerConflict: it is defined in the configuration file, or it pulls.
        """
        self.refresh()
        if worker_id not in self._entries.added or not any(
            entry.id == worker_id for entry in self.left_out(endpoint_id)
        ):
            if self.find(worker_id, endpoint_id).pulls:
                raise WorkerConflict(
                    f"worker {worker_id!r} pulls: stop it, then it is forgotten; or drain it"
                )
            if worker_id not in self._entries.added:
                raise WorkerConflict(f"{_defined(f'worker {worker_id!r}', 'remove')}; or drain it")
        self.fleet.remove_worker(worker_id)
        self.refresh()

    def _spec(self, values: dict[str, Any], endpoint: Endpoint) -> WorkerSpec:
        loaded = AddedWorkerSchema().load({k: v for k, v in values.items() if k != "endpoint"})
        if endpoint.is_balanced:
            check_balanced_worker(loaded)
        return make_worker(
            endpoint.id, loaded, self._settings, configured=False, balancing=endpoint.balancing
        )


def _defined(what: str, action: str) -> str:
    return f"{what} is defined in the configuration file: {action} it there, then send SIGHUP"


def _bad_request(error: ValidationError) -> BadRequest:
    place, problem = first_problem(error.normalized_messages())
    return BadRequest(f"{place}: {problem}")
