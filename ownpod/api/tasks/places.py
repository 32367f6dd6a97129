"""Where private workers run: their devices and containers, from the heartbeats of the agents."""

from collections.abc import Iterable

from ownpod.agent.container_options import name_of
from ownpod.api.services import Services
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import LIVE, AgentInfo, ManagedWorker, Phase
from ownpod.rules.sessions import Session
from ownpod.rules.task_views import Placed, SessionView

DOCKER = "docker"
"""The engine whose containers have a name."""


class Places:
    """The hosts as they were read once.

    Args:
        agents: the hosts.
    """

    def __init__(self, agents: Iterable[AgentInfo]) -> None:
        self._hosts = {agent.host: agent for agent in agents}

    def placed(self, worker: ManagedWorker) -> Placed | None:
        """The first device of a worker; None: it has none, or its host no longer publishes it."""
        agent = self._hosts.get(worker.host or "")
        if agent is None or not worker.devices:
            return None
        for device in agent.devices:
            if device.id == worker.devices[0]:
                return Placed(agent.host, device)
        return None

    def container(self, worker: ManagedWorker) -> str | None:
        """What the engine of its host names a worker; None: it has not been started."""
        if worker.started_ms is None:
            return None
        agent = self._hosts.get(worker.host or "")
        return name_of(worker.id) if agent is not None and agent.engine == DOCKER else worker.id


def view_of_session(session: Session, places: Places, endpoint: Endpoint | None) -> SessionView:
    """A session with what is known of its place. ``endpoint``: None, if it is deleted."""
    worker = session.worker
    template = None if endpoint is None or endpoint.managed is None else endpoint.managed.template
    return SessionView(
        session,
        placed=places.placed(worker) if worker.phase in LIVE else None,
        image=None if template is None else template.image,
        digest="" if template is None else template.digest,
        container=places.container(worker) if worker.phase is not Phase.WANTED else None,
    )


def view_sessions(svc: Services, sessions: Iterable[Session]) -> list[SessionView]:
    """Sessions with what is known of their places; the hosts are read once. Raises: RedisUnavailable."""
    found = list(sessions)
    places = Places(svc.agents.agents() if found else ())
    endpoints = svc.registry.endpoints
    return [view_of_session(s, places, endpoints.get(s.worker.endpoint)) for s in found]
