"""Agents in Redis: their heartbeats, what occupies the devices of their hosts, and what wakes them."""

import contextlib
import logging
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import redis

from ownpod.errors import BadRequest, WorkerRecordBroken
from ownpod.processes import is_dead_here
from ownpod.rules.fleet import WorkerState
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Hold, ManagedWorker, Phase
from ownpod.rules.records import from_text, to_text
from ownpod.store import keys
from ownpod.store.client import redis_errors, redis_reads
from ownpod.store.loads import broken_managed, whole
from ownpod.store.scripts import Scripts, constants

log = logging.getLogger(__name__)

OWNER_S = 10.0
"""Seconds after the last heartbeat of an agent from which another agent may own the name of its host."""

RETRY_S = 0.5
"""Seconds between the loss of the subscription to notices and the next try to subscribe."""

HOST = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Pattern of the name of a host."""

DEVICE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Pattern of the id of a device."""


@dataclass(frozen=True)
class Heartbeat:
    """The answer to an agent's heartbeat.

    Attributes:
        owned: False: another living agent owns the name of this host, so this one must start nothing.
        draining: the host takes no more workers.
    """

    owned: bool
    draining: bool


class InHand(NamedTuple):
    """What workers are at, by their ids.

    Attributes:
        busy: they have a job or a lingering slot; of a load-balanced endpoint, an open request.
        paused: their node fetches no jobs now; or the front sends them no requests.
        silent: neither a node nor a front publishes their status.
    """

    busy: set[str]
    paused: set[str]
    silent: set[str]


