"""Managed workers in Redis: their records, and every move of one from phase to phase.

Every change is one command of ``managed.lua``, fenced by the worker's phase and host: a move that is not allowed
changes nothing and returns False. So a command may be repeated.
"""

import json
import logging
from collections.abc import Mapping, Sequence

import redis

from ownpod.errors import BadRequest
from ownpod.rules.managed import (
    MOST_STOPPED,
    ORDER,
    STOPPED_KEPT_S,
    shortened,
)
from ownpod.rules.releases import RolledOut
from ownpod.rules.scaling import start_pause_s
from ownpod.rules.sharing import Evict
from ownpod.rules.templates import ManagedSpec, spec_text
from ownpod.store import keys
from ownpod.store.catalog import AUDIT_CONSTANTS, Audit, audit_arguments
from ownpod.store.client import redis_errors
from ownpod.store.common import BUCKETS_MS
from ownpod.store.journal import JOURNAL_CONSTANTS, OTHER_CONSTANTS
from ownpod.store.loads import broken_managed, check_worker_id
from ownpod.store.managed_records import Records
from ownpod.store.offers import OFFER_CONSTANTS
from ownpod.store.releases import Releases
from ownpod.store.scripts import Scripts, constants
from ownpod.store.tasks import TaskRuns
from ownpod.validation import NAME

log = logging.getLogger(__name__)

PAUSES_S = tuple(map(start_pause_s, range(1, 8)))
"""Seconds without another start after a number of failed starts in a row; the last is that of all further ones."""

LONGEST_REASON, LONGEST_LOG = 300, 16_384
"""Characters of a reason, and of a worker's last output, that are kept."""

OWN_CONSTANTS = constants(
    ENTRIES=keys.MANAGED_ENTRIES,
    IDLE=keys.MANAGED_IDLE,
    FAILURES=keys.MANAGED_FAILURES,
    HOSTS=keys.MANAGED_HOST,
    WANTED=keys.MANAGED_WANTED,
    STOPPED=keys.MANAGED_STOPPED,
    OUTPUT=keys.OUTPUT,
    HELD=keys.DEVICES_HELD,
    RESERVED=keys.DEVICES_RESERVED,
    NEXT=keys.DEVICES_NEXT,
    WORKER=keys.WORKER,
    SEEN=keys.AGENTS_SEEN,
    DRAINING_HOSTS=keys.AGENTS_DRAINING,
    PAUSED=keys.PAUSED,
    RANK={phase.value: place for place, phase in enumerate(ORDER)},
    MOST_STOPPED=MOST_STOPPED,
    STOPPED_MS=STOPPED_KEPT_S * 1000,
    PAUSES_MS=[int(pause_s * 1000) for pause_s in PAUSES_S],
    BUCKETS_MS=BUCKETS_MS,
)
"""Lua in front of ``managed.lua``."""

MANAGED_FILES = (
    "offers.lua",
    "pulling.lua",
    "slots.lua",
    "journal.lua",
    "starts.lua",
    "managed.lua",
)
MANAGED_CONSTANTS = (
    OFFER_CONSTANTS + AUDIT_CONSTANTS + OTHER_CONSTANTS + JOURNAL_CONSTANTS + OWN_CONSTANTS
)


