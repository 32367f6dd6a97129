"""What other fetches write into the directory of models or have left there, and the locks that tell one from the other."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from ownpod.agent.model_folders import size_of
from ownpod.rules.models import KEY, Kept

ARCHIVE = ".archive"
"""End of the name of an archive that is being unpacked into the directory without that end."""

PARTIAL = ".partial-"
"""How the name of a model that is being fetched begins."""

_REST = re.compile(rf"\.partial-({KEY.pattern})({re.escape(ARCHIVE)}|\.old\d+)?")


@contextlib.contextmanager
def held(file: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock that the kernel frees when the process dies. False: another process has it. Raises: OSError.

    What an earlier holder has promised is forgotten.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            os.ftruncate(handle, 0)
            yield True
    finally:
        os.close(handle)


def promise(lock: Path, place: Path, need: int) -> None:
    """Notes that the holder of a lock writes this number of bytes more below a directory. Raises: OSError."""
    lock.write_text(json.dumps({"need": need, "place": str(place), "before": size_of(place)}))


def keep_promise(lock: Path) -> None:
    """Forgets what the holder of a lock has promised, because it has written that. Raises: OSError."""
    lock.write_text("")


def unfinished(store: Path, locks: Path, own: str, stay: Collection[str]) -> tuple[list[Kept], int]:
    """The models of which other fetches have a part, and the bytes that those which run will still write.

    A fetch into Hugging Face's cache counts with all bytes of its promise. The caller holds the lock of the store.

    Args:
        store: the directory with the models.
        locks: the directory with the locks of their fetches.
        own: key of the model that is left out.
        stay: keys of models whose parts a later fetch continues.
    """
    found, coming = [], 0
    keys = {lock.stem for lock in locks.glob("*.lock")}
    keys |= {path.name.removeprefix(PARTIAL) for path in store.glob(f"{PARTIAL}*")}
    for key in sorted(key for key in keys if key != own and KEY.fullmatch(key)):
        lock = locks / f"{key}.lock"
        parts = [store / f"{PARTIAL}{key}{end}" for end in ("", ARCHIVE)]
        size = sum(map(size_of, parts))
        with held(lock, wait=False) as free:
            need, written = (0, 0) if free else _promised(lock)
        missing = max(need - written, 0)
        coming += missing
        if size or need:
            at = parts[0].stat().st_mtime if parts[0].exists() else 0.0
            counted = size + missing if size else need
            found.append(Kept(f"{PARTIAL}{key}", counted, at, not free or key in stay))
    return found, coming


def _promised(lock: Path) -> tuple[int, int]:
    try:
        values = json.loads(lock.read_text())
        return values["need"], max(size_of(Path(values["place"])) - values["before"], 0)
    except (OSError, ValueError, TypeError, KeyError):
        # It has not promised anything yet, or is of another version.
        return 0, 0


def drop_partial(store: Path, locks: Path, name: str) -> None:
    """Removes a model that no process fetches. ``name``: of its directory. Raises: OSError."""
    with held(locks / f"{name.removeprefix(PARTIAL)}.lock", wait=False) as free:
        if free:
            _remove(store / name)
            _remove(store / f"{name}{ARCHIVE}")


def drop_rest(store: Path, locks: Path, own: str) -> None:
    """Removes what no process continues. The caller holds the lock of the store, under which models are moved away.

    Args:
        store: the directory with the models.
        locks: the directory with the locks of their fetches.
        own: key of the model whose lock the caller holds.
    """
    for path in store.glob(f"{PARTIAL}*"):
        found = _REST.fullmatch(path.name)
        if found is None:
            continue
        key, end = found[1], found[2] or ""
        if end not in {"", ARCHIVE}:
            _remove(path)
        elif key == own:
            if end:
                _remove(path)
        elif end:
            with held(locks / f"{key}.lock", wait=False) as free:
                if free:
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
