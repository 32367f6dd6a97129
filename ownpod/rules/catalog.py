"""The catalog: what callers of the management APIs have made (endpoints, templates, volumes, registries). Pure.

RunPod's three management APIs, REST v1, REST v2 and GraphQL, read and write these rows. Each has its own names, units
and defaults, so each translates a row to its own shape and back. What a caller sent is kept beside the row, because
it must be read back unchanged in the same API.
"""

import secrets
import shlex
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ownpod.rules.templates import DEFAULT_IDLE_TIMEOUT_S, DEFAULT_WORKERS_MAX, ScalerType

RESERVED = frozenset(
    (
        *("serverless", "pods", "templates", "network-volumes", "registries", "catalog"),
        *("clusters", "billing", "account", "sandboxes", "tags", "openapi.json", "docs"),
    )
)
"""First segments of paths of REST v2 below ``/v2/``, so no endpoint may have such an id."""

LONGEST_NAME = 191
"""Characters of an endpoint's name, as RunPod limits them."""

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
    SECRET = "secret"  # noqa: S105 - a kind, no secret


class EndpointType(StrEnum):
    """RunPod's two types of serverless endpoints."""

    QUEUE = "QUEUE"
    LOAD_BALANCER = "LOAD_BALANCER"

    @property
    def short(self) -> str:
        """The type's word in GraphQL and in ``workers.yaml``."""
        return {EndpointType.QUEUE: "QB", EndpointType.LOAD_BALANCER: "LB"}[self]

    @classmethod
    def of_short(cls, word: str) -> "EndpointType":
        """The type of such a word. Raises: ValueError, with the words that there are."""
        for found in cls:
            if found.short == word:
                return found
        raise ValueError(f"type must be one of {', '.join(found.short for found in cls)}")


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

    @property
    def memory_gb(self) -> int:
        """Memory of the flavor: 4 GB for each vCPU of a general one (``cpu3g``), 2 GB of one for computing (``cpu3c``)."""
        return (4 if self.id.endswith("g") else 2) * self.vcpu_count


@dataclass(frozen=True)
class Difference:
    """One changed field of a release, in the words of RunPod's REST v2, with JSON texts. Values of variables are left out."""

    field: str
    old: str
    new: str


@dataclass(frozen=True)
class ReleaseRow:
    """A release of an endpoint: what changed, and when (ms since the epoch, by Redis's clock).

    ``release``: the name of what its workers are started from (:attr:`ownpod.rules.templates.ManagedSpec.release`). A change
    that the workers do not notice has a version of its own, and the name of the version before.
    """

    version: int
    created_ms: int
    release: str = ""
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
        scaler: as sent. A load-balanced endpoint scales by REQUEST_COUNT, whatever RunPod's GraphQL has accepted for it.
        sent: by door, the JSON of what its caller last sent.
        expires_ms: from then on the endpoint is paused; None: never.
        from_file: ``workers.yaml`` defines it, so it is changed there.
        own: JSON of the keys of ``workers.yaml`` that RunPod's APIs do not have, by ``ttl`` or ``template.limits``.
        applied: which file of ``ownpod apply`` made it; "": none did.
        paused_max: ``workers_max`` before ``ownpod endpoints pause``; 0: it was not paused so.
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
    own: Mapping[str, str] = field(repr=False, default_factory=dict)
    applied: str = ""
    paused_max: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether the front sends requests to its workers; False: it has a queue of jobs."""
        return self.type is EndpointType.LOAD_BALANCER


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
    """Credentials of a container registry. Its password is the secret :func:`registry_secret`."""

    id: str
    name: str
    username: str
    created_ms: int = 0


@dataclass(frozen=True)
class SecretRow:
    """What the management APIs know of a secret besides its value, which is encrypted and in no row. The id is the name."""

    id: str
    description: str = ""
    created_ms: int = 0


Row = EndpointRow | TemplateRow | VolumeRow | RegistryRow | SecretRow

REGISTRY_SECRET = "OWNPOD_REGISTRY_"  # noqa: S105 - the beginning of a name
"""What the names of secrets begin with that are passwords of registries; such secrets are listed nowhere else."""


def registry_secret(registry_id: str) -> str:
    """The name of the secret that has the password of registry credentials."""
    return f"{REGISTRY_SECRET}{registry_id}"


KINDS: Mapping[Kind, type[Any]] = {
    Kind.ENDPOINT: EndpointRow,
    Kind.TEMPLATE: TemplateRow,
    Kind.VOLUME: VolumeRow,
    Kind.REGISTRY: RegistryRow,
    Kind.SECRET: SecretRow,
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
