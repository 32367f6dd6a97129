"""The traits of a worker that is pushed to, as its answers show them."""

from dataclasses import dataclass, field

from ownpod.rules.runs import RunCheck


@dataclass
class WorkerTraits:
    """Traits of a worker's server and handler; None: not known yet.

    The threads of the worker's runs read and write it. Each attribute is one reference, and a wrong value costs a
    request or leads to a more careful :class:`RunCheck`, so it has no lock.
    """

    capacity: int
    methods: tuple[str, str] = ("POST", "GET")
    """The HTTP methods of ``/status`` and ``/stream``; the one that the worker takes comes first."""
    yields: bool | None = None
    """Whether the handler yields, as of the worker's last answer to ``/stream``."""
    refuses_streams: bool = False
    """The worker answers ``/stream`` with an error that runs nothing, because its handler does not yield."""
    concurrent: bool | None = field(init=False)
    """Whether the worker answers requests while it runs a job."""

    def __post_init__(self) -> None:
        self.concurrent = True if self.capacity > 1 else None

    def forget(self) -> None:
        """The worker was unreachable, so the next answer may come from another container."""
        self.yields = None
        if self.capacity == 1:
            self.concurrent = None

    @property
    def check(self) -> RunCheck:
        """How to check a run that a request about it would start again."""
        return {None: RunCheck.UNKNOWN, True: RunCheck.TIMEOUT, False: RunCheck.HEALTH}[
            self.concurrent
        ]
