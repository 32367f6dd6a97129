"""The managing calls: endpoints, templates, volumes, registry credentials, by any API and by the commands.

Imports ``registry``, the store and the floors below them, and neither Flask nor Celery. A call checks a change, and
writes it in one step. The APIs and the commands translate their requests to rows (:mod:`ownpod.rules.catalog`) and call these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ownpod.management.applies import Applied, Applies
from ownpod.management.calls import Caller, Outcome
from ownpod.management.endpoints import Endpoints
from ownpod.management.fronts import Living, no_fronts
from ownpod.management.registries import Registries
from ownpod.management.secrets import SecretCalls
from ownpod.management.templates import Templates
from ownpod.management.volumes import Volumes
from ownpod.registry import Registry
from ownpod.rules.managed import AgentInfo
from ownpod.store.catalog import Catalog
from ownpod.store.secrets import Secrets

__all__ = [
    "Applied",
    "Applies",
    "Caller",
    "Endpoints",
    "Management",
    "Outcome",
    "Registries",
    "Templates",
    "Volumes",
]


@dataclass(frozen=True)
class Management:
    """All managing calls, by kind of object."""

    catalog: Catalog
    endpoints: Endpoints
    templates: Templates
    volumes: Volumes
    registries: Registries
    secrets: SecretCalls
    applies: Applies

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        registry: Registry,
        secrets: Secrets,
        quota: int = 0,
        agents: Callable[[], Sequence[AgentInfo]] = tuple,
        *,
        living: Living = no_fronts,
    ) -> "Management":
        """The managing calls over one catalog; see :class:`Endpoints` for the arguments."""
        endpoints = Endpoints(catalog, registry, quota, agents, living=living)
        return cls(
            catalog,
            endpoints,
            Templates(catalog, endpoints),
            Volumes(catalog),
            Registries(catalog, secrets),
            SecretCalls(catalog, secrets),
            Applies(catalog, registry, endpoints),
        )
