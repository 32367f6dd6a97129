"""The GPU service's routes of tasks: submit one and follow it. A task is a job; :mod:`ownpod.api.tasks.submission` creates it.

Everything that can be refused is refused before the stream begins. From then on only ``task_finish`` ends a task.
"""

from typing import Any

from flask import Blueprint, Response, request
from marshmallow import Schema

from ownpod.api import schemas
from ownpod.api.auth import (
    caller,
    check_opens,
    check_owner,
    opened_endpoints,
    seen_owner,
    session_owner,
)
from ownpod.api.jobs import typed_events
from ownpod.api.jobs.readers import Reading, read_by
from ownpod.api.jobs.routes import RUN_LIMIT, cancel_job, idempotency_key
from ownpod.api.services import answer, request_id, services
from ownpod.api.tasks import custom as custom_tasks
from ownpod.api.tasks import schemas as task_schemas
from ownpod.api.tasks.places import Places
from ownpod.api.tasks.submission import Client, TaskSubmitted, TaskWish
from ownpod.configuration.custom import CUSTOM
from ownpod.errors import BadRequest, JobNotFound, UnsupportedMediaType
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.event_data import is_debug, iso, log_data
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.managed import Role
from ownpod.rules.presets import device_wait_s
from ownpod.rules.task_views import (
    SUBMITTED_STATUS,
    TASK_STATUS,
    OnDisconnect,
    TaskFacts,
    TaskType,
    describe_task,
)

blueprint = Blueprint("tasks", __name__, url_prefix="/api/tasks")

MOST_LOGS = 10
"""Number of log lines in an answer about a task."""

_submit_schema = task_schemas.SubmitSchema()
_predefined_schema = task_schemas.PredefinedSchema()
_custom_schema = task_schemas.CustomSchema()


@blueprint.post("/submit")
def submit() -> Response:
    """Queues a task of a preset, and answers its events."""
    body = _body(_submit_schema)
    endpoint = services().registry.preset(body["model_id"], body["task_preset"])
    return _submitted(_wish(endpoint, TaskType(body["task_type"]), body))


@blueprint.post("/predefined")
def predefined() -> Response:
    """As ``/submit``; ``task_name`` names the preset."""
    body = _body(_predefined_schema)
    endpoint = _named(body["task_name"], body["model_id"])
    return _submitted(_wish(endpoint, _type_of(body, endpoint), body))


@blueprint.post("/custom")
def custom() -> Response:
    """Queues a one-off task of an image that the client names. Off unless ``OWNPOD_CUSTOM_TASKS`` allows it."""
    custom_tasks.check_allowed()
    if not request.is_json:
        # With another type, a page of another site could start a container: browsers send that without a preflight request.
        raise UnsupportedMediaType
    body = _body(_custom_schema)
    endpoint, spec = custom_tasks.endpoint_and_spec(body)
    wish = _wish(endpoint, TaskType.ONE_OFF, body, spec=spec)
    return _submitted(wish)


@blueprint.get("/<id:task_id>")
def task(task_id: str) -> Response:
    """A task's state, with its last log lines."""
    svc = services()
    job, facts, private = _known(task_id)
    session = private if facts.type == TaskType.SESSION else None
    container = None
    worker_id = private or job.worker_id
    worker = svc.managed.get(worker_id) if worker_id else None
    if worker is not None:
        container = Places(svc.agents.agents()).container(worker)
    logs = svc.store.journal.last_logs(task_id, MOST_LOGS)
    if worker is not None and worker.role is not Role.TASK and len(logs) < MOST_LOGS:
        # Lines that came when the job had just ended are in the worker's output only.
        logs = _lines_of(task_id, worker.id) or logs
    return answer(
        describe_task(
            job,
            facts,
            svc.store.now_ms(),
            session=session,
            container=container,
            logs=logs,
            **_place(job),
        )
    )


@blueprint.get("/<id:task_id>/events")
def events(task_id: str) -> Response:
    """A task's events: all, or those after ``Last-Event-ID`` or ``?after=``."""
    job, facts, _ = _known(task_id)
    response = typed_events.respond(task_id, job.endpoint, typed_events.requested_cursor())
    return response if job.status.terminal else _attended(response, task_id, facts.on_disconnect)


