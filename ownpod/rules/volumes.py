"""Volumes: directories of a host, or volumes of its Docker engine, at paths of workers. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ownpod.rules.managed import AgentInfo, HostVolume
from ownpod.rules.templates import VOLUME_PATH, VolumeMount

DIRECTORY, DOCKER = "directory", "docker"
"""Kinds of a volume."""

DOCKER_PREFIX = "docker:"
"""What the source of a Docker volume begins with, in ``OWNPOD_VOLUMES``."""

MOST_VOLUMES = 100
"""Number of volumes of a host, at most."""

MOST_MOUNTS = 20
"""Number of volumes of a template, at most."""

LONGEST_PATH = 1024
"""Maximum length in bytes of a path."""

NETWORK = "nv-"
"""What the names of network volumes begin with, the volumes of the management APIs; their ids follow."""

ANY_NETWORK = "*"
"""The name under which a host offers to make a network volume that is on no host yet."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

_SYSTEM = ("/proc", "/sys", "/dev", "/etc")
"""Directories that no volume has, and that no volume is in: they control the system."""

_OF_WORKERS = ("/bin", "/boot", "/lib", "/lib32", "/lib64", "/run", "/sbin", "/var/run")
"""The same for the path in a worker, whose programs would be hidden otherwise."""

_WHOLE = ("/", "/home", "/opt", "/root", "/srv", "/tmp", "/usr", "/var", "/var/lib")  # noqa: S108 - nothing is written
"""Directories of a worker that no volume hides as a whole; a volume may be in them."""

_NAME_ALLOWED = "lower-case letters, digits, - and _, at most 63"


@dataclass(frozen=True)
class VolumeSource:
    """A volume that an agent offers.

    Attributes:
        name: its name in templates.
        kind: :data:`DIRECTORY` or :data:`DOCKER`.
        source: the directory's absolute path, or the name of the Docker volume.
    """

    name: str
    kind: str
    source: str


def parse_sources(text: str) -> tuple[VolumeSource, ...]:
    """The volumes of a host, from ``models=/srv/models,cache=docker:cache``.

    Raises:
        ValueError: with what is allowed.
    """
    found: dict[str, VolumeSource] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, given, source = (piece.strip() for piece in part.partition("="))
        if not given or not _NAME.fullmatch(name):
            raise ValueError(
                f"{part[:80]!r} must be <name>=<directory> or <name>=docker:<volume>, like models=/srv/models; "
                f"a name has {_NAME_ALLOWED}"
            )
        if name in found:
            raise ValueError(f"{name} must be there once")
        if source.startswith(DOCKER_PREFIX):
            source = source.removeprefix(DOCKER_PREFIX)
            if not _DOCKER_NAME.fullmatch(source):
                raise ValueError(
                    f"{part[:80]!r} must name a Docker volume of letters, digits, dots, - and _"
                )
            found[name] = VolumeSource(name, DOCKER, source)
        else:
            if problem := path_problem(source, forbidden=_SYSTEM, whole=("/",)):
                raise ValueError(f"{name}: the directory {problem}")
            found[name] = VolumeSource(name, DIRECTORY, source)
    if len(found) > MOST_VOLUMES:
        raise ValueError(f"must have at most {MOST_VOLUMES} volumes")
    return tuple(found.values())


def path_problem(path: str, *, forbidden: Iterable[str], whole: Iterable[str]) -> str:
    """Why a path cannot be a volume's, in words for people; "" if it can.

    Args:
        path: as it is configured.
        forbidden: directories that it must not be, and not be in.
        whole: directories that it must not be.
    """
    if not _is_plain(path):
        return (
            "must be an absolute path of printable characters without : and commas, without //, . and .. in it, and "
            f"at most {LONGEST_PATH} bytes"
        )
    inside = next((top for top in forbidden if path == top or path.startswith(f"{top}/")), None)
    if inside:
        return f"must not be in {inside}"
    return f"must not be {path}" if path in whole else ""


def _is_plain(path: str) -> bool:
    parts = path.split("/")[1:]
    try:
        size = len(path.encode())
    except UnicodeError:
        return False
    return (
        path.startswith("/")
        and size <= LONGEST_PATH
        and path.isprintable()
        and not {":", ",", "\\"}.intersection(path)
        and (path == "/" or all(part not in {"", ".", ".."} for part in parts))
    )


def parse_mounts(value: Any) -> tuple[VolumeMount, ...]:
    """The volumes of a template: a name, an object of paths by name, or a list of names and objects.

    Raises:
        ValueError: with what is allowed.
    """
    if isinstance(value, str):
        value = [value]
    elif isinstance(value, dict):
        value = [{"name": name, "path": path} for name, path in value.items()]
    if not isinstance(value, list) or len(value) > MOST_MOUNTS:
        raise ValueError(
            f"must be a volume's name, an object like models: {VOLUME_PATH}, or a list of at most {MOST_MOUNTS} objects "
            "with the keys name, path and readOnly"
        )
    mounts = tuple(map(_mount, value))
    _check_together(mounts)
    return mounts


