"""The GPU service's routes of sessions: list, show, make, keep alive, end one, and read its output."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request, stream_with_context
from marshmallow import Schema

from ownpod.api import schemas
from ownpod.api.auth import check_opens, is_admin, opened_endpoints, seen_owner, session_owner
from ownpod.api.services import answer, event_stream, services
from ownpod.api.tasks import schemas as task_schemas
from ownpod.api.tasks.places import view_sessions
from ownpod.errors import BadRequest, RedisUnavailable, SessionNotFound
from ownpod.rules.event_data import iso, log_data
from ownpod.rules.managed import Phase, new_worker_id
from ownpod.rules.presets import Preset, device_wait_s
from ownpod.rules.sessions import Reason, Session, Status, wish_for
from ownpod.rules.task_views import describe_session

blueprint = Blueprint("sessions", __name__, url_prefix="/api/sessions")

BODY_LIMIT = 256 * 1024
"""Bytes of the largest body."""

LINES_EVERY_S = 1.0
"""Seconds between two reads of a session's output for a stream of it."""

KEEP_ALIVE_S = 15.0
"""Seconds between comments on a stream without lines; proxies close a connection that is silent for long."""

RETRY_MS = 2000
"""Ms after which a client reconnects."""

_LINE_ID = re.compile(r"[0-9]{1,15}(-[0-9]{1,15})?")

_prewarm_schema = task_schemas.PrewarmSchema()
_keepalive_schema = task_schemas.KeepaliveSchema()


@blueprint.get("")
def listed() -> Response:
    """The sessions of this key, the oldest first; ``?all=true`` also those that have just ended."""
    svc = services()
    everything = _flag("all")
    status = schemas.one_of("status", request.args.get("status"), Status)
    model_id = request.args.get("model_id")
    opened = set(opened_endpoints())
    ended = everything or status is Status.KILLED
    found = [
        session
        for session in svc.sessions.list(owner=seen_owner(), ended=ended)
        if session.worker.endpoint in opened
        and (status is None or session.status is status)
        and (model_id is None or session.about.get("model_id") == model_id)
    ]
    return answer({"sessions": _described(found), "total": len(found)})


@blueprint.post("")
def prewarm() -> Response:
    """Makes a session before its first task."""
    svc = services()
    body = _body(_prewarm_schema)
    endpoint = svc.registry.preset(body["model_id"], body["task_preset"])
    check_opens(endpoint.id)
    preset = endpoint.preset
    if preset is None or preset.session is None:
        raise BadRequest(
            f"task_preset: {body['task_preset']!r} of model {body['model_id']!r} has one-off tasks only"
        )
    _check_difficulty(preset, body["task_difficulty"])
    given, idle_s, life_s = (
        body[name] for name in ("wait_seconds", "idle_timeout_seconds", "max_lifetime_seconds")
    )
    if (excess := preset.session.excess(idle_s, life_s)) and not is_admin():
        raise BadRequest(excess)
    wish = wish_for(
        endpoint,
        body["task_difficulty"],
        idle_s=idle_s,
        life_s=life_s,
        wait_s=device_wait_s(given, svc.settings.gpu_wait_s, one_off=False),
        labels=body["metadata"],
    )
    opened = svc.sessions.open(wish, owner=session_owner(), worker_id=new_worker_id(), reuse=False)
    return _answer(_find(opened.id))


@blueprint.get("/<id:session_id>")
def shown(session_id: str) -> Response:
    """A session, also one that has ended within the last 10 minutes."""
    return _answer(_find(session_id))


@blueprint.delete("/<id:session_id>")
def ended(session_id: str) -> Response:
    """Ends a session now; with ``?drain=true`` when its running task has ended. Ending it again changes nothing."""
    drain = _flag("drain")
    _find(session_id)
    session = services().sessions.end(session_id, Reason.MANUAL, drain=drain, owner=seen_owner())
    over = session.worker.phase is Phase.STOPPED or not drain
    return answer(
        {
            "success": True,
            "session_id": session_id,
            "message": "Session killed successfully" if over else "Session ends after its task",
            "status": session.status.value,
            "reason": None if session.reason is None else session.reason.value,
        }
    )


@blueprint.post("/<id:session_id>/keepalive")
def kept_alive(session_id: str) -> Response:
    """Begins a session's idle time again; ``seconds`` keeps it for longer."""
    body = _body(_keepalive_schema)
    _find(session_id)
    session = services().sessions.keepalive(session_id, seen_owner(), body["seconds"])
    (described,) = _described([session])
    return answer(
        {
            "success": True,
            "session_id": session_id,
            "message": "Session keepalive updated",
            **{
                name: described[name] for name in ("last_activity", "idle_expires_at", "expires_at")
            },
        }
    )


@blueprint.get("/<id:session_id>/logs")
def logs(session_id: str) -> Response:
    """The output of a session as ``logs`` events, outside of tasks, too, until the session has ended."""
    _find(session_id)
    after = request.args.get("after") or request.headers.get("Last-Event-ID") or "0"
    if not _LINE_ID.fullmatch(after):
        raise BadRequest("after: must be the id of an event of this stream")
    svc = services()
    svc.notices.check_room()
    response = event_stream(stream_with_context(_lines(session_id, after)))
    response.headers["X-Session-Id"] = session_id
    return response


def _lines(session_id: str, after: str) -> Iterator[str]:
    svc = services()
    yield f"retry: {RETRY_MS}\n\n"
    silent_since = time.monotonic()
    with svc.notices.subscribe(session_id, end_only=False) as wait:
        while not svc.notices.stopped:
            try:
                # The end first: lines are kept before the worker is STOPPED.
                session = svc.sessions.get(session_id)
                found = svc.outputs.after(session_id, after)
            except RedisUnavailable:
                return
            for line in found:
                data = {**log_data(line.text), "timestamp": iso(line.at_ms), "task_id": line.run}
                yield f"id: {line.id}\nevent: logs\ndata: {json.dumps(data)}\n\n"
                after, silent_since = line.id, time.monotonic()
            if session is None or session.worker.phase is Phase.STOPPED:
                return
            if time.monotonic() - silent_since >= KEEP_ALIVE_S:
                yield ": keep-alive\n\n"
                silent_since = time.monotonic()
            wait(LINES_EVERY_S)


def _find(session_id: str) -> Session:
    """A session that this request's key may see. Raises: SessionNotFound."""
    session = services().sessions.get(session_id, seen_owner())
    if session is None or session.worker.endpoint not in opened_endpoints():
        raise SessionNotFound(session_id)
    return session


def _described(sessions: list[Session]) -> list[dict[str, Any]]:
    return [describe_session(view) for view in view_sessions(services(), sessions)]


def _answer(session: Session) -> Response:
    (described,) = _described([session])
    return answer(described)


def _body(schema: Schema) -> dict[str, Any]:
    request.max_content_length = BODY_LIMIT
    return schemas.parse(schema, request.get_data(cache=False) or b"{}")


def _check_difficulty(preset: Preset, difficulty: str | None) -> None:
    if difficulty is not None:
        # Raises, with the difficulties that there are.
        preset.pools(difficulty)


def _flag(name: str) -> bool:
    text = request.args.get(name, "false")
    if text not in {"true", "false"}:
        raise BadRequest(f"{name}: must be true or false, not {text[:40]!r}")
    return text == "true"
