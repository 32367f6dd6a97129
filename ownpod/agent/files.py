"""The file to which a worker of the engine ``process`` writes: reading it while it grows, and freeing its beginning."""

import contextlib
import ctypes
import errno
import os
import select
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ownpod.agent.engine import Output

PART_BYTES, PIECE_BYTES = 1_000_000, 65_536
"""Maximum number of bytes of one part of an output, and of the whole output of a one-off task, all of which goes to Redis."""

BEHIND_BYTES = 8_000_000
"""Bytes that a reader may be behind; of more only the last :data:`PART_BYTES` are read, because a worker may write faster."""

KEPT_READ_BYTES = 8_000_000
"""Bytes of a one-off task's output that stay on the disk after they were read; more than a line may have."""

CHECK_S = 0.25
"""Seconds between two checks of the file where Linux does not notify of changes, because a user may have a limited number of
such subscriptions."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_IN_MODIFY = 2

BLOCK_BYTES = 1 << 20
"""A multiple of the block size of all file systems: of a block that is freed in part, the rest is overwritten with zeros."""

_libc = ctypes.CDLL(None, use_errno=True)


def free_beginning(path: Path, size: int) -> bool:
    """Frees the disk space of about the first ``size`` bytes of a file, which then are zeros; its length stays.

    Returns:
        False: the file system cannot do that.

    Raises:
        OSError: the file cannot be opened.
    """
    size -= size % BLOCK_BYTES
    if size <= 0:
        return True
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        length = ctypes.c_int64(size)
        done = _libc.fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(0), length)
    except AttributeError:
        return False
    finally:
        os.close(file)
    return bool(done == 0)


class Changes:
    """Waits until one of some files was written to."""

    def __init__(self, *paths: Path) -> None:
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._notices = _subscribe(paths)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        if self._notices is not None:
            self._poll.register(self._notices, select.POLLIN)
        # A reader and the thread that wakes it share this, so it is closed when both have left it.
        weakref.finalize(self, _close, self._woken, self._notices)

    def wait(self, timeout_s: float) -> None:
        """Blocks until the file may have changed, at most ``timeout_s``."""
        if self._notices is None:
            timeout_s = min(timeout_s, CHECK_S)
        self._poll.poll(max(0.0, timeout_s) * 1000)
        if self._notices is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._notices, 65_536)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._woken)

    def wake(self) -> None:
        """Ends the wait of another thread, or the next one."""
        os.eventfd_write(self._woken, 1)


class _Files:
    """The output of a process, in one file or several. Implements :class:`ownpod.agent.engine.Source`.

    A position is an offset in each file.

    Args:
        files: the files.
        runs: whether the worker may still write.
        shorten: keeps the files within their limit.
    """

    def __init__(
        self, *files: "GrowingFile", runs: Callable[[], bool], shorten: Callable[[], None]
    ) -> None:
        self._files = files
        self._runs = runs
        self._shorten = shorten
        self._changes = Changes(*(file.path for file in files))

    def read(self, timeout_s: float) -> Output | None:
        # Before the file is read, because the worker may write between the two.
        runs = self._runs()
        part = self._part()
        if part is None and runs:
            self._changes.wait(timeout_s)
            runs = self._runs()
            part = self._part()
        if part is not None:
            self._shorten()
            return part
        return Output(b"", self._position) if runs else None

    def wake(self) -> None:
        self._changes.wake()

    def close(self) -> None:
        """Does nothing: the descriptors are closed with the object."""

    @property
    def _position(self) -> str:
        return ",".join(str(file.at) for file in self._files)

    def _part(self) -> Output | None:
        """The next part; None: there is none."""
        raise NotImplementedError


class FileSource(_Files):
    """The output of a worker, in one file.

    Args:
        path: the file.
        position: where to begin; "": at its beginning.
        runs: whether the worker may still write.
        shorten: keeps the file within its limit.
    """

    def __init__(
        self,
        path: Path,
        position: str,
        *,
        runs: Callable[[], bool],
        shorten: Callable[[], None],
    ) -> None:
        super().__init__(GrowingFile(path, position), runs=runs, shorten=shorten)

    def _part(self) -> Output | None:
        return self._files[0].part()


class TwoFiles(_Files):
    """The whole output of a one-off task, whose two streams are two files.

    Args:
        output: the file of standard output.
        errors: that of standard error.
        position: as of :class:`FileSource`, for both files.
        runs: as of :class:`FileSource`.
        shorten: as of :class:`FileSource`, for both files.
    """

    def __init__(
        self,
        output: Path,
        errors: Path,
        position: str,
        *,
        runs: Callable[[], bool],
        shorten: Callable[[], None],
    ) -> None:
        first, _, second = position.partition(",")
        files = (
            GrowingFile(path, at, part_bytes=PIECE_BYTES, behind_bytes=None)
            for path, at in ((output, first), (errors, second))
        )
        super().__init__(*files, runs=runs, shorten=shorten)
        self._turn = 0

    def _part(self) -> Output | None:
        for _ in self._files:
            # In turns, because a stream that is written without a pause must not hide the other.
            place, self._turn = self._turn, 1 - self._turn
            part = self._files[place].part()
            if part is not None:
                self._files[place].free_read()
                return replace(part, position=self._position, is_error=place == 1)
        return None


class GrowingFile:
    """A file that is read while it grows.

    Args:
        path: the file.
        position: where to begin; "": at its beginning.
        part_bytes: maximum number of bytes of one part.
        behind_bytes: bytes that the reader may be behind; None: any number.
    """

    def __init__(
        self,
        path: Path,
        position: str,
        *,
        part_bytes: int = PART_BYTES,
        behind_bytes: int | None = BEHIND_BYTES,
    ) -> None:
        self.path = path
        self.at = int(position) if position.isascii() and position.isdecimal() else 0
        self._part_bytes = part_bytes
        self._behind_bytes = behind_bytes
        self._freed = 0

    def free_read(self) -> None:
        """Frees the disk space of what was read a while ago. The last megabytes stay, because the next reader may begin there."""
        size = self.at - KEPT_READ_BYTES
        if size - self._freed > KEPT_READ_BYTES:
            self._freed = size
            with contextlib.suppress(OSError):
                free_beginning(self.path, size)

    def part(self) -> Output | None:
        """The next part; None: there is none."""
        try:
            with self.path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.at:
                    # The file has begun again.
                    self.at = 0
                behind = self._behind_bytes is not None and size - self.at > self._behind_bytes
                begin = max(self.at, size - self._part_bytes if behind else 0)
                begin = _data_from(file.fileno(), begin, size)
                file.seek(begin)
                data = file.read(min(self._part_bytes, size - begin))
        except OSError:
            return None
        if not data:
            return None
        skipped, self.at = begin - self.at, begin + len(data)
        return Output(data.replace(b"\0", b""), str(self.at), skipped)


def _data_from(file: int, begin: int, size: int) -> int:
    """The first place from ``begin`` on that is not in a hole."""
    if begin >= size:
        return size
    try:
        return os.lseek(file, begin, os.SEEK_DATA)
    except OSError as error:
        # Another error than that there is no data: the file system knows no holes.
        return size if error.errno == errno.ENXIO else begin


def _subscribe(paths: Sequence[Path]) -> int | None:
    """A descriptor that is readable once one of the files was written to; None: there cannot be another one."""
    try:
        notices = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if notices < 0:
            return None
        for path in paths:
            if _libc.inotify_add_watch(notices, os.fsencode(path), _IN_MODIFY) < 0:
                os.close(notices)
                return None
    except AttributeError:
        return None
    return int(notices)


def _close(*files: int | None) -> None:
    for file in files:
        if file is not None:
            os.close(file)
