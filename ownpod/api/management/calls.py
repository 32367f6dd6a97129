"""What the routes of RunPod's three management APIs share: the caller, the body, dry runs, an endpoint's workers."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response, request

from ownpod.api import auth, schemas
from ownpod.api.balanced_view import balanced_view
from ownpod.api.services import answer, services
from ownpod.errors import UnsupportedMediaType
from ownpod.management import Caller, Outcome
from ownpod.management.workers import WorkerShown, WorkerWord, workers_of
from ownpod.rules.catalog import Difference, Door, EndpointRow
from ownpod.rules.fleet import WorkerState

DRY_RUN = "X-OwnPod-Dry-Run"
"""The header of a request that only asks what it would do."""

IGNORED = "X-OwnPod-Ignored"
"""The header of a response with the fields of the request that OwnPod does not know."""

WARNING = "X-OwnPod-Warning"
"""The header of a response with what was accepted and has no effect, in words for people."""

NO_KEY = "no key"
"""The caller in the audit log where no key is configured."""


def this_caller(door: Door) -> Caller:
    """The caller of this request, for the audit log; and whether it asks for a dry run."""
    dry_run = request.headers.get(DRY_RUN, "").strip().lower() in {"1", "true", "yes"}
    return Caller(auth.caller()[:12] or NO_KEY, door, dry_run=dry_run)


def json_body() -> Any:
    """The JSON of this request's body.

    Raises:
        UnsupportedMediaType: with another content type a page of another site could send the request.
        BadRequest: it is no JSON.
    """
    if not request.is_json:
        raise UnsupportedMediaType
    return schemas.parse_json(request.get_data(cache=False))


def as_json(body: Any, status: int = 200) -> Response:
    """A JSON response, also of a list."""
    return answer(json.dumps(body), status)


def _visible(text: str) -> str:
    """A text as a header may have it: one line of ASCII, not too long."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:500]


def answered(
    outcome: Outcome[Any],
    caller: Caller,
    shown: Mapping[str, Any],
    *,
    status: int = 200,
    ignored: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Response:
    """The response to a call that has made or changed an object, or to its dry run.

    Args:
        outcome: what the call has done.
        caller: whether it was a dry run.
        shown: the object as the API shows it.
        status: of a call that was no dry run.
        ignored: fields of the request that had no effect.
        warnings: what else was accepted and has no effect, in words for people.
    """
    if caller.dry_run:
        unknown = [f"{_visible(name)} is no field that OwnPod knows" for name in ignored[:50]]
        response = dry_run_answer(
            outcome.differences, [*warnings, *unknown], restarts=outcome.restarts, result=shown
        )
    else:
        response = as_json(shown, status)
    if ignored:
        names = (_visible(name).replace(",", "?") for name in ignored[:50])
        response.headers[IGNORED] = ", ".join(names)
    if warnings:
        response.headers[WARNING] = "; ".join(_visible(text) for text in warnings)[:2000]
    return response


def deleted(outcome: Outcome[Any], caller: Caller) -> Response:
    """The response to a call that has deleted an object, or to its dry run."""
    if caller.dry_run:
        return dry_run_answer(outcome.differences, restarts=outcome.restarts, result=None)
    return Response(status=204)


def dry_run_answer(
    differences: Sequence[Difference],
    warnings: Sequence[str] = (),
    *,
    restarts: bool,
    **more: Any,
) -> Response:
    """The answer to a dry run: what would change, whether workers would be replaced, what would have no effect, and ``more``."""
    body = {
        "dryRun": True,
        "diff": [{"field": d.field, "old": d.old, "new": d.new} for d in differences],
        "restarts": restarts,
        "warnings": [*warnings],
    }
    return answer(json.dumps({**body, **more}))


def endpoint_workers(row: EndpointRow, *, stopped: bool = False) -> list[WorkerShown]:
    """The workers of an endpoint; ``stopped``: with those that stopped within the last hour. Raises: RedisUnavailable."""
    svc = services()
    records = list(svc.managed.list(row.id))
    if stopped:
        records += svc.managed.recent(row.id)
    release = wanted_release(row.id)
    endpoint = svc.registry.endpoints.get(row.id)
    if endpoint is not None and endpoint.is_balanced:
        view = balanced_view(svc, endpoint)
        statuses = {worker.id: view.status(worker) for worker in endpoint.workers}
        return workers_of(
            row,
            release,
            records,
            {name: server.open for name, server in view.reading.servers.items()},
            svc.agents.agents(),
            unhealthy={
                name: status.reason
                for name, status in statuses.items()
                if status.state is WorkerState.UNHEALTHY
            },
        )
    busy = Counter(svc.store.figures.counts(row.id)[1].values())
    return workers_of(row, release, records, busy, svc.agents.agents())


def wanted_release(endpoint_id: str) -> str:
    """The id of the release that an endpoint's workers should have; "": it has no template. Raises: RedisUnavailable."""
    svc = services()
    endpoint = svc.registry.endpoints.get(endpoint_id)
    if endpoint is None or endpoint.managed is None:
        return ""
    rollout = svc.managed.rolled_out(endpoint_id).rollout
    if rollout.latest is None or rollout.configured != endpoint.managed.release:
        # The scaler has not made the release yet.
        return endpoint.managed.release
    return rollout.latest.id


ROLLOUT = "X-OwnPod-Rollout"
"""The header of a response to a request that waited for a roll-out: ``complete`` or ``in progress``."""

LONGEST_ROLLOUT_S = 300.0
ROLLOUT_CHECK_S = 0.5


def await_rollout(response: Response, row: EndpointRow, caller: Caller) -> Response:
    """Waits, where the query has ``?wait=rollout``, until no worker of an earlier release is left, five minutes at most."""
    if request.args.get("wait") != "rollout" or caller.dry_run:
        return response
    until, done = time.monotonic() + LONGEST_ROLLOUT_S, False
    while not done and time.monotonic() < until:
        done = _is_rolled_out(row)
        if not done:
            time.sleep(ROLLOUT_CHECK_S)
    response.headers[ROLLOUT] = "complete" if done else "in progress"
    return response


def _is_rolled_out(row: EndpointRow) -> bool:
    svc = services()
    if svc.managed.rolled_out(row.id).rollout.next is not None:
        return False
    workers = endpoint_workers(row)
    current = [worker for worker in workers if not worker.is_stale]
    coming = any(worker.word is WorkerWord.INITIALIZING for worker in current)
    return len(current) == len(workers) and not coming
