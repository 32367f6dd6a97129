"""The GPU service's keys of ``/health``, and ``/health/resources``: devices, sessions and tasks of all hosts.

Both are open, so ids are shown to callers with a key only, where keys are needed.
"""

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from flask import Blueprint, Response

from ownpod.api.auth import known_caller, opened_endpoints
from ownpod.api.services import answer, services
from ownpod.api.tasks.places import view_sessions
from ownpod.rules.gpu_views import describe_device, overall, resources_of
from ownpod.rules.sessions import Session
from ownpod.rules.task_views import describe_session

blueprint = Blueprint("gpu_health", __name__, url_prefix="/health")

SERVICE = "GPU Service"
"""The GPU service's own name, which its clients may compare."""


@dataclass(frozen=True)
class _Reading:
    """What was read.

    Attributes:
        gpus: the devices, as JSON has them.
        sessions: all sessions.
        running: ids of running tasks, by endpoint.
        opened: endpoints whose ids this caller may see.
    """

    gpus: list[dict[str, Any]]
    sessions: list[Session]
    running: dict[str, list[str]]
    opened: set[str]

    @property
    def tasks(self) -> int:
        """How many tasks run."""
        return sum(map(len, self.running.values()))


def gpu_keys() -> dict[str, Any]:
    """The GPU service's keys of ``/health``; without presets, none. Raises: RedisUnavailable."""
    if not services().registry.presets():
        return {}
    found = _read()
    return {
        "status": overall(found.gpus, len(found.sessions)),
        "service": SERVICE,
        "version": metadata.version("ownpod"),
        "gpus": found.gpus,
        "active_sessions": len(found.sessions),
        "active_tasks": found.tasks,
    }


@blueprint.get("/resources")
def resources() -> Response:
    """Devices, sessions and running tasks."""
    svc, found = services(), _read()
    shown = [session for session in found.sessions if session.worker.endpoint in found.opened]
    ids = [
        job_id for name, jobs in found.running.items() if name in found.opened for job_id in jobs
    ]
    return answer(
        resources_of(
            now_ms=svc.store.now_ms(),
            gpus=found.gpus,
            running=found.tasks,
            task_ids=sorted(ids),
            statuses=[session.status for session in found.sessions],
            sessions=[describe_session(view) for view in view_sessions(svc, shown)],
        )
    )


def _read() -> _Reading:
    svc = services()
    presets = [(e.id, e.preset) for e in svc.registry.presets() if e.preset is not None]
    shows = not svc.keys_needed or bool(known_caller())
    opened = set(opened_endpoints()) if shows else set[str]()
    sessions, holds = svc.sessions.list(), svc.agents.all_holds()
    visible = {session.id for session in sessions if session.worker.endpoint in opened}
    difficulties = {name for _, preset in presets for name in preset.difficulties}
    gpus = [
        describe_device(agent, device, holds.get(agent.host, ()), difficulties, visible)
        for agent in svc.agents.agents()
        for device in agent.devices
    ]
    running = {name: list(svc.store.figures.counts(name)[1]) for name, _ in presets}
    return _Reading(gpus, sessions, running, opened)
