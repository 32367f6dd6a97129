"""The catalog: what callers of the management APIs have made (endpoints, templates, volumes, registries). Pure.

RunPod's three management APIs, REST v1, REST v2 and GraphQL, read and write these rows. Each has its own names, units
and defaults, so each translates a row to its own shape and back. What a caller sent is kept beside the row, because
it must be read back unchanged in the same API.
"""

import secrets
import shlex
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from ownpod.rules.templates import (
    DEFAULT_IDLE_TIMEOUT_S,
    DEFAULT_WORKERS_MAX,
    VOLUME_PATH,
    ScalerType,
)

RESERVED = frozenset(
    (
        *("serverless", "pods", "templates", "network-volumes", "registries", "catalog"),
        *("clusters", "billing", "account", "sandboxes", "tags", "openapi.json", "docs"),
    )
)
"""First segments of paths of REST v2 below ``/v2/``, so no endpoint may have such an id."""

LONGEST_NAME = 191
"""Characters of an endpoint's name, as RunPod limits them."""

MOST_RELEASES = 20
"""Releases of an endpoint that its row keeps."""

NO_TIMEOUT_MS = 7 * 86_400_000
"""The ``executionTimeout`` of an endpoint that has none (RunPod's 0): the longest that a job may have."""

SHORTEST_TIMEOUT_MS = 5_000
"""RunPod's shortest ``executionTimeout``."""

_ALPHABET = string.ascii_lowercase + string.digits


class Door(StrEnum):
    """The API through which a caller manages."""

    V1 = "v1"
    V2 = "v2"
    GRAPHQL = "graphql"
    CLI = "cli"


class Kind(StrEnum):
    """The kinds of rows."""

    ENDPOINT = "endpoint"
    TEMPLATE = "template"
    VOLUME = "volume"
    REGISTRY = "registry"


class EndpointType(StrEnum):
    """RunPod's two types of serverless endpoints."""

    QUEUE = "QUEUE"
    LOAD_BALANCER = "LOAD_BALANCER"


class FlashBoot(StrEnum):
    """RunPod's values. OwnPod stores them; they change nothing here."""

    OFF = "OFF"
    FLASHBOOT = "FLASHBOOT"
    PRIORITY_FLASHBOOT = "PRIORITY_FLASHBOOT"


@dataclass(frozen=True)
class Container:
    """What a worker's container is made from.

    Attributes:
        args: the command as one text that a shell would split, if it was given so (``dockerArgs``, ``args``).
        command: the command's words, if it was given as a list (``dockerStartCmd``, ``cmd``).
        disk_gb: None: not given.
        registry: the id of registry credentials.
    """

    image: str = ""
    args: str | None = None
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(repr=False, default_factory=dict)
    ports: tuple[str, ...] = ()
    disk_gb: int | None = None
    registry: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command, however it was given. Raises: ValueError: its quotes do not match."""
        return tuple(shlex.split(self.args)) if self.args else self.command


@dataclass(frozen=True)
class Gpu:
    """The GPUs of one worker, as RunPod's APIs name them.

    Attributes:
        pools: ids of pools in order of preference, for example ``ADA_24``.
        types: ids of GPU types in order of preference, for example ``NVIDIA GeForce RTX 4090``.
        excluded: ids of GPU types of the pools that are not wanted.
        count: GPUs of one worker.
    """

    pools: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Cpu:
    """A CPU flavor of an endpoint without GPUs."""

    id: str
    vcpu_count: int = 2


@dataclass(frozen=True)
class Difference:
    """One changed field of a release, in the words of RunPod's REST v2, with JSON texts. Values of variables are left out."""

    field: str
    old: str
    new: str


