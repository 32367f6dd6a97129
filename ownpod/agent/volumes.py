"""The volumes of this host: what an agent publishes of them, and the paths at which workers have them."""

import functools
import logging
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ownpod.agent.directory_checks import CHECK_S, EVERY_S, DirectoryCheck, sizes
from ownpod.agent.engine import EngineError
from ownpod.agent.network_volumes import NetworkVolumeDirectories
from ownpod.errors import RedisUnavailable
from ownpod.rules.managed import HostVolume
from ownpod.rules.templates import Template, VolumeMount
from ownpod.rules.volumes import DIRECTORY, DOCKER, NETWORK, VolumeSource, path_problem

log = logging.getLogger(__name__)

CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
"""Files that only containers have."""


class Volumes:
    """The volumes of this host, from ``OWNPOD_VOLUMES``.

    Args:
        sources: the volumes.
        every_s: seconds between two checks of a directory.
        network: the network volumes of this host; None: it has none.
    """

    def __init__(
        self,
        sources: Iterable[VolumeSource] = (),
        *,
        every_s: float = EVERY_S,
        network: NetworkVolumeDirectories | None = None,
    ) -> None:
        self.network = network
        self._sources = {source.name: source for source in sources}
        self._every_s = every_s
        self._tidying: threading.Thread | None = None
        self.elsewhere = False
        """The engine may be on another host, or outside of this container, so only the engine knows whether a directory is there."""
        self._checks = {
            source.name: DirectoryCheck(source, functools.partial(self._measured, source))
            for source in self._sources.values()
            if source.kind == DIRECTORY
        }

    def read(self, engine: str) -> tuple[HostVolume, ...]:
        """All volumes by name, as they were last seen. ``engine``: the name of this host's engine."""
        for check in self._checks.values():
            check.begin(self._every_s)
        if self.network is not None:
            self.network.begin()
        until = time.monotonic() + CHECK_S
        found = {name: check.result(until) for name, check in self._checks.items()}
        problem = "" if engine == "docker" else f"the engine {engine} has no Docker volumes"
        for name, source in self._sources.items():
            if source.kind == DOCKER:
                found[name] = HostVolume(name, DOCKER, source.source, problem=problem)
        if self.network is not None:
            # A volume of OWNPOD_VOLUMES may be a network volume that several hosts share.
            found = {volume.name: volume for volume in self.network.read(until)} | found
        return tuple(volume for _, volume in sorted(found.items()))

    def _measured(self, source: VolumeSource) -> HostVolume:
        found = measure(source)
        if found.problem and self.elsewhere and not os.path.lexists(source.source):
            return replace(found, problem="")
        return found

    def of(self, template: Template) -> list[tuple[VolumeMount, VolumeSource]]:
        """The volumes of a template with their sources here. Raises: EngineError, this host does not have one."""
        found = []
        for mount in template.volumes:
            source = self._sources.get(mount.name)
            if source is None and self.network is not None and mount.name.startswith(NETWORK):
                source = self.network.source(mount.name)
            if source is None:
                raise EngineError(
                    f"this host has no volume {mount.name}: set OWNPOD_VOLUMES where its agent runs"
                )
            found.append((mount, source))
        return found

    def may_have(self, names: Iterable[str]) -> bool:
        """Whether none of these volumes is a network volume of another host, as far as this agent knows."""
        others = [name for name in names if name not in self._sources]
        return self.network is None or self.network.may_have(others)

    def settle(self, names: Iterable[str]) -> bool:
        """Makes this host the home of a worker's network volumes. False: another host is. Raises: RedisUnavailable."""
        others = [name for name in names if name not in self._sources]
        return self.network is None or self.network.settle(others)

    def tidy(self) -> None:
        """Begins to remove what deleted network volumes have left: much data, which takes longer than an agent may be silent."""
        due = self.network is not None and self.network.is_untidy()
        if due and (self._tidying is None or not self._tidying.is_alive()):
            self._tidying = threading.Thread(target=self._tidy, name="tidy", daemon=True)
            self._tidying.start()

    def _tidy(self) -> None:
        if self.network is not None:
            try:
                self.network.tidy()
            except RedisUnavailable as error:
                log.warning("what deleted network volumes have left stays for now: %s", error)

    def check_links(self, template: Template) -> None:
        """Checks that workers without a container can have a template's volumes. Raises: EngineError."""
        for mount, source in self.of(template):
            check_link(mount, source)

    def link(self, template: Template) -> list[str]:
        """Makes the paths of a template's volumes, see :func:`make_link`. Raises: EngineError.

        Returns:
            The names of those that should be read-only, which takes a container.
        """
        for mount, source in self.of(template):
            make_link(mount, source)
        return [mount.name for mount in template.volumes if mount.read_only]


