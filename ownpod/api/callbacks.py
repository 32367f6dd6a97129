"""Where workers post their results by themselves, see ``OWNPOD_CALLBACK_URL``.

RunPod's local API calls a job's ``webhook`` on success, with ``{"output": ...}``, or with a list of
``{"output": ...}`` for a generator that was streamed. The token in the path is known to that run's
worker only, so no key is asked for. The route exists only where the setting is set.
"""

import json
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from ownpod.api.services import answer, services
from ownpod.errors import BadRequest, JobNotFound
from ownpod.rules.jobs import JobStatus
from ownpod.rules.payload import loads, output_of

blueprint = Blueprint("callbacks", __name__, url_prefix="/callback")


@blueprint.post("/<id:endpoint_id>/<id:job_id>/<id:token>")
def callback(endpoint_id: str, job_id: str, token: str) -> Response:
    """A worker's result. It counts when no node gets the worker's own answer.

    The token is checked before the body is read. A wrong token, endpoint or job is one and the same 404.
    """
    here = services()
    if not here.store.jobs.awaits_callback(job_id, endpoint_id, token):
        raise NotFound
    request.max_content_length = here.settings.max_output_mb * 1024 * 1024
    output = _output(request.get_data(cache=False))
    try:
        state = here.store.jobs.callback(job_id, endpoint_id, token, json.dumps(output))
    except JobNotFound:
        raise NotFound from None
    return answer({"id": job_id, "status": state})


def _output(body: bytes) -> Any:
    try:
        said = loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body must be JSON") from None
    if isinstance(said, list):
        return [output_of(chunk) for chunk in said]
    if not isinstance(said, dict) or "output" not in said:
        raise BadRequest('the body must have an "output"')
    if said.get("error") is not None or said.get("status", JobStatus.COMPLETED) != "COMPLETED":
        raise BadRequest("only results of jobs that were completed are taken")
    return said["output"]
