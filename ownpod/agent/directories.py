"""The directory of a worker that the engine ``process`` has started: its record, its output, its exit code."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ownpod.agent.engine import Started
from ownpod.agent.files import free_beginning

RECORD, WORK, OUTPUT, EARLIER, EXIT = "worker.json", "work", "output.log", "output.log.1", "exit"
ERRORS, INPUT = "errors.log", "input.json"

OUTPUT_BYTES = 50_000_000
"""Size on the disk from which on the beginning of ``output.log`` is freed. The file's length stays, so that every place in it
stays where it is."""

KEPT_BYTES = OUTPUT_BYTES // 2
"""Size of the end that is not freed."""

TASK_TIMES = 20
"""How many times as much is kept of a one-off task, because all of its output is read: what was read is freed before that."""

TAIL_BYTES = 65_536
"""Bytes of output that are read for a worker's last lines."""

SIGNALLED = 128
"""A shell reports a process that signal N has ended as this + N."""


class RecordUnreadable(Exception):
    """The file ``worker.json`` is not one that the engine has written."""


@dataclass(frozen=True)
class Record:
    """What the engine must know of a worker that an earlier agent has started.

    Attributes:
        pid: the shell that waits for the worker; it leads the worker's session and process group.
        started: the shell's start time, see :class:`ownpod.agent.procfs.Process`.
        boot: id of the host's boot in which it was started.
        port: of a worker that serves RunPod's local API, or of a load-balanced endpoint.
        health_port: of the health check of the latter; None: ``port``.
        devices: ids of the devices that it was started with.
    """

    worker_id: str
    endpoint: str
    pid: int
    started: int
    boot: str
    port: int | None = None
    groups: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    health_port: int | None = None

    @property
    def address(self) -> Started:
        url = (self.port and f"http://127.0.0.1:{self.port}") or None
        return Started(url, self.health_port)


def _checked(values: Any, worker_id: str, group: str) -> Record:
    record = Record(**values)
    ports = (port for port in (record.port, record.health_port) if port is not None)
    whole = (record.pid, record.started, *ports)
    if not all(type(number) is int and number > 0 for number in whole):
        raise TypeError
    if record.worker_id != worker_id or not isinstance(record.boot, str):
        raise ValueError
    # A group of another name could be another program's.
    groups = tuple(g for g in record.groups if Path(g).name == group)
    return replace(record, groups=groups)


class Directory:
    """A worker's directory. It is only the user's own, because a handler may write secrets there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK
        self.exit = path / EXIT
        place = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:8]
        self.group = f"ownpod-{place}-{path.name}"
        """The name of the worker's control group, another one for a worker with this id in another data directory."""
        self.output = path / OUTPUT
        self.errors = path / ERRORS
        """Standard error of a one-off task."""
        self._earlier = path / EARLIER
        self.record = path / RECORD

    def make(self) -> None:
        """Makes the directory with an empty working directory. Raises: OSError."""
        self.path.mkdir(mode=0o700, parents=True)
        self.work.mkdir()

    def put_input(self, text: str) -> Path:
        """Writes the input of a one-off task into a file. Raises: OSError."""
        path = self.path / INPUT
        path.write_text(text, errors="replace")
        return path

    def open_output(self, *, errors: bool = False) -> int:
        """A descriptor to append output to. Appending makes every write go to the end, also after a shortening."""
        path = self.errors if errors else self.output
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, record: Record) -> None:
        """Writes the record, whole or not at all, also where the host loses its power. Raises: OSError."""
        new = self.path / f"{RECORD}.new"
        with new.open("w") as file:
            # Without what is not set: an agent of an earlier version cannot read fields that it does not know.
            json.dump({n: v for n, v in asdict(record).items() if v is not None}, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.record)

    def read(self) -> Record | None:
        """The record; None if there is none. Raises: RecordUnreadable."""
        try:
            return _checked(json.loads(self.record.read_bytes()), self.path.name, self.group)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RecordUnreadable(type(error).__name__) from None

    def exit_code(self) -> int | None:
        """The worker's exit code; negative if a signal ended it; None if the shell has not written one."""
        try:
            code = int(self.exit.read_text()[:10])
        except (OSError, ValueError):
            return None
        return SIGNALLED - code if SIGNALLED < code < SIGNALLED + 32 else code

    def shorten_output(self) -> None:
        """Keeps the output within :data:`OUTPUT_BYTES` on the disk, besides what is written meanwhile."""
        is_task = self.errors.exists()
        times = TASK_TIMES if is_task else 1
        for path in (self.output, self.errors) if is_task else (self.output,):
            # Blocks rather than the size, which does not shrink.
            with contextlib.suppress(OSError):
                status = path.stat()
                too_large = status.st_blocks * 512 > times * OUTPUT_BYTES
                if too_large and not free_beginning(path, status.st_size - times * KEPT_BYTES):
                    self._begin_again(path, status.st_size)

    def _begin_again(self, path: Path, size: int) -> None:
        """For a file system without holes: copies the end of the output away. Lines written meanwhile are lost."""
        try:
            with path.open("rb") as source, self._earlier.open("wb") as copy:
                source.seek(max(0, size - KEPT_BYTES))
                _copy(source.read, copy.write, KEPT_BYTES)
        finally:
            os.truncate(path, 0)

    def log(self, lines: int) -> str:
        """The last lines of output, at most :data:`TAIL_BYTES`; "" if there are none."""
        text = _tail(self.output) + _tail(self.errors)
        if text.count(b"\n") <= lines and len(text) < TAIL_BYTES:
            text = _tail(self._earlier) + text
        shown = text[-TAIL_BYTES:].replace(b"\0", b"").decode(errors="replace").splitlines()
        return "\n".join(shown[-lines:] if lines > 0 else ())

    def remove(self) -> None:
        """Removes the directory, the record last, because a worker without a record would not be removed again.

        Raises:
            OSError: something cannot be removed; the record is gone.
        """
        kept = None
        with contextlib.suppress(FileNotFoundError):
            for path in [p for p in self.path.iterdir() if p != self.record]:
                try:
                    _remove(path)
                except OSError as error:
                    kept = error
        self.record.unlink(missing_ok=True)
        if kept:
            raise kept
        with contextlib.suppress(FileNotFoundError):
            self.path.rmdir()


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], object], size: int) -> None:
    while size > 0 and (part := read(min(size, 1_000_000))):
        write(part)
        size -= len(part)


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read(TAIL_BYTES)
    except OSError:
        return b""


def _open_up(folder: Path) -> None:
    """Allows the removal of a folder's files, because a worker may have made folders that their owner cannot change."""
    # A link may name a folder outside.
    if not folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.chmod(stat.S_IRWXU)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _open_up(path)
        for folder, names, _ in os.walk(path):
            for name in names:
                _open_up(Path(folder, name))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
