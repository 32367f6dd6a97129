"""A job's typed events as an event stream: connection, worker, text and output, logs, and the job's end, see
:mod:`ownpod.rules.events`.
"""

import logging
import re
import time
from collections.abc import Iterator
from typing import Any

from flask import Response, request

from ownpod.api.services import Services, event_stream, services
from ownpod.errors import BadRequest, EndpointNotFound, JobNotFound, RedisUnavailable
from ownpod.rules.about import about_of
from ownpod.rules.events import (
    Connection,
    Cursor,
    Event,
    Section,
    events_of,
    needs_connection,
    parse,
)
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import Device, ManagedWorker, Phase, Role
from ownpod.rules.managed_states import ManagedView, in_words

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""Seconds between comments on a stream without events; proxies close a connection that is silent for long."""

RETRY_MS = 2000
"""Ms after which a client reconnects."""

_LINE_END = re.compile(r"\r\n|\r|\n")


def requested_cursor() -> Cursor | None:
    """The cursor up to which the client has the stream, from ``Last-Event-ID`` or ``?after=``; None: it has nothing.

    A header that is no typed event's id counts as none, because it may be of the other stream.
    """
    if (after := request.args.get("after")) is not None:
        if (cursor := parse(after)) is None:
            raise BadRequest("after: must be the id of an event of this job's typed events")
        return cursor
    return parse(request.headers.get("Last-Event-ID", ""))


def respond(job_id: str, endpoint_id: str, cursor: Cursor | None) -> Response:
    """The stream of a job's events after ``cursor``.

    Args:
        job_id: the job.
        endpoint_id: its endpoint.
        cursor: from :func:`requested_cursor`; None: from the beginning.

    Raises:
        JobNotFound: the endpoint has no such job.
        TooManyWaiting: this process has too many open streams.
        RedisUnavailable: Redis does not answer.
    """
    svc = services()
    svc.notices.check_room()
    section = svc.store.journal.read(job_id, endpoint_id, cursor)
    if cursor is not None and cursor.ended and section.job.status.terminal:
        # A browser reconnects after the end of a stream; 204 is the status that ends its reconnects (HTML standard, EventSource).
        return Response(status=204)
    svc.store.jobs.subscribe(job_id, svc.notices.channel, end_only=False)
    response = event_stream(_texts(svc, job_id, endpoint_id, cursor))
    response.headers["X-Task-Id"] = job_id
    if (session_id := _session_id(section, _worker(svc, section))) is not None:
        response.headers["X-Session-Id"] = session_id
    return response


def _texts(svc: Services, job_id: str, endpoint_id: str, cursor: Cursor | None) -> Iterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    silent_since, timed_out = time.monotonic(), False
    with (
        svc.notices.subscribe(job_id, end_only=False) as wait,
        svc.positions.follow() as follower,
    ):
        while not svc.notices.stopped:
            try:
                section = svc.store.journal.read(job_id, endpoint_id, cursor)
                # Nothing has woken this stream, so the job still waits where it did.
                same = timed_out and follower.follows(section.job)
                connection = _unchanged(section) if same else connection_of(svc, section)
            except (JobNotFound, RedisUnavailable) as error:
                log.info("events of job %s end: %s", job_id, error)
                return
            event = None
            for event in events_of(section, connection):
                yield text_of(event)
            if event is not None:
                cursor, silent_since = parse(event.id), time.monotonic()
                if cursor is not None and cursor.ended:
                    return
            elif time.monotonic() - silent_since >= KEEP_ALIVE_S:
                yield ": keep-alive\n\n"
                silent_since = time.monotonic()
            follower.has(section.job, 0 if cursor is None else cursor.position)
            timed_out = False
            if not section.more:
                until = silent_since + KEEP_ALIVE_S
                wait(max(0.0, until - time.monotonic()))
                timed_out = time.monotonic() >= until


def _unchanged(section: Section) -> Connection:
    return Connection(section.session_id, section.start.position)


def text_of(event: Event) -> str:
    """An event as it is sent. Data of several lines stays one event."""
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(event.data))
    return f"id: {event.id}\nevent: {event.event}\n{lines}\n"


def connection_of(svc: Services, section: Section) -> Connection:
    """Which worker and device a job has, or what it waits for."""
    if not needs_connection(section, section.start):
        return Connection()
    job, worker = section.job, _worker(svc, section)
    data: dict[str, Any] = {} if worker is None else _devices(svc, worker)
    session_id = _session_id(section, worker)
    place = svc.store.queue.place(job) if job.status is JobStatus.IN_QUEUE else None
    if place is None:
        # It has left the queue since it was read, so its position is no news.
        return Connection(session_id, section.start.position, data=data)
    placed = ready = False
    if worker is not None and place.position == 1:
        ready = worker.phase is Phase.READY and not svc.store.runs.orphans(worker.id)
        placed = ready or worker.phase in {Phase.PREPARING, Phase.STARTING}
    if placed:
        return Connection(session_id, place.position, placed, ready, data=data)
    data["reason"] = _reason(svc, section, worker)
    wait_s = svc.estimates.wait_s(job, place, worker)
    return Connection(session_id, place.position, estimated_wait_s=wait_s, data=data)


def _session_id(section: Section, worker: ManagedWorker | None) -> str | None:
    """The session of a job; its worker's record may be gone, or the job may be no task."""
    if worker is None:
        return section.session_id
    return worker.id if worker.role is Role.SESSION else None


def _reason(svc: Services, section: Section, worker: ManagedWorker | None) -> str:
    if worker is not None and worker.is_private:
        what = f"{worker.role} {worker.id}"
        phase = in_words(worker, ManagedView())
        return f"{what} {phase}" if phase else f"it waits for {what}, which has other work"
    try:
        return svc.waiting.reason(section.job.endpoint)
    except EndpointNotFound:
        return "its endpoint is deleted"


def _worker(svc: Services, section: Section) -> ManagedWorker | None:
    """The managed worker that runs or ran the job, or for which it waits; None: there is none."""
    worker_id = section.job.worker_id or section.waits_for
    return None if worker_id is None else svc.managed.get(worker_id)


def _devices(svc: Services, worker: ManagedWorker) -> dict[str, Any]:
    """The first device of a worker, and its host."""
    data: dict[str, Any] = {"gpu_id": None}
    if found := about_of(worker).get("difficulty") or next(iter(worker.pools), None):
        data["gpu_class"] = found
    if worker.host is None:
        return data
    data["host"] = worker.host
    if worker.devices:
        device = _device(svc, worker.host, worker.devices[0])
        if device is not None and device.pools and found not in device.pools:
            # It has spilled to a device of another difficulty.
            data["gpu_class"] = device.pools[0]
        if device is not None and not device.simulated:
            data |= {"gpu_id": device.index, "gpu_uuid": device.id, "gpu_name": device.name}
    return data


def _device(svc: Services, host: str, device_id: str) -> Device | None:
    for agent in svc.agents.agents():
        if agent.host == host:
            for device in agent.devices:
                if device.id == device_id:
                    return device
    return None
