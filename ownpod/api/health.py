"""Health of the process, and of an endpoint and its workers in RunPod's words and OwnPod's own."""

from collections import Counter

from flask import Blueprint, Response

from ownpod.api.services import answer, services
from ownpod.api.workers import describe, left_out
from ownpod.rules.fleet import WorkerState
from ownpod.rules.jobs import JobStatus

blueprint = Blueprint("health", __name__)

IN_RUNPODS_WORDS = {WorkerState.BUSY: "running", WorkerState.PAUSED: "throttled"}
"""RunPod's word for a worker's state; the states that are not here have the same word in RunPod."""


@blueprint.get("/health")
def liveness() -> Response:
    """Checks that this process reaches Redis: for the health checks of compose and load balancers."""
    services().store.ping()
    return answer({"status": "ok"})


@blueprint.get("/v2/<id:endpoint_id>/history")
def history(endpoint_id: str) -> Response:
    """Numbers of waiting and running jobs over the last hour: lists of [ms since the epoch, waiting, running]."""
    svc = services()
    return answer({"samples": svc.store.figures.history(svc.registry.endpoint(endpoint_id).id)})


@blueprint.get("/v2/<id:endpoint_id>/health")
def health(endpoint_id: str) -> Response:
    """Numbers of jobs and workers by state; under ``ownpod`` each worker, the workers that are left out, and those
    that were refused within the last minute, with the reason.
    """
    svc = services()
    endpoint = svc.registry.endpoint(endpoint_id)
    waiting, running, ended = svc.store.figures.counts(endpoint_id)
    statuses = svc.registry.fleet.statuses(endpoint.workers)
    jobs_of = Counter(running.values())

    # RunPod counts a ready worker twice: under ready, and under idle or running.
    workers = dict.fromkeys(
        ("idle", "initializing", "ready", "running", "throttled", "unhealthy"), 0
    )
    for worker in endpoint.workers:
        status = statuses[worker.id]
        workers[IN_RUNPODS_WORDS.get(status.state, status.state)] += 1
        if status.state is WorkerState.READY:
            workers["running" if jobs_of[worker.id] or status.lingering else "idle"] += 1
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
                    {
                        "id": worker.worker_id,
                        "reason": worker.reason,
                        "seconds": round(worker.ago_s),
                    }
                    for worker in svc.offers.refusals(endpoint_id)
                ],
            },
        }
    )
