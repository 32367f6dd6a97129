"""The network volumes of this host: a directory each, made where the first worker with it starts. A deleted one stays a day."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

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
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        stored: NetworkVolumes,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._host = host
        self._stored = stored
        self._clock = clock
        self._homes: dict[str, str] = {}
        self._read_at = self._tidied_at = float("-inf")

    def read(self) -> list[HostVolume]:
        """What the agent publishes: that this host can make volumes, and those that it has. Raises: RedisUnavailable."""
        if self._clock() - self._read_at >= HOMES_EVERY_S:
            self._homes, self._read_at = self._stored.homes(), self._clock()
        total_mb, free_mb = self._space()
        mine = [name for name, home in self._homes.items() if home == self._host]
        return [
            HostVolume(name, DIRECTORY, self._source(name), total_mb, free_mb)
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

    def tidy(self) -> None:
        """Moves deleted volumes to the trash, and empties it of those that were deleted a day ago. Raises: RedisUnavailable."""
        if self._clock() - self._tidied_at < TIDY_EVERY_S:
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

    def _space(self) -> tuple[int, int]:
        """Total and free MiB of the file system that has the directory, or will have it."""
        place = next(p for p in (self._directory, *self._directory.parents) if p.exists())
        usage = shutil.disk_usage(place)
        return usage.total // 1024**2, usage.free // 1024**2
