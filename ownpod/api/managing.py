"""What the routes of RunPod's three management APIs share: the caller, the body, dry runs, an endpoint's workers."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response, request

from ownpod.api import auth, schemas
from ownpod.api.services import answer, services
from ownpod.errors import UnsupportedMediaType
from ownpod.management import Caller, Outcome
from ownpod.management.workers import WorkerShown, workers_of
from ownpod.rules.catalog import Door, EndpointRow
from ownpod.rules.releases import recorded
from ownpod.rules.templates import ManagedSpec

DRY_RUN = "X-OwnPod-Dry-Run"
"""The header of a request that only asks what it would do."""

IGNORED = "X-OwnPod-Ignored"
"""The header of a response with the fields of the request that OwnPod does not know."""

NOBODY = "no key"
"""The caller in the audit log where no key is configured."""


def caller(door: Door) -> Caller:
    """The caller of this request, for the audit log; and whether it asks for a dry run."""
    dry_run = request.headers.get(DRY_RUN, "").strip().lower() in {"1", "true", "yes"}
    return Caller(auth.caller()[:12] or NOBODY, door, dry_run=dry_run)


def json_body() -> Any:
    """The JSON of this request's body.

    Raises:
        UnsupportedMediaType: with another content type a page of another site could send the request.
        BadRequest: it is no JSON.
    """
    if not request.is_json:
        raise UnsupportedMediaType
    return schemas.parse_json(request.get_data(cache=False))


def as_json(body: Any, status: int = 200, *, ignored: Sequence[str] = ()) -> Response:
    """A JSON response, also of a list; ``ignored``: fields of the request that had no effect."""
    response = answer(json.dumps(body), status)
    if ignored:
        response.headers[IGNORED] = ", ".join(_visible(name) for name in ignored[:50])
    return response


def _visible(name: str) -> str:
    return "".join(c if " " < c <= "~" and c != "," else "?" for c in name)[:100]


def dry_run_answer(outcome: Outcome[Any], shown: Mapping[str, Any] | None) -> Response:
    """The answer to a dry run: what would change, whether workers would be replaced, and the object as it would be."""
    differences = [{"field": d.field, "old": d.old, "new": d.new} for d in outcome.differences]
    body = {"dryRun": True, "diff": differences, "restarts": outcome.restarts, "result": shown}
    return answer(json.dumps(body))


def endpoint_workers(row: EndpointRow, *, stopped: bool = False) -> list[WorkerShown]:
    """The workers of an endpoint; ``stopped``: with those that stopped within the last hour. Raises: RedisUnavailable."""
    svc = services()
    records = list(svc.managed.list(row.id))
    if stopped:
        records += svc.managed.recent(row.id)
    endpoint = svc.registry.endpoints.get(row.id)
    release = _release(row.id, endpoint.managed) if endpoint and endpoint.managed else ""
    busy = Counter(svc.store.figures.counts(row.id)[1].values())
    return workers_of(row, release, records, busy, svc.agents.agents())


def _release(endpoint_id: str, configured: ManagedSpec) -> str:
    """The name that workers of the endpoint's newest version have. An endpoint that is changed, and changed back, has
    another release for the same configuration.
    """
    latest = services().managed.rolled_out(endpoint_id).rollout.latest
    if latest is not None and latest.spec == recorded(configured):
        return latest.id
    return configured.release
