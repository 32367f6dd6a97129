"""The GPU service's keys of ``/health``, and ``/health/resources``: devices, sessions and tasks of all hosts."""

from importlib import metadata
from typing import Any

from flask import Blueprint, Response

from ownpod.api.auth import known_caller, opened_endpoints
from ownpod.api.places import view_sessions
from ownpod.api.services import Services, answer, services
from ownpod.rules.gpu_views import describe_device, overall, resources_of
from ownpod.rules.task_views import describe_session

blueprint = Blueprint("gpu_health", __name__, url_prefix="/health")

SERVICE = "GPU Service"
"""The GPU service's own name, which its clients may compare."""


def gpu_keys() -> dict[str, Any]:
    """The GPU service's keys of ``/health``; without presets, none. Raises: RedisUnavailable."""
    svc = services()
    presets = svc.registry.presets()
    if not presets:
        return {}
    gpus, sessions = _gpus(svc), svc.sessions.list()
    running = sum(len(svc.store.figures.counts(endpoint.id)[1]) for endpoint in presets)
    return {
        "status": overall(gpus, len(sessions)),
        "service": SERVICE,
        "version": metadata.version("ownpod"),
        "gpus": gpus,
        "active_sessions": len(sessions),
        "active_tasks": running,
    }


@blueprint.get("/resources")
def resources() -> Response:
    """Devices, sessions and running tasks. Ids are shown to callers with a key only, where keys are needed."""
    svc = services()
    shows = _shows_ids(svc)
    opened = set(opened_endpoints()) if shows else set[str]()
    running = [
        job_id
        for endpoint in svc.registry.presets()
        for job_id in svc.store.figures.counts(endpoint.id)[1]
        if not svc.keys_needed or endpoint.id in opened
    ]
    count = sum(len(svc.store.figures.counts(e.id)[1]) for e in svc.registry.presets())
    sessions = svc.sessions.list()
    described = [
        describe_session(view)
        for view in view_sessions(svc, sessions)
        if view.worker.endpoint in opened
    ]
    return answer(
        resources_of(
            now_ms=svc.store.now_ms(),
            gpus=_gpus(svc),
            running=count,
            task_ids=sorted(running) if shows else [],
            statuses=[session.status for session in sessions],
            sessions=described,
        )
    )


def _shows_ids(svc: Services) -> bool:
    return not svc.keys_needed or bool(known_caller())


def _gpus(svc: Services) -> list[dict[str, Any]]:
    holds = svc.agents.all_holds()
    difficulties = {
        name
        for endpoint in svc.registry.presets()
        if endpoint.preset is not None
        for name in endpoint.preset.difficulties
    }
    sessions = {session.id for session in svc.sessions.list()} if _shows_ids(svc) else set[str]()
    return [
        describe_device(agent, device, holds.get(agent.host, ()), difficulties, sessions)
        for agent in svc.agents.agents()
        for device in agent.devices
    ]