class Agents:
    """The commands and reads of ``agents.lua``'s keys. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._logged: set[str] = set()
        self._script = Scripts(
            client,
            "agents.lua",
            constants=constants(
                AGENTS=keys.AGENTS,
                SEEN=keys.AGENTS_SEEN,
                DRAINING_HOSTS=keys.AGENTS_DRAINING,
                HELD=keys.DEVICES_HELD,
                RESERVED=keys.DEVICES_RESERVED,
                NEXT=keys.DEVICES_NEXT,
                HOSTS=keys.MANAGED_HOST,
                NOTICES=keys.MANAGED_NOTICES,
                OWNER_MS=int(OWNER_S * 1000),
                SILENT_MS=int(HOST_SILENT_S * 1000),
            ),
            repeatable=(
                *("heartbeat", "leave", "remove_agent", "drain_host", "resume_host"),
                *("reserve", "release"),
            ),
        )

    @broken_managed
    @redis_errors
    def _call(self, command: str, host: str, *arguments: str | float) -> Any:
        if not HOST.fullmatch(host):
            raise BadRequest("the name of a host must be letters, digits, ., - and _")
        return self._script(command, host, *arguments)

    # Agents.

    def heartbeat(self, info: AgentInfo, token: str) -> Heartbeat:
        """Publishes a host, and renews the ownership of its name.

        Args:
            info: the host; ``draining`` and ``silent_s`` are not published.
            token: names this process, without spaces. One as :func:`ownpod.processes.this_process` makes it can be
                replaced at once when its process has ended.
        """
        if not re.fullmatch(r"\S{1,255}", token):
            raise BadRequest("an agent's token must be a text without spaces")
        for device in info.devices:
            _check_device(device.id)
        text, dead = to_text(info, without=("draining", "silent_s")), ""
        while True:
            owner, draining = self._call("heartbeat", info.host, token, dead, text)
            if owner in {token, dead} or not is_dead_here(owner):
                return Heartbeat(owner == token, bool(draining))
            dead = owner

    def leave(self, host: str, token: str) -> None:
        """The agent ends. Its workers stay, and the next agent may own the name at once."""
        self._call("leave", host, token)

    @broken_managed
    @redis_reads
    def agents(self) -> list[AgentInfo]:
        """All hosts, by name, also those that are silent. One that cannot be read is left out."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.AGENTS)
            pipe.hgetall(keys.AGENTS_SEEN)
            pipe.smembers(keys.AGENTS_DRAINING)
            pipe.time()
            hosts, seen, draining, (seconds, microseconds) = pipe.execute()
        agents = []
        for host, text in sorted(hosts.items()):
            try:
                info = from_text(AgentInfo, text, others=True)
            except WorkerRecordBroken as error:
                if host not in self._logged:
                    self._logged.add(host)
                    log.error("agent %s is left out: %s", host[:255], error)  # noqa: TRY400 - one line
                continue
            at = seen.get(host, "").partition(" ")[0]
            seen_s = whole(at) / 1000
            silent_s = max(0.0, seconds + microseconds / 1_000_000 - seen_s)
            agents.append(
                replace(info, host=host, draining=host in draining, silent_s=round(silent_s, 3))
            )
        return agents

    def remove_agent(self, host: str) -> bool:
        """Removes a host that does not come back, and frees its devices. False: it is not silent, or has workers."""
        return bool(self._call("remove_agent", host))

    def drain_host(self, host: str) -> None:
        """The host takes no more workers; those that it has stay."""
        self._call("drain_host", host)

    def resume_host(self, host: str) -> None:
        """Ends :meth:`drain_host`."""
        self._call("resume_host", host)

    @broken_managed
    @redis_reads
    def in_hand(self, workers: Collection[ManagedWorker]) -> InHand:
        """Which of these workers have work.

        A worker without a node counts as one that fetches none, because only a node fetches. So does one whose node
        finds it unhealthy: the API gives no job to a worker that drains, whatever its node does meanwhile.
        """
        if not workers:
            return InHand(set(), set(), set())
        endpoints = sorted({worker.endpoint for worker in workers})
        with self._redis.pipeline(transaction=False) as pipe:
            # The nodes first, because a job that a node fetched before it paused is in what is read after.
            for worker in workers:
                pipe.hmget(keys.worker(worker.id), "state", "held")
            for endpoint in endpoints:
                pipe.hvals(keys.running(endpoint))
            replies = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
                raise reply
        # A key of a wrong type counts as empty, because neither a node nor a claim of a job can use it.
        found: list[Any] = [() if isinstance(r, Exception) else r for r in replies]
        found[: len(workers)] = [reply or (None, None) for reply in found[: len(workers)]]
        busy = {name for names in found[len(workers) :] for name in names}
        paused, silent = set(), set()
        for worker, (state, held) in zip(workers, found, strict=False):
            if held and held != "0":
                busy.add(worker.id)
            if state not in {WorkerState.READY, WorkerState.BUSY}:
                paused.add(worker.id)
            if state is None:
                silent.add(worker.id)
        return InHand(busy & {worker.id for worker in workers}, paused, silent)

    @broken_managed
    @redis_reads
    def reasons(self, workers: Collection[str]) -> dict[str, str]:
        """Why workers, by id, are not ready, as it was last published; those of which nothing was are left out."""
        if not workers:
            return {}
        with self._redis.pipeline(transaction=False) as pipe:
            for worker_id in workers:
                pipe.hget(keys.worker(worker_id), "reason")
            replies = pipe.execute(raise_on_error=False)
        found = zip(workers, replies, strict=True)
        return {worker_id: text for worker_id, text in found if isinstance(text, str) and text}

    # Devices.

    def reserve(self, host: str, device: str, reason: str, for_s: float | None = None) -> None:
        """Keeps a device free of workers, for ``for_s`` seconds or until :meth:`release`. A worker that has it stays."""
        _check_device(device)
        if for_s is not None and not 1 <= for_s < math.inf:
            raise BadRequest("the time of a reservation must be at least 1 second")
        for_ms = 0 if for_s is None else int(for_s * 1000)
        self._call("reserve", host, device, for_ms, " ".join(reason.split())[:200])

    def release(self, host: str, device: str) -> bool:
        """Ends :meth:`reserve`. False: the device was not reserved."""
        return bool(self._call("release", host, device))

    def holds(self, host: str) -> list[Hold]:
        """What occupies the devices of a host."""
        return self.all_holds().get(host, [])

    @broken_managed
    @redis_reads
    def all_holds(self) -> dict[str, list[Hold]]:
        """What occupies devices, by host."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.DEVICES_HELD)
            pipe.hgetall(keys.DEVICES_RESERVED)
            pipe.hgetall(keys.DEVICES_NEXT)
            pipe.hgetall(keys.MANAGED_IDLE)
            pipe.time()
            held, reserved, next_ones, idle, (seconds, _) = pipe.execute()
        kept = self._valid(next_ones)
        holds = dict[str, list[Hold]]()
        for name in sorted(held.keys() | kept.keys()):
            host, device, slot = _slot(name)
            worker = held.get(name)
            since_ms = whole(idle.get(worker)) if worker else 0
            idle_s = max(0.0, seconds - since_ms / 1000) if since_ms else None
            hold = Hold(device, worker, next=kept.get(name), slot=slot, idle_s=idle_s)
            holds.setdefault(host, []).append(hold)
        for name, text in sorted(reserved.items()):
            host, _, device = name.partition("/")
            at, _, reason = text.partition(" ")
            left_s = whole(at) / 1000 - seconds if whole(at) else None
            if left_s is None or left_s > 0:
                words = [reason] if reason else []
                words += [] if left_s is None else [f"{_duration(left_s)} left"]
                reserved_for = ", ".join(words) or "without an end"
                holds.setdefault(host, []).append(Hold(device, reserved=reserved_for))
        return holds

    def _valid(self, kept: Mapping[str, str]) -> dict[str, str]:
        """Those of the kept slots whose worker is still wanted."""
        if not kept:
            return {}
        workers = sorted(set(kept.values()))
        with self._redis.pipeline(transaction=False) as pipe:
            for worker_id in workers:
                pipe.hget(keys.managed(worker_id), "phase")
            found = pipe.execute(raise_on_error=False)
        wanted = {w for w, phase in zip(workers, found, strict=True) if phase == Phase.WANTED}
        return {name: worker for name, worker in kept.items() if worker in wanted}


class Wakeups:
    """A subscription to the notices of managed workers, for one thread that decides at once instead of at its next turn.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._pubsub: Any = None

    def wait(self, timeout_s: float) -> bool:
        """Blocks until a notice has come, at most ``timeout_s``. Also True if notices may have been missed.

        Notices that have come together are one. While Redis is away it only waits.
        """
        try:
            if self._pubsub is None:
                pubsub = self._redis.pubsub()
                pubsub.subscribe(keys.MANAGED_NOTICES)
                self._pubsub = pubsub
            until = time.monotonic() + timeout_s
            while True:
                message = self._pubsub.get_message(timeout=max(0.0, until - time.monotonic()))
                if message is not None:
                    break
                if time.monotonic() >= until:
                    return False
            while self._pubsub.get_message(timeout=0.0) is not None:
                pass
        except (redis.RedisError, OSError) as error:
            log.debug("subscribing to notices of managed workers again: %s", error)
            self.close()
            time.sleep(min(RETRY_S, timeout_s))
            return False
        return True

    def close(self) -> None:
        """Ends the subscription."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                pubsub.close()


def _slot(name: str) -> tuple[str, str, int]:
    """Host, device and number of a slot's name in Redis."""
    host, _, slot = name.partition("/")
    device, _, number = slot.rpartition("#")
    return host, device, whole(number)


def _check_device(device: str) -> None:
    if not DEVICE.fullmatch(device):
        raise BadRequest("the id of a device must be letters, digits, ., :, - and _")


def _duration(left_s: float) -> str:
    """A duration in words, in the largest unit of which there is more than one."""
    for unit, unit_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if left_s >= 1.5 * unit_s:
            return f"{round(left_s / unit_s)} {unit}"
    return f"{math.ceil(left_s)} s"
