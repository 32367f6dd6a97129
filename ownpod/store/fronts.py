"""The fronts in Redis: their heartbeats, and what each of them last read from its HAProxy."""

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.fronts import summed
from ownpod.rules.homes import Front
from ownpod.store import keys
from ownpod.store.client import broken_records, redis_errors
from ownpod.store.scripts import Scripts, constants

log = logging.getLogger(__name__)

TTL_S = 1.5
"""Seconds without a heartbeat after which a front counts as dead. A heartbeat comes each 0.5 s, so that another front takes
its place within 2 s."""

LARGEST = 10**12
"""Largest count in a reading."""

broken_fronts = broken_records("the keys of the fronts")

Readings = Mapping[str, RouteReading]
"""What a front has read, by the endpoint's id."""


@dataclass(frozen=True)
class Beat:
    """The answer to a front's heartbeat.

    Attributes:
        now_ms: Redis's clock, in ms since the epoch.
        secret: with it, fronts pass requests on to each other.
        reported: Redis has readings of this front.
        paused: why a worker gets no more requests, by the ids of all paused workers.
        fronts: the fronts that live, this one included.
        readings: what each of them last read, by its id.
        unread: the ids of those that have reported nothing yet.
    """

    now_ms: int
    secret: str = field(repr=False)
    reported: bool
    paused: Mapping[str, str]
    fronts: tuple[Front, ...]
    readings: Mapping[str, Readings]
    unread: frozenset[str]


class Fronts:
    """The commands of ``fronts.lua``. Any call may raise RedisUnavailable, or WorkerRecordBroken for a key of a wrong type.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._new_secret = secrets.token_hex(32)
        self._script = Scripts(
            client,
            "fronts.lua",
            constants=constants(FRONTS=keys.FRONTS, PAUSED=keys.PAUSED, TTL_MS=int(TTL_S * 1000)),
            # A second execution writes the same values.
            repeatable=("beat", "living", "leave"),
        )

    @broken_fronts
    @redis_errors
    def beat(self, front: Front, readings: Readings | None = None) -> Beat:
        """Reports that a front lives, with what it read; None: as it last reported. One round trip."""
        text = "" if readings is None else dumped(readings)
        now_ms, secret, reported, paused, living = self._script(
            "beat", front.id, front.address or "", self._new_secret, text
        )
        fronts, found = _living(living)
        reasons = dict(zip(paused[::2], paused[1::2], strict=True))
        texts = dict(zip(living[::3], living[2::3], strict=True))
        unread = frozenset(name for name, text in texts.items() if not text)
        return Beat(int(now_ms), str(secret), bool(reported), reasons, fronts, found, unread)

    @broken_fronts
    @redis_errors
    def leave(self, front_id: str) -> None:
        """A front ends: others take its place at once."""
        self._script("leave", front_id)

    # Reads of other processes.

    @broken_fronts
    @redis_errors
    def living(self) -> tuple[tuple[Front, ...], dict[str, Readings]]:
        """The fronts that live, and what each of them last read, by its id."""
        return _living(self._script("living"))

    def loads(self) -> dict[str, RouteReading]:
        """Requests of the load-balanced endpoints by the endpoint's id: the sum over all fronts that live."""
        return summed(self.living()[1].values())

    def wishes(self) -> dict[str, tuple[str, ...]]:
        """Ids of workers that are not there, for which requests with ``strict-resume`` wait, by the endpoint's id."""
        return {name: found.wishes for name, found in self.loads().items() if found.wishes}


def _living(found: Any) -> tuple[tuple[Front, ...], dict[str, Readings]]:
    fronts, readings = [], {}
    for name, address, text in zip(found[::3], found[1::3], found[2::3], strict=True):
        fronts.append(Front(name, address or None))
        readings[name] = loaded(text)
    return tuple(sorted(fronts, key=lambda front: front.id)), readings


def dumped(readings: Readings) -> str:
    """Readings as JSON: ``{endpoint: [requests, total, passes, wishes, {worker: [open, waiting, total, up, draining, problem]}, problem]}``."""
    return json.dumps(
        {
            name: [
                reading.requests,
                reading.total,
                int(reading.passes),
                reading.wishes,
                {
                    worker: [r.open, r.waiting, r.total, int(r.up), int(r.draining), r.problem]
                    for worker, r in reading.servers.items()
                },
                reading.problem,
            ]
            for name, reading in readings.items()
        },
        separators=(",", ":"),
    )


def loaded(text: str) -> Readings:
    """The readings in a JSON text of :func:`dumped`; none where another version wrote something else."""
    try:
        return {str(name): _reading(*parts) for name, parts in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        log.debug("the readings of a front are left out: %s", error)
        return {}


def _reading(*values: Any) -> RouteReading:
    requests, total, passes, wishes, servers, problem = values
    return RouteReading(
        requests=_count(requests),
        total=_count(total),
        passes=bool(passes),
        wishes=tuple(map(str, wishes)),
        servers={str(name): _server(*parts) for name, parts in servers.items()},
        problem=str(problem),
    )


def _server(*values: Any) -> ServerReading:
    open_, waiting, total, up, draining, problem = values
    return ServerReading(
        open=_count(open_),
        waiting=_count(waiting),
        total=_count(total),
        up=bool(up),
        draining=bool(draining),
        problem=str(problem),
    )


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ValueError("it is no count")
    return value
