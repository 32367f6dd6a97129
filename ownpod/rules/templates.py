"""Templates: how the workers of an endpoint are started, and how many. Pure.

The fields and their defaults are RunPod's: those of an endpoint and a serverless template in its REST API.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from ownpod.errors import WorkerRecordBroken
from ownpod.rules.balancing import Balancing
from ownpod.rules.models import ModelSource
from ownpod.rules.records import from_text, to_text

GIB = 1024**3

DEFAULT_WORKERS_MAX = 3
"""RunPod's default of ``workersMax``."""

DEFAULT_IDLE_TIMEOUT_S = 5
"""RunPod's default of ``idleTimeout``, in seconds."""

DEFAULT_RESIDENCY_S = 10.0
"""Seconds for which a ready worker keeps its devices before a worker of another endpoint may get them."""

VOLUME_PATH = "/runpod-volume"
"""Where RunPod mounts a network volume in its workers."""

DEFAULT_INIT_TIMEOUT_S = 420
"""RunPod's 7 minutes from the start of a worker to its first request for a job."""


class Protocol(StrEnum):
    """How a started worker gets its jobs."""

    PULL = "pull"
    """It polls OwnPod, as on RunPod."""
    PUSH = "push"
    """It serves RunPod's local API (``--rp_serve_api``), and its node sends requests to it."""
    CONTAINER = "container"
    """Its agent starts a fresh container for the job of a one-off task, and reads the result from its output."""
    HTTP = "http"
    """It serves any HTTP on ``PORT``, and the front sends requests to it: the workers of load-balanced endpoints."""


class ScalerType(StrEnum):
    """RunPod's two ways to decide on the number of workers."""

    QUEUE_DELAY = "QUEUE_DELAY"
    """One more worker when the oldest waiting job has waited longer than so many seconds."""
    REQUEST_COUNT = "REQUEST_COUNT"
    """One worker for each so many jobs that wait or run."""


@dataclass(frozen=True)
class Limits:
    """Limits of one worker; None: the engine's."""

    memory_bytes: int | None = None
    cpus: float | None = None
    shm_bytes: int | None = None
    pids: int | None = None


