"""How an endpoint and its workers are, in RunPod's words and in OwnPod's own."""

from collections import Counter

from flask import Blueprint, Response

from ownpod.api.services import answer, services
from ownpod.api.workers import describe, left_out
from ownpod.rules.fleet import WorkerState
from ownpod.rules.jobs import JobStatus

blueprint = Blueprint("health", __name__)

IN_RUNPODS_WORDS = {WorkerState.BUSY: "running", WorkerState.PAUSED: "throttled"}
"""The others have their own name."""


@blueprint.get("/health")
def liveness() -> Response:
    """Whether this process can serve: for health checks of compose and load balancers."""
    services().store.ping()
    return answer({"status": "ok"})


@blueprint.get("/v2/<id:endpoint_id>/history")
def history(endpoint_id: str) -> Response:
    """How many jobs waited and ran over the last hour: [ms since the epoch, waiting, running]."""
    here = services()
    return answer({"samples": here.store.figures.history(here.registry.endpoint(endpoint_id).id)})


@blueprint.get("/v2/<id:endpoint_id>/health")
def health(endpoint_id: str) -> Response:
    """Jobs and workers by state, all whole numbers; under ``ownpod`` each worker by itself,
    and workers that came within the last minute and get no jobs, with the reason.
    """
    here = services()
    endpoint = here.registry.endpoint(endpoint_id)
    waiting, running, ended = here.store.figures.counts(endpoint_id)
    statuses = here.registry.statuses(endpoint.workers)
    jobs_of = Counter(running.values())

    # RunPod's words: ready is idle or running.
    workers = dict.fromkeys(
        ("idle", "initializing", "ready", "running", "throttled", "unhealthy"), 0
    )
    for worker in endpoint.workers:
        status = statuses[worker.id]
        workers[IN_RUNPODS_WORDS.get(status.state, status.state)] += 1
        if status.state is WorkerState.READY:
            workers["running" if jobs_of[worker.id] or status.held else "idle"] += 1
    return answer(
        {
            "jobs": {
                "completed": ended.get(JobStatus.COMPLETED, 0),
                "failed": ended.get(JobStatus.FAILED, 0) + ended.get(JobStatus.TIMED_OUT, 0),
                "inProgress": len(running),
                "inQueue": waiting,
                "retried": ended.get("retried", 0),
            },
            "workers": workers,
            "ownpod": {
                "workers": [describe(w, statuses[w.id], running) for w in endpoint.workers],
                "leftOut": left_out(endpoint_id),
                "refused": [
                    {"id": found.worker_id, "reason": found.reason, "seconds": round(found.ago_s)}
                    for found in here.pulls.refusals(endpoint_id)
                ],
            },
        }
    )