@dataclass(frozen=True)
class ReleaseRow:
    """A release of an endpoint: what changed, and when (ms since the epoch, by Redis's clock)."""

    version: int
    created_ms: int
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class EndpointRow:
    """An endpoint of the management APIs.

    Attributes:
        template_id: the template whose edits reach this endpoint (REST v1, GraphQL); None: it has its own copy (REST v2).
        own_template: the template was made for this endpoint, and is deleted with it.
        data_centers: as sent.
        volumes: ids of network volumes.
        timeout_ms: RunPod's ``executionTimeoutMs``; 0: none.
        version: rises with each change that replaces workers.
        sent: by door, the JSON of what its caller last sent.
        expires_ms: from then on the endpoint is paused; None: never.
        from_file: it stands in ``workers.yaml``, and is changed there.
    """

    id: str
    name: str
    container: Container
    type: EndpointType = EndpointType.QUEUE
    gpu: Gpu | None = None
    cpus: tuple[Cpu, ...] = ()
    template_id: str | None = None
    own_template: bool = False
    cuda_allowed: tuple[str, ...] = ()
    cuda_min: str | None = None
    data_centers: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    workers_min: int = 0
    workers_max: int = DEFAULT_WORKERS_MAX
    idle_s: int = DEFAULT_IDLE_TIMEOUT_S
    scaler: ScalerType = ScalerType.QUEUE_DELAY
    scaler_value: float = 4.0
    timeout_ms: int = 0
    flashboot: FlashBoot = FlashBoot.OFF
    version: int = 1
    created_ms: int = 0
    expires_ms: int | None = None
    sent: Mapping[str, str] = field(repr=False, default_factory=dict)
    releases: tuple[ReleaseRow, ...] = ()
    from_file: bool = False


@dataclass(frozen=True)
class TemplateRow:
    """A template of the management APIs.

    Attributes:
        serverless: RunPod's mark of a template for endpoints; others are for pods.
        volume_gb, volume_path: of pods; stored only.
        mounts: JSON of REST v2's ``mounts``; stored only.
    """

    id: str
    name: str
    container: Container
    serverless: bool = False
    public: bool = False
    category: str = "NVIDIA"
    readme: str = ""
    volume_gb: int | None = None
    volume_path: str | None = None
    cuda_allowed: tuple[str, ...] = ()
    start_ssh: bool = True
    start_jupyter: bool = True
    mounts: str = ""
    created_ms: int = 0
    sent: Mapping[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class VolumeRow:
    """A network volume: a directory or Docker volume of a host, at ``/runpod-volume`` of a worker."""

    id: str
    name: str
    size_gb: int
    data_center: str
    type: str = "STANDARD"
    created_ms: int = 0
    sent: Mapping[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class RegistryRow:
    """Credentials of a container registry. Its password is stored encrypted, apart from the row."""

    id: str
    name: str
    username: str
    created_ms: int = 0


Row = EndpointRow | TemplateRow | VolumeRow | RegistryRow

KINDS: Mapping[Kind, type[Any]] = {
    Kind.ENDPOINT: EndpointRow,
    Kind.TEMPLATE: TemplateRow,
    Kind.VOLUME: VolumeRow,
    Kind.REGISTRY: RegistryRow,
}


def kind_of(row: Row) -> Kind:
    """The kind of a row."""
    return next(kind for kind, made in KINDS.items() if isinstance(row, made))


ID_LENGTHS = {Kind.ENDPOINT: 14, Kind.TEMPLATE: 10, Kind.VOLUME: 10, Kind.REGISTRY: 25}
"""Characters of new ids, as RunPod's have."""


def new_id(kind: Kind, taken: Collection[str] = ()) -> str:
    """A random id in RunPod's shape, lower-case letters and digits, that is none of ``taken``."""
    while True:
        made = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTHS[kind]))
        if made not in taken and made not in RESERVED:
            return made


# --- releases

STRUCTURAL: Mapping[str, str] = {
    "container.image": "template.imageName",
    "container.args": "template.dockerArgs",
    "container.command": "template.dockerStartCmd",
    "container.entrypoint": "template.dockerEntrypoint",
    "container.env": "template.env",
    "container.ports": "template.ports",
    "container.disk_gb": "template.containerDiskInGb",
    "container.registry": "template.containerRegistryAuthId",
    "gpu": "gpu",
    "cpus": "cpu",
    "cuda_allowed": "allowedCudaVersions",
    "cuda_min": "minCudaVersion",
    "data_centers": "dataCenterIds",
    "volumes": "networkVolumeIds",
    "flashboot": "flashboot",
}
"""Fields whose change makes a release, with RunPod's names in the differences of a release (RunPod's rolling releases)."""

IN_PLACE: Mapping[str, str] = {
    "name": "name",
    "workers_min": "workersMin",
    "workers_max": "workersMax",
    "idle_s": "idleTimeout",
    "scaler": "scalerType",
    "scaler_value": "scalerValue",
    "timeout_ms": "executionTimeoutMs",
    "expires_ms": "expires",
    "template_id": "templateId",
}
"""Fields whose change applies to the running workers."""