@dataclass(frozen=True)
class GpuNeed:
    """The devices that one worker needs: ``count`` of one host, all from the first pool in ``pools`` that has them.

    ``pools`` in order of preference: names of pools, RunPod's pool names, names or ids of devices. Empty: any device.
    """

    pools: tuple[str, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class VolumeMount:
    """A volume of the host, by the name that its agent gives it, at a path of the worker."""

    name: str
    path: str = VOLUME_PATH
    read_only: bool = False


@dataclass(frozen=True)
class Sharing:
    """How an endpoint shares devices with other endpoints.

    Attributes:
        evictable: an idle worker above ``workersMin`` gives its devices to a worker of another endpoint that waits.
        pinned: a worker that is ready stays: it is never evicted, and does not leave for being idle.
        weight: how much a worker is worth beside those of other endpoints; of two that are idle equally long and load
            equally fast, the one with the smaller weight gives way.
        residency_s: least seconds from ready to the eviction; a worker that took longer to load stays that long.
    """

    evictable: bool = True
    pinned: bool = False
    weight: float = 1.0
    residency_s: float = DEFAULT_RESIDENCY_S


@dataclass(frozen=True)
class Template:
    """What a worker is started from."""

    image: str | None = None
    """The image's reference. The engine ``process`` only notes it."""
    entrypoint: tuple[str, ...] = ()
    """Replaces the image's entrypoint; empty: the image's own."""
    command: tuple[str, ...] = ()
    """Replaces the image's command; empty: the image's own."""
    env: Mapping[str, str] = field(repr=False, default_factory=dict)
    limits: Limits = Limits()
    protocol: Protocol = Protocol.PULL
    init_timeout_s: int = DEFAULT_INIT_TIMEOUT_S
    """Seconds from the start of a worker to its first request for a job, without the pull of its image."""
    digest: str = ""
    """What the image's tag means for the release, or the image's id on the host; "": not known."""
    volumes: tuple[VolumeMount, ...] = ()
    sharing: Sharing = Sharing()
    registry: str = ""
    """The id of the credentials with which the image is pulled; "": those of the agent's user."""
    model: ModelSource | None = None
    """The model that each worker gets, read-only. None: none."""
    egress: bool = True
    """Whether a worker reaches more than its host."""


@dataclass(frozen=True)
class Scaling:
    """How many workers an endpoint with a template has."""

    workers_min: int = 0
    workers_max: int = DEFAULT_WORKERS_MAX
    """0: the endpoint is paused, and takes no jobs."""
    idle_timeout_s: int = DEFAULT_IDLE_TIMEOUT_S
    scaler: ScalerType = ScalerType.QUEUE_DELAY
    scaler_value: float = 4
    """Seconds for QUEUE_DELAY, jobs for each worker for REQUEST_COUNT."""


@dataclass(frozen=True)
class Hours:
    """A part of the week in which other numbers of workers apply; None: those of the endpoint.

    Attributes:
        days: 0 is Monday.
        from_min: minute of the day in which it begins.
        to_min: minute of the day in which it ends, 1440 at most; not after ``from_min``: it ends on the next day.
    """

    days: tuple[int, ...]
    from_min: int
    to_min: int
    workers_min: int | None = None
    workers_max: int | None = None


@dataclass(frozen=True)
class ManagedSpec:
    """All that OwnPod needs to start and scale an endpoint's workers."""

    template: Template
    scaling: Scaling = Scaling()
    gpu: GpuNeed | None = None
    """None: a worker needs no device."""
    hours: tuple[Hours, ...] = ()
    """The first one that applies decides."""
    timezone: str = ""
    """Of ``hours``, for example ``Europe/Berlin``; "": that of OwnPod's host."""
    expires_ms: int | None = None
    """From then on, in ms since the epoch, the endpoint is paused. None: never."""
    auto_rollback: bool = False
    """A release that does not come up is replaced by the last one that did."""
    balancing: Balancing | None = None
    """Of a load-balanced endpoint: the ports and the path in the environment of its workers. None: the endpoint has a queue."""

    @property
    def release(self) -> str:
        """Names what the workers are started from: another template or device need is another release. Scaling
        and time limits are not part of it, as on RunPod.
        """
        template = asdict(self.template)
        del template["init_timeout_s"], template["sharing"], template["digest"]
        if not self.template.volumes:
            # Releases that were made before there were volumes keep their names.
            del template["volumes"]
        if not self.template.registry:
            del template["registry"]
        if self.template.model is None:
            del template["model"]
        if self.template.egress:
            del template["egress"]
        parts = {"template": template, "gpu": self.gpu and asdict(self.gpu)}
        if self.balancing is not None:
            parts["serves"] = asdict(serving_of(self.balancing))
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def serving_of(balancing: Balancing) -> Balancing:
    """The part that workers notice, because it is in their environment; the rest has its defaults."""
    return Balancing(balancing.port, balancing.health_port, balancing.health_path)


def spec_text(spec: ManagedSpec) -> str:
    """A spec as the JSON text that its workers' records have, environment included."""
    # Agents of earlier versions refuse a text with a field that they do not know.
    unused = {
        "balancing": spec.balancing is None,
        "template.model": spec.template.model is None,
        "template.egress": spec.template.egress,
    }
    return to_text(spec, without=tuple(name for name, without in unused.items() if without))


@functools.lru_cache(maxsize=128)
def spec_in(text: str | None) -> ManagedSpec:
    """The spec in a worker's record.

    A text is read once, because all workers of a release have the same one, and agents read them every second.

    Raises:
        WorkerRecordBroken: the text is no spec that this version of OwnPod can start.
    """
    spec = from_text(ManagedSpec, text)
    if spec.gpu is not None and spec.gpu.count < 1:
        raise WorkerRecordBroken("ManagedSpec.gpu.count in Redis is below 1")
    return spec
