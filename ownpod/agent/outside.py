"""Where the engine's host has a directory of this container. Pure.

A path in a request to an engine is a path of the engine's host, and not one of the container that sends it.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any


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