@blueprint.delete("/<id:task_id>")
@blueprint.post("/<id:task_id>/cancel")
def cancel(task_id: str) -> Response:
    """Cancels a task. One that has ended does not change, and the answer has its state."""
    job, _, _ = _known(task_id)
    state = cancel_job(task_id, job.endpoint)
    cancelled = state is JobStatus.CANCELLED
    return answer(
        {
            "success": cancelled,
            "task_id": task_id,
            "status": "cancelled" if cancelled else TASK_STATUS.get(state, "failed"),
            "message": "Task cancelled" if cancelled else f"the task is {state} already",
        }
    )


def _body(schema: Schema) -> dict[str, Any]:
    request.max_content_length = RUN_LIMIT
    return schemas.parse(schema, request.get_data(cache=False), text="metadata")


def _known(task_id: str) -> tuple[Job, TaskFacts, str | None]:
    """A job of an endpoint that this request's key opens, and of its own if it is a task. Raises: JobNotFound."""
    job, facts, private = services().store.listing.task(task_id)
    if job.endpoint not in opened_endpoints():
        # As if it did not exist, because the id alone opens nothing.
        raise JobNotFound(task_id)
    check_owner(task_id)
    return job, facts, private


def _place(job: Job) -> dict[str, int | None]:
    """Where a task waits, and for how long; empty: it does not wait."""
    svc = services()
    place = svc.store.queue.place(job) if job.status is JobStatus.IN_QUEUE else None
    if place is None:
        return {}
    return {
        "position": place.position,
        "estimated_wait_s": svc.estimates.wait_s(job, place),
    }


def _lines_of(task_id: str, worker_id: str) -> list[dict[str, Any]]:
    """The last log lines of a task in its worker's output, as their events have them."""
    lines = services().outputs.of_job(worker_id, task_id)
    found = [log_data(line.text) | {"timestamp": iso(line.at_ms)} for line in lines]
    return [data for data in found if not is_debug(data)][-MOST_LOGS:]


def _named(name: str, model_id: str | None) -> Endpoint:
    """The preset of a name. Raises: BadRequest, which lists the presets of this key."""
    opened = set(opened_endpoints())
    known = [
        (endpoint.preset, endpoint)
        for endpoint in services().registry.presets()
        if endpoint.preset is not None and endpoint.id in opened
    ]
    found = [
        endpoint
        for preset, endpoint in known
        if name in {preset.name, endpoint.id, f"{preset.model_id}/{preset.name}"}
        and model_id in {None, preset.model_id}
    ]
    if len(found) == 1:
        return found[0]
    titles = ", ".join(f"{preset.model_id}/{preset.name}" for preset, _ in known) or "none"
    problem = "is no preset" if not found else "is a preset of several models"
    raise BadRequest(f"task_name: {name[:100]!r} {problem}; there are: {titles[:2000]}")


def _type_of(body: dict[str, Any], endpoint: Endpoint) -> TaskType:
    if body["task_type"] is not None:
        return TaskType(body["task_type"])
    wants_session = body["session_id"] is not None or body["create_session"]
    preset = endpoint.preset
    has_one_off = preset is not None and preset.one_off is not None
    return TaskType.SESSION if wants_session or not has_one_off else TaskType.ONE_OFF