def in_container() -> bool:
    """Whether this process runs in a container, so that it may not see the directories of its host."""
    return any(Path(file).exists() for file in CONTAINER_FILES)


def measure(source: VolumeSource) -> HostVolume:
    """A directory's sizes, or why workers cannot use it. May block without an end."""
    name, kind, place = source.name, source.kind, source.source
    try:
        real = os.path.realpath(place)
        # A link must not lead to what a path itself must not be.
        if problem := path_problem(real, forbidden=("/proc", "/sys", "/dev", "/etc"), whole=("/",)):
            return HostVolume(name, kind, place, problem=f"it leads to {real}, and {problem}")
        if not Path(real).is_dir():
            missing = "is no directory" if Path(real).exists() else "does not exist"
            return HostVolume(name, kind, place, problem=f"{place} {missing}")
        total_mb, free_mb = sizes(real)
    except OSError as error:
        return HostVolume(name, kind, place, problem=f"{place} cannot be read: {error.strerror}")
    return HostVolume(name, kind, place, total_mb=total_mb, free_mb=free_mb)


def check_link(mount: VolumeMount, source: VolumeSource) -> None:
    """Checks that a worker without a container can have a volume at its path. Raises: EngineError."""
    if source.kind == DOCKER:
        raise EngineError(f"volume {mount.name} is one of Docker, and this host starts processes")
    path = Path(mount.path)
    try:
        if os.path.lexists(path):
            if not _leads(path, source.source):
                raise EngineError(_taken(mount, source))
            return
        above = next(parent for parent in path.parents if os.path.lexists(parent))
        may = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    except OSError as error:
        raise EngineError(_cannot_make(mount, error.strerror)) from None
    if not may:
        raise EngineError(_cannot_make(mount, f"this user may not write to {above}"))


def make_link(mount: VolumeMount, source: VolumeSource) -> None:
    """Makes the path of a volume a link to its directory, if it does not exist. The link stays: other workers may use it.

    Raises:
        EngineError: the path or the directory cannot be used.
    """
    check_link(mount, source)
    if not Path(source.source).is_dir():
        raise EngineError(
            f"volume {mount.name}: the directory {source.source} does not exist any more"
        )
    path = Path(mount.path)
    if os.path.lexists(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source.source, target_is_directory=True)
    except FileExistsError:
        # Another worker has made it at the same time.
        if not _leads(path, source.source):
            raise EngineError(_taken(mount, source)) from None
    except OSError as error:
        raise EngineError(_cannot_make(mount, error.strerror)) from None


def _leads(path: Path, directory: str) -> bool:
    """Whether a path is a directory, or a link to it."""
    if path.is_symlink() and str(path.readlink()) == directory:
        # Without an access to the directory itself, which may block.
        return True
    try:
        return path.samefile(directory)
    except OSError:
        return False


def _taken(mount: VolumeMount, source: VolumeSource) -> str:
    return (
        f"volume {mount.name}: {mount.path} exists on this host, and is not {source.source}: choose another path in "
        "template.volumes, or move what is there"
    )


def _cannot_make(mount: VolumeMount, problem: object) -> str:
    return (
        f"volume {mount.name}: {mount.path} cannot be made on this host, because {problem}: make it a link to the "
        "volume's directory, or choose another path in template.volumes"
    )
