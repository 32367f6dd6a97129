"""Workers in REST v2: their output as a stream of events; why jobs wait; the end of a roll-out; the way back."""

import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request

from ownpod.api.balanced_view import balanced_view
from ownpod.api.management.calls import as_json, dry_run_answer, json_body, this_caller
from ownpod.api.management.v2_account import blueprint
from ownpod.api.services import Services, answer, services
from ownpod.api.workers.managed import view_of
from ownpod.errors import BadRequest, CatalogNotFound, RedisUnavailable
from ownpod.management.rollbacks import roll_back
from ownpod.management.v2 import logs
from ownpod.management.why import why
from ownpod.rules.catalog import Door
from ownpod.rules.hours import pause_at
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.store.outputs import KeptLine

KEEP_ALIVE_S = 15.0
"""Seconds between comments on a stream without lines; a client that has left is noticed then."""

SOURCES = ("container", "system")

hapi = Blueprint("hapi", __name__)
"""A path that runpod-flash reads workers' output from."""


# Output.


@blueprint.get("/serverless/<id:row_id>/workers/<id:worker_id>/logs")
def worker_logs(row_id: str, worker_id: str) -> Response:
    """The worker's last lines, and then each new one, as server-sent events. It ends when the worker has ended."""
    svc = services()
    worker = _worker(svc, row_id, worker_id)
    source = request.args.get("source")
    if source is not None and source not in SOURCES:
        raise BadRequest(f"source: must be one of {', '.join(SOURCES)}")
    wanted = logs.Wanted(
        source,
        logs.tail_of(request.args.get("tail")),
        logs.since_of(request.args.get("since")),
        logs.after_of(request.headers.get("Last-Event-ID")),
    )
    response = Response(_events(svc, worker, wanted))
    response.headers["Content-Type"] = "text/event-stream"
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _worker(svc: Services, endpoint_id: str, worker_id: str) -> ManagedWorker:
    svc.management.endpoints.get(endpoint_id)
    worker = svc.managed.get(worker_id)
    if worker is None or worker.endpoint != endpoint_id:
        raise CatalogNotFound("worker", worker_id)
    return worker


def _events(svc: Services, worker: ManagedWorker, wanted: logs.Wanted) -> Iterator[str]:
    if wanted.source != "container" and wanted.after is None:
        for at_ms, text in logs.system_lines(worker):
            if at_ms >= wanted.since_ms:
                yield logs.event("0-0", at_ms, "system", text)
    if wanted.source == "system":
        return
    found = _first(svc, worker.id, wanted)
    last, spoke_at = wanted.after or "0", time.monotonic()
    while True:
        for line in found:
            last, spoke_at = line.id, time.monotonic()
            yield logs.event(line.id, line.at_ms, "container", line.text)
        if not found and _has_ended(svc, worker.id):
            return
        if time.monotonic() - spoke_at > KEEP_ALIVE_S:
            spoke_at = time.monotonic()
            yield ": ping\n\n"
        try:
            found = svc.outputs.wait(worker.id, last)
        except RedisUnavailable:
            # The client continues with the id of the last line.
            return


def _first(svc: Services, worker_id: str, wanted: logs.Wanted) -> list[KeptLine]:
    if wanted.after is not None:
        return svc.outputs.after(worker_id, wanted.after)
    if wanted.since_ms:
        return [line for line in svc.outputs.last(worker_id) if line.at_ms >= wanted.since_ms]
    return svc.outputs.last(worker_id, wanted.tail) if wanted.tail else []


def _has_ended(svc: Services, worker_id: str) -> bool:
    worker = svc.managed.get(worker_id)
    return worker is None or worker.phase is Phase.STOPPED


@hapi.get("/hapi/v1/pod/<id:worker_id>/logs")
def pod_logs(worker_id: str) -> Response:
    """A worker's last lines at once, as runpod-flash reads them."""
    svc = services()
    worker = svc.managed.get(worker_id)
    if worker is None:
        raise CatalogNotFound("worker", worker_id)
    return as_json(
        {
            "container": [line.text for line in svc.outputs.last(worker_id, logs.DEFAULT_TAIL)],
            "system": [text for _, text in logs.system_lines(worker)],
        }
    )


# OwnPod's own.


@blueprint.get("/serverless/<id:row_id>/why")
def why_it_waits(row_id: str) -> Response:
    """Why the endpoint's jobs wait or its workers do not start, for programs: a code, a message, the worker, its output."""
    svc = services()
    svc.management.endpoints.get(row_id)
    endpoint = svc.registry.endpoint(row_id)
    front = balanced_view(svc, endpoint) if endpoint.is_balanced else None
    view = front.managed if front else view_of(svc.managed, endpoint)
    pause = pause_at(endpoint.managed, svc.managed.now_ms()) if endpoint.managed else None
    rollout = view.releases.rollout.next
    coming = "" if rollout is None else f"release {rollout.number} waits for its image"
    waits = f": {view.releases.image_waits}" if coming and view.releases.image_waits else ""
    return as_json(
        why(
            view,
            paused=pause.reason if pause else "",
            queued=front.reading.waiting if front else svc.store.figures.counts(row_id)[0],
            rollout=f"{coming}{waits}",
            front=front.problem if front else "",
            statuses={w.id: front.status(w) for w in endpoint.workers} if front else {},
        )
    )


@blueprint.post("/serverless/<id:row_id>/rollback")
def rollback(row_id: str) -> Response:
    """Makes a release of an earlier one: of the body's ``number``, otherwise of the last one whose workers were ready."""
    body: Any = json_body() if request.content_length else {}
    number = body.get("number") if isinstance(body, dict) else None
    if number is not None and (type(number) is not int or number < 1):
        raise BadRequest("number: must be the number of a release, 1 at least")
    svc = services()
    svc.management.endpoints.get(row_id)
    caller = this_caller(Door.V2)
    done = roll_back(svc.releases, row_id, number, caller)
    if done.made is None:
        return dry_run_answer(
            [done.difference], restarts=True, result=None, of=done.of, insteadOf=done.instead_of
        )
    return answer({"release": done.made, "of": done.of, "insteadOf": done.instead_of})
