"""The route to which workers post their own results, a second way beside the response to their node.

RunPod's local API posts ``{"output": ...}`` to a job's ``webhook`` on success, or a list of ``{"output": ...}`` for
a generator that was streamed. No key is needed, because only the worker of that run has the token in the path. The
route exists only where ``OWNPOD_CALLBACK_URL`` is set.
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
    """Records a worker's result, which is used if no node receives the worker's response.

    The token is checked before the body is read, because a body may have OWNPOD_MAX_OUTPUT_MB. A wrong token,
    endpoint or job gives the same 404, so that the response does not reveal which jobs exist.
    """
    svc = services()
    if not svc.store.jobs.awaits_callback(job_id, endpoint_id, token):
        raise NotFound
    request.max_content_length = svc.settings.max_output_mb * 1024 * 1024
    output = _output(request.get_data(cache=False))
    try:
        state = svc.store.jobs.callback(job_id, endpoint_id, token, json.dumps(output))
    except JobNotFound:
        raise NotFound from None
    return answer({"id": job_id, "status": state})


def _output(body: bytes) -> Any:
    try:
        content = loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body must be JSON") from None
    if isinstance(content, list):
        return [output_of(chunk) for chunk in content]
    if not isinstance(content, dict) or "output" not in content:
        raise BadRequest('the body must have an "output"')
    # A callback always completes its job, so the result of a failed run must not be accepted.
    status = content.get("status", JobStatus.COMPLETED)
    if content.get("error") is not None or status != JobStatus.COMPLETED:
        raise BadRequest("only results of COMPLETED jobs are accepted")
    return content["output"]
