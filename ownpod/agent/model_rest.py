"""What fetches and removals that were killed have left in the directory of models, and the locks that tell it from work in progress."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ownpod.rules.models import KEY

ARCHIVE = ".archive"
"""End of the name of an archive that is being unpacked into the directory without that end."""

_REST = re.compile(rf"\.partial-({KEY.pattern})({re.escape(ARCHIVE)}|\.old\d+)?")


@contextlib.contextmanager
def held(file: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock that the kernel frees when the process dies. False: another process has it. Raises: OSError."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def drop_rest(store: Path, locks: Path, own: str, *, partial: bool) -> None:
    """Removes what no process continues. The caller holds the lock of the store, under which models are moved away.

    Args:
        store: the directory with the models.
        locks: the directory with the locks of their fetches.
        own: key of the model whose lock the caller holds.
        partial: whether that includes models which a later fetch would continue.
    """
    for path in store.glob(".partial-*"):
        found = _REST.fullmatch(path.name)
        if found is None:
            continue
        key, end = found[1], found[2] or ""
        if end not in {"", ARCHIVE}:
            _remove(path)
        elif key == own:
            if end:
                _remove(path)
        elif end or partial:
            with held(locks / f"{key}.lock", wait=False) as free:
                if free:
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