class Managed(Records):
    """The commands and reads of ``managed.lua``'s keys. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.releases = Releases(client)
        """What the endpoints' workers are started from."""
        self.tasks = TaskRuns(client)
        """The runs of one-off tasks."""
        self._script = Scripts(
            client,
            *MANAGED_FILES,
            "sharing.lua",
            "restarts.lua",
            constants=MANAGED_CONSTANTS,
            repeatable=(
                *(
                    "want",
                    "want_again",
                    "waits",
                    "discard",
                    "place",
                    "set_key",
                    "progress",
                    "started",
                    "ready",
                ),
                *("drain", "stopping", "stopped", "lost", "gone", "evict", "unkeep", "refused"),
                *("restart", "restarting", "restarted"),
            ),
        )

    @broken_managed
    @redis_errors
    def _move(self, command: str, worker_id: str, *arguments: str | float) -> bool:
        """Raises: BadRequest, for an id that would be part of another key; WorkerRecordBroken."""
        check_worker_id(worker_id)
        return bool(self._script(command, worker_id, *arguments))

    # The scaler's part.

    def want(
        self, worker_id: str, endpoint: str, *, spec: ManagedSpec, release: str | None = None
    ) -> bool:
        """Records that an endpoint needs one more worker, which an agent is to start.

        Args:
            worker_id: a new random id, see :data:`ownpod.rules.managed.WORKER_ID`.
            endpoint: the endpoint's id.
            spec: what the worker is started from.
            release: id of its release; None: the spec's own name.

        Returns:
            False: another worker has this id.
        """
        return self._move("want", worker_id, *wanted_arguments(endpoint, spec, release))

    def want_again(
        self, worker_id: str, endpoint: str, *, spec: ManagedSpec, release: str | None = None
    ) -> bool:
        """Lets a stopped worker be started once more, by the same id. Arguments as of :meth:`want`.

        Returns:
            False: there is no stopped worker of this id, endpoint and release that was ready and did not fail.
        """
        return self._move("want_again", worker_id, *wanted_arguments(endpoint, spec, release))

    def waits(
        self, worker_id: str, reason: str, *, fetching: tuple[int, int] | None = None
    ) -> bool:
        """Records why no agent takes a wanted worker. False: an agent has taken it, or it does not exist.

        ``fetching``: its model is on its way to a host: bytes that are there, and all, 0 if that is not known.
        """
        return self._move("waits", worker_id, one_line(reason), *(fetching or ("", "")))

    def discard(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:
        """Ends a wanted worker, with an entry in the audit log. False: an agent has taken it, or it does not exist."""
        return self._move("discard", worker_id, one_line(reason), *audit_arguments(audit))

    def drain(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:
        """The worker gets no more jobs, and its agent stops it when it has none; with an entry in the audit log.

        False: no host has it, or it drains already.
        """
        return self._move("drain", worker_id, one_line(reason), *audit_arguments(audit))

    def lost(self, worker_id: str, reason: str) -> bool:
        """The worker's host is silent: the worker is stopped, and its jobs are requeued. Its devices stay held until
        the agent calls :meth:`gone`, because the worker may still run.
        """
        return self._move("lost", worker_id, one_line(reason))

    def evict(self, choice: Evict, beneficiary: str) -> bool:
        """Drains workers whose devices go to a wanted one, all of them or none, and keeps the devices for it.

        Args:
            choice: from :func:`ownpod.rules.sharing.choose`.
            beneficiary: the wanted worker.

        Returns:
            False: something has changed since the choice. A victim is not ready, or has a job and is not to be drained
            while it works; the beneficiary is not wanted any more; a slot is another worker's.
        """
        victims = [
            part for v in choice.victims for part in (v.worker, int(v.busy), one_line(v.reason))
        ]
        return self._move(
            "evict", beneficiary, choice.host, len(choice.victims), *victims, *choice.slots
        )

    def unkeep(self, beneficiary: str) -> None:
        """Keeps no devices for a wanted worker any more, because it cannot get all that it needs."""
        self._move("unkeep", beneficiary)

    # The agent's part.

    def refused(self, worker_id: str, host: str, *, refuses: bool) -> bool:
        """Records whether a host cannot start a wanted worker, so that no worker there gives way to it in vain.

        False: an agent has taken it, or it does not exist.
        """
        return self._move("refused", worker_id, host, int(refuses))

    def place(
        self, worker_id: str, host: str, token: str, devices: Mapping[str, int] | Sequence[str] = ()
    ) -> bool:
        """Gives a wanted worker to a host with all the devices that it needs, or none.

        Args:
            worker_id: the worker.
            host: the agent's name.
            token: the agent's, as in its last heartbeat.
            devices: number of slots by the device's id; ids alone: each has one slot.

        Returns:
            False: another agent has taken the worker, the agent does not own the host's name, the host is drained, or
            a device is held or reserved. True for a call that is repeated.
        """
        slots = devices if isinstance(devices, Mapping) else None
        pairs = [part for name in devices for part in (name, slots[name] if slots else 1)]
        return self._move("place", worker_id, host, token, *pairs)

    def set_key(self, worker_id: str, host: str, key_digest: str) -> bool:
        """From now on the worker's requests need the key with this digest. False: the worker is not to be started on this host."""
        return self._move("set_key", worker_id, host, key_digest)

    def progress(self, worker_id: str, host: str, reason: str) -> bool:
        """Records what the start of a worker waits for. False: it does not start on this host."""
        return self._move("progress", worker_id, host, one_line(reason))

    def started(
        self, worker_id: str, host: str, *, url: str | None = None, health_port: int | None = None
    ) -> bool:
        """The worker runs. False: it is to stop, or is another host's.

        Args:
            worker_id: the worker.
            host: the agent's name.
            url: the base URL of one that is pushed to, or of a load-balanced endpoint.
            health_port: the port of its health check; None: that of ``url``.
        """
        return self._move("started", worker_id, host, url or "", health_port or "")

    def restart(self, worker_id: str) -> bool:
        """The worker is to be started again at once, whatever it runs. False: it is not ready."""
        return self._move("restart", worker_id)

    def restarting(self, worker_id: str, host: str, key_digest: str) -> bool:
        """The worker, which has asked for a restart and has ended, is to be started again; its requests need the key with this
        digest from now on. False: it is to stop, or has not asked.
        """
        return self._move("restarting", worker_id, host, key_digest)

    def restarted(self, worker_id: str, host: str) -> bool:
        """The worker's next process runs. False: it is to stop."""
        return self._move("restarted", worker_id, host)

    def stopping(self, worker_id: str, host: str, reason: str = "") -> bool:
        """The agent stops the worker, which gets no more jobs. ``reason``: "" keeps the one that it has."""
        return self._move("stopping", worker_id, host, one_line(reason))

    def stopped(
        self,
        worker_id: str,
        host: str,
        *,
        exit_code: int | None,
        reason: str,
        failed: bool,
        log: str = "",
        out_of_memory: bool = False,
    ) -> bool:
        """Nothing of the worker runs: its devices are free, its jobs are requeued, and it leaves the registry.

        A worker that failed before it was ready lets its endpoint's next start wait, see :meth:`failures`.

        Args:
            worker_id: the worker.
            host: the agent's name.
            exit_code: None: not known.
            reason: why it stopped, in words.
            failed: it could not be started, or ended by itself.
            log: its last lines of output.
            out_of_memory: the kernel ended it because of its memory limit.
        """
        code = "" if exit_code is None else exit_code
        values = (int(failed), log[-LONGEST_LOG:], int(out_of_memory))
        return self._move("stopped", worker_id, host, code, one_line(reason), *values)

    def gone(self, worker_id: str, host: str) -> bool:
        """Nothing of a worker that is stopped or unknown runs on the host: frees devices that it still holds there.

        False: the worker belongs to the host and is not stopped.
        """
        return self._move("gone", worker_id, host)

    # The API's part.

    def ready(self, worker_id: str) -> bool:
        """The worker has asked for a job, or answers its health check. False: it was ready before, or is to stop."""
        return self._move("ready", worker_id)

    @redis_errors
    def notice(self, what: str = "job") -> None:
        """Wakes the scaler and the agents, see :class:`ownpod.store.agents.Wakeups`."""
        self._redis.publish(keys.MANAGED_NOTICES, what)

    def rolled_out(self, endpoint: str) -> RolledOut:
        """Where an endpoint's releases are, for clients."""
        return self.releases.rolled_out(endpoint)


def wanted_arguments(
    endpoint: str, spec: ManagedSpec, release: str | None
) -> tuple[str | int, ...]:
    """What the record of a wanted worker has. Raises: BadRequest."""
    if not NAME.fullmatch(endpoint):
        raise BadRequest("an endpoint's id must be letters, digits, - and _")
    need = spec.gpu
    return (
        endpoint,
        release or spec.release,
        need.count if need else 0,
        json.dumps(need.pools if need else ()),
        spec.template.protocol.value,
        spec_text(spec),
        json.dumps([mount.name for mount in spec.template.volumes]),
    )


def one_line(text: str) -> str:
    """One line. A terminal would obey control characters, and Redis cannot store half a surrogate pair."""
    line = shortened(" ".join(text.split()), LONGEST_REASON)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
