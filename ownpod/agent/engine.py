"""The interface to what runs workers on a host, which each engine implements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ownpod.errors import OwnPodError
from ownpod.rules.balancing import Balancing
from ownpod.rules.managed import LOG_LINES, Device
from ownpod.rules.reconcile import Found
from ownpod.rules.templates import Protocol as Means
from ownpod.rules.templates import Template

__all__ = [
    "LOG_LINES",
    "QUICK_GRACE_S",
    "STOP_GRACE_S",
    "WITHOUT_PORT",
    "Engine",
    "EngineError",
    "Found",
    "Launch",
    "Output",
    "Source",
    "Started",
]

STOP_GRACE_S = 35.0
"""Seconds between SIGTERM and SIGKILL. The SDK ends after its held request, which may last 20 s, and its job."""

QUICK_GRACE_S = 10.0
"""The same for a session that was ended, whose job is FAILED already."""

WITHOUT_PORT = frozenset({Means.PULL, Means.CONTAINER})
"""How workers get their jobs that serve on no port."""


class EngineError(OwnPodError):
    """A worker cannot be started or stopped, with the reason in one plain sentence."""


@dataclass(frozen=True)
class Launch:
    """A worker to be started.

    Attributes:
        worker_id: the worker's id, which names its container or directory.
        instance: the id of this installation of OwnPod, which marks what an engine has started.
        env: the whole environment that the worker gets besides its image's own.
        devices: the devices that it may use.
        mounts: directories and files of its model on the host, by their path in the container, where they are read-only.
        balancing: of a load-balanced endpoint: its port, and that of its health check, which are in ``env`` too.
    """

    worker_id: str
    endpoint: str
    instance: str
    template: Template
    env: Mapping[str, str] = field(repr=False)
    devices: tuple[Device, ...] = ()
    balancing: Balancing | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)
    input: str | None = field(repr=False, default=None)
    """Of a one-off task: its input, JSON text, which the engine puts into a file. None: it is no such task."""


@dataclass(frozen=True)
class Started:
    """A worker that was started.

    Attributes:
        url: the base URL of one that serves RunPod's local API, or of a load-balanced endpoint; None for others.
        health_port: the port of its health check; None: that of ``url``.
    """

    url: str | None = None
    health_port: int | None = None


@dataclass(frozen=True)
class Output:
    """A part of a worker's output.

    Attributes:
        data: bytes of standard output and standard error, in the order in which they were written.
        position: where the output continues, in the engine's words.
        skipped: number of bytes that are missing before ``data``; -1: a number that is not known.
        is_error: of a whole output: ``data`` is of standard error.
    """

    data: bytes
    position: str
    skipped: int = 0
    is_error: bool = False


class Source(Protocol):
    """A worker's output, for one reader."""

    def read(self, timeout_s: float) -> Output | None:
        """The next part; one without data after ``timeout_s`` or :meth:`wake`; None: the worker has ended, and all of it
        was read.

        Raises:
            EngineError: the engine does not answer. A later call continues where this one began.
        """

    def wake(self) -> None:
        """Ends the wait of another thread's read, or of its next one."""

    def close(self) -> None:
        """Frees what the source needs; it is not used any more."""


class Engine(Protocol):
    """Runs workers on this host. Calls block; several threads may make them for different workers.

    All calls are idempotent by the worker's id, and see only workers of the same instance.
    """

    name: str
    instance: str
    """The id of this installation, which marks what the engine has started."""

    def check(self) -> None:
        """Checks that the engine can start workers here. Raises: EngineError."""

    def check_template(self, template: Template) -> None:
        """Checks that the engine can ever start this template. Raises: EngineError."""

    def prepare(self, template: Template, progress: Callable[[str], None]) -> None:
        """Gets what the template needs, its image. ``progress`` gets words for people, at most twice a second.

        Raises:
            EngineError: it cannot be had.
        """

    def digest(self, template: Template) -> str:
        """What the tag of the template's image means now: a digest, or the image's id for one that was built here.

        "": the engine has no images, or neither the registry nor this host shows it. Raises: EngineError.
        """

    def start(self, launch: Launch) -> Started:
        """Starts a worker; does nothing if it runs already. Raises: EngineError."""

    def list(self) -> dict[str, Found]:
        """All workers of this instance by id, those that ended and were not removed included. Raises: EngineError."""

    def stop(self, worker_id: str, grace_s: float = STOP_GRACE_S) -> None:
        """Ends a worker with all its processes: SIGTERM, and SIGKILL after ``grace_s``. Blocks until it has ended."""

    def remove(self, worker_id: str) -> None:
        """Removes what an ended worker left: its container, or its directory."""

    def log(self, worker_id: str, lines: int = LOG_LINES) -> str:
        """The worker's last lines of output, also after its end; "" if there are none."""

    def follow(self, worker_id: str, position: str = "", *, whole: bool = False) -> Source:
        """The worker's output from a position on; "": from its beginning. Nothing of it is repeated.

        ``whole``: of a one-off task. Its two streams are kept apart, and nothing is left out because it writes fast.
        """

    def env(self, worker_id: str) -> Mapping[str, str]:
        """The variables with which a worker was started; none if they are not known. Raises: EngineError."""

    def address(self, worker_id: str) -> Started:
        """Where a running worker serves, as :meth:`start` has returned it. Raises: EngineError."""

    def api_url(self, base_url: str) -> str:
        """The API's base URL as workers of this engine reach it, from the one of this host."""

    def pids(self) -> set[int]:
        """The first process of each running worker, as this host numbers it."""

    def wait(self, timeout_s: float) -> None:
        """Blocks until a worker may have ended, at most ``timeout_s``."""
