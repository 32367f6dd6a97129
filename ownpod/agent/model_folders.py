"""The files of a model in a directory."""

import contextlib
import os
from pathlib import Path

from ownpod.rules.models import Manifest, ModelFile, ModelSource, check_file
from ownpod.rules.volumes import path_problem


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; links have none."""
    if path.is_file() and not path.is_symlink():
        return path.stat().st_size
    total = 0
    for top, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                file = Path(top, name)
                total += 0 if file.is_symlink() else file.stat().st_size
    return total


def listed(directory: Path) -> tuple[ModelFile, ...]:
    """The files in a directory, of which none is a link. Raises: OSError; ValueError, with what is wrong."""
    found = []
    for top, folders, names in os.walk(directory):
        for name in (*folders, *names):
            path = Path(top, name)
            inside = check_file(str(path.relative_to(directory)))
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{inside[:80]!r} is no file, and models have files only")
            if name in names:
                found.append(ModelFile(inside, path.stat().st_size))
    return tuple(sorted(found, key=lambda file: file.path))


def of_path(source: ModelSource, path: Path) -> Manifest:
    """A model that is used where it is. Raises: ValueError, it is not there.

    Of Hugging Face's cache a worker gets all of the repository, because the files of a revision are links into its blobs.
    """
    real = os.path.realpath(path)
    if problem := path_problem(real, forbidden=("/proc", "/sys", "/dev", "/etc"), whole=("/",)):
        raise ValueError(f"the path {path} {problem}")
    if not path.exists():
        raise ValueError(f"{path} does not exist on this host")
    for above in path.parents:
        inside = path.relative_to(above)
        if above.name.startswith("models--") and inside.parts[0] == "snapshots":
            return Manifest(source, str(above), str(inside))
    return Manifest(source, str(path))


def sync(directory: Path) -> None:
    """Writes the names in a directory to the disk. Raises: OSError."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
