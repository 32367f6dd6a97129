"""Endpoints and their workers, as values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ownpod.rules.credentials import Credential

HOUSEKEEPING = "housekeeping"
"""Name of the node that is no worker's, so no worker can have this id."""

PULL = "pull:"

DEFAULT_MAX_WORKERS = 64
"""Pulling workers that an endpoint may have: each has a node, a process of some 20 MB."""


@dataclass(frozen=True)
class WorkerSpec:
    """A worker as it is configured. ``capacity``: jobs it runs at a time."""

    id: str
    endpoint: str
    url: str
    capacity: int
    headers: Mapping[str, str] = field(repr=False)
    verify_tls: bool
    ca_bundle: str | None

    @property
    def pulls(self) -> bool:
        """It asks for jobs by itself; ``url`` says so, as it has none."""
        return self.url.startswith(PULL)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, its workers, and the defaults of its jobs."""

    id: str
    workers: tuple[WorkerSpec, ...]
    execution_timeout_ms: int
    ttl_ms: int
    max_attempts: int
    max_queue_depth: int
    """Jobs that may wait; 0 is any number."""
    api_keys: tuple[Credential, ...] = field(repr=False, default=())
    """Keys for this endpoint only."""
    max_workers: int = DEFAULT_MAX_WORKERS
    """Pulling workers that it may have."""


def pull_worker(endpoint_id: str, worker_id: str, capacity: int) -> WorkerSpec:
    """A worker that pulls."""
    return WorkerSpec(
        id=worker_id,
        endpoint=endpoint_id,
        url=f"{PULL}{worker_id}",
        capacity=capacity,
        headers={},
        verify_tls=True,
        ca_bundle=None,
    )
