"""Endpoints and their workers, as values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ownpod.rules.balancing import Balancing
from ownpod.rules.credentials import Credential
from ownpod.rules.hours import Pause, pause_at
from ownpod.rules.overflow import CloudSpec
from ownpod.rules.presets import Preset
from ownpod.rules.templates import ManagedSpec

HOUSEKEEPING = "housekeeping"
"""The name of the housekeeping node, so no worker can have this id."""

DEFAULT_MAX_WORKERS = 64
"""Maximum number of an endpoint's pulling workers, because each has a node, a process of some 20 MB."""


class WorkerKind(StrEnum):
    """How a worker gets its jobs; :func:`ownpod.workers.driver_for` makes the driver of each kind."""

    PUSH = "push"
    """The node sends requests to the worker's URL."""
    PULL = "pull"
    """The worker polls OwnPod for jobs, as on RunPod."""
    CONTAINER = "container"
    """The worker's agent starts a fresh container for each job."""
    CLOUD = "cloud"
    """The node sends jobs on to an endpoint of RunPod, or of another OwnPod, when they have waited too long."""
    HTTP = "http"
    """The front sends clients' requests straight to the worker's URL: it gets no jobs, and has no node."""


class WorkerSource(StrEnum):
    """Where a worker comes from, which decides where it is changed."""

    FILE = "file"
    """From ``workers.yaml`` or ``OWNPOD_WORKERS``."""
    ADDED = "added"
    """Added at run time; stays until it is removed."""
    PULLED = "pulled"
    """Registered by its own polls; stays until they stop."""
    MANAGED = "managed"
    """Started by OwnPod from the endpoint's template; stays until its agent has stopped it."""


class Overflow(StrEnum):
    """Whether jobs of an endpoint may go to its cloud workers."""

    NEVER = "never"
    ALLOWED = "allowed"


class OnDisconnect(StrEnum):
    """What becomes of the job of an OpenAI client that has gone, or waits no longer."""

    CANCEL = "cancel"
    KEEP = "keep"


@dataclass(frozen=True)
class WorkerSpec:
    """A worker as it is configured.

    Attributes:
        url: the base URL of a worker that is pushed to; ``pull:<id>`` for one that pulls,
            ``container:<id>`` for a one-off task; the URL of the other endpoint for a cloud worker.
        capacity: number of jobs that the worker runs at a time; of a load-balanced endpoint, of requests, 0: any number.
        key_digest: of a managed worker, the digest of its own key; None: it has none.
        draining: of a managed worker, that its node fetches no more jobs for it.
        stopping: of a managed worker, that it has no job and is stopped now.
        health_port: of a load-balanced endpoint's worker, the port of its health check; None: that of ``url``.
        private: the worker gets jobs from its own queue only: it is a session's, or a task's.
        cloud: of a cloud worker, when jobs go there, and what they may cost; None: it is none.
    """

    id: str
    endpoint: str
    url: str
    capacity: int
    headers: Mapping[str, str] = field(repr=False)
    verify_tls: bool
    ca_bundle: str | None
    kind: WorkerKind = WorkerKind.PUSH
    source: WorkerSource = WorkerSource.FILE
    key_digest: str | None = field(repr=False, default=None)
    draining: bool = False
    stopping: bool = False
    health_port: int | None = None
    private: bool = False
    cloud: CloudSpec | None = None

    @property
    def own_queue_only(self) -> bool:
        """The worker's node never fetches from the endpoint's queue: jobs are put into the worker's own."""
        return self.private or self.cloud is not None

    @property
    def pulls(self) -> bool:
        """The worker polls for its jobs."""
        return self.kind is WorkerKind.PULL

    @property
    def has_node(self) -> bool:
        """The worker has a Celery node, because it runs jobs."""
        return self.kind is not WorkerKind.HTTP

    @property
    def is_managed(self) -> bool:
        """OwnPod has started the worker."""
        return self.source is WorkerSource.MANAGED


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, its workers, and the defaults of its jobs."""

    id: str
    workers: tuple[WorkerSpec, ...]
    execution_timeout_ms: int
    ttl_ms: int
    max_attempts: int
    max_queue_depth: int
    """Maximum number of waiting jobs; 0: no limit."""
    api_keys: tuple[Credential, ...] = field(repr=False, default=())
    """API keys of this endpoint only."""
    max_workers: int = DEFAULT_MAX_WORKERS
    """Maximum number of pulling workers that OwnPod has not started itself."""
    managed: ManagedSpec | None = None
    """How OwnPod starts workers of this endpoint; None: it starts none."""
    balancing: Balancing | None = None
    """The endpoint is load-balanced: it has no jobs, and the front sends requests to its workers. None: it has a queue."""
    preset: Preset | None = None
    """The endpoint is a preset of a model, for sessions and one-off tasks. None: it is not."""
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    """What becomes of the job of a request below ``/openai`` whose client has gone."""
    overflow: Overflow = Overflow.ALLOWED
    """Whether its jobs may go to its cloud workers."""

    @property
    def is_balanced(self) -> bool:
        """Whether the front sends requests straight to the endpoint's workers (RunPod's type LB)."""
        return self.balancing is not None

    @property
    def type(self) -> str:
        """RunPod's word for the endpoint's type, as in its GraphQL API."""
        return "LB" if self.is_balanced else "QB"

    @property
    def has_hours(self) -> bool:
        """Whether the time decides if the endpoint takes jobs: it has hours, or expires."""
        spec = self.managed
        return spec is not None and (bool(spec.hours) or spec.expires_ms is not None)

    def pause_at(self, now_ms: int) -> Pause | None:
        """Why the endpoint takes no jobs at a moment, in ms since the epoch: its ``workersMax`` is 0, or it has expired. None: it
        takes jobs.
        """
        return None if self.managed is None else pause_at(self.managed, now_ms)


def pull_worker(endpoint_id: str, worker_id: str, capacity: int) -> WorkerSpec:
    """A worker that pulls."""
    return WorkerSpec(
        id=worker_id,
        endpoint=endpoint_id,
        url=f"pull:{worker_id}",
        capacity=capacity,
        headers={},
        verify_tls=True,
        ca_bundle=None,
        kind=WorkerKind.PULL,
        source=WorkerSource.PULLED,
    )