def _mount(value: Any) -> VolumeMount:
    values = {"name": value} if isinstance(value, str) else value
    if not isinstance(values, dict) or not values.keys() <= {"name", "path", "readOnly"}:
        raise ValueError("must have only the keys name, path and readOnly in each object")
    name, path = values.get("name"), values.get("path", VOLUME_PATH)
    read_only = values.get("readOnly", False)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"must name each volume with {_NAME_ALLOWED}")
    if not isinstance(path, str):
        raise ValueError(f"must have a path for {name}, for example {VOLUME_PATH}")  # noqa: TRY004 - one kind of error
    if problem := path_problem(path, forbidden=(*_SYSTEM, *_OF_WORKERS), whole=_WHOLE):
        raise ValueError(f"has a wrong path for {name}: it {problem}")
    if not isinstance(read_only, bool):
        raise ValueError(f"must have true or false as readOnly of {name}")  # noqa: TRY004 - one kind of error
    return VolumeMount(name, path, read_only)


def _check_together(mounts: Sequence[VolumeMount]) -> None:
    variables = [variable_of(mount.name) for mount in mounts]
    for place, mount in enumerate(mounts):
        if variable_of(mount.name) in variables[:place]:
            raise ValueError(f"must have each volume once, and has {mount.name} twice")
        for other in mounts[:place]:
            one, two = f"{mount.path}/", f"{other.path}/"
            if one.startswith(two) or two.startswith(one):
                raise ValueError(
                    f"must have paths that are not in each other, unlike those of {other.name} and {mount.name}"
                )


def variable_of(name: str) -> str:
    """The variable of a worker with the path of a volume. Two names may have the same one."""
    return f"OWNPOD_VOLUME_{name.upper().replace('-', '_')}"


def variables(mounts: Iterable[VolumeMount]) -> dict[str, str]:
    """What a worker's environment has of its volumes. ``RUNPOD_VOLUME_ID`` is RunPod's, for its one volume."""
    found = {variable_of(mount.name): mount.path for mount in mounts}
    ids = [mount.name.removeprefix(NETWORK) for mount in mounts if mount.path == VOLUME_PATH]
    return found | ({"RUNPOD_VOLUME_ID": ids[0]} if ids else {})


def has_all(agent: AgentInfo, names: Iterable[str]) -> bool:
    """Whether a host has these volumes, or may make those that are network volumes, and workers can use them now."""
    usable = {volume.name for volume in agent.volumes if not volume.problem}
    return all(name in usable or may_make(agent, name) for name in names)


def may_make(agent: AgentInfo, name: str) -> bool:
    """Whether a host can make this network volume, if it is on no host yet."""
    return name.startswith(NETWORK) and any(
        volume.name == ANY_NETWORK and not volume.problem for volume in agent.volumes
    )


def reachable(agents: Sequence[AgentInfo], names: Sequence[str]) -> tuple[list[AgentInfo], str]:
    """The hosts that can have all these volumes, and why others cannot, because a network volume's data is on one host.

    Args:
        agents: all hosts, also silent and drained ones, because their volumes are nowhere else.
        names: of the volumes that a worker needs.
    """
    homes = {
        name: [agent.host for agent in agents if any(v.name == name for v in agent.volumes)]
        for name in names
        if name.startswith(NETWORK)
    }
    found = [
        agent
        for agent in agents
        if has_all(agent, names)
        and all(not hosts or agent.host in hosts for hosts in homes.values())
    ]
    elsewhere = next(((name, hosts) for name, hosts in homes.items() if hosts), None)
    if elsewhere is None:
        return found, ""
    name, hosts = elsewhere
    return found, f"network volume {name.removeprefix(NETWORK)} is on host {', '.join(hosts)}"


def why_no_volume(agents: Iterable[AgentInfo], names: Sequence[str]) -> str:
    """Why no host has all these volumes, in words for people. ``agents``: at least one."""
    problems = []
    for agent in agents:
        known = {volume.name: volume for volume in agent.volumes}
        if known.keys() >= set(names):
            bad = next(known[name] for name in names if known[name].problem)
            problems.append(f"volume {bad.name} of host {agent.host} cannot be used: {bad.problem}")
    if problems:
        return problems[0]
    if len(names) == 1:
        return f"no host has the volume {names[0]}: set OWNPOD_VOLUMES where its agent runs"
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"no host has the volumes {listed}: set OWNPOD_VOLUMES where its agent runs"


def describe_volume(volume: HostVolume) -> dict[str, Any]:
    """A volume as JSON has it. Sizes in MiB; None: not known."""
    return {
        "name": volume.name,
        "kind": volume.kind,
        "source": volume.source,
        "totalMb": volume.total_mb or None,
        "freeMb": volume.free_mb if volume.total_mb else None,
        "problem": volume.problem,
    }