def _value(row: EndpointRow, path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _shown(path: str, value: Any) -> str:
    if path == "container.env":
        # Names only, because values may be secrets.
        return ", ".join(sorted(value))
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(str(getattr(part, "id", part)) for part in value)
    if isinstance(value, Gpu):
        names = (*value.pools, *value.types, *(f"-{name}" for name in value.excluded))
        return f"{value.count} x {', '.join(names) or 'any'}"
    return str(value)


def differences(
    old: EndpointRow, new: EndpointRow, of: Mapping[str, str] = STRUCTURAL
) -> tuple[Difference, ...]:
    """What differs between two states of an endpoint; of variables only the names are told."""
    found = []
    for path, name in of.items():
        before, after = _value(old, path), _value(new, path)
        if before == after:
            continue
        if path == "container.env":
            changed = sorted(k for k in before.keys() & after.keys() if before[k] != after[k])
            told = _shown(path, after) + (f" (changed: {', '.join(changed)})" if changed else "")
            found.append(Difference(name, _shown(path, before), told))
        else:
            found.append(Difference(name, _shown(path, before), _shown(path, after)))
    return tuple(found)


def released(old: EndpointRow | None, new: EndpointRow, now_ms: int) -> EndpointRow:
    """The endpoint with its version: the next one if its workers must be replaced.

    Args:
        old: the endpoint before; None: it is new.
        new: the endpoint as it should be.
        now_ms: ms since the epoch, by Redis's clock.
    """
    if old is None:
        return replace(new, version=1, created_ms=now_ms, releases=(ReleaseRow(1, now_ms),))
    changes = differences(old, new)
    kept = replace(new, version=old.version, releases=old.releases, created_ms=old.created_ms)
    if not changes:
        return kept
    release = ReleaseRow(old.version + 1, now_ms, changes)
    releases = (*old.releases, release)[-MOST_RELEASES:]
    return replace(kept, version=release.version, releases=releases)


# --- what the rest of OwnPod runs


def entry_of(row: EndpointRow) -> dict[str, Any]:
    """The endpoint as an entry of run time, whose keys are those of ``workers.yaml``.

    Raises:
        ValueError: the quotes of its command do not match.
    """
    container = row.container
    template: dict[str, Any] = {"env": dict(container.env)}
    if container.image:
        template["image"] = container.image
    if container.words:
        template["command"] = list(container.words)
    if container.entrypoint:
        template["entrypoint"] = list(container.entrypoint)
    if row.volumes:
        template["volumes"] = [{"name": row.volumes[0], "path": VOLUME_PATH}]
    entry: dict[str, Any] = {
        "template": template,
        "workersMin": min(row.workers_min, row.workers_max),
        "workersMax": row.workers_max,
        "idleTimeout": row.idle_s,
        "scalerType": row.scaler.value,
        "scalerValue": row.scaler_value,
        "executionTimeout": max(row.timeout_ms, SHORTEST_TIMEOUT_MS)
        if row.timeout_ms
        else NO_TIMEOUT_MS,
    }
    if row.gpu is not None:
        entry["gpu"] = {"count": row.gpu.count}
        if names := gpu_names(row.gpu):
            entry["gpu"]["pools"] = list(names)
    return entry


def gpu_names(gpu: Gpu) -> tuple[str, ...]:
    """The pools and types of a need in order of preference, ``-`` before what is excluded; empty: any GPU."""
    wanted = (*gpu.types, *(pool for pool in gpu.pools if pool not in gpu.types))
    return (*wanted, *(f"-{name}" for name in gpu.excluded)) if wanted else ()


def quota_problem(rows: Sequence[EndpointRow], others_max: int, quota: int) -> str:
    """RunPod's text for a sum of ``workersMax`` above the quota, word for word, because scripts parse it; "": it fits.

    Args:
        rows: the changed endpoint first, then the others of the catalog.
        others_max: the sum of ``workersMax`` of the configuration's endpoints.
        quota: the most workers of all endpoints; 0: any.
    """
    used = sum(row.workers_max for row in rows[1:]) + others_max
    if not quota or used + rows[0].workers_max <= quota:
        return ""
    return (
        f"Max workers across all endpoints must not exceed your workers quota ({quota}). Reduce the max workers for "
        f"other endpoints or lower the max worker count for this endpoint to at most {max(quota - used, 0)}."
    )


FIELDS_KEPT = tuple(f.name for f in fields(EndpointRow))
"""Names of an endpoint's fields, for the translators' tests that none is forgotten."""
