"""Where the engine's host has the directories of an agent that runs in a container. Pure.

A path in a request to an engine is a path of the engine's host, and not one of the container that sends it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_OWN_FILE = re.compile(r"containers/([0-9a-f]{64})/(?:\S*/)?(?:hostname|hosts|resolv\.conf) /etc/")


def outside(path: str, mounts: Iterable[Mapping[str, Any]]) -> str | None:
    """The path of the engine's host; None: the directory is in no mount, so it is only in this container.

    Args:
        path: an absolute path in this container.
        mounts: of this container, as the engine's API lists them.
    """
    inside = PurePosixPath(path)
    found = [
        (len(PurePosixPath(mount["Destination"]).parts), mount)
        for mount in mounts
        if mount.get("Source") and inside.is_relative_to(mount["Destination"])
    ]
    if not found:
        return None
    _, mount = max(found, key=lambda pair: pair[0])
    return str(PurePosixPath(mount["Source"]) / inside.relative_to(mount["Destination"]))


def own_ids(mountinfo: str, hostname: str) -> list[str]:
    """What may name this container to its engine, the surest first.

    Args:
        mountinfo: the text of ``/proc/self/mountinfo``: an engine mounts files from a directory with the container's id.
        hostname: of this container, by default the beginning of its id.
    """
    return [*dict.fromkeys(_OWN_FILE.findall(mountinfo)), hostname]


@dataclass(frozen=True)
class Outside:
    """Where the engine's host has the models of this agent.

    Attributes:
        directory: of the models, an absolute path.
        given: the path of the directory on the engine's host, ``OWNPOD_MODELS_HOST_DIR``; None: it is not set.
        mounts: of this agent's container, as the engine's API lists them; None: it runs in none that the engine knows.
    """

    directory: str = "/"
    given: str | None = None
    mounts: tuple[Mapping[str, Any], ...] | None = None

    def of(self, path: str) -> str:
        """The path of the engine's host. Raises: ValueError, only this container has the path."""
        inside = PurePosixPath(path)
        if self.given is not None and inside.is_relative_to(self.directory):
            return str(PurePosixPath(self.given) / inside.relative_to(self.directory))
        found = path if self.mounts is None else outside(path, self.mounts)
        if found is None:
            own = inside.is_relative_to(self.directory)
            other = ", or set OWNPOD_MODELS_HOST_DIR" if own else ""
            raise ValueError(
                f"{path} is in no mount of the agent's container: mount a directory of the host there{other}"
            )
        return found
