"""The network volumes of this host: a directory each, made where the first worker with it starts. A deleted one stays a day."""

import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ownpod.agent.directory_checks import CHECK_S, EVERY_S, DirectoryCheck, sizes
from ownpod.agent.engine import EngineError
from ownpod.errors import RedisUnavailable
from ownpod.rules.managed import HostVolume
from ownpod.rules.volumes import ANY_NETWORK, DIRECTORY, NETWORK, VolumeSource
from ownpod.store.network_volumes import NetworkVolumes

log = logging.getLogger(__name__)

TRASH = ".trash"
"""The directory with the data of deleted volumes."""

TRASH_S = 86_400.0
"""Seconds for which the data of a deleted volume is kept."""

TIDY_EVERY_S = 60.0
"""Seconds between two looks for deleted volumes."""

HOMES_EVERY_S = 5.0
"""Seconds for which the homes of volumes that this agent has read are used."""


class NetworkVolumeDirectories:
    """The directories of network volumes on this host.

    Args:
        directory: the parent of them.
        host: this host's name among the agents.
        stored: where each volume is.
        clock: seconds.
        every_s: seconds between two checks of the directory.
        measure: measures the directory; None: the free space of its file system.
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        stored: NetworkVolumes,
        *,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
        measure: Callable[[], HostVolume] | None = None,
    ) -> None:
        self._directory = directory
        self._host = host
        self._stored = stored
        self._clock = clock
        self._every_s = every_s
        place = VolumeSource(ANY_NETWORK, DIRECTORY, str(directory))
        self._check = DirectoryCheck(place, measure or functools.partial(_measured, place))
        self._homes: dict[str, str] = {}
        self._read_at = self._tidied_at = float("-inf")

    def begin(self) -> None:
        """Begins to measure the directory, if the last check was a while ago."""
        self._check.begin(self._every_s)

    def read(self, until: float | None = None) -> list[HostVolume]:
        """What the agent publishes: that this host can make volumes, and those that it has.

        Args:
            until: time of the monotonic clock until which it waits for the directory; None: :data:`CHECK_S` from now.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        self.begin()
        if self._clock() - self._read_at >= HOMES_EVERY_S:
            self._homes, self._read_at = self._stored.homes(), self._clock()
        found = self._check.result(time.monotonic() + CHECK_S if until is None else until)
        mine = [name for name, home in self._homes.items() if home == self._host]
        return [
            replace(found, name=name, source=self._source(name))
            for name in (ANY_NETWORK, *sorted(mine))
        ]

    def may_have(self, names: Sequence[str]) -> bool:
        """Whether none of these volumes is on another host, as far as this agent knows."""
        return all(self._homes.get(name, self._host) == self._host for name in names)

    def settle(self, names: Sequence[str]) -> bool:
        """Makes this host the home of a worker's network volumes. False: another host is. Raises: RedisUnavailable."""
        network = [name for name in names if name.startswith(NETWORK)]
        if not network:
            return True
        settled = self._stored.settle(network, self._host)
        self._read_at = float("-inf")
        return settled

    def source(self, name: str) -> VolumeSource:
        """The directory of a volume, which is made if it does not exist. Raises: EngineError."""
        path = Path(self._source(name))
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"the directory {path} of network volume {name.removeprefix(NETWORK)} cannot be made: {error.strerror}"
            ) from None
        return VolumeSource(name, DIRECTORY, str(path))

    def is_untidy(self) -> bool:
        """Whether it is time for :meth:`tidy`."""
        return self._clock() - self._tidied_at >= TIDY_EVERY_S

    def tidy(self) -> None:
        """Moves deleted volumes to the trash, and empties it of those that were deleted a day ago. Raises: RedisUnavailable."""
        if not self.is_untidy():
            return
        self._tidied_at = self._clock()
        for name, deleted_s in self._stored.deleted().items():
            path, trash = Path(self._source(name)), self._directory / TRASH / name
            with contextlib.suppress(RedisUnavailable):
                self._tidy_one(name, path, trash, deleted_s)

    def _tidy_one(self, name: str, path: Path, trash: Path, deleted_s: float) -> None:
        try:
            if path.is_dir() and not path.is_symlink():
                trash.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.rename(trash)
                log.info(
                    "network volume %s was deleted: its data stays in %s for a day", name, trash
                )
            if trash.exists() and deleted_s > TRASH_S:
                shutil.rmtree(trash)
                log.info("the data of the deleted network volume %s is gone", name)
            if not trash.exists() and self._homes.get(name, self._host) == self._host:
                self._stored.forget(name)
        except OSError as error:
            log.warning("the deleted network volume %s cannot be removed: %s", name, error)

    def _source(self, name: str) -> str:
        if name == ANY_NETWORK:
            return str(self._directory)
        return str(self._directory / name.removeprefix(NETWORK))


def _measured(source: VolumeSource) -> HostVolume:
    """The space of the file system that has the directory, or will have it. May block without an end."""
    directory = Path(source.source)
    try:
        place = next(p for p in (directory, *directory.parents) if p.exists())
        total_mb, free_mb = sizes(place)
    except OSError as error:
        problem = f"{directory} cannot be read: {error.strerror}"
        return HostVolume(source.name, source.kind, source.source, problem=problem)
    return HostVolume(source.name, source.kind, source.source, total_mb, free_mb)
