"""Route to read a managed worker's output, also after the worker's end."""

import re

from flask import Blueprint, Response, request

from ownpod.api.services import answer, services
from ownpod.errors import BadRequest, OutputNotFound
from ownpod.rules.managed import Phase
from ownpod.rules.managed_reports import described_line, report
from ownpod.rules.output import is_of_job
from ownpod.validation import NAME

blueprint = Blueprint("logs", __name__)

LINE_ID = re.compile(r"[0-9]{1,15}(-[0-9]{1,15})?")
"""Pattern of a line's id, which is Redis's."""


@blueprint.get("/workers/<id:worker_id>/logs")
def lines(worker_id: str) -> Response:
    """The worker, and its last lines; ``?after=`` a line's id only those after it, ``?job=`` only those of a job."""
    svc = services()
    after, job = request.args.get("after", "0"), request.args.get("job")
    if not LINE_ID.fullmatch(after):
        raise BadRequest(
            f"after: must be the id of a line, like 1700000000000-0, not {after[:40]!r}"
        )
    if job is not None and not NAME.fullmatch(job):
        raise BadRequest("job: must have 1 to 255 letters, digits, - and _")
    worker = svc.managed.get(worker_id)
    if worker is None:
        raise OutputNotFound(worker_id)
    found = svc.outputs.after(worker_id, after)
    return answer(
        {
            "worker": report(worker),
            "lines": [
                described_line(line) for line in found if job is None or is_of_job(line.run, job)
            ],
            "next": found[-1].id if found else after,
            "ended": worker.phase is Phase.STOPPED,
        }
    )
