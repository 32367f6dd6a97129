"""Where workers post their results by themselves, see ``OWNPOD_CALLBACK_URL``.

RunPod's local API calls a job's ``webhook`` on success, with ``{"output": ...}``, or with a list of
``{"output": ...}`` for a generator that was streamed. The token in the path is known to that run's
worker only, so no key is asked for.
"""

import json
from typing import Any

from flask import Blueprint, Response, request

from ownpod.api.services import answer, services
from ownpod.errors import BadRequest
from ownpod.jobs import JobStatus
from ownpod.payload import loads, output_of

blueprint = Blueprint("callbacks", __name__, url_prefix="/callback")


@blueprint.post("/<id:endpoint_id>/<id:job_id>/<id:token>")
def callback(endpoint_id: str, job_id: str, token: str) -> Response:
    """A worker's result. It counts if nobody waits for the worker's own answer any more."""
    here = services()
    here.registry.endpoint(endpoint_id)
    request.max_content_length = here.settings.max_output_mb * 1024 * 1024
    output = _output(request.get_data(cache=False))
    state = here.store.callback(job_id, endpoint_id, token, json.dumps(output))
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
