"""Health of the process, and of an endpoint and its workers in RunPod's words and OwnPod's own."""

from collections import Counter

from flask import Blueprint, Response

from ownpod.api.balanced_view import balanced_view
from ownpod.api.gpu_health import gpu_keys
from ownpod.api.services import answer, services
from ownpod.api.workers.managed import describe_managed, view_of
from ownpod.api.workers.routes import described, left_out
from ownpod.rules.balanced_states import (
    count_balanced,
    describe_balanced,
    describe_front,
    job_counts,
)
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.hours import Pause
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed_states import count_workers

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def liveness() -> Response:
    """Checks that this process reaches Redis: for the health checks of compose and load balancers. Where presets are configured,
    the answer also has the GPU service's keys.
    """
    services().store.ping()
    return answer({"status": "ok", **gpu_keys()})


@blueprint.get("/v2/<id:endpoint_id>/history")
def history(endpoint_id: str) -> Response:
    """Numbers of waiting and running jobs over the last hour: lists of [ms since the epoch, waiting, running]."""
    svc = services()
    return answer({"samples": svc.store.figures.history(svc.registry.endpoint(endpoint_id).id)})


@blueprint.get("/v2/<id:endpoint_id>/health")
def health(endpoint_id: str) -> Response:
    """Numbers of jobs and workers by state; under ``ownpod`` each worker, the workers that OwnPod starts with their failed
    starts, why the endpoint is paused, the workers that are left out, and those that were refused within the last minute, with the reason.
    """
    svc = services()
    endpoint = svc.registry.endpoint(endpoint_id)
    if endpoint.is_balanced:
        return _balanced(endpoint)
    waiting, running, ended = svc.store.figures.counts(endpoint_id)
    statuses = svc.registry.fleet.statuses(endpoint.workers)
    view = view_of(svc.managed, endpoint)
    pause = endpoint.pause_at(view.now_ms or 0)
    workers = count_workers(endpoint, statuses, Counter(running.values()), view)
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
                "type": endpoint.type,
                "workers": described(endpoint.workers, statuses, running, view),
                "managed": describe_managed(view),
                "paused": _paused(endpoint, pause),
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


def _paused(endpoint: Endpoint, pause: Pause | None) -> str | None:
    """Why the endpoint is paused, in words for people; None: it is not. A preset serves sessions and one-off tasks nevertheless."""
    if pause is None:
        return None
    jobs = " for jobs that are no tasks" if endpoint.preset is not None else ""
    return f"the endpoint is paused{jobs}: {pause.reason}"


def _balanced(endpoint: Endpoint) -> Response:
    """``/health`` of a load-balanced endpoint: its requests that wait and that are open, in place of jobs."""
    view = balanced_view(services(), endpoint)
    pause = endpoint.pause_at(view.managed.now_ms or 0)
    return answer(
        {
            "jobs": job_counts(view.reading),
            "workers": count_balanced(endpoint, view),
            "ownpod": {
                "type": endpoint.type,
                "front": describe_front(view),
                "workers": describe_balanced(endpoint.workers, view),
                "managed": describe_managed(view.managed),
                "paused": _paused(endpoint, pause),
                "leftOut": left_out(endpoint.id),
                "refused": [],
            },
        }
    )