def _wish(
    endpoint: Endpoint, kind: TaskType, body: dict[str, Any], *, spec: Any = None
) -> TaskWish:
    """The task of a body that was checked.

    Raises:
        Forbidden: this request's key does not open the preset.
        BadRequest: a value does not fit the others, or the settings.
    """
    check_opens(endpoint.id)
    if endpoint.id == CUSTOM and spec is None:
        raise BadRequest("model_id: custom tasks are submitted to /api/tasks/custom")
    preset, session_id = endpoint.preset, body.get("session_id")
    if kind is TaskType.ONE_OFF and session_id is not None:
        raise BadRequest("session_id: must be null for a one-off task, which no session runs")
    if preset is not None and kind is TaskType.SESSION and preset.session is None:
        raise BadRequest(
            f"task_type: preset {preset.name!r} of model {preset.model_id!r} has one-off tasks only"
        )
    difficulty = body["task_difficulty"]
    if preset is not None and difficulty is not None:
        # Raises, with the difficulties that there are.
        preset.pools(difficulty)
    return TaskWish(
        endpoint=endpoint,
        type=kind,
        difficulty=difficulty,
        metadata=body["metadata"] or "{}",
        timeout_s=timeout_s(body["timeout_seconds"], endpoint),
        wait_s=device_wait_s(
            body["wait_seconds"],
            services().settings.gpu_wait_s,
            one_off=kind is TaskType.ONE_OFF,
        ),
        session_id=session_id,
        create_session=bool(body.get("create_session")),
        on_disconnect=body["on_disconnect"],
        spec=spec,
        model_id=body.get("model_id"),
    )


def timeout_s(given: int | None, endpoint: Endpoint) -> int:
    """Seconds for which a task may run. Raises: BadRequest, above ``OWNPOD_MAX_TASK_TIMEOUT_S``."""
    longest = services().settings.max_task_timeout_s
    if given is None:
        return min(endpoint.execution_timeout_ms // 1000, longest)
    if given > longest:
        raise BadRequest(
            f"timeout_seconds: must be a whole number of seconds from {task_schemas.TIMEOUT_S[0]} to {longest}, not {given}"
        )
    return given


def _client() -> Client:
    key = idempotency_key()
    return Client(
        owner=session_owner(),
        sees=seen_owner(),
        request_id=request_id(),
        idempotency_key=key,
        caller=caller(),
    )


def _submitted(wish: TaskWish) -> Response:
    """Creates the task, and answers its events or, where the client asks for JSON, its ids."""
    svc, client, as_json = services(), _client(), wants_json()
    if not as_json:
        # A stream that finds no room would leave a task that its client does not know.
        svc.notices.check_room()
    made = svc.tasks.submit(wish, client)
    if as_json:
        return _ids(made)
    response = typed_events.respond(made.job_id, made.endpoint, None)
    response.headers["X-Task-Id"] = made.job_id
    if made.session_id is not None:
        response.headers["X-Session-Id"] = made.session_id
    return _attended(response, made.job_id, wish.on_disconnect)


def wants_json() -> bool:
    """Whether the client asks for JSON instead of the events: ``Prefer: respond-async``, or an ``Accept`` that has JSON and
    excludes event streams.
    """
    preferences = request.headers.get("Prefer", "").lower().split(",")
    if any(part.partition(";")[0].strip() == "respond-async" for part in preferences):
        return True
    accept = request.accept_mimetypes
    return bool(accept["application/json"]) and not accept["text/event-stream"]


def _ids(made: TaskSubmitted) -> Response:
    svc = services()
    job = svc.store.listing.get(made.job_id)
    place = _place(job)
    status = SUBMITTED_STATUS.get(job.status) or TASK_STATUS.get(job.status, "failed")
    response = answer(
        {
            "task_id": made.job_id,
            "session_id": made.session_id,
            "status": status,
            "endpoint": made.endpoint,
            "position": place.get("position"),
            "estimated_wait_seconds": place.get("estimated_wait_s"),
            "events_url": f"/api/tasks/{made.job_id}/events",
            "status_url": f"/v2/{made.endpoint}/status/{made.job_id}",
        }
    )
    response.headers["X-Task-Id"] = made.job_id
    if made.session_id is not None:
        response.headers["X-Session-Id"] = made.session_id
    return response


def _attended(response: Response, job_id: str, on_disconnect: str) -> Response:
    """The stream of a task. One that is to be cancelled without a reader has one until the stream ends, or its client goes.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    if on_disconnect != OnDisconnect.CANCEL or response.status_code != 200:
        return response
    svc = services()
    svc.readers.enter(job_id)
    reading = Reading(svc.readers, job_id)
    peer = request.environ.get("gunicorn.socket")
    response.response = read_by(response.iter_encoded(), reading, svc.held, peer)
    # Also for a response that is closed before its first byte.
    response.call_on_close(reading.end)
    return response
