"""How loaded an endpoint with managed workers is, and how its starts have failed. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Failures:
    """Starts of an endpoint's workers that failed in a row, and the last of them.

    Attributes:
        release: the release that fails; "": none does. The failures of another release do not count.
        count: number of failed starts since a worker of the release was last ready.
        pause_s: seconds until the next start is allowed; 0: now.
        log: the worker's last lines of output.
    """

    release: str = ""
    count: int = 0
    pause_s: float = 0.0
    reason: str = ""
    exit_code: int | None = None
    log: str = ""
    worker: str = ""

    def of(self, release: str) -> "Failures":
        """These, if they are of this release; otherwise that it has none."""
        return self if self.release == release else Failures(release)


@dataclass(frozen=True)
class JobsView:
    """What the scaler needs to know of an endpoint's jobs.

    Attributes:
        now_ms: Redis's clock, in ms since the epoch.
        queued: number of waiting jobs that any worker of the endpoint may run.
        oldest_wait_s: seconds since the oldest waiting job was submitted; 0: none waits.
        running: number of running jobs, by worker id; of all workers of the endpoint.
        lingering: number of lingering slots, by the id of a managed worker that has some.
        idle_s: seconds since a ready worker was first seen without a job, by id; 0 while it is busy.
        failures: failed starts of the release that is to run.
        load_s: seconds from start to ready of the worker that was ready last; 0: not known.
        unhealthy: ids of managed workers that were last published as unhealthy.
        known: the numbers above are known; those of a load-balanced endpoint are not while no front reports.
        are_requests: the jobs are requests of a load-balanced endpoint.
        wishes: ids of workers that are not there, and for which a request or a job waits.
    """

    now_ms: int
    queued: int
    oldest_wait_s: float
    running: Mapping[str, int]
    lingering: Mapping[str, int]
    idle_s: Mapping[str, float] = field(default_factory=dict)
    failures: Failures = Failures()
    load_s: float = 0.0
    unhealthy: frozenset[str] = frozenset()
    known: bool = True
    are_requests: bool = False
    wishes: tuple[str, ...] = ()

    def jobs(self, worker_id: str) -> int:
        """Number of slots that jobs of a worker take, lingering ones included."""
        return self.running.get(worker_id, 0) + self.lingering.get(worker_id, 0)
