"""Which release each endpoint's new workers are of: the scaler's step before it counts workers.

A configured spec that has changed makes a release. That release begins when its image is on the hosts; until then the
earlier one is scaled as before. One that does not come up is given up, if the endpoint has ``autoRollback``.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ownpod.errors import WorkerRecordBroken
from ownpod.rules.hours import scaling_at
from ownpod.rules.loads import Failures
from ownpod.rules.managed import LIVE, SERVING, AgentInfo, ManagedWorker, Phase
from ownpod.rules.releases import (
    Prepared,
    Release,
    Rollout,
    could_run,
    effective,
    last_good,
    must_roll_back,
    prepared,
)
from ownpod.rules.templates import ManagedSpec, Scaling
from ownpod.store.releases import Releases

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effective:
    """What an endpoint's new workers are started from, and the id of its release."""

    spec: ManagedSpec
    release: str
    record: Release | None = None
    """None: the release's record cannot be read, so the configured spec counts."""

    @property
    def came_up(self) -> bool:
        """A worker of the release was ready once."""
        return self.record is None or self.record.ready_ms is not None

    def scaling(self, now_ms: int) -> Scaling:
        """The numbers of workers that apply now, in ms since the epoch."""
        return scaling_at(self.spec, now_ms)


class Rollouts:
    """Moves the endpoints from release to release.

    Args:
        releases: the releases' records.
        agents: reads the hosts.
    """

    def __init__(self, releases: Releases, agents: Callable[[], Sequence[AgentInfo]]) -> None:
        self._releases = releases
        self._agents = agents
        self._broken = dict[str, str]()

    def effective(
        self,
        specs: Mapping[str, ManagedSpec],
        workers: Sequence[ManagedWorker],
        *,
        now_ms: Callable[[], int],
    ) -> dict[str, Effective]:
        """What each endpoint's new workers are started from now. Raises: RedisUnavailable.

        Args:
            specs: the configured ones, by the endpoint's id.
            workers: all that are not stopped.
            now_ms: Redis's clock, in ms since the epoch.
        """
        found, rollouts = {}, self._releases.rollouts(specs.keys())
        for endpoint, configured in specs.items():
            mine = [worker for worker in workers if worker.endpoint == endpoint]
            try:
                rollout = rollouts[endpoint]
                if isinstance(rollout, WorkerRecordBroken):
                    raise rollout
                current = self._turn(endpoint, configured, rollout, mine, now_ms)
            except WorkerRecordBroken as error:
                self._complain(endpoint, str(error))
                current = None
            if current is None:
                found[endpoint] = Effective(configured, configured.release)
            else:
                spec = effective(current, configured)
                found[endpoint] = Effective(spec, current.id, current)
        return found

    def _complain(self, endpoint: str, problem: str) -> None:
        if self._broken.get(endpoint) != problem:
            self._broken[endpoint] = problem
            log.error("the releases of endpoint %s cannot be used: %s", endpoint, problem)

    def _turn(
        self,
        endpoint: str,
        configured: ManagedSpec,
        rollout: Rollout,
        workers: Sequence[ManagedWorker],
        now_ms: Callable[[], int],
    ) -> Release | None:
        """The endpoint's release from now on."""
        if rollout.configured != configured.release or rollout.latest is None:
            number = self._releases.note(endpoint, configured)
            rollout = self._releases.rollout(endpoint)
            if number > 1:
                log.info("endpoint %s has a new release, %s", endpoint, number)
        if rollout.next is not None:
            state = self._prepared(endpoint, rollout, workers, now_ms)
            if state.done and self._releases.begin(endpoint, rollout.next.number):
                log.info("endpoint %s: release %s begins", endpoint, rollout.next.number)
                return self._releases.rollout(endpoint).current
            if state.failed and configured.auto_rollback:
                self._roll_back(
                    endpoint, rollout.next, f"no host can get its image: {state.reason}"
                )
        current = rollout.current
        if current is not None and current.ready_ms is None:
            ready = [w for w in workers if w.release == current.id and w.phase is Phase.READY]
            if ready:
                self._releases.came_up(endpoint, current.number)
        return current

    def _prepared(
        self,
        endpoint: str,
        rollout: Rollout,
        workers: Sequence[ManagedWorker],
        now_ms: Callable[[], int],
    ) -> Prepared:
        coming = rollout.next
        serving = [worker for worker in workers if worker.phase in SERVING]
        if coming is None or rollout.current is None or not serving:
            # There is no worker that could serve until the image is there.
            return Prepared(done=True)
        return prepared(
            coming.spec,
            self._agents(),
            self._releases.images(endpoint, coming.number),
            old_hosts={w.host for w in workers if w.phase in LIVE and w.host is not None},
            waited_s=max(0, now_ms() - coming.made_ms) / 1000,
        )

    def has_host(self, current: Effective, workers: Sequence[ManagedWorker]) -> bool:
        """Whether a host could run a worker of the release; read only while workers of another release serve.

        Raises:
            RedisUnavailable
        """
        serving = (worker for worker in workers if worker.phase in SERVING)
        if all(worker.release == current.release for worker in serving):
            return True
        # For example because a secret is missing there.
        refused = {
            host
            for worker in workers
            if worker.phase is Phase.WANTED and worker.release == current.release
            for host in worker.refused_by
        }
        return any(
            could_run(current.spec, agent) for agent in self._agents() if agent.host not in refused
        )

    # The way back.

    def check_starts(self, endpoint: str, current: Effective, failures: Failures) -> None:
        """Gives the current release up, if it does not come up and the endpoint has ``autoRollback``.

        Raises:
            RedisUnavailable, WorkerRecordBroken
        """
        release = current.record
        if release is None or not current.spec.auto_rollback or failures.release != release.id:
            return
        if must_roll_back(release, failures.count):
            # Read again, because a worker of it may have become ready in between.
            last = self._releases.get(endpoint, release.number)
            if last is not None and must_roll_back(last, failures.count):
                why = f"{failures.count} starts in a row failed: {failures.reason}"
                self._roll_back(endpoint, release, why)

    def _roll_back(self, endpoint: str, release: Release, why: str) -> None:
        rollout = self._releases.rollout(endpoint)
        latest = rollout.latest
        if latest is None or latest.number != release.number:
            # Another release follows it already.
            return
        good = last_good(self._releases.releases(endpoint), release)
        if good is None:
            return
        number = self._releases.roll_back(endpoint, release.number, good.number, why)
        if number:
            log.warning(
                "endpoint %s goes back to release %s, because %s did not come up: %s",
                *(endpoint, good.number, release.number, why),
            )
